"""What the CPU cannot show: CUDA's kernels, float16 and bfloat16 with a gradient scaler, inductor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from test_DualCLTrainer_teacher import stop_after
from test_supported import FULL, HALF_PRECISION, SHORT, start, terms_of, train, weights, with_labels
from torch import distributed as dist
from torch._dynamo import OptimizedModule

from nnunet_dualcl import runs
from nnunet_dualcl.cli.main import main
from nnunet_dualcl.config import DualCLConfig
from nnunet_dualcl.export import export_stock_model
from nnunet_dualcl.trainers.CPSTrainer import CPSTrainer
from nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer
from nnunet_dualcl.trainers.DualCLTwoNetTrainer import DualCLTwoNetTrainer
from nnunet_dualcl.trainers.MeanTeacherTrainer import MeanTeacherTrainer
from nnunet_dualcl.trainers.UAMTTrainer import UAMTTrainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
TRAINERS = [DualCLTrainer, DualCLTwoNetTrainer, MeanTeacherTrainer, UAMTTrainer, CPSTrainer]


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without torch.compile, which nnU-Net turns on by itself on a GPU, and with float16, its own choice."""
    monkeypatch.setenv("nnUNet_compile", "f")
    before = torch.get_autocast_dtype("cuda")
    yield
    torch.set_autocast_dtype("cuda", before)


@pytest.fixture
def draws_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device's generator gives other numbers from the same seed."""

    def draw_voxels(volume: torch.Tensor, count: int) -> torch.Tensor:
        return torch.randint(volume[0, 0].numel(), (count,)).to(volume.device)

    monkeypatch.setattr("nnunet_dualcl.training.objective.draw_voxels", draw_voxels)
    monkeypatch.setattr(torch, "randn_like", lambda other: torch.randn(other.shape).to(other))


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_every_trainer_trains_to_the_end(toy: Any, configure: Any, trainer_class: Any) -> None:
    configure(**SHORT)
    trainer = toy.trainer(trainer_class, device="cuda")
    trainer.run_training()
    assert trainer.grad_scaler.get_scale() > 1
    rows = terms_of(trainer)
    assert len(rows) == 2
    of_two = () if trainer.config.second_decoder else ("supervised_b", "disagreement_share", "winner_is_a")
    assert {name for row in rows for name, value in row.items() if not np.isfinite(value)} == set(of_two)
    for part in (trainer.network, trainer.loss, trainer.teacher.network if trainer.teacher else trainer.network):
        assert {tensor.device.type for tensor in part.state_dict().values() if torch.is_tensor(tensor)} <= {"cuda"}
    on_the_cpu = toy.trainer(trainer_class, continue_training=True)
    on_the_cpu.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    loaded = weights(on_the_cpu.dual_network)
    for name, value in weights(trainer.dual_network).items():
        assert torch.equal(value.cpu(), loaded[name]), name


def test_the_papers_form_trains(toy: Any, configure: Any) -> None:
    configure(**{**DualCLConfig.paper().to_mapping(), **SHORT, "rampup_fraction": 0.0})
    train(toy.trainer(DualCLTrainer, device="cuda"))


