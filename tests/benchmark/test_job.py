from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from nnunet_dualcl.benchmark import job as job_module
from nnunet_dualcl.benchmark.job import _batch_size
from nnunet_dualcl.benchmark.protocol import Job, Protocol
from nnunet_dualcl.cli.main import main
from nnunet_dualcl.dataset_conversion.phantom import write_phantom_dataset

VALUES: dict[str, Any] = {
    "title": "Phantoms", "dataset_id": 9, "dataset_name": "Tiny", "labeled": [2], "steps": 2, "steps_per_epoch": 2,
    "test_cases": 1, "validation_cases": 1, "arms": {"stock": 1}, "baselines": ["stock"],
    "small_plans": {"patch_size": [8, 16, 16], "features": [3, 4, 5], "spacing_mm": [5.0, 3.0, 3.0]},
}  # fmt: skip


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "protocol.yaml"
    path.write_text(yaml.safe_dump({**VALUES, **changes}, sort_keys=False), encoding="utf-8")
    return path


OWN_TRAINER = """
from dataclasses import dataclass
from nnunet_dualcl.config import DualCLConfig
from nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer

@dataclass(frozen=True)
class OwnConfig(DualCLConfig):
    own_weight: float = 0.5

    @property
    def uses_unlabeled(self):
        return super().uses_unlabeled or self.own_weight > 0

class OwnTrainer(DualCLTrainer):
    config_class = OwnConfig
    preset = {"mixing": "none", "own_weight": 0.25}
"""


def test_patches_a_step_follow_the_trainers_own_configuration(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_other_terms = {"arm": "dual_decoder", "trainer": "OwnTrainer"}
    variants = {"mine": no_other_terms, "off": {**no_other_terms, "config": {"own_weight": 0.0}},
                "plain": {"arm": "dualcl", "trainer": "nnUNetTrainerNoMirroring"}}  # fmt: skip
    protocol = Protocol.from_yaml(write(tmp_path, variants=variants, arms=dict.fromkeys([*variants, "dualcl"], 1)))
    (tmp_path / "OwnTrainer.py").write_text(OWN_TRAINER, encoding="utf-8")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    shutil.copy(toy.preprocessed / "toyPlans.json", tmp_path / "benchmarkPlans.json")
    planned = toy.plans()["configurations"]["3d_fullres"]["batch_size"]
    for arm, times in {"mine": 2, "off": 1, "plain": 1, "dualcl": 2}.items():
        place: Any = SimpleNamespace(
            protocol=protocol, arm=protocol.arm(arm), job=Job(arm, 2, 0), preprocessed=tmp_path
        )
        assert _batch_size(place) == times * planned, arm


@pytest.mark.slow
def test_a_trainer_of_ones_own_is_trained_and_predicts_with_its_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_this_process(folder: Path, job: Job, device: str, *_: Any) -> Any:
        job_module.run(folder, job, device)
        return SimpleNamespace(done=lambda: True, cancel=lambda check: None)

    monkeypatch.setattr("nnunet_dualcl.benchmark.run._submit", in_this_process)
    for name in ("nnUNet_def_n_proc", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    for module in ("nnunetv2.training.nnUNetTrainer.nnUNetTrainer", "nnunetv2.configuration"):
        monkeypatch.setattr(f"{module}.default_num_processes", 1)
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "OwnTrainer.py").write_text(OWN_TRAINER, encoding="utf-8")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "trainers"))
    source = write_phantom_dataset(tmp_path, dataset_id=1, labeled=5, validation=0, unlabeled=1, test=0)
    variants = {"mine": {"arm": "dualcl", "trainer": "OwnTrainer", "config": {"contrastive_samples": 32}}}
    protocol, out = write(tmp_path, variants=variants, arms={"mine": 1}, baselines=[]), tmp_path / "out"
    threads = torch.get_num_threads()
    assert main(["benchmark", str(protocol), "-i", str(source), "-o", str(out), "-device", "cpu"]) == 0
    torch.set_num_threads(threads)
    record = json.loads((out / "jobs" / "mine_2_0" / "job.json").read_text(encoding="utf-8"))
    assert (record["trainer"], record["title"]) == ("OwnTrainer", "DualCL: OwnTrainer, contrastive_samples 32")
    assert [record["config"][key] for key in ("mixing", "own_weight", "num_epochs")] == ["none", 0.25, 1]
    (checkpoint,) = out.glob("jobs/mine_2_0/model/*/OwnTrainer__*/fold_0/checkpoint_final.pth")
    assert torch.load(checkpoint, weights_only=False)["dualcl"]["config"] == record["config"]
    monkeypatch.delenv("nnUNet_extTrainer")  # as where results are read that another machine stored
    assert main(["benchmark", str(protocol), "-o", str(out), "--report"]) == 0
