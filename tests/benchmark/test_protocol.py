from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from nnunet_dualcl.benchmark.arms import ARMS, Arm
from nnunet_dualcl.benchmark.protocol import Job, Protocol, _shared_config
from nnunet_dualcl.benchmark.run import run_benchmark
from nnunet_dualcl.config import PRESETS, DualCLConfig
from nnunet_dualcl.errors import DualCLError

SHIPPED = sorted((Path(__file__).parents[2] / "benchmarks" / "protocols").glob("*.yaml"))
SMALL = {"patch_size": [8, 8, 8], "features": [2, 3, 4]}
VALUES: dict[str, Any] = {
    "title": "Toy", "dataset_id": 7, "dataset_name": "Toy", "labeled": [3, 2], "draws": 2, "steps": 500,
    "test_cases": 2, "validation_cases": 1, "arms": {"stock": 2, "stock_all": 1, "dualcl": 1}, "seed": 10,
}  # fmt: skip


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "protocol.yaml"
    path.write_text(yaml.safe_dump({**VALUES, **changes}, sort_keys=False), encoding="utf-8")
    return path


def test_jobs_start_with_the_first_draw_and_pair_labels_with_arms(tmp_path: Path) -> None:
    protocol = Protocol.from_yaml(write(tmp_path))
    assert [job.name for job in protocol.jobs()] == [
        "stock_3_0", "dualcl_3_0", "stock_2_0", "dualcl_2_0", "stock_all_all_0", "stock_3_1", "stock_2_1",
    ]  # fmt: skip
    assert protocol.dataset == "Dataset007_Toy"


def test_each_draw_of_each_count_has_its_fold_and_the_whole_pool_the_last(tmp_path: Path) -> None:
    protocol = Protocol.from_yaml(write(tmp_path))
    folds = [protocol.fold(Job("stock", labeled, draw)) for labeled in (3, 2) for draw in (0, 1)]
    assert folds == [0, 1, 2, 3]
    assert protocol.fold(Job("stock_all", "all", 1)) == 4


def test_arms_share_steps_and_differ_in_their_own_settings(tmp_path: Path) -> None:
    protocol = Protocol.from_yaml(write(tmp_path, config={"initial_lr": 0.02}))
    config = protocol.training_config(Arm("mine", config={"verification_weight": 0.0}), draw=1)
    assert (config.num_epochs, config.num_iterations_per_epoch, config.seed) == (2, 250, 11)
    assert (config.initial_lr, config.verification_weight) == (0.02, 0.0)


def test_a_variant_changes_an_arm(tmp_path: Path) -> None:
    variants = {"mine": {"arm": "mean_teacher", "config": {"teacher_decay": 0.9, "mixing": "copy_paste"}}}
    protocol = Protocol.from_yaml(write(tmp_path, variants=variants, arms={"mean_teacher": 1, "mine": 2}))
    assert [job.name for job in protocol.jobs() if job.labeled == 3] == ["mean_teacher_3_0", "mine_3_0", "mine_3_1"]
    arm, base = protocol.arm("mine"), ARMS["mean_teacher"]
    assert arm == replace(base, title="Mean Teacher: teacher_decay 0.9, mixing copy_paste", config=arm.config)
    assert arm.config == {**base.config, "teacher_decay": 0.9, "mixing": "copy_paste"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_arms_have_the_settings_that_they_had_when_they_named_their_presets(path: Path) -> None:
    presets = dict.fromkeys(("mean_teacher", "mean_teacher_mixing", "ua_mt"), PRESETS["mean_teacher"])
    presets["cps"] = PRESETS["cps"]
    protocol = Protocol.from_yaml(path)
    for name, arm in ARMS.items():
        values = {**_shared_config(protocol, draw=1), **protocol.config, **presets.get(name, {}), **arm.config}
        assert protocol.training_config(arm, draw=1) == DualCLConfig(**values), name


def test_stored_results_have_the_settings_that_their_arms_have_now() -> None:
    store = SHIPPED[0].parents[1] / "results" / "hippocampus_cpu"
    protocol = Protocol.from_yaml(store / "protocol.yaml")
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(store.glob("jobs/*/job.json"))]
    assert len({record["arm"] for record in records}) > 15
    for record in records:
        config = protocol.training_config(protocol.arm(record["arm"]), draw=record["draw"]).to_mapping()
        assert {key: config[key] for key in record["config"]} == record["config"], record["name"]