@pytest.mark.usefixtures("draws_of_the_cpu")
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("kind", "option", "trainer_class"), HALF_PRECISION)
def test_steps_are_those_of_the_cpu(
    toy: Any, configure: Any, kind: str, option: str | None, trainer_class: Any, half: torch.dtype
) -> None:
    dataset_json = with_labels(toy, kind)
    torch.set_autocast_dtype("cuda", half)
    losses = []
    for device in ("cpu", "cuda"):
        configure(**{**SHORT, "contrastive_samples": 4096}, rampup_fraction=0.0, **({option: True} if option else {}))
        trainer = start(toy, trainer_class, dataset_json=dataset_json, device=device)
        if trainer.grad_scaler is not None:
            trainer.grad_scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
        torch.manual_seed(1)
        losses.append([float(trainer.train_step(next(trainer.dataloader_train))["loss"]) for _ in range(3)])
        trainer.on_validation_epoch_start()
        with torch.no_grad():
            losses[-1].append(float(trainer.validation_step(next(trainer.dataloader_val))["loss"]))
    assert trainer.grad_scaler.get_scale() == 1024.0  # no step was skipped
    np.testing.assert_allclose(*losses, rtol=0.02 if half == torch.float16 else 0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("draws_of_the_cpu")
@pytest.mark.parametrize("option", [{}, {"decoder_checkpointing": True}, {"low_memory": True}])
def test_a_compiled_network_takes_the_same_steps(
    toy: Any, configure: Any, monkeypatch: pytest.MonkeyPatch, option: dict[str, bool]
) -> None:
    losses = []
    for compiled in (False, True):
        configure(**{**SHORT, **option, "contrastive_samples": 4096}, rampup_fraction=0.0)
        torch._dynamo.reset()
        monkeypatch.setenv("nnUNet_compile", str(compiled))
        trainer = start(toy, device="cuda")
        trainer.grad_scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
        assert isinstance(trainer.network, OptimizedModule) == compiled
        torch.manual_seed(1)
        losses.append([float(trainer.train_step(next(trainer.dataloader_train))["loss"]) for _ in range(3)])
        trainer.on_validation_epoch_start()
        with torch.no_grad():
            losses[-1].append(float(trainer.validation_step(next(trainer.dataloader_val))["loss"]))
    np.testing.assert_allclose(*losses, rtol=0.02)


def test_a_continued_training_goes_on_as_an_uninterrupted_one(
    toy: Any, configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the order in which a GPU adds up."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    configure(**{**SHORT, "num_iterations_per_epoch": 3, "rampup_fraction": 1.0})
    interrupted = toy.trainer(DualCLTrainer, device="cuda")
    stop_after(interrupted, 1)
    with pytest.raises(KeyboardInterrupt):
        interrupted.run_training()
    resumed = toy.trainer(DualCLTrainer, continue_training=True, device="cuda")
    resumed.load_checkpoint(str(Path(interrupted.output_folder) / "checkpoint_latest.pth"))
    assert resumed.grad_scaler.state_dict() == interrupted.grad_scaler.state_dict()
    middle = weights(resumed.dual_network)
    resumed.run_training()
    whole = toy.trainer(DualCLTrainer, device="cuda")
    whole.run_training()
    after = weights(resumed.dual_network)
    for name, value in weights(whole.dual_network).items():
        moved = (value - middle[name]).abs().max()
        assert (value - after[name]).abs().max() <= 0.05 * moved + 1e-6, name
    torch.testing.assert_close(resumed.loss.prototypes, whole.loss.prototypes, rtol=0.05, atol=0.01)


@contextmanager
def one_rank(folder: Path) -> Iterator[None]:
    """A distributed training of one process; a second one needs a GPU of its own."""
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("classes", {}),
        ("classes", {"low_memory": True}),
        ("classes", DualCLConfig.paper().to_mapping()),
        ("regions_ignore", {}),
    ],
)
def test_nccl_takes_what_ranks_tell_each_other(
    toy: Any, configure: Any, tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    dataset_json = with_labels(toy, kind)
    configure(**{**changes, **SHORT, **FULL})
    losses, batches = [], []
    for distributed in (False, True):
        with one_rank(tmp_path) if distributed else nullcontext():
            trainer = start(toy, dataset_json=dataset_json, device="cuda")
            assert trainer.is_ddp == trainer.loss.distributed == distributed
            trainer.grad_scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
            batches = batches or [next(trainer.dataloader_train) for _ in range(3)]
            torch.manual_seed(1)
            losses.append([float(trainer.train_step(batch)["loss"]) for batch in batches])
            if distributed:
                whole = toy.trainer(DualCLTrainer, dataset_json=dataset_json, device="cuda")
                whole.run_training()
                assert len(terms_of(whole)) == 2
    np.testing.assert_allclose(*losses, rtol=0.02)


def test_nnunets_command_trains_predicts_and_runs_the_export(toy: Any, configure: Any, tmp_path: Path) -> None:
    configure(**{**SHORT, "num_epochs": 1}, prediction="a")
    assert main(["train", toy.raw.name, "3d_fullres", "0", "-p", "toyPlans", "-device", "cuda"]) == 0
    model = toy.results / toy.raw.name / "DualCLTrainer__toyPlans__3d_fullres"
    summary = json.loads((model / "fold_0" / "validation" / "summary.json").read_text(encoding="utf-8"))
    assert set(summary["mean"]) == {"1", "2"}
    export_stock_model(model, tmp_path / "exported", folds=(0,))
    images = {case: sorted((toy.raw / "imagesUnlabeled").glob(f"{case}_*")) for case in ("unl_0", "unl_1")}
    segmentations = []
    for place, device in ((model, "cuda"), (tmp_path / "exported", "cuda"), (tmp_path / "exported", "cpu")):
        predicted = tmp_path / f"{place.name}_{device}"
        runs.predict_cases(place, images, predicted, folds=(0,), device=device)
        volumes = [sitk.GetArrayFromImage(sitk.ReadImage(str(predicted / f"{case}.nii.gz"))) for case in images]
        segmentations.append(np.concatenate([volume.ravel() for volume in volumes]))
    assert np.array_equal(segmentations[0], segmentations[1])
    assert (segmentations[0] == segmentations[2]).mean() > 0.98  # half precision against float32, barely trained
