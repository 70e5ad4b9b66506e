"""Two processes that train together, on the CPU: nnU-Net's own distributed training needs two GPUs."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as nnunet_module
import numpy as np
import pytest
import torch
from conftest import Toy
from torch import distributed as dist
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from nnunet_dualcl.config import DualCLConfig
from nnunet_dualcl.data.paired_loader import patches_of
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.losses import shared_between_ranks
from nnunet_dualcl.losses._numerics import masked_mean
from nnunet_dualcl.losses._ranks import gathered
from nnunet_dualcl.networks import PREFIX_B, DualOutput
from nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer
from nnunet_dualcl.training import objective
from nnunet_dualcl.training.problems import Problems
from nnunet_dualcl.training.ranks import of_rank_0

RANKS, STEPS = 2, 5
COMMON = {
    "num_epochs": 1,
    "num_iterations_per_epoch": STEPS,
    "num_val_iterations_per_epoch": 1,
    "rampup_fraction": 0.0,
    "verification_on": "both",
    "verification_weight": 0.5,
    "unreliable_fraction_end": 0.2,
    "mixing": "none",
}
FORMS: dict[str, dict[str, Any]] = {
    "teacher": {},
    "winner": {"pseudo_label_source": "winner", "reliability": "global"},
    "low_memory": {"low_memory": True},
    "one_decoder": DualCLConfig.preset("mean_teacher").to_mapping(),
}


class OnTheCPU(DistributedDataParallel):
    """nnU-Net passes the number of a GPU."""

    def __init__(self, network: torch.nn.Module, device_ids: list[int]) -> None:
        super().__init__(network)


def plans(toy: Toy) -> dict[str, Any]:
    found = toy.plans()
    found["configurations"]["3d_fullres"].update(batch_size=2 * RANKS, batch_dice=True)
    return found


def every_voxel(volume: torch.Tensor, _: int) -> torch.Tensor:
    """Ranks draw voxels of their own, which no single process could repeat."""
    return torch.arange(volume[0, 0].numel())


def run_rank(rank: int, root: Path, configurations: dict[str, str]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=RANKS)
    nnunet_module.DDP = OnTheCPU
    objective.draw_voxels = every_voxel
    toy = Toy(root)
    for form, configuration in configurations.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DUALCL_CONFIG", configuration)
            trainer = toy.trainer(DualCLTrainer, plans=plans(toy))
        trainer.device, trainer.grad_scaler = torch.device("cpu"), None
        trainer.on_train_start()
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        before = {name: value.clone() for name, value in trainer.dual_network.named_parameters()}
        batches = [next(trainer.dataloader_train) for _ in range(STEPS)]
        results = [trainer.train_step(batch) for batch in batches]
        torch.save(
            {
                "before": before,
                "batches": batches,
                "losses": [float(result["loss"]) for result in results],
                "terms": [result["terms"][: len(trainer.loss.terms)] for result in results],
                "after": dict(trainer.dual_network.named_parameters()),
                "teacher": {} if trainer.teacher is None else trainer.teacher.state_dict(),
                "prototypes": trainer.loss.prototypes,
                "present": trainer.loss.present,
            },
            root / f"{form}_{rank}.pt",
        )
    torch.save(found_at_the_end(toy, configurations["teacher"], rank), root / f"end_{rank}.pt")
    torch.save(told_by_rank_0(rank), root / f"told_{rank}.pt")
    torch.save(statistics(rank), root / f"statistics_{rank}.pt")
    torch.save(step_of_the_loss([rank], distributed=True), root / f"loss_{rank}.pt")
    dist.destroy_process_group()


def found_at_the_end(toy: Toy, configuration: str, rank: int) -> list[str]:
    """Checkpoints that a rank finds after a training whose rank 0 takes its time to write them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DUALCL_CONFIG", configuration)
        trainer = toy.trainer(DualCLTrainer, plans=plans(toy))
        uneven = plans(toy)
        uneven["configurations"]["3d_fullres"]["batch_size"] = 2 * RANKS + 1
        with pytest.raises(DualCLError, match=r"2 GPUs cannot share a batch of 5 evenly.* -num_gpus 1,"):
            toy.trainer(DualCLTrainer, plans=uneven).on_train_start()
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None
    save = trainer.save_checkpoint

    def save_slowly(filename: str) -> None:
        if rank == 0:
            time.sleep(1)
        save(filename)

    trainer.save_checkpoint = save_slowly
    trainer.run_training()
    return sorted(path.name for path in Path(trainer.output_folder).glob("checkpoint_*"))


