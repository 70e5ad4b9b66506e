from __future__ import annotations

import inspect
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_dualcl.cli.main import main
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.export import export_stock_model
from nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer
from nnunet_dualcl.trainers.DualCLTwoNetTrainer import DualCLTwoNetTrainer

SHORT = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "contrastive_samples": 64}


@pytest.fixture
def untrained_model(toy: Any, configure: Any) -> Callable[[Any], Path]:
    """The folder of a trainer's model that has not trained."""

    def save(trainer_class: Any) -> Path:
        configure(**SHORT)
        trainer = toy.trainer(trainer_class)
        trainer.initialize()
        trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
        folder = Path(trainer.output_folder_base)
        for name, content in (("plans.json", toy.plans()), ("dataset.json", trainer.dataset_json)):
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
        return folder

    return save


def test_it_differs_in_the_network_alone() -> None:
    own = {name for name, value in vars(DualCLTwoNetTrainer).items() if callable(getattr(DualCLTwoNetTrainer, name))}
    assert own - {"__class__"} == {"build_network_architecture"}
    signatures = [
        inspect.signature(cls.build_network_architecture).parameters for cls in (DualCLTrainer, DualCLTwoNetTrainer)
    ]
    assert signatures[0] == signatures[1]


def test_it_trains_both_networks_and_exports_each(
    toy: Any, configure: Any, train_and_list_moved: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(**SHORT)
    trainer = toy.trainer(DualCLTwoNetTrainer)
    moved = train_and_list_moved(trainer)
    assert moved == {"encoder", "decoder", "encoder_b", "decoder_b"}
    x = torch.randn(1, 2, *trainer.configuration_manager.patch_size, generator=torch.Generator().manual_seed(0))
    logits = []
    for network in "ab":
        place = tmp_path / network
        command = ["export", "-d", "777", "-p", "toyPlans", "-tr", "DualCLTwoNetTrainer", "--network", network]
        assert main([*command, "-o", str(place)]) == 0
        told = capsys.readouterr().out
        assert f"It is network {network.upper()} alone" in told
        assert f"{'with' if network == 'a' else 'without'} --network b" in told
        assert "nnUNetv2_ensemble" in told
        predictor = nnUNetPredictor(device=torch.device("cpu"), verbose=False)
        predictor.initialize_from_trained_model_folder(str(place), (0,))
        assert type(predictor.network) is (PlainConvUNet if network == "a" else ResidualEncoderUNet)
        predictor.network.load_state_dict(predictor.list_of_parameters[0])
        with torch.no_grad():
            logits.append(predictor.network.eval()(x))
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        assert torch.equal(trainer.network.eval()(x), sum(logits) / 2)


def test_archives_of_both_networks_lie_side_by_side_where_they_are_installed(
    toy: Any, untrained_model: Callable[[Any], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    untrained_model(DualCLTwoNetTrainer)
    command = ["export", "-d", "777", "-p", "toyPlans", "-tr", "DualCLTwoNetTrainer"]
    for network in "ab":
        assert main([*command, "--network", network, "-o", str(tmp_path / f"{network}.zip")]) == 0
        with zipfile.ZipFile(tmp_path / f"{network}.zip") as packed:
            packed.extractall(tmp_path / "results")
    assert "-p toyPlansNetworkB -c 3d_fullres" in capsys.readouterr().out
    places = sorted(path.name for path in (tmp_path / "results").glob("*/*"))
    assert places == ["nnUNetTrainer__toyPlansNetworkB__3d_fullres", "nnUNetTrainer__toyPlans__3d_fullres"]
    (plans,) = (tmp_path / "results").glob("*/*NetworkB__*/plans.json")
    content = json.loads(plans.read_text(encoding="utf-8"))
    assert content["plans_name"] == "toyPlansNetworkB"
    different = {key for key, value in toy.plans().items() if content[key] != value}
    assert different == {"plans_name", "configurations"}
    of_a, of_b = (plans["configurations"] for plans in (toy.plans(), content))
    assert {name for name in of_a if of_a[name] != of_b[name]} == {"3d_fullres"}
    changed = {key for key, value in of_b["3d_fullres"].items() if of_a["3d_fullres"].get(key) != value}
    assert changed == {"architecture"}


def test_there_is_no_network_b_in_two_decoders(untrained_model: Callable[[Any], Path], tmp_path: Path) -> None:
    model = untrained_model(DualCLTrainer)
    with pytest.raises(DualCLError, match=r"decoder B of DualCLTrainer interpolates.* -tr DualCLTwoNetTrainer"):
        export_stock_model(model, tmp_path / "b", network="b")
    assert not (tmp_path / "b").exists()
