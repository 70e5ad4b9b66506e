import dataclasses
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dualcl.config import DualCLConfig
from nnunet_dualcl.errors import DualCLError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_equal_nnunets(toy: Any) -> None:
    stock, ours = toy.trainer(nnUNetTrainer), DualCLConfig()
    for name in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "initial_lr"):
        assert getattr(ours, name) == getattr(stock, name)


def test_every_field_is_documented() -> None:
    source = inspect.getsource(DualCLConfig)
    for field in dataclasses.fields(DualCLConfig):
        after = source.split(f"    {field.name}: ", 1)[1].split("\n", 2)[1]
        assert after.strip().startswith('"""'), field.name


def test_yaml_round_trip_keeps_every_field(tmp_path: Path) -> None:
    config = DualCLConfig(
        num_epochs=3,
        initial_lr=0.003,
        seed=7,
        unlabeled_batch_size=5,
        pseudo_label_source="cross",
        mixing="none",
        verification_on="labeled",
        contrastive_weight=0.0,
    )
    config.write_yaml(tmp_path / "config.yaml")
    assert DualCLConfig.from_yaml(tmp_path / "config.yaml") == config
    assert config != DualCLConfig()


@pytest.mark.parametrize(("text", "value"), [("1e-2", 0.01), ("'3E2'", 300.0), ("2", 2.0), ("0.25", 0.25)])
def test_yaml_numbers_become_floats(tmp_path: Path, text: str, value: float) -> None:
    config = DualCLConfig.from_yaml(write(tmp_path / "c.yaml", f"initial_lr: {text}\n"))
    assert config.initial_lr == value
    assert type(config.initial_lr) is float


@pytest.mark.parametrize("text", ["", "# only a comment\n", "{}\n"])
def test_an_empty_file_means_the_defaults(tmp_path: Path, text: str) -> None:
    assert DualCLConfig.from_yaml(write(tmp_path / "c.yaml", text)) == DualCLConfig()


def test_null_means_as_many_unlabeled_as_labeled() -> None:
    assert DualCLConfig.from_mapping({"unlabeled_batch_size": None}).unlabeled_batch_size is None


@pytest.mark.parametrize(("key", "shown"), [("lr", "lr"), (1, "1"), ("Epoche", "Epoche")])
def test_an_unknown_key_is_refused_with_the_allowed_ones(key: Any, shown: str) -> None:
    allowed = ", ".join(sorted(field.name for field in dataclasses.fields(DualCLConfig)))
    with pytest.raises(DualCLError, match=rf"^my\.yaml: unknown key {shown}\. Allowed: {allowed}\.$"):
        DualCLConfig.from_mapping({key: 1}, source="my.yaml")


IMPOSSIBLE = [
    ("num_epochs", 0, "at least 1"),
    ("num_iterations_per_epoch", -3, "at least 1"),
    ("num_val_iterations_per_epoch", 0, "at least 1"),
    ("seed", -1, "at least 0"),
    ("seed", 2**63, r"below 2\*\*63"),
    ("contrastive_samples", 0, "at least 1"),
    ("unlabeled_batch_size", 0, "at least 1, or null"),
    ("initial_lr", 0.0, "above 0"),
    ("contrastive_temperature", 0.0, "above 0"),
    ("contrastive_temperature", -0.1, "above 0"),
    ("pseudo_label_weight", -0.5, "at least 0"),
    ("verification_weight", -0.5, "at least 0"),
    ("contrastive_weight", -0.5, "at least 0"),
    ("unreliable_fraction_start", 1.01, "between 0 and 1"),
    ("unreliable_fraction_end", -0.01, "between 0 and 1"),
    ("prototype_momentum", 1.5, "between 0 and 1"),
    ("rampup_fraction", 2.0, "between 0 and 1"),
    ("verification_confidence", 0.0, "strictly between 0 and 1"),
    ("verification_confidence", 1.0, "strictly between 0 and 1"),
    ("initial_lr", float("nan"), "a finite number"),
    ("contrastive_weight", float("inf"), "a finite number"),
    ("prediction", "b", "one of mean, a"),
    ("pseudo_label_source", "loser", "one of teacher, winner, cross"),
    ("reliability", "per-class", "one of per_class, global"),
    ("verification_on", "none", "one of both, labeled, unlabeled"),
    ("num_epochs", True, "a whole number"),
    ("num_epochs", 2.0, "a whole number"),
    ("num_epochs", "1e3", "a whole number"),
    ("unlabeled_batch_size", "2", "a whole number"),
    ("initial_lr", "fast", "a finite number"),
    ("initial_lr", True, "a finite number"),
    ("initial_lr", None, "a finite number"),
    ("initial_lr", [0.01], "a finite number"),
    ("second_decoder", 1, "true or false"),
    ("second_decoder", "no", "true or false"),
    ("prediction", ["mean"], "one of mean, a"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), IMPOSSIBLE)
