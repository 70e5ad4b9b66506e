"""Every knob of a DualCL training in one frozen, typed object."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import os
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from nnunet_dualcl.atomic import write_text
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.layout import CONFIG_VARIABLE
from nnunet_dualcl.yaml_file import read_mapping

if TYPE_CHECKING:
    from typing_extensions import Self

Preset = str | Mapping[str, Any]
"""A key of ``PRESETS``, or values of one's own."""

_NO_TERMS = {"pseudo_label_weight": 0.0, "verification_weight": 0.0, "contrastive_weight": 0.0}

PRESETS: Mapping[str, Mapping[str, Any]] = types.MappingProxyType(
    {
        "dualcl": {},
        "paper": {
            "pseudo_label_source": "winner",
            "pseudo_label_loss": "ce",
            "mixing": "none",
            "reliability": "global",
            "verification_on": "both",
            "verification_weight": 0.5,
        },
        "supervised": _NO_TERMS,
        "stock": {**_NO_TERMS, "second_decoder": False, "prediction": "a"},
        "mean_teacher": {
            **_NO_TERMS,
            "second_decoder": False,
            "pseudo_label_weight": 1.0,
            "pseudo_label_loss": "ce",  # with Dice on its own labels and nothing else it confirms its errors
            "mixing": "none",
        },
        "cps": {
            **_NO_TERMS,
            "pseudo_label_weight": 1.0,
            "pseudo_label_source": "cross",
            "pseudo_label_loss": "ce",
            "mixing": "none",
            "unreliable_fraction_start": 0.0,
        },
    }
)
"""Named sets of values that differ from the defaults; trainers start from them."""