OWN_TRAINER = """
from dataclasses import dataclass
from nnunet_dualcl.config import DualCLConfig
from nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer

@dataclass(frozen=True)
class OwnConfig(DualCLConfig):
    own_weight: float = 0.5

class OwnTrainer(DualCLTrainer):
    config_class = OwnConfig
    preset = {"mixing": "none", "own_weight": 0.25, "num_epochs": 7}
"""


def test_a_variant_trains_a_trainer_of_ones_own_from_its_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = {
        "mine": {"arm": "dualcl", "trainer": "OwnTrainer", "title": "Mine", "config": {"seed": 3}},
        "heavy": {"arm": "dualcl", "trainer": "OwnTrainer", "config": {"own_weight": 2}},
    }
    path = write(tmp_path, variants=variants, arms={"mine": 1, "heavy": 1, "stock": 1})
    out = tmp_path / "out"
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    protocol = Protocol.from_yaml(path)  # a machine that reads stored results need not have the trainer
    assert [protocol.arm(name).title for name in variants] == ["Mine", "DualCL: OwnTrainer, own_weight 2"]
    with pytest.raises(DualCLError, match=r"There is no trainer OwnTrainer\. .* CPSTrainer"):
        run_benchmark(path, tmp_path, out, device="cpu")
    with pytest.raises(DualCLError, match="has no imagesTr"):
        run_benchmark(path, tmp_path, out, device="cpu", only=["stock"])
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "OwnTrainer.py").write_text(OWN_TRAINER, encoding="utf-8")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "trainers"))
    mine, heavy = (protocol.training_config(protocol.arm(name), draw=0).to_mapping() for name in variants)
    assert [mine[key] for key in ("mixing", "own_weight", "num_epochs", "seed")] == ["none", 0.25, 2, 3]
    assert (heavy["own_weight"], heavy["seed"]) == (2.0, 10)
    with pytest.raises(DualCLError, match="has no imagesTr"):
        run_benchmark(path, tmp_path, out, device="cpu")
    faulty = write(tmp_path, variants={"mine": {**variants["mine"], "config": {"on_weight": 2}}}, arms={"mine": 1})
    with pytest.raises(DualCLError, match=r"unknown key on_weight\. Did you mean own_weight"):
        run_benchmark(faulty, tmp_path, out, device="cpu")
    assert not out.exists()


def test_an_arm_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DualCLError, match=r"There is no arm nothing. Known: stock,"):
        Protocol.from_yaml(write(tmp_path)).arm("nothing")


def test_an_arm_may_run_at_some_labeled_counts_alone(tmp_path: Path) -> None:
    everywhere = Protocol.from_yaml(write(tmp_path)).jobs()
    protocol = Protocol.from_yaml(write(tmp_path, only_at={"stock": [2]}))
    assert protocol.jobs() == [job for job in everywhere if job.arm != "stock" or job.labeled == 2]
    assert len(protocol.jobs()) < len(everywhere)


@pytest.mark.parametrize("arm", sorted(ARMS))
def test_every_arm_has_a_valid_configuration(arm: str, tmp_path: Path) -> None:
    protocol = Protocol.from_yaml(write(tmp_path))
    config = protocol.training_config(ARMS[arm], draw=0)
    if ARMS[arm].trainer != "nnUNetTrainer":
        assert config.uses_unlabeled == (arm not in ("dual_decoder", "dualcl_all"))


