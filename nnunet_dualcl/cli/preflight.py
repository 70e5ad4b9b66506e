"""What can be known to fail is said before nnU-Net starts, with the fix."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from nnunet_dualcl.cli.nnunet_entry import DEFAULT_TRAINER
from nnunet_dualcl.errors import DualCLError, first_few
from nnunet_dualcl.layout import dataset_name, folder_if_set, required_folder

_WITH_A_VALUE = (
    *("-num_gpus", "-pretrained_weights", "-i", "-o", "-part_id", "-num_parts"),
    *("-prev_stage_predictions", "-step_size", "-npp", "-nps"),
)
"""Options of nnU-Net whose values are no positional arguments, and which are not short for another one."""


def check_train(arguments: Sequence[str], *, with_config: bool = False) -> None:
    """Look at the arguments of ``nnUNetv2_train``; a command line that its parser will refuse is left to it.

    Args:
        with_config: a configuration file was given, which trainers that are not built on this package's do not read.

    Raises:
        DualCLError: no such dataset, plans, configuration, fold, trainer or preprocessed cases, no place for results,
            no CUDA device, a trainer that leaves the configuration file aside, a training that would be begun anew over
            another one, or one to validate that is not finished.
    """
    parser = _parser()
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("configuration", nargs="?")
    parser.add_argument("fold", nargs="?")
    for flag in ("--c", "--val", "--npz", "--val_best", "--disable_checkpointing"):  # all, or they part the positionals
        parser.add_argument(flag, action="store_true")
    parsed = _parsed(parser, arguments)
    if parsed is None or parsed.fold is None:
        return
    from nnunet_dualcl.data.plans import check_configuration, preprocess_command, read_plans

    if parsed.fold != "all" and not parsed.fold.isdecimal():
        raise DualCLError(f"Fold '{parsed.fold}' is neither a number nor all.")
    fold = parsed.fold if parsed.fold == "all" else int(parsed.fold)  # nnU-Net takes 00 for 0
    if parsed.c and parsed.val:
        raise DualCLError("--c goes on with a training, --val validates a finished one. Give one of them.")

    preprocessed = required_folder("nnUNet_preprocessed")
    results = required_folder("nnUNet_results")
    name = dataset_name(parsed.dataset)
    plans = read_plans(preprocessed / name, parsed.p)
    check_configuration(plans, parsed.configuration)
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder = preprocessed / name / PlansManager(plans).get_configuration(parsed.configuration).data_identifier
    if not folder.is_dir():
        raise DualCLError(
            f"{folder} does not exist: the labeled cases are not preprocessed with these plans. Run: "
            + preprocess_command(name, parsed.p, parsed.configuration)
        )
    _check_trainer(parsed.tr, with_config=with_config)
    own = results / name / f"{parsed.tr}__{parsed.p}__{parsed.configuration}" / f"fold_{fold}"
    trained = [checkpoint.name for checkpoint in sorted(own.glob("checkpoint_*.pth"))]
    if trained and not (parsed.c or parsed.val):
        raise DualCLError(
            f"{own} holds a training ({', '.join(trained)}), which this command would begin anew and overwrite. Go on "
            "with it by --c, validate it by --val, or move that folder away."
        )
    if parsed.val and "checkpoint_final.pth" not in trained:
        raise DualCLError(
            f"{own} holds no finished training (checkpoint_final.pth) to validate. "
            + ("Finish it with --c." if trained else "Train this fold first, without --val.")
        )
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"nnUNet_results={results} cannot be made: {error.strerror}. Set it to a folder of yours."
        raise DualCLError(reason) from None
    _check_device(parsed.device)


def check_predict(arguments: Sequence[str]) -> None:
    """Look at the arguments of ``nnUNetv2_predict``; a command line that its parser will refuse is left to it.

    Raises:
        DualCLError: no such dataset, model or checkpoint, folds that do not go together, or no CUDA device.
    """
    parser = _parser()
    parser.add_argument("-d")
    parser.add_argument("-c")
    parser.add_argument("-f", nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("-chk", default="checkpoint_final.pth")
    parsed = _parsed(parser, arguments)
    if parsed is None or parsed.d is None or parsed.c is None:
        return
    results = required_folder("nnUNet_results")
    from nnunet_dualcl.model_folder import check_folds, trained_checkpoints

    model = results / dataset_name(parsed.d) / f"{parsed.tr}__{parsed.p}__{parsed.c}"
    check_folds(model, trained_checkpoints(model, parsed.f, parsed.chk))
    if parsed.i is not None:
        _check_images(Path(parsed.i), model)
    _check_device(parsed.device)


def _check_images(folder: Path, model: Path) -> None:
    """nnU-Net ends in a traceback on a wrong folder, name or number of channels, and passes over other file endings."""
    from nnunet_dualcl.data.cases import files_a_case, list_case_images, misnamed_files, raw_training_images
    from nnunet_dualcl.data.plans import read_json

    dataset_json = read_json(model / "dataset.json")
    ending = dataset_json["file_ending"]
    if not folder.is_dir():
        raise DualCLError(f"-i {folder} is no folder. Name the one that holds CASE_0000{ending} files.")
    images = list_case_images(folder, ending)
    hidden = [path.name for path in sorted(folder.glob(f".*{ending}"))]  # nnU-Net takes the Mac's ._ files for cases
    others = hidden + misnamed_files(folder, ending)
    if others or not images:
        found = first_few(others) if others else "none"
        raise DualCLError(
            f"{folder} must hold images named CASE_0000{ending}, CASE_0001{ending} for a second channel; found "
            f"{found}. Rename them, or take them out of it."
        )
    channels = dataset_json.get("channel_names", dataset_json.get("modality", {}))
    own = raw_training_images(folder_if_set("nnUNet_raw") / model.parent.name, dataset_json)
    expected = files_a_case((own or images).values(), len(channels))
    wrong = [f"{case} ({len(files)})" for case, files in images.items() if len(files) != expected]
    if wrong:
        raise DualCLError(
            f"{folder}: {first_few(wrong)} with other than {expected} image file(s), which "
            f"{'those of the dataset' if own else 'other cases'} have. The model takes {len(channels)} channel(s): "
            f"{', '.join(map(str, channels.values()))}. Add what is missing or take the cases out."
        )
    for path in tqdm(list(chain(*images.values())), desc="Looking at images", unit="file", delay=5):
        _check_whole(path)


def _check_whole(path: Path) -> None:
    """SimpleITK fills up what is missing of a file that is cut off, without a word."""
    from nnunet_dualcl.dataset_conversion.headers import check_length, read_header
    from nnunet_dualcl.dataset_conversion.reading import ending_of

    ending = ending_of(path)
    if ending is None:
        return
    try:
        header = read_header(path, ending)
    except DualCLError:
        return  # what cannot be read at all nnU-Net refuses by itself
    check_length(path, header)


def _check_trainer(name: str, *, with_config: bool) -> None:
    from nnunet_dualcl.find_trainer import find_trainer, packaged_trainers, reads_config

    if name not in packaged_trainers() and not reads_config(find_trainer(name)) and with_config:
        raise DualCLError(
            f"--config is for trainers of this package and those that inherit from them; {name} does not read it."
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-p", default="nnUNetPlans")
    parser.add_argument("-tr", default=DEFAULT_TRAINER)
    parser.add_argument("-device", default="cuda")
    for flag in _WITH_A_VALUE:
        parser.add_argument(flag)
    return parser


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace | None:
    """None where a flag lacks its value."""
    try:
        return parser.parse_known_intermixed_args(list(arguments))[0]
    except argparse.ArgumentError:
        return None


def _check_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise DualCLError("No CUDA device here. Add -device cpu (slow), or run on a machine with a GPU.")
