"""What can be known to fail is said before nnU-Net starts, with the fix."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnunet_dualcl.cli.nnunet_entry import DEFAULT_TRAINER
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.layout import dataset_name, required_folder


def check_train(arguments: Sequence[str], *, with_config: bool = False) -> None:
    """Look at the arguments of ``nnUNetv2_train``; a command line that its parser will refuse is left to it.

    Args:
        with_config: a configuration file was given, which nnU-Net's own trainers do not read.

    Raises:
        DualCLError: no such dataset, plans, configuration or preprocessed cases, no CUDA device, or a trainer that
            leaves the configuration file aside.
    """
    parser = _parser()
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("configuration", nargs="?")
    parser.add_argument("fold", nargs="?")
    parsed = _parsed(parser, arguments)
    if parsed is None or parsed.fold is None:
        return
    if with_config and _is_nnunets(parsed.tr):
        raise DualCLError(
            f"--config is for trainers of this package; {parsed.tr} is nnU-Net's own and does not read it."
        )
    from nnunet_dualcl.data.plans import check_configuration, read_plans

    preprocessed = required_folder("nnUNet_preprocessed")
    required_folder("nnUNet_results")
    name = dataset_name(parsed.dataset)
    plans = read_plans(preprocessed / name, parsed.p)
    check_configuration(plans, parsed.configuration)
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder = preprocessed / name / PlansManager(plans).get_configuration(parsed.configuration).data_identifier
    if not folder.is_dir():
        raise DualCLError(
            f"{folder} does not exist: the labeled cases are not preprocessed with these plans. Run: "
            f"nnUNetv2_preprocess -d {parsed.dataset} -plans_name {parsed.p} -c {parsed.configuration}"
        )
    _check_device(parsed.device)


def check_predict(arguments: Sequence[str]) -> None:
    """Look at the arguments of ``nnUNetv2_predict``; a command line that its parser will refuse is left to it.

    Raises:
        DualCLError: no such dataset, model or checkpoint, or no CUDA device.
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
    from nnunet_dualcl.export import trained_checkpoints

    model = results / dataset_name(parsed.d) / f"{parsed.tr}__{parsed.p}__{parsed.c}"
    trained_checkpoints(model, parsed.f, parsed.chk)
    _check_device(parsed.device)


def _is_nnunets(trainer: str) -> bool:
    from nnunetv2.training import nnUNetTrainer
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    return recursive_find_python_class(nnUNetTrainer.__path__[0], trainer, nnUNetTrainer.__name__) is not None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-p", default="nnUNetPlans")
    parser.add_argument("-tr", default=DEFAULT_TRAINER)
    parser.add_argument("-device", default="cuda")
    for flag in ("-num_gpus", "-pretrained_weights", "-i", "-o"):  # their values are no positional arguments
        parser.add_argument(flag)
    return parser


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace | None:
    """None where a flag lacks its value."""
    try:
        return parser.parse_known_args(list(arguments))[0]
    except argparse.ArgumentError:
        return None


def _check_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise DualCLError("No CUDA device here. Add -device cpu (slow), or run on a machine with a GPU.")