def test_an_ablation_lacks_its_term_and_nothing_else(tmp_path: Path) -> None:
    protocol = Protocol.from_yaml(write(tmp_path))
    whole = protocol.training_config(ARMS["dualcl"], draw=0)
    for term in ("verification", "contrastive"):
        without = protocol.training_config(ARMS[f"dualcl_minus_{term}"], draw=0)
        assert without == replace(whole, **{f"{term}_weight": 0.0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"stok": 1}}, "Unknown arms stok. Known: stock,"),
        ({"arms": {"stock": 3}}, "stock: give between 1 and 2 draws"),
        ({"steps": 300}, r"steps \(300\) must be a multiple of steps_per_epoch \(250\)"),
        ({"stepps": 5}, "unknown keys: stepps; missing keys: none"),
        ({"config": {"sed": 1}}, "the protocol's config: unknown key sed"),
        ({"only_at": {"stock": [7]}}, r"only_at: stock: \[7\] must be an arm of this protocol and some of its labeled"),
        ({"only_at": {"cps": [5]}}, "only_at: cps:"),
        ({"labeled": 5}, "labeled must be different values; got 5"),
        ({"labeled": [5, 5]}, "labeled must be different values"),
        ({"labeled": []}, "labeled must be whole numbers"),
        ({"labeled": ["five"]}, "labeled must be whole numbers"),
        ({"arms": ["stock"]}, "arms must be 'key: value' lines"),
        ({"steps": "16k"}, "steps must be a whole number, at least 1; got '16k'"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be a whole number, at least 1"),
        ({"only_at": {"stock": 2}}, "only_at must be lists"),
        ({"test_cases": "case_1"}, "test_cases must be a whole number or cases"),
        ({"tolerance_mm": -1}, "tolerance_mm must be 0 or more"),
        ({"configuration": "3d_fulres"}, "configuration must be one of 3d_fullres, 3d_lowres, 2d"),
        ({"planner": "ResEncM"}, "planner: nnU-Net has no ResEncM. It has ExperimentPlanner and nnUNetPlannerResEncM"),
        ({"planner": "PlansManager"}, "planner: nnU-Net has no PlansManager"),
        ({"planner": 3}, "planner must be the class name of one of nnU-Net's planners; got 3"),
        ({"baselines": ["stok"]}, "baselines must be arms, among which are no stok"),
        ({"config": {"num_epochs": 3}}, "config must be without num_epochs, which steps"),
        ({"small_plans": {"patch": [8, 8, 8]}}, "small_plans: got an unexpected keyword argument 'patch'"),
        ({"small_plans": {"patch_size": [8, 8, 8]}}, "small_plans: missing 1 required .* 'features'"),
        ({"small_plans": {**SMALL, "patch_size": [8, 8]}}, "small_plans: patch_size must have 3 axes for 3d_fullres"),
        ({"small_plans": SMALL, "configuration": "2d"}, "small_plans: patch_size must have 2 axes for 2d"),
        ({"small_plans": {**SMALL, "spacing_mm": [1, 1]}}, "small_plans: spacing_mm must be a number above 0 for each"),
        ({"score": "train"}, "score must be test or validation, got 'train'"),
        ({"variants": {"dualcl": {"arm": "dualcl"}}}, "The variant dualcl has the name of an arm"),
        ({"variants": {"mine": {"arm": "dual"}}}, "The variant mine needs 'arm', one of stock,"),
        (
            {"variants": {"mine": {"arm": "dualcl", "confg": {}}}},
            "variant mine: unknown key confg. Allowed: arm, trainer, config, title",
        ),
        ({"variants": {"mine": "dualcl"}}, "The variant mine needs 'arm'"),
        ({"variants": {"mine": {"arm": "dualcl", "title": 3}}}, "variant mine: trainer and title are texts"),
        ({"variants": {"mine": {"arm": "dualcl", "config": [1]}}}, "variant mine: config must be 'key: value' lines"),
        ({"variants": {"mine": {"arm": "dualcl_exported"}}}, "The variant mine needs 'arm', one of stock,"),
        ({"variants": {"mine": {"arm": "dualcl", "config": {"sed": 1}}}, "arms": {"mine": 1}}, "unknown key sed"),
    ],
)
def test_a_faulty_protocol_is_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DualCLError, match=rf"protocol\.yaml: .*{message}"):
        Protocol.from_yaml(write(tmp_path, **changes))


@pytest.mark.parametrize(
    "text", ["- a list", "title: [", "title: Toy", "title: Toy\ntitle: Toi", "arms: {a: 1, a: 2}", ""]
)
def test_what_is_no_protocol_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(DualCLError, match=r"protocol .*p\.yaml"):
        Protocol.from_yaml(tmp_path / "p.yaml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_protocols_are_valid(path: Path) -> None:
    protocol = Protocol.from_yaml(path)
    assert {"stock", "stock_all", "dualcl"} <= set(protocol.arms)


def test_protocols_are_shipped() -> None:
    assert SHIPPED