@dataclass(frozen=True)
class DualCLConfig:
    """Settings of one training. Variants are ``dataclasses.replace(config, field=value)``.

    The fields up to ``mirroring`` set what nnU-Net has as well; the rest belong to this package.
    Weights multiply terms as in ``docs/method.md``. All values are checked on construction. A dataclass that inherits
    from it adds fields of its own: bool, int, float or str, one of these or None, or a ``Literal`` of texts.
    """

    _hints: ClassVar[Mapping[str, Any]]

    num_epochs: int = 1000
    """Epochs (nnU-Net's default)."""
    num_iterations_per_epoch: int = 250
    """Training steps an epoch (nnU-Net's default)."""
    num_val_iterations_per_epoch: int = 50
    """Validation batches an epoch (nnU-Net's default)."""
    initial_lr: float = 1e-2
    """Learning rate at step 0 of nnU-Net's polynomial schedule (nnU-Net's default)."""
    seed: int = 0
    """Seed of weights, batches and sampling. Repeats need nnUNet_n_proc_DA=0 (in training; nnU-Net's planning fails
    with it) and a deterministic device; with augmentation workers the order of batches depends on timing. nnU-Net's
    blur picks its algorithm by the clock, which changes voxels by rounding."""
    mirroring: bool = True
    """Mirror patches in training and average mirrored predictions (nnU-Net's default). Off where left and right are
    labels of their own, as nnU-Net's nnUNetTrainerNoMirroring does."""

    unlabeled_batch_size: int | None = None
    """Unlabeled patches a step, on each device; null means as many as labeled ones."""
    split_batch: bool = False
    """Give half of the plans' batch to unlabeled patches, so that a step is as large as stock nnU-Net's, instead of
    adding them to it."""
    low_memory: bool = False
    """Run the labeled and the unlabeled half one after the other and add up their gradients: the same step in about
    half of the memory (with nnU-Net's instance normalization; batch normalization sees each half by itself)."""
    decoder_checkpointing: bool = False
    """Compute the decoders' activations again in the backward pass instead of keeping them: less memory, more time.
    torch.compile leaves the decoders out then."""

    second_decoder: bool = True
    """Train decoder B. Off, and without unlabeled terms, training is exactly stock nnU-Net's."""
    prediction: Literal["mean", "a"] = "mean"
    """What validation and prediction use: the mean of both decoders' logits, or decoder A alone."""

    pseudo_label_weight: float = 1.0
    """w_u, weight of the pseudo-label term L_u."""
    pseudo_label_source: Literal["teacher", "winner", "cross"] = "teacher"
    """Who labels unlabeled patches: a moving average of the network (its decoders' mean labels both), the decoder
    with the lower supervised loss on this batch (it labels the other), or each decoder the other."""
    pseudo_label_loss: Literal["dice_ce", "ce"] = "dice_ce"
    """Soft Dice and cross-entropy as in nnU-Net's own loss, or cross-entropy alone."""
    pseudo_label_on: Literal["reliable", "all"] = "reliable"
    """Voxels that L_u takes: those that are reliable by the quantiles below, or all of them."""
    teacher_decay: float = 0.99
    """Share of its old weights that the teacher keeps at each step (Mean Teacher, arXiv 1703.01780)."""
    teacher_view: Literal["weak", "same"] = "weak"
    """The teacher sees unlabeled patches without intensity augmentation, or exactly as the decoders see them."""
    mixing: Literal["copy_paste", "none"] = "copy_paste"
    """Whether labeled and unlabeled patches exchange a cuboid (BCP, arXiv 2305.00673); needs the teacher. Without it
    the teacher confirmed its errors, below stock nnU-Net (docs/benchmarks.md)."""
    mixing_fraction: float = 0.67
    """Edge length of that cuboid as a share of the patch's."""
    reliability: Literal["per_class", "global"] = "per_class"
    """One entropy quantile for each predicted class, or one for all voxels."""
    unreliable_fraction_start: float = 0.2
    """Share of voxels called unreliable at step 0 (U2PL, CVPR 2022)."""
    unreliable_fraction_end: float = 0.0
    """The same at the last step; linear in between."""

    verification_weight: float = 0.1
    """w_reg, weight of the mutual verification term L_reg."""
    verification_confidence: float = 0.6
    """T, the least probability with which a decoder asserts a class."""
    verification_on: Literal["both", "labeled", "unlabeled"] = "labeled"
    """Halves of the batch on which L_reg acts; on unlabeled patches it cost Dice (docs/settings_tried.md)."""

    contrastive_weight: float = 0.1
    """w_c, weight of the contrastive reliability term L_c."""
    contrastive_temperature: float = 0.1
    """tau, temperature of the softmax over prototypes."""
    contrastive_samples: int = 4096
    """Voxels of each patch at which L_c, the prototypes and the logged shares are computed."""
    prototype_momentum: float = 0.99
    """Share of the old prototype kept at each step."""

    rampup_fraction: float = 0.4
    """t_r as a share of all steps: L_u and L_c reach full weight there (Laine & Aila, arXiv 1610.02242)."""

    def __init_subclass__(cls) -> None:
        cls._hints = get_type_hints(cls)  # now: nnU-Net forgets modules of nnUNet_extTrainer once it has the trainer

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _checked(field.name, getattr(self, field.name), self._hints[field.name])
            object.__setattr__(self, field.name, value)
        at_least = {
            "num_epochs": 1,
            "num_iterations_per_epoch": 1,
            "num_val_iterations_per_epoch": 1,
            "seed": 0,
            "contrastive_samples": 1,
            "pseudo_label_weight": 0,
            "verification_weight": 0,
            "contrastive_weight": 0,
        }
        unit_interval = (
            "unreliable_fraction_start",
            "unreliable_fraction_end",
            "prototype_momentum",
            "rampup_fraction",
            "teacher_decay",
            "mixing_fraction",
        )
        for name, least in at_least.items():
            _require(getattr(self, name) >= least, name, getattr(self, name), f"at least {least}")
        for name in unit_interval:
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
        _require(self.seed < 2**63, "seed", self.seed, "below 2**63")  # what torch takes
        _require(self.initial_lr > 0, "initial_lr", self.initial_lr, "above 0")
        _require(self.contrastive_temperature > 0, "contrastive_temperature", self.contrastive_temperature, "above 0")
        _require(
            0 < self.verification_confidence < 1,
            "verification_confidence",
            self.verification_confidence,
            "strictly between 0 and 1",
        )
        if self.mixing != "none" and self.pseudo_label_source != "teacher":
            raise DualCLError(
                f"mixing: {self.mixing} pastes labels that exist before the step, so it needs pseudo_label_source: "
                "teacher. Set mixing: none, or keep the teacher."
            )
        if self.unlabeled_batch_size is not None:
            _require(
                self.unlabeled_batch_size >= 1,
                "unlabeled_batch_size",
                self.unlabeled_batch_size,
                "at least 1, or null for as many as labeled ones",
            )
        if self.split_batch and self.unlabeled_batch_size is not None:
            raise DualCLError(
                "split_batch: true sets the number of unlabeled patches itself. Leave unlabeled_batch_size: null, or "
                "set split_batch: false."
            )
        if not self.second_decoder and self.prediction == "mean":
            # Decoder B is never trained then; averaging it in would spoil decoder A.
            object.__setattr__(self, "prediction", "a")
        if not self.second_decoder and self.verification_weight + self.contrastive_weight > 0:
            raise DualCLError(
                "second_decoder: false leaves no second predictor to verify or contrast with. Set verification_weight "
                "and contrastive_weight to 0 as well."
            )
        if not self.second_decoder and self.pseudo_label_weight > 0 and self.pseudo_label_source != "teacher":
            raise DualCLError(
                "second_decoder: false leaves no second predictor that could label. Set pseudo_label_source: teacher, "
                "or pseudo_label_weight: 0."
            )

    @property
    def uses_unlabeled(self) -> bool:
        """Whether any term acts on unlabeled patches."""
        return (
            self.pseudo_label_weight > 0
            or self.contrastive_weight > 0
            or (self.verification_weight > 0 and self.verification_on != "labeled")
        )

    @property
    def uses_teacher(self) -> bool:
        """Whether a moving average of the network labels the unlabeled patches."""
        labels_matter = self.pseudo_label_weight > 0 or self.contrastive_weight > 0
        return labels_matter and self.pseudo_label_source == "teacher"

    @classmethod
    def preset(cls, preset: Preset, **overrides: Any) -> Self:
        """One of ``PRESETS``, or a mapping of other values, with ``overrides`` on top.

        Raises:
            DualCLError: no such preset, or a wrong key or value.
        """
        return cls.from_mapping({**preset_values(preset), **overrides}, source=f"the preset {preset}")

    @classmethod
    def paper(cls, **overrides: Any) -> Self:
        """The terms as the paper has them, on two decoders: no teacher, no mixing, one quantile for all voxels."""
        return cls.preset("paper", **overrides)

    @classmethod
    def supervised(cls, **overrides: Any) -> Self:
        """Both decoders, no term beyond the supervised ones."""
        return cls.preset("supervised", **overrides)

    @classmethod
    def stock(cls, **overrides: Any) -> Self:
        """Decoder A only: training is stock nnU-Net's."""
        return cls.preset("stock", **overrides)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, source: str = "the configuration") -> Self:
        """Build from plain values, refusing unknown keys and wrong types.

        Raises:
            DualCLError: naming ``source``, the key and what is allowed.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(str(key) for key in set(values) - set(names))
        if unknown:
            close = [match for key in unknown for match in difflib.get_close_matches(key, names, 1)]
            hint = f" Did you mean {', '.join(close)}?" if close else ""
            raise DualCLError(f"{source}: unknown key {', '.join(unknown)}.{hint} Allowed: {', '.join(sorted(names))}.")
        try:
            return cls(**values)
        except DualCLError as error:
            raise DualCLError(f"{source}: {error}") from None

    @classmethod
    def from_yaml(cls, path: Path, *, preset: Preset = "dualcl") -> Self:
        """Read a YAML file of ``key: value`` lines; keys left out keep the values of ``preset``.

        Raises:
            DualCLError: the file is missing, no YAML, no mapping, or holds a wrong key or value or one key twice.
        """
        cls.preset(preset)  # a fault in it is not the file's
        return cls.from_mapping({**preset_values(preset), **read_mapping(path, "configuration")}, source=str(path))

    @classmethod
    def from_environment(cls, *, preset: Preset = "dualcl") -> Self:
        """The file named by ``DUALCL_CONFIG``, or the preset where the variable is not set."""
        path = os.environ.get(CONFIG_VARIABLE)
        return cls.from_yaml(Path(path), preset=preset) if path else cls.preset(preset)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values of all fields, in order."""
        return dataclasses.asdict(self)

    def write_yaml(self, path: Path) -> None:
        """Write all fields in one step."""
        write_text(path, yaml.safe_dump(self.to_mapping(), sort_keys=False))


DualCLConfig._hints = get_type_hints(DualCLConfig)


def preset_values(preset: Preset) -> Mapping[str, Any]:
    """Values that differ from the defaults; a :class:`DualCLError` where no preset has this name."""
    if not isinstance(preset, str):
        return preset
    if preset not in PRESETS:
        raise DualCLError(
            f"There is no preset {preset!r}. Take one of {', '.join(PRESETS)}, or give a mapping of values of your own."
        )
    return PRESETS[preset]


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise DualCLError(f"{name} must be {allowed}, got {value!r}.")


def _checked(name: str, value: Any, hint: Any) -> Any:
    """``value`` if it fits the annotation ``hint``; numbers that YAML 1.1 reads as text (1e-2) are converted."""
    if get_origin(hint) is Literal:
        _require(value in get_args(hint), name, value, f"one of {', '.join(get_args(hint))}")
        return value
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in get_args(hint) if option is not type(None))
    if hint is float and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    fits = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    if hint is float and fits:
        fits = math.isfinite(value)
    allowed = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}
    _require(fits, name, value, allowed[hint])
    return value
