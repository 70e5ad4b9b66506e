"""The methods on the page about methods of one's own, as written there, from a folder of one's own."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dualcl.cli.main import main
from nnunet_dualcl.config import PRESETS
from nnunet_dualcl.layout import CONFIG_FILE, TERM_LOG_FILE

PAGE = (Path(__file__).parents[2] / "docs" / "how_to" / "new_method.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
METHODS = {name: block for block in BLOCKS for name in re.findall(r"^class (\w+Trainer)\(", block, re.M)}
SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1, "contrastive_samples": 64}
OPTIONS = {"FixMatchTrainer": {"confidence": 0.3}, "EntropyTrainer": {"entropy_weight": 0.5, "low_memory": True}}


@pytest.mark.parametrize("name", METHODS)
def test_it_trains_stops_and_goes_on(name: str, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / f"{name}.py").write_text(METHODS[name], encoding="utf-8")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "trainers"))
    monkeypatch.setattr("nnunetv2.configuration.default_num_processes", 1)
    monkeypatch.setattr("nnunetv2.run.run_training.multiprocessing", SimpleNamespace(cpu_count=lambda: 1))
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda *_: None)
    original = nnUNetTrainer.on_epoch_end

    def stop(self: Any) -> None:
        self.save_every = 1
        original(self)
        raise KeyboardInterrupt

    config = tmp_path / "short.yaml"
    config.write_text(yaml.safe_dump({**SHORT, **OPTIONS[name]}), encoding="utf-8")
    command = ["train", "777", "3d_fullres", "0", "-p", "toyPlans", "-device", "cpu", "-tr", name]
    with monkeypatch.context() as patched:
        patched.setattr(nnUNetTrainer, "on_epoch_end", stop)
        assert main([*command, "--config", str(config)]) == 130
    assert main([*command, "--c"]) == 0
    fold = toy.results / toy.raw.name / f"{name}__toyPlans__3d_fullres" / "fold_0"
    stored = yaml.safe_load((fold / CONFIG_FILE).read_text(encoding="utf-8"))
    assert {key: stored[key] for key in OPTIONS[name]} == OPTIONS[name]
    first, second = csv.DictReader((fold / TERM_LOG_FILE).open(encoding="utf-8"))
    assert float(second["pseudo_label"]) > 0
    if name == "EntropyTrainer":
        assert (float(first["weight_entropy"]), float(second["weight_entropy"])) == (0, 0.25)
        assert 0 < float(second["entropy"]) <= 1
    else:
        assert math.isnan(float(second["winner_is_a"]))
        checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
        teacher = checkpoint["dualcl"]["teacher"]
        weights = {key: value for key, value in checkpoint["network_weights"].items() if "extra_state" not in key}
        assert all(torch.equal(value, teacher[key]) for key, value in weights.items())


def test_the_page_shows_two_methods_and_every_preset() -> None:
    assert set(METHODS) == set(OPTIONS)
    named = re.search(r"one of `PRESETS`:(.*?)\. A preset", PAGE, re.S)
    assert named is not None
    assert re.findall(r"`(\w+)`", named[1].replace("`DualCLTrainer`", "")) == list(PRESETS)


def test_phantoms_to_try_it_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = (block for block in BLOCKS if "phantom" in block)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    exec(block, {})
    counts = [len(list((tmp_path / "Dataset901_Phantom" / role).iterdir())) for role in ("imagesTr", "imagesUnlabeled")]
    assert counts == [8, 12]
