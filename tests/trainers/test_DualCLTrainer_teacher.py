"""A training whose unlabeled patches are labeled by a moving average of the network."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform, blur_dimension

from nnunet_dualcl.config import DualCLConfig
from nnunet_dualcl.data.paired_loader import patches_of
from nnunet_dualcl.data.two_views import is_photometric
from nnunet_dualcl.layout import TERM_LOG_FILE
from nnunet_dualcl.networks import PREFIX_B
from nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer

SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "contrastive_samples": 64}
MEAN_TEACHER = {"second_decoder": False, "verification_weight": 0.0, "contrastive_weight": 0.0}
LABELED = 2  # patches of a labeled batch in the toy plans


def start(toy: Any) -> Any:
    trainer = toy.trainer(DualCLTrainer)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def step(trainer: Any) -> dict[str, Any]:
    """One training step; returns its batch."""
    batch: dict[str, Any] = next(trainer.dataloader_train)
    trainer.train_step(batch)
    return batch


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def without_intensity_transforms(trainer: Any) -> None:
    views = trainer.dataloader_train.data_loader.unlabeled.transforms
    views.transforms = [transform for transform in views.transforms if not is_photometric(transform)]


class Seen:
    """Inputs of teacher and network, a step each."""

    def __init__(self, trainer: Any) -> None:
        self.teacher: list[torch.Tensor] = []
        self.network: list[torch.Tensor] = []
        original = trainer.teacher.logits

        def logits(images: torch.Tensor) -> torch.Tensor:
            self.teacher.append(images.clone())
            result: torch.Tensor = original(images)
            return result

        trainer.teacher.logits = logits
        trainer.network.register_forward_pre_hook(lambda _, inputs: self.network.append(inputs[0].clone()))


def test_the_teacher_is_the_moving_average_of_recorded_weights(toy: Any, configure: Any) -> None:
    configure(**SHORT, teacher_decay=0.4)
    trainer = start(toy)
    assert not {id(p) for p in trainer.teacher.network.parameters()} & {
        id(p) for group in trainer.optimizer.param_groups for p in group["params"]
    }
    expected = torch.zeros(())
    students = []
    for kept in (0.0, 0.4, 0.4):  # the first step copies the student
        step(trainer)
        students.append(weights(trainer.network))
        expected = kept * expected + (1 - kept) * students[-1]
    torch.testing.assert_close(weights(trainer.teacher.network), expected)
    assert not torch.allclose(expected, students[-1])


def test_teacher_and_network_see_the_same_patches(toy: Any, configure: Any) -> None:
    configure(**SHORT, mixing="none")
    trainer = start(toy)
    without_intensity_transforms(trainer)
    seen = Seen(trainer)
    for _ in range(2):
        step(trainer)
    # at its first step the teacher also looks at the labeled patches, for the log
    assert torch.equal(seen.teacher[0], seen.network[0][:LABELED])
    assert torch.equal(seen.teacher[1], seen.network[0][LABELED:])
    assert torch.equal(seen.teacher[2], seen.network[1][LABELED:])
    assert len(seen.teacher) == 3
    assert trainer.loss.taught_labeled is None  # what it said of the first step's patches is not of the second's


def test_mixed_patches_show_what_teacher_and_truth_labeled(toy: Any, configure: Any) -> None:
    configure(**SHORT)
    trainer = start(toy)
    without_intensity_transforms(trainer)
    seen = Seen(trainer)
    for _ in range(2):
        batch = step(trainer)
    labeled, mixed = seen.network[1].split(LABELED)
    assert torch.equal(labeled, patches_of(batch).labeled)
    pasted, kept = mixed == labeled, mixed == seen.teacher[-1]
    assert (pasted | kept).all()
    assert 0.1 < pasted.float().mean() < 0.9
    truth, taught = batch["target"][0], trainer.loss.taught
    everywhere_pasted = pasted.all(1, keepdim=True) & ~kept.any(1, keepdim=True)
    assert torch.equal(taught.labels[everywhere_pasted], truth[everywhere_pasted].long())
    assert taught.reliable[everywhere_pasted].all()


def test_steps_and_ranks_paste_at_places_of_their_own(toy: Any, configure: Any) -> None:
    configure(**SHORT)
    trainer = start(toy)
    seen = Seen(trainer)
    batch = next(trainer.dataloader_train)
    for rank, iteration in ((0, 0), (0, 0), (0, 1), (1, 0)):
        trainer.local_rank, trainer._iteration = rank, iteration
        trainer.train_step(batch)
    first, again, next_step, other_rank = seen.network
    assert torch.equal(first, again)
    for other in (next_step, other_rank):
        assert torch.equal(first[:LABELED], other[:LABELED])
        assert not torch.equal(first, other)


def test_the_network_sees_other_intensities_than_the_teacher(toy: Any, configure: Any) -> None:
    configure(**SHORT, mixing="none")
    trainer = start(toy)
    seen = Seen(trainer)
    batch = [step(trainer) for _ in range(2)][1]
    labeled, unlabeled, weak = patches_of(batch)
    assert torch.equal(seen.network[1], torch.cat((labeled, unlabeled)))
    assert torch.equal(seen.teacher[-1], weak)
    assert not torch.equal(unlabeled, weak)


def test_the_same_view_for_both_on_demand(toy: Any, configure: Any) -> None:
    configure(**SHORT, mixing="none", teacher_view="same")
    trainer = start(toy)
    seen = Seen(trainer)
    for _ in range(2):
        assert patches_of(step(trainer)).weak is None
    assert torch.equal(seen.teacher[-1], seen.network[1][LABELED:])


def test_the_weak_view_keeps_the_scans_intensities(toy: Any, configure: Any) -> None:
    configure(**SHORT)
    loader = start(toy).dataloader_train.data_loader.unlabeled
    spatial = loader.transforms.transforms[0]
    spatial.p_rotation = spatial.p_scaling = 0  # interpolation would make new values
    cases = loader._data
    changed = []
    for _ in range(4):
        batch = next(loader)
        weak, strong = batch["data"].numpy()[:, :2], batch["data"].numpy()[:, 2:]
        for index, key in enumerate(batch["keys"]):
            scan = cases.load_case(key)[0][:]
            for channel in range(2):
                known = np.append(scan[channel], 0)  # 0 around the scan
                assert np.isin(weak[index, channel], known).all()
                changed.append(not np.isin(strong[index, channel], known).all())
    assert sum(changed) > len(changed) / 4


def stop_after(trainer: Any, epochs: int) -> None:
    original = trainer.on_epoch_end

    def stop() -> None:
        original()
        if trainer.current_epoch == epochs:
            raise KeyboardInterrupt

    trainer.save_every = 1
    trainer.on_epoch_end = stop


def test_a_continued_training_is_an_uninterrupted_one(toy: Any, configure: Any, monkeypatch: Any) -> None:
    # blurring takes the faster of two ways, by the clock, and they differ in rounding
    monkeypatch.setattr(GaussianBlurTransform, "_benchmark_wrapper", staticmethod(blur_dimension))
    configure(**{**SHORT, "num_iterations_per_epoch": 3, "rampup_fraction": 1.0})
    interrupted = toy.trainer(DualCLTrainer)
    stop_after(interrupted, 1)
    with pytest.raises(KeyboardInterrupt):
        interrupted.run_training()
    resumed = toy.trainer(DualCLTrainer, continue_training=True)
    resumed.load_checkpoint(str(Path(interrupted.output_folder) / "checkpoint_latest.pth"))
    assert torch.equal(weights(resumed.teacher.network), weights(interrupted.teacher.network))
    assert not torch.equal(weights(resumed.teacher.network), weights(resumed.network))
    assert not any(parameter.requires_grad for parameter in resumed.teacher.network.parameters())
    resumed.run_training()
    terms = (Path(resumed.output_folder) / TERM_LOG_FILE).read_text()
    whole = toy.trainer(DualCLTrainer)
    whole.run_training()
    assert (Path(whole.output_folder) / TERM_LOG_FILE).read_text() == terms
    assert torch.equal(resumed.loss.prototypes, whole.loss.prototypes)
    assert resumed.loss.prototypes.abs().sum() > 0
    first, second = (row["weight_contrastive"] for row in whole.term_log.rows)
    assert first < second
    for part in ("network", "teacher"):
        networks = [getattr(trainer, part) for trainer in (resumed, whole)]
        assert torch.equal(*(weights(getattr(each, "network", each)) for each in networks))
    assert not torch.equal(weights(whole.teacher.network), weights(interrupted.teacher.network))


def test_the_checkpoint_holds_both_networks(toy: Any, configure: Any) -> None:
    configure(**SHORT)
    trainer = start(toy)
    for _ in range(2):
        step(trainer)
    path = Path(trainer.output_folder) / "checkpoint.pth"
    trainer.save_checkpoint(str(path))
    stored = torch.load(path, weights_only=False)
    for name, value in trainer.network.named_parameters():
        assert torch.equal(stored["network_weights"][name], value)
    for name, value in trainer.teacher.network.named_parameters():
        assert torch.equal(stored["dualcl"]["teacher"][name], value)


def test_mean_teacher_from_start_to_end(toy: Any, configure: Any) -> None:
    configure(**SHORT, **MEAN_TEACHER, pseudo_label_weight=1.0, rampup_fraction=0.0)
    trainer = toy.trainer(DualCLTrainer)
    trainer.on_train_start()
    before = copy.deepcopy(trainer.network.state_dict())
    trainer.run_training()
    rows = list(csv.DictReader((Path(trainer.output_folder) / TERM_LOG_FILE).open()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    for row in rows:
        numbers = {name: float(value) for name, value in row.items()}
        meaningless = {name for name, number in numbers.items() if not np.isfinite(number)}
        assert meaningless == {"supervised_b", "disagreement_share", "winner_is_a"}
        assert numbers["pseudo_label"] > 0
        assert numbers["verification"] == numbers["contrastive"] == 0
        assert numbers["total"] == pytest.approx(numbers["supervised_a"] + numbers["pseudo_label"], rel=1e-5)
    for name, value in trainer.network.named_parameters():
        moved = not torch.equal(value, before[name])
        assert moved != (name.startswith(PREFIX_B) or ".seg_layers.0." in name), name
    assert trainer.teacher.logits(torch.zeros(1, 2, 6, 12, 16)).shape == (1, 3, 6, 12, 16)


@pytest.mark.parametrize("form", ["winner", "stock"])
def test_without_a_teacher(toy: Any, configure: Any, form: str) -> None:
    stock = DualCLConfig.stock().to_mapping()
    configure(**{**(stock if form == "stock" else {"pseudo_label_source": "winner", "mixing": "none"}), **SHORT})
    trainer = start(toy)
    assert trainer.teacher is None
    assert patches_of(step(trainer)).weak is None
    assert trainer.loss.taught is None
    path = Path(trainer.output_folder) / "checkpoint.pth"
    trainer.save_checkpoint(str(path))
    assert torch.load(path, weights_only=False)["dualcl"]["teacher"] is None
    resumed = toy.trainer(DualCLTrainer)
    resumed.load_checkpoint(str(path))
    assert resumed.teacher is None


def test_the_papers_form_trains(toy: Any, configure: Any) -> None:
    configure(**{**DualCLConfig.paper().to_mapping(), **SHORT})
    trainer = start(toy)
    before = weights(trainer.network)
    for _ in range(2):
        step(trainer)
    assert trainer.teacher is None
    assert torch.isfinite(trainer.loss.last_values).all()
    assert torch.isfinite(weights(trainer.network)).all()
    assert not torch.equal(weights(trainer.network), before)
