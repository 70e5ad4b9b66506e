"""What a benchmark does: data, cases held back, labeled counts, draws, steps and arms, read from one YAML file."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nnunetv2
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from nnunet_dualcl.benchmark.arms import ARMS, Arm
from nnunet_dualcl.benchmark.results import ALL_LABELED
from nnunet_dualcl.config import DualCLConfig, preset_values
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.find_trainer import find_trainer, packaged_trainers
from nnunet_dualcl.layout import STOCK_TRAINER
from nnunet_dualcl.small_plans import check_small_plans
from nnunet_dualcl.yaml_file import read_mapping

CONFIGURATIONS = ("3d_fullres", "3d_lowres", "2d")
"""Of nnU-Net's plans, those that every arm trains."""


@dataclass(frozen=True)
class Job:
    """One training with its prediction and evaluation.

    Attributes:
        arm: key of ``ARMS`` or of the protocol's variants.
        labeled: labeled cases, or "all".
        draw: which draw of the labeled cases; seeds differ between draws.
    """

    arm: str
    labeled: int | str
    draw: int

    @property
    def name(self) -> str:
        """Folder of the job."""
        return f"{self.arm}_{self.labeled}_{self.draw}"


@dataclass(frozen=True)
class Protocol:
    """Settings of a benchmark. The same plans, labeled cases and steps serve every arm of a labeled count."""

    title: str
    dataset_id: int
    dataset_name: str
    """Without number, as in ``Hippocampus``."""
    labeled: tuple[int, ...]
    """Counts of labeled cases; of patients, with all of their cases, where the source has ``conversion/patients.csv``.
    So are ``validation_cases``; test patients are drawn until there are ``test_cases`` cases."""
    arms: Mapping[str, int]
    """Arm -> draws of it, at most ``draws``."""
    steps: int
    """Training steps of each training (the ensemble and self-training are two)."""
    test_cases: int | tuple[str, ...]
    """Held back before anything is planned, a number drawn by seed or these very cases; no choice is made on them."""
    validation_cases: int
    """Of the pool, for choices."""
    draws: int = 1
    only_at: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Arm -> the labeled counts at which it runs; an arm that is not named here runs at all of them."""
    seed: int = 0
    steps_per_epoch: int = 250
    configuration: str = "3d_fullres"
    planner: str = "ExperimentPlanner"
    """Class name of one of nnU-Net's planners: ``nnUNetPlannerResEncM`` plans networks with a residual encoder."""
    small_plans: Mapping[str, Any] = field(default_factory=dict)
    """Options of :func:`nnunet_dualcl.small_plans.small_plans`; empty means nnU-Net's own plans."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Configuration that all arms share, beside the steps."""
    dataset_json: Mapping[str, Any] = field(default_factory=dict)
    """``channel_names``, ``labels`` and ``file_ending`` of a source that has no ``dataset.json``."""
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Arms of the protocol's own: name -> ``arm``, which they start from; ``trainer`` in the place of its trainer, also
    one of a folder in ``nnUNet_extTrainer``; ``config`` on top of its settings; ``title``."""
    score: Literal["test", "validation"] = "test"
    """The cases that are predicted and scored. To choose settings, score validation cases, and keep the test cases for
    what was chosen."""
    baselines: tuple[str, ...] = ("stock", "dual_decoder", "mean_teacher", "self_training")
    tolerance_mm: float = 1.0
    """Of the surface Dice."""

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("labeled", "baselines"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not isinstance(self.test_cases, int):
            object.__setattr__(self, "test_cases", tuple(map(str, self.test_cases)))
        if self.score not in ("test", "validation"):
            raise DualCLError(f"score must be test or validation, got {self.score!r}.")
        for name, variant in self.variants.items():
            _check_variant(name, variant)
        unknown = sorted(set(self.arms) - set(ARMS) - set(self.variants))
        if unknown:
            raise DualCLError(f"Unknown arms {', '.join(unknown)}. Known: {', '.join((*ARMS, *self.variants))}.")
        too_many = [arm for arm, draws in self.arms.items() if not 1 <= draws <= self.draws]
        if too_many:
            raise DualCLError(f"{', '.join(too_many)}: give between 1 and {self.draws} draws (or raise 'draws').")
        for arm, counts in self.only_at.items():
            if arm not in self.arms or not set(counts) <= set(self.labeled):
                raise DualCLError(
                    f"only_at: {arm}: {list(counts)} must be an arm of this protocol and some of its labeled counts, "
                    f"{list(self.labeled)}."
                )
        if self.steps % self.steps_per_epoch or self.steps < self.steps_per_epoch:
            raise DualCLError(
                f"steps ({self.steps}) must be a multiple of steps_per_epoch ({self.steps_per_epoch}); change "
                "one of them."
            )
        for chosen in map(self.arm, self.arms):  # unknown keys show now; trainers of others need not be here to read
            if chosen.trainer in (STOCK_TRAINER, *packaged_trainers()):
                self.training_config(chosen, draw=0)

    def _check_types(self) -> None:
        """YAML gives anything anywhere."""

        def require(holds: object, name: str, allowed: str) -> None:
            if not holds:
                raise DualCLError(f"{name} must be {allowed}; got {getattr(self, name)!r}.")

        least = {"steps": 1, "steps_per_epoch": 1, "validation_cases": 1, "draws": 1, "seed": 0, "dataset_id": 1}
        for name, number in least.items():
            require(_is_count(getattr(self, name), number), name, f"a whole number, at least {number}")
        for name in ("arms", "only_at", "small_plans", "config", "dataset_json", "variants"):
            require(isinstance(getattr(self, name), Mapping), name, "'key: value' lines")
        for name in ("labeled", "baselines"):
            values = getattr(self, name)
            require(isinstance(values, list | tuple) and len(set(values)) == len(values), name, "different values")
        require(self.labeled and all(_is_count(count, 1) for count in self.labeled), "labeled", "whole numbers")
        require(all(_is_count(draws, 0) for draws in self.arms.values()), "arms", "a number of draws each")
        require(all(isinstance(counts, list | tuple) for counts in self.only_at.values()), "only_at", "lists")
        cases = self.test_cases
        require(isinstance(cases, list | tuple) or _is_count(cases, 1), "test_cases", "a whole number or cases")
        tolerance = self.tolerance_mm
        require(isinstance(tolerance, int | float) and tolerance >= 0, "tolerance_mm", "0 or more")
        require(self.configuration in CONFIGURATIONS, "configuration", f"one of {', '.join(CONFIGURATIONS)}")
        require(isinstance(self.planner, str), "planner", "the class name of one of nnU-Net's planners")
        _name_of_plans(self.planner)  # an unknown planner shows now
        unknown = sorted(set(self.baselines) - set(ARMS) - set(self.variants))
        require(not unknown, "baselines", f"arms, among which are no {', '.join(unknown)}")
        if self.small_plans:
            self._check_small_plans()
        set_here = sorted(set(self.config) & set(_shared_config(self, draw=0)))
        require(not set_here, "config", f"without {', '.join(set_here)}, which steps, steps_per_epoch and seed set")

    def _check_small_plans(self) -> None:
        try:
            check_small_plans(**self.small_plans)
        except (TypeError, ValueError) as error:  # TypeError: a key is unknown or missing
            raise DualCLError(f"small_plans: {str(error).removeprefix('check_small_plans() ')}.") from None
        axes = 2 if self.configuration == "2d" else 3
        if len(self.small_plans["patch_size"]) != axes:
            raise DualCLError(f"small_plans: patch_size must have {axes} axes for {self.configuration}.")

    @classmethod
    def from_yaml(cls, path: Path) -> Protocol:
        """Read a protocol.

        Raises:
            DualCLError: unreadable, no mapping, unknown or missing keys, or impossible values.
        """
        values = read_mapping(path, "protocol")
        fields = dataclasses.fields(cls)
        unknown = sorted(set(values) - {entry.name for entry in fields})
        required = {
            entry.name
            for entry in fields
            if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        }
        missing = sorted(required - set(values))
        if unknown or missing:
            raise DualCLError(
                f"The protocol {path}: unknown keys: {', '.join(unknown) or 'none'}; "
                f"missing keys: {', '.join(missing) or 'none'}."
            )
        try:
            return cls(**values)
        except DualCLError as error:
            raise DualCLError(f"{path}: {error}") from None

    @property
    def dataset(self) -> str:
        """nnU-Net's full name."""
        return f"Dataset{self.dataset_id:03d}_{self.dataset_name}"

    @property
    def num_test_cases(self) -> int:
        """How many cases are held back."""
        return self.test_cases if isinstance(self.test_cases, int) else len(self.test_cases)

    @property
    def plans(self) -> str:
        """Name of the plans that every arm uses."""
        return "benchmarkPlans" if self.small_plans else self.planned

    @property
    def planned(self) -> str:
        """Name that the planner gives its plans."""
        return _name_of_plans(self.planner)

    @property
    def scored_role(self) -> str:
        """The cases to score, a key of a job's split."""
        return "test" if self.score == "test" else "val"

    @property
    def scored_folders(self) -> tuple[str, str]:
        """Where their images and their segmentations lie in the raw dataset."""
        return ("imagesTs", "labelsTs") if self.score == "test" else ("imagesTr", "labelsTr")

    def arm(self, name: str) -> Arm:
        """The arm of this name, or the variant; a :class:`DualCLError` where there is none."""
        if name not in self.variants:
            if name not in ARMS:
                raise DualCLError(f"There is no arm {name}. Known: {', '.join((*ARMS, *self.variants))}.")
            return ARMS[name]
        variant = self.variants[name]
        base, changes = ARMS[variant["arm"]], dict(variant.get("config", {}))
        trainer = variant.get("trainer", base.trainer)
        named = ([] if trainer == base.trainer else [trainer]) + [f"{key} {value}" for key, value in changes.items()]
        title = variant.get("title", f"{base.title}: {', '.join(named)}")
        return dataclasses.replace(base, title=title, trainer=trainer, config={**base.config, **changes})

    def jobs(self) -> list[Job]:
        """All jobs, first draws first, so that an interrupted benchmark has compared something."""
        counts: list[int | str] = [*self.labeled, ALL_LABELED]
        return [
            Job(arm, labeled, draw)
            for draw in range(self.draws)
            for labeled in counts
            for arm, draws in self.arms.items()
            if draw < draws
            and (self.arm(arm).labels == "all") == (labeled == ALL_LABELED)
            and (labeled == ALL_LABELED or labeled in self.only_at.get(arm, self.labeled))
        ]

    def training_config(self, arm: Arm, *, draw: int) -> DualCLConfig:
        """Configuration of an arm: its trainer's preset and its own settings over the protocol's.

        Of a trainer that reads none, it holds the numbers that are nnU-Net's as well.

        Raises:
            DualCLError: no such trainer, or a wrong key or value.
        """
        trainer = find_trainer(arm.trainer)
        config_class: type[DualCLConfig] = getattr(trainer, "config_class", DualCLConfig)
        preset = preset_values(getattr(trainer, "preset", {}))
        values = {**self.config, **preset, **_shared_config(self, draw=draw), **arm.config}
        return config_class.from_mapping(values, source="the protocol's config")

    def fold(self, job: Job) -> int:
        """Index of the job's cases in the split file."""
        if job.labeled == ALL_LABELED:
            return len(self.labeled) * self.draws
        return self.labeled.index(int(job.labeled)) * self.draws + job.draw