def test_an_impossible_value_names_the_field_and_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(DualCLError, match=f"^the file: {name} must be {allowed}.*, got "):
        DualCLConfig.from_mapping({name: value}, source="the file")
    with pytest.raises(DualCLError, match=f"^{name} must be {allowed}.*, got "):
        dataclasses.replace(DualCLConfig(), **{name: value})


@pytest.mark.parametrize("name", ["unreliable_fraction_start", "prototype_momentum", "rampup_fraction"])
@pytest.mark.parametrize("value", [0, 1])
def test_the_ends_of_the_unit_interval_are_allowed(name: str, value: int) -> None:
    assert getattr(DualCLConfig(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- seed\n- 3\n", "must hold 'key: value' lines, found list"),
        ("seed\n", "must hold 'key: value' lines, found str"),
        ("seed: [1,\n", "is no valid YAML"),
        ("seed: 2024-99-99\n", "is no valid YAML"),
        ("seed: 3\nnum_epochs: 2\nseed: 4\n", r"is no valid YAML: 'seed' is there twice\s+in .* line 3"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DualCLError, match=rf"c\.yaml {message}"):
        DualCLConfig.from_yaml(write(tmp_path / "c.yaml", text))


def test_a_binary_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DualCLError, match=r"c\.yaml is no valid YAML"):
        DualCLConfig.from_yaml(tmp_path / "c.yaml")


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DualCLError, match=r"Cannot read the configuration .*absent\.yaml: No such file"):
        DualCLConfig.from_yaml(tmp_path / "absent.yaml")
    with pytest.raises(DualCLError, match=r"Cannot read the configuration .*: Is a directory"):
        DualCLConfig.from_yaml(tmp_path)


def test_a_configuration_is_frozen_and_hashable() -> None:
    config = DualCLConfig()
    with pytest.raises(dataclasses.FrozenInstanceError, match="seed"):
        config.seed = 1  # type: ignore[misc]
    assert hash(config) == hash(DualCLConfig())


def test_from_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DUALCL_CONFIG", raising=False)
    assert DualCLConfig.from_environment() == DualCLConfig()
    monkeypatch.setenv("DUALCL_CONFIG", "")
    assert DualCLConfig.from_environment() == DualCLConfig()
    monkeypatch.setenv("DUALCL_CONFIG", str(write(tmp_path / "c.yaml", "seed: 12\n")))
    assert DualCLConfig.from_environment() == DualCLConfig(seed=12)


def test_supervised_and_stock_switch_every_other_term_off() -> None:
    supervised, stock = DualCLConfig.supervised(num_epochs=4), DualCLConfig.stock(seed=3)
    for config in (supervised, stock):
        assert (config.pseudo_label_weight, config.verification_weight, config.contrastive_weight) == (0, 0, 0)
        assert not config.uses_unlabeled
    assert (supervised.second_decoder, supervised.prediction, supervised.num_epochs) == (True, "mean", 4)
    assert (stock.second_decoder, stock.prediction, stock.seed) == (False, "a", 3)
    assert DualCLConfig.supervised(contrastive_weight=0.3).contrastive_weight == 0.3


@pytest.mark.parametrize("name", ["verification_weight", "contrastive_weight"])
def test_one_decoder_with_a_term_for_two_is_refused(name: str) -> None:
    with pytest.raises(DualCLError, match=r"second_decoder: false leaves no second predictor.*verification_weight"):
        DualCLConfig.stock(**{name: 0.1})


@pytest.mark.parametrize("source", ["winner", "cross"])
def test_one_decoder_can_be_taught_by_a_moving_average_only(source: str) -> None:
    assert DualCLConfig.stock(pseudo_label_weight=1).uses_teacher
    with pytest.raises(DualCLError, match=r"second_decoder: false.*Set pseudo_label_source: teacher"):
        DualCLConfig.stock(pseudo_label_weight=1, pseudo_label_source=source, mixing="none")