def told_by_rank_0(rank: int) -> dict[str, Any]:
    """What a rank gets of a preparation that succeeds, of one that the user can mend, and of one that breaks."""
    begun: list[str] = []

    def prepare(error: Exception | None = None) -> list[str]:
        begun.append("on this rank")
        if error is not None:
            raise error
        return ["case"]

    got = of_rank_0(rank, prepare)
    failures = []
    for error in (DualCLError("No unlabeled case."), KeyError("spacing")):
        with pytest.raises((DualCLError, KeyError)) as caught:
            of_rank_0(rank, partial(prepare, error))
        failures.append(repr(caught.value))
    return {"got": got, "begun": len(begun), "failures": failures}


def statistics(rank: int) -> dict[str, torch.Tensor]:
    """Means over unequal masks, of which one is empty on rank 1, and a sample of unequal length."""
    values = torch.arange(4.0, requires_grad=True)
    mask = torch.arange(4) >= 3 * rank
    with shared_between_ranks():
        mean = masked_mean(values + 10 * rank, mask)
        lone = masked_mean(values, torch.arange(4) > 2 + rank)
        sample = gathered(torch.full((2 + rank,), float(rank)), length=3, fill=-1)
    mean.backward()
    return {"mean": mean.detach(), "lone": lone.detach(), "gradient": values.grad, "sample": sample}


class CrossEntropy(torch.nn.Module):
    """Stands for nnU-Net's loss."""

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(output, target[:, 0])


def step_of_the_loss(ranks: list[int], *, distributed: bool) -> dict[str, Any]:
    """On a labeled and an unlabeled patch of each rank. Rank 0 by itself would have A win, both together have B win;
    the classes are so many that one process alone computes the Dice a second time."""
    classes, shape = 5, (4, 5, 6)
    truth, labeled, unlabeled = [], [], []
    for rank in ranks:
        generator = torch.Generator().manual_seed(rank)
        truth.append(torch.randint(classes, (1, 1, *shape), generator=generator))
        logits = torch.randn(2, 2, classes, *shape, generator=generator)  # of A and B
        logits[rank, 0] += (1 + 3 * rank) * torch.eye(classes)[truth[-1][0, 0]].movedim(-1, 0)
        labeled.append(logits[:, :1])
        unlabeled.append(logits[:, 1:])
    a, b = (part.clone().requires_grad_() for part in torch.cat(labeled + unlabeled, 1))
    features = torch.ones(len(a), 3, *shape)
    config = DualCLConfig.paper(pseudo_label_loss="dice_ce", rampup_fraction=0.0)
    loss = objective.SemiSupervisedLoss(
        CrossEntropy(), config, problems=Problems(classes), total_steps=1, batch_dice=True, distributed=distributed
    )
    dices: list[torch.nn.Module] = []  # begun: a second computation ends where it has what it needs
    loss.dice.register_forward_pre_hook(lambda dice, _: dices.append(dice))
    loss(DualOutput(a, b, features, features), torch.cat(truth)).backward()
    assert loss.last_values is not None
    winner_is_a = loss.last_values[(loss.terms + loss.observations).index("winner_is_a")]
    return {"winner_is_a": bool(winner_is_a), "dices": len(dices), "gradients": [a.grad, b.grad]}


