"""``dualcl``: one subcommand for each thing a user does, with nnU-Net's flag letters."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunet_dualcl import __version__
from nnunet_dualcl.cli.nnunet_entry import DEFAULT_TRAINER, run_with_arguments
from nnunet_dualcl.cli.preflight import check_predict, check_train
from nnunet_dualcl.errors import DualCLError, first_few
from nnunet_dualcl.layout import (
    CONFIG_VARIABLE,
    EXT_TRAINER_VARIABLE,
    IMAGES_UNLABELED,
    SPLITS_FILE,
    dataset_name,
    folder_if_set,
    required_folder,
    with_trainers_folder,
)

# Imports of torch and nnU-Net's machinery stay inside the commands that need them: `dualcl env` runs in every shell.

_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
_REPEAT = "finished files are complete, repeat the command to go on."
_GO_ON = {
    "train": "go on with the same command and --c, or with --val where the last epoch was over.",
    "predict": "finished predictions are complete, go on with the same command and --continue_prediction.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; 0 on success, 1 when some cases failed, 2 for a fault in the input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    others = {"train": _train, "predict": _predict, "convert": _convert}
    if arguments[:1] and arguments[0] in others:
        # nnU-Net's own parser takes all but --config, and the converters have one of their own; -h included
        parsed = argparse.Namespace(run=others[arguments[0]], rest=arguments[1:])
    else:
        parsed = parser.parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
        return code
    except DualCLError as error:
        print(f"dualcl: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _NOT_ALLOWED or error.filename is None:
            raise
        print(
            f"dualcl: error: {error.filename}: {error.strerror}. Make it readable, or its folder writable.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        command = arguments[0] if arguments else ""
        print(f"dualcl: interrupted; {_GO_ON.get(command, _REPEAT)}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dualcl",
        description="Semi-supervised training inside nnU-Net v2.",
        epilog="Paths come from nnUNet_raw, nnUNet_preprocessed and nnUNet_results.",
    )
    parser.add_argument("--version", action="version", version=f"nnunet-dualcl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("env", help="print the export that lets stock nnU-Net find our trainers")
    command.set_defaults(run=_env)

    command = commands.add_parser("doctor", help="check this installation and say the fix for each fault")
    command.set_defaults(run=_doctor)

    commands.add_parser("convert", help="clinical data to nnU-Net's raw format: dualcl convert -h", add_help=False)

    command = commands.add_parser("split", help="write a split file: few labeled, the rest unlabeled, validation")
    command.add_argument("-d", required=True, metavar="DATASET", help="dataset number or name")
    command.add_argument("--labeled", type=int, required=True, help="labeled cases (patients, with --groups)")
    command.add_argument(
        "--val", type=float, default=0.2, help="validation: a share below 1, or a number (default 0.2)"
    )
    command.add_argument("--draws", type=int, default=5, help="draws of the labeled cases, one a fold (default 5)")
    command.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    command.add_argument(
        "--groups",
        type=Path,
        help="CSV, TSV or JSON: case -> patient; patients stay on one side (default: what a conversion wrote)",
    )
    command.add_argument("--exclude", type=Path, help="text file of cases, one a line, to leave out (a test set)")
    command.add_argument("--force", action="store_true", help="replace an existing split file")
    command.set_defaults(run=_split)

    command = commands.add_parser("preprocess", help="run unlabeled cases through nnU-Net's preprocessor")
    command.add_argument("-d", required=True, metavar="DATASET", help="dataset number or name")
    command.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="default: %(default)s")
    command.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="default: %(default)s")
    command.add_argument("-np", type=int, default=4, metavar="PROCESSES", help="cases at a time (default 4)")
    command.add_argument("--force", action="store_true", help="redo cases that are already there")
    command.set_defaults(run=_preprocess)

    commands.add_parser("train", help="nnUNetv2_train with our trainer; also takes --config FILE", add_help=False)
    commands.add_parser("predict", help="nnUNetv2_predict with our trainer", add_help=False)

    command = commands.add_parser("export", help="write a model that stock nnU-Net runs without this package")
    command.add_argument("-d", required=True, metavar="DATASET", help="dataset number or name")
    command.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="default: %(default)s")
    command.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="default: %(default)s")
    command.add_argument("-tr", default=DEFAULT_TRAINER, metavar="TRAINER", help="default: %(default)s")
    command.add_argument("-f", nargs="+", default=None, metavar="FOLD", help="default: every fold with the checkpoint")
    command.add_argument("-chk", default="checkpoint_final.pth", metavar="CHECKPOINT", help="default: %(default)s")
    command.add_argument(
        "--network", choices=("a", "b"), default="a", help="which one of two whole networks; default: %(default)s"
    )
    command.add_argument("-o", type=Path, required=True, metavar="FOLDER", help="folder, or .zip file, to make")
    command.set_defaults(run=_export)

    command = commands.add_parser("benchmark", help="run a protocol of trainings and report how they compare")
    command.add_argument("protocol", type=Path, help="YAML file, such as those in benchmarks/protocols")
    command.add_argument("-i", type=Path, metavar="DATASET", help="labeled dataset, nnU-Net's raw or the MSD's layout")
    command.add_argument("-o", type=Path, required=True, metavar="FOLDER", help="everything is written here")
    command.add_argument("-device", default="cuda", choices=("cuda", "cpu"))
    command.add_argument("--arms", nargs="+", default=None, metavar="ARM", help="run these alone; the rest can follow")
    command.add_argument("--at-once", type=int, default=1, metavar="N", help="jobs at a time (default 1)")
    command.add_argument("--cluster", default="local", choices=("local", "slurm"), help="default: this machine")
    command.add_argument(
        "--slurm", nargs="+", default=[], metavar="KEY=VALUE", help="submitit's Slurm parameters: partition=gpu"
    )
    instead = command.add_mutually_exclusive_group()
    instead.add_argument("--prepare", action="store_true", help="prepare the data, run nothing: needs no GPU")
    instead.add_argument("--report", action="store_true", help="write the report of what is finished, run nothing")
    command.set_defaults(run=_benchmark)

    command = commands.add_parser("demo", help="a phantom dataset from generation to a table against stock nnU-Net")
    command.add_argument("-o", type=Path, default=Path("demo_output"), metavar="FOLDER")
    command.add_argument("--epochs", type=int, default=None, help="epochs of each training (default: a few minutes)")
    command.set_defaults(run=_demo)
    return parser


def _env(_: argparse.Namespace) -> int:
    value = with_trainers_folder(os.environ.get(EXT_TRAINER_VARIABLE))
    print(f"export {EXT_TRAINER_VARIABLE}={shlex.quote(value)}")
    return 0


def _doctor(_: argparse.Namespace) -> int:
    from nnunet_dualcl.cli.doctor import diagnose

    faults = 0
    for finding in diagnose():
        print(f"[{finding.status:5}] {finding.what}")
        if finding.fix:
            print(f"        fix: {finding.fix}")
        faults += finding.status == "fault"
    print("No fault found." if not faults else f"{faults} fault(s) found.")
    return 1 if faults else 0


def _split(arguments: argparse.Namespace) -> int:
    from itertools import chain

    from nnunet_dualcl.data.cases import list_case_images, raw_training_images
    from nnunet_dualcl.data.plans import read_json
    from nnunet_dualcl.data.splits import (
        check_groups,
        draw_splits,
        known_groups,
        of_groups,
        read_case_list,
        read_groups,
        replace_splits,
        trained_folds,
    )

    name = dataset_name(arguments.d)
    raw = required_folder("nnUNet_raw") / name
    if not (raw / "dataset.json").is_file():
        raise DualCLError(f"{raw / 'dataset.json'} does not exist. Convert the dataset to nnU-Net's raw format first.")
    dataset_json = read_json(raw / "dataset.json")
    cases = list(raw_training_images(raw, dataset_json))
    excluded = read_case_list(arguments.exclude) if arguments.exclude else []
    groups = read_groups(arguments.groups) if arguments.groups else known_groups(raw)
    unlabeled = list_case_images(raw / IMAGES_UNLABELED, dataset_json["file_ending"])
    if groups is not None:
        check_groups(unlabeled, groups)
    splits = draw_splits(
        cases,
        labeled=arguments.labeled,
        validation=arguments.val,
        draws=arguments.draws,
        seed=arguments.seed,
        groups=groups,
        excluded=excluded,
        never_validate=[(groups or {}).get(case, case) for case in unlabeled],
    )
    if shared := of_groups(unlabeled, excluded, groups or {}):
        raise DualCLError(
            f"{raw / IMAGES_UNLABELED} holds scans of excluded patients, and training would see them: "
            f"{', '.join(shared)}. Move these out of that folder and repeat; the draw stays the same."
        )
    path = required_folder("nnUNet_preprocessed") / name / SPLITS_FILE
    results = folder_if_set("nnUNet_results")
    trained = trained_folds(results / name)
    replace_splits(raw, path, splits, force=arguments.force, trained=bool(trained))
    first = splits[0]
    more = f" (and {len(unlabeled)} in {IMAGES_UNLABELED})" if unlabeled else ""
    print(
        f"{path}: {len(splits)} fold(s), each with {len(first['train'])} labeled, {len(first['unlabeled'])} "
        f"unlabeled{more} and {len(first['val'])} validation cases (seed {arguments.seed}"
        f"{', whole patients' if groups else ''})."
    )
    tested = list_case_images(raw / "imagesTs", dataset_json["file_ending"])
    if leaks := of_groups([*chain(*first.values()), *unlabeled], tested, groups or {}):
        print(
            f"Note: patients of imagesTs are trained or validated on with {first_few(leaks)}. "
            "If imagesTs is your test set, name these in --exclude and repeat with "
            f"--force; those in {IMAGES_UNLABELED} have to be moved away.",
            file=sys.stderr,
        )
    if trained:
        print(
            f"Note: {first_few(trained)} of {results} were trained before this split. Move their folders away before "
            "training or validating these folds.",
            file=sys.stderr,
        )
    return 0


def _preprocess(arguments: argparse.Namespace) -> int:
    from nnunet_dualcl.preprocessing import preprocess_dataset

    report = preprocess_dataset(
        arguments.d, arguments.c, arguments.p, num_processes=arguments.np, force=arguments.force
    )
    print(
        f"{report.folder}: {len(report.done)} preprocessed, {len(report.skipped)} already there, "
        f"{len(report.failed)} failed."
    )
    for case, fault in sorted(report.failed.items()):
        print(f"  failed: {case}: {fault}", file=sys.stderr)
    return 1 if report.failed else 0


def _convert(arguments: argparse.Namespace) -> int:
    from nnunet_dualcl.cli.convert import convert

    return convert(arguments.rest)


def _train(arguments: argparse.Namespace) -> int:
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--config", type=Path, default=None)
    parsed, rest = own.parse_known_args(arguments.rest)
    helps = "-h" in rest or "--help" in rest
    if helps:
        print(
            "dualcl train takes --config FILE (a DualCLConfig in YAML) and nnU-Net's own arguments; here -tr defaults "
            f"to {DEFAULT_TRAINER}:\n"
        )
    from nnunet_dualcl.training.environment import variable

    if not helps:
        check_train(rest, with_config=parsed.config is not None)
    from nnunetv2.run.run_training import run_training_entry

    with variable(CONFIG_VARIABLE, str(parsed.config.resolve()) if parsed.config else None):
        run_with_arguments(run_training_entry, "dualcl train", rest)
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    if not {"-h", "--help"} & set(arguments.rest):
        check_predict(arguments.rest)
    else:
        print(f"dualcl predict takes nnU-Net's own arguments; here -tr defaults to {DEFAULT_TRAINER}:\n")
    from nnunetv2.inference.predict_from_raw_data import predict_entry_point

    run_with_arguments(predict_entry_point, "dualcl predict", arguments.rest)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from nnunet_dualcl.export import export_stock_model, is_archive, name_of_plans_b
    from nnunet_dualcl.model_folder import averaged

    name = dataset_name(arguments.d)
    model = required_folder("nnUNet_results") / name / f"{arguments.tr}__{arguments.p}__{arguments.c}"
    folds = export_stock_model(
        model, arguments.o, folds=arguments.f, checkpoint_name=arguments.chk, network=arguments.network
    )
    numbers = " ".join(fold.removeprefix("fold_") for fold in folds)
    place, ends = shlex.quote(str(arguments.o)), f"-f {numbers} -i INPUT -o OUTPUT"
    predict = f"nnUNetv2_predict_from_modelfolder -m {place} {ends}"
    if is_archive(arguments.o):
        plans = arguments.p if arguments.network == "a" else name_of_plans_b(arguments.p)
        predict = (
            f"nnUNetv2_install_pretrained_model_from_zip {place}, which replaces files of a stock model of that name "
            f"there, and nnUNetv2_predict -d {name} -p {plans} -c {arguments.c} {ends}"
        )
    print(f"{arguments.o}: {', '.join(folds)}. Predict anywhere with: {predict}")
    part = next(filter(None, (averaged(model / fold / arguments.chk) for fold in folds)), None)
    if part is not None:
        alone = f"{part} {arguments.network.upper()} alone"
        print(f"It is {alone}; the validation scores of the source are of the mean of both.")
    if part == "network":
        other = "with --network b" if arguments.network == "a" else "without --network b"
        print(
            f"For that mean export the other network as well, {other}, predict with both, each with "
            "--save_probabilities and an output folder of its own, and average: nnUNetv2_ensemble -i OUTPUTS -o OUTPUT"
        )
    return 0


def _benchmark(arguments: argparse.Namespace) -> int:
    if sys.platform == "win32":  # submitit starts its jobs with signals that Windows does not have
        raise DualCLError("dualcl benchmark runs on Linux and macOS. Use the Windows Subsystem for Linux.")
    try:
        from nnunet_dualcl.benchmark.arms import LOWER_BOUND, UPPER_BOUND
        from nnunet_dualcl.benchmark.protocol import Protocol
        from nnunet_dualcl.benchmark.report import write_report
        from nnunet_dualcl.benchmark.results import JOBS_FOLDER
        from nnunet_dualcl.benchmark.run import LOGS_FOLDER, Engine, prepare_benchmark, run_benchmark
    except ModuleNotFoundError as error:
        raise DualCLError(f"{error}. Benchmarks need more packages: pip install 'nnunet-dualcl[benchmark]'") from None
    failed: list[str] = []
    if arguments.i is None and not arguments.report:
        raise DualCLError("Name the dataset with -i, or give --report to report what is finished.")
    if arguments.prepare:
        prepare_benchmark(arguments.protocol, arguments.i, arguments.o, only=arguments.arms)
        print(f"{arguments.o} is prepared. Repeat the command without --prepare to run the jobs.")
        return 0
    if not arguments.report:
        failed = run_benchmark(
            arguments.protocol,
            arguments.i,
            arguments.o,
            device=arguments.device,
            only=arguments.arms,
            engine=Engine(arguments.cluster, arguments.at_once, _slurm_parameters(arguments.slurm)),
        )
    protocol = Protocol.from_yaml(arguments.protocol)
    raw = arguments.o / "nnUNet_raw" / protocol.dataset
    images, references = protocol.scored_folders
    report = write_report(
        arguments.o,
        images=raw / images,
        references=raw / references,
        baselines=protocol.baselines,
        lower=LOWER_BOUND,
        upper=UPPER_BOUND,
        title=protocol.title,
        order=tuple(protocol.arms),
    )
    print(f"Report: {report}")
    for name in failed:
        print(f"  failed: {name}: see {arguments.o / JOBS_FOLDER / name / LOGS_FOLDER}", file=sys.stderr)
    return 1 if failed else 0


def _slurm_parameters(pairs: list[str]) -> dict[str, object]:
    import yaml

    odd = [pair for pair in pairs if "=" not in pair]
    if odd:
        raise DualCLError(f"--slurm takes KEY=VALUE, as in partition=gpu timeout_min=600; got {', '.join(odd)}.")
    return {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in pairs)}


def _demo(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from nnunet_dualcl.demo import CONFIG, run_demo

    run_demo(arguments.o, CONFIG if arguments.epochs is None else replace(CONFIG, num_epochs=arguments.epochs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