def test_a_misspelled_key_is_guessed() -> None:
    with pytest.raises(DualCLError, match=r"unknown key num_epoch\. Did you mean num_epochs\? Allowed: "):
        DualCLConfig.from_mapping({"num_epoch": 3})


def test_mixing_needs_the_teacher() -> None:
    with pytest.raises(DualCLError, match=r"mixing: copy_paste .* needs pseudo_label_source: teacher"):
        DualCLConfig(pseudo_label_source="cross")


def test_the_papers_form_has_neither_teacher_nor_mixing() -> None:
    paper = DualCLConfig.paper(seed=2)
    assert (paper.pseudo_label_source, paper.mixing, paper.reliability) == ("winner", "none", "global")
    assert (paper.uses_teacher, paper.uses_unlabeled, paper.seed) == (False, True, 2)


def test_one_decoder_predicts_alone() -> None:
    assert DualCLConfig.supervised(second_decoder=False).prediction == "a"
    assert DualCLConfig.supervised(second_decoder=False, prediction="mean").prediction == "a"


@pytest.mark.parametrize(
    ("pseudo", "verification", "acts_on", "contrastive", "uses"),
    [
        (0, 0, "both", 0, False),
        (1, 0, "both", 0, True),
        (0, 0, "both", 1, True),
        (0, 1, "both", 0, True),
        (0, 1, "unlabeled", 0, True),
        (0, 1, "labeled", 0, False),
        (1, 1, "labeled", 0, True),
        (0, 1, "labeled", 1, True),
        (0, 0, "unlabeled", 0, False),
    ],
)
def test_uses_unlabeled(pseudo: float, verification: float, acts_on: Any, contrastive: float, uses: bool) -> None:
    config = DualCLConfig(
        pseudo_label_weight=pseudo,
        verification_weight=verification,
        verification_on=acts_on,
        contrastive_weight=contrastive,
    )
    assert config.uses_unlabeled is uses


def test_the_plain_values_survive_a_checkpoint(tmp_path: Path) -> None:
    config = DualCLConfig(seed=5, prediction="a")
    torch.save(config.to_mapping(), tmp_path / "c.pth")
    assert DualCLConfig.from_mapping(torch.load(tmp_path / "c.pth", weights_only=True)) == config


def test_a_preset_is_a_name_or_values_of_ones_own(tmp_path: Path) -> None:
    own = {"mixing": "none", "seed": 3}
    assert DualCLConfig.preset(own, seed=4) == DualCLConfig(mixing="none", seed=4)
    assert DualCLConfig.from_yaml(write(tmp_path / "c.yaml", "seed: 5\n"), preset=own).mixing == "none"
    with pytest.raises(DualCLError, match=r"no preset 'mean-teacher'\. Take one of dualcl, paper, .*cps, or"):
        DualCLConfig.preset("mean-teacher")
    with pytest.raises(DualCLError, match=r"the preset \{'sed': 1\}: unknown key sed"):
        DualCLConfig.from_yaml(tmp_path / "c.yaml", preset={"sed": 1})


def test_a_dataclass_that_inherits_has_fields_of_its_own_also_once_its_module_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nnU-Net does with modules of nnUNet_extTrainer."""
    lines = [
        "from __future__ import annotations",
        "from dataclasses import dataclass",
        "from typing import Literal",
        "from nnunet_dualcl.config import DualCLConfig",
        "@dataclass(frozen=True)",
        "class OwnConfig(DualCLConfig):",
        "    shape: Literal['linear', 'flat'] = 'linear'",
        "    note: str = ''",
        "    share: float | None = None",
    ]
    write(tmp_path / "own_config_of_a_test.py", "\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module("own_config_of_a_test").OwnConfig
    del sys.modules["own_config_of_a_test"]
    config = own.from_yaml(write(tmp_path / "c.yaml", "share: 1\nnote: mine\nseed: 3\n"), preset="cps")
    assert type(config) is own
    assert (config.share, config.note, config.seed, config.mixing, config.shape) == (1.0, "mine", 3, "none", "linear")
    assert own.from_mapping(config.to_mapping()) == config
    with pytest.raises(DualCLError, match="shape must be one of linear, flat, got 'round'"):
        own(shape="round")
    with pytest.raises(DualCLError, match="note must be text, got 3"):
        own(note=3)