def joined(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """The batches of all ranks as one."""
    joint: dict[str, Any] = {}
    for name in batches[0]:
        parts = [batch[name] for batch in batches]
        if name == "data":  # labeled patches of all ranks, then unlabeled ones, then their weak views
            halves = zip(*(patches_of(batch) for batch in batches), strict=True)
            joint[name] = torch.cat([part for half in halves for part in half if part is not None])
        elif name == "target":
            joint[name] = [torch.cat(levels) for levels in zip(*parts, strict=True)]
        else:
            joint[name] = torch.cat(parts) if torch.is_tensor(parts[0]) else [key for part in parts for key in part]
    return joint


def test_two_ranks_are_one_process_on_the_sum_of_their_batches(
    toy: Any, configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    configurations = {}
    for form, changes in FORMS.items():
        path = configure(**{**changes, **COMMON, **({"verification_weight": 0.0} if form == "one_decoder" else {})})
        configurations[form] = str(path.rename(path.with_name(f"{form}.yaml")))
    multiprocessing.spawn(run_rank, (toy.root, configurations), nprocs=RANKS)
    monkeypatch.setattr(objective, "draw_voxels", every_voxel)
    for form, configuration in configurations.items():
        ranks = [torch.load(toy.root / f"{form}_{rank}.pt", weights_only=False) for rank in range(RANKS)]
        assert not torch.equal(ranks[0]["batches"][0]["data"], ranks[1]["batches"][0]["data"])
        for part in ("before", "after", "teacher"):
            for name, value in ranks[0][part].items():
                if torch.is_tensor(value):
                    assert torch.equal(value, ranks[1][part][name]), (form, part, name)
        assert torch.equal(ranks[0]["prototypes"], ranks[1]["prototypes"])
        assert ranks[0]["present"].any() == (form != "one_decoder")
        monkeypatch.setenv("DUALCL_CONFIG", configuration)
        single = toy.trainer(DualCLTrainer, plans=plans(toy))
        single.on_train_start()
        single.on_epoch_start()
        single.on_train_epoch_start()
        assert single.batch_size == 2 * len(ranks[0]["batches"][0]["keys"])
        single.dual_network.load_state_dict(ranks[0]["before"], strict=False)
        for step, parts in enumerate(zip(*(rank["batches"] for rank in ranks), strict=True)):
            result = single.train_step(joined(list(parts)))
            mean = sum(rank["losses"][step] for rank in ranks) / RANKS
            assert mean == pytest.approx(float(result["loss"]), rel=1e-3), (form, step)
            whole = result["terms"][: len(single.loss.terms)]
            for rank in ranks:  # what is logged is the whole batch's
                np.testing.assert_allclose(rank["terms"][step], whole, rtol=2e-3, atol=1e-5, err_msg=form)
        for name, value in single.dual_network.named_parameters():
            moved = (value - ranks[0]["before"][name]).abs().max()
            assert form != "one_decoder" or moved == 0 or not name.startswith(PREFIX_B)
            difference = (value - ranks[0]["after"][name]).abs().max()
            assert difference <= 0.01 * moved + 1e-5, (form, name)
        torch.testing.assert_close(single.loss.prototypes, ranks[0]["prototypes"], rtol=1e-3, atol=1e-4)
    for rank in range(RANKS):  # --val_best reads one on every rank
        assert torch.load(toy.root / f"end_{rank}.pt") == ["checkpoint_best.pth", "checkpoint_final.pth"]
    told = [torch.load(toy.root / f"told_{rank}.pt") for rank in range(RANKS)]
    refused = "DualCLError('No unlabeled case.')"
    assert told == [
        {"got": ["case"], "begun": 3, "failures": [refused, "KeyError('spacing')"]},
        {"got": ["case"], "begun": 0, "failures": [refused, "DualCLError(\"Rank 0 failed: KeyError('spacing')\")"]},
    ]
    unequal = [torch.load(toy.root / f"statistics_{rank}.pt") for rank in range(RANKS)]
    assert torch.stack([rank["mean"] for rank in unequal]).mean() == pytest.approx((0 + 1 + 2 + 3 + 13) / 5)
    assert torch.stack([rank["lone"] for rank in unequal]).mean() == 3
    assert torch.equal(unequal[0]["gradient"], torch.full((4,), 0.4))  # the mean over ranks is 1 / 5
    for rank in unequal:
        assert rank["sample"].tolist() == [0, 0, -1, 1, 1, 1]
    together = step_of_the_loss(list(range(RANKS)), distributed=False)
    assert not together["winner_is_a"]
    for rank in range(RANKS):
        assert step_of_the_loss([rank], distributed=False)["winner_is_a"] == (rank == 0)
        found = torch.load(toy.root / f"loss_{rank}.pt")
        assert not found["winner_is_a"]
        assert found["dices"] == 1  # a second one would wait for the other rank once more
        for gradient, expected in zip(found["gradients"], together["gradients"], strict=True):
            torch.testing.assert_close(gradient / RANKS, expected[rank::RANKS], rtol=1e-4, atol=1e-7)