def _shared_config(protocol: Protocol, *, draw: int) -> dict[str, int]:
    return {
        "num_epochs": protocol.steps // protocol.steps_per_epoch,
        "num_iterations_per_epoch": protocol.steps_per_epoch,
        "num_val_iterations_per_epoch": 5,
        "seed": protocol.seed + draw,
    }


def _name_of_plans(planner: str) -> str:
    found = recursive_find_python_class(
        str(Path(nnunetv2.__path__[0]) / "experiment_planning"), planner, "nnunetv2.experiment_planning"
    )
    if not (isinstance(found, type) and issubclass(found, ExperimentPlanner)):
        raise DualCLError(
            f"planner: nnU-Net has no {planner}. It has ExperimentPlanner and nnUNetPlannerResEncM, L and XL."
        )
    name: str = inspect.signature(found).parameters["plans_name"].default
    return name


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_variant(name: str, variant: Mapping[str, Any]) -> None:
    if name in ARMS:
        raise DualCLError(f"The variant {name} has the name of an arm. Give it another.")
    allowed = ("arm", "trainer", "config", "title")
    unknown = sorted(map(str, set(variant) - set(allowed))) if isinstance(variant, Mapping) else []
    if unknown:
        raise DualCLError(f"The variant {name}: unknown key {', '.join(unknown)}. Allowed: {', '.join(allowed)}.")
    trained = [arm for arm, settings in ARMS.items() if settings.procedure != "export"]
    if not isinstance(variant, Mapping) or variant.get("arm") not in trained:
        raise DualCLError(f"The variant {name} needs 'arm', one of {', '.join(trained)}.")
    if not all(isinstance(variant.get(key, ""), str) for key in ("trainer", "title")):
        raise DualCLError(f"The variant {name}: trainer and title are texts.")
    if not isinstance(variant.get("config", {}), Mapping):
        raise DualCLError(f"The variant {name}: config must be 'key: value' lines; got {variant['config']!r}.")
