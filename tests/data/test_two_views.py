from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dualcl.data.random_stream import seed_global_streams
from nnunet_dualcl.data.two_views import TwoViews, is_photometric

PATCH = (10, 20, 30)
MASKED, UNMASKED = 0, 1  # channels with and without use_mask_for_norm
SEEDS = range(6)


def nnunets(patch: tuple[int, ...] = PATCH, *, mask: Any = (True, False), dummy_2d: bool = False) -> ComposeTransforms:
    """nnU-Net's training transforms, every one of them applied each time."""
    transforms = nnUNetTrainer.get_training_transforms(
        patch, (-0.5, 0.5), [[1.0] * len(patch), [0.5] * len(patch)], tuple(range(len(patch))), dummy_2d,
        use_mask_for_norm=mask,
    )  # fmt: skip
    for transform in transforms.transforms:
        if isinstance(transform, SpatialTransform):
            transform.p_rotation = transform.p_scaling = 1
        if isinstance(transform, RandomTransform):
            transform.apply_probability = 1
            transform.transform.benchmark = False  # blurring takes the faster of two ways, which differ in rounding
            transform.transform.p_per_channel = 1
    return transforms


def scan(seed: int = 0, patch: tuple[int, ...] = PATCH, *, dummy_2d: bool = False) -> dict[str, torch.Tensor]:
    """A patch somewhat larger than the network's; -1 marks voxels outside the patient, as in nnU-Net."""
    generator = torch.Generator().manual_seed(seed)
    shape = tuple(size + 4 * (axis > 0 or not dummy_2d) for axis, size in enumerate(patch))
    segmentation = torch.randint(-1, 3, (1, *shape), generator=generator, dtype=torch.int16)
    segmentation[:, : shape[0] // 2] = -1
    return {"image": torch.randn(2, *shape, generator=generator), "segmentation": segmentation}


def apply(transform: Any, sample: dict[str, torch.Tensor], seed: int = 0) -> dict[str, Any]:
    seed_global_streams(seed)
    result: dict[str, Any] = transform(**copy.deepcopy(sample))
    return result


def views(transforms: ComposeTransforms, sample: dict[str, torch.Tensor], seed: int = 0) -> tuple[torch.Tensor, ...]:
    weak, strong = apply(TwoViews(transforms), sample, seed)["image"].chunk(2)
    return weak, strong


class Drawn(BasicTransform):
    """Draws what ``transform`` draws and changes nothing."""

    def __init__(self, transform: BasicTransform) -> None:
        super().__init__()
        self.transform = transform

    def __call__(self, **sample: Any) -> dict[str, Any]:
        self.transform(image=sample["image"].clone())
        return sample


def geometric(transforms: ComposeTransforms) -> ComposeTransforms:
    return ComposeTransforms([Drawn(each) if is_photometric(each) else each for each in transforms.transforms])


def test_nnunets_intensity_transforms_are_told_apart() -> None:
    names = [type(getattr(t, "transform", t)).__name__ for t in nnunets().transforms if is_photometric(t)]
    assert names == [
        "GaussianNoiseTransform", "GaussianBlurTransform", "MultiplicativeBrightnessTransform", "ContrastTransform",
        "SimulateLowResolutionTransform", "GammaTransform", "GammaTransform",
    ]  # fmt: skip
    others = [type(t).__name__ for t in nnunets().transforms if not is_photometric(t)]
    assert others[:3] == ["SpatialTransform", "MirrorTransform", "MaskImageTransform"]
    assert len(others) == 5  # the last two change the segmentation alone
    assert is_photometric(GaussianNoiseTransform())


@pytest.mark.parametrize(
    ("patch", "dummy_2d"), [(PATCH, False), (PATCH, True), ((20, 30), False)], ids=["3d", "dummy_2d", "2d"]
)
def test_strong_view_is_stocks_image_and_weak_view_its_geometry(patch: tuple[int, ...], dummy_2d: bool) -> None:
    transforms = nnunets(patch, dummy_2d=dummy_2d)
    for seed in SEEDS:
        sample = scan(seed, patch, dummy_2d=dummy_2d)
        stock, ours = apply(transforms, sample, seed), apply(TwoViews(transforms), sample, seed)
        assert ours["image"].shape == (4, *patch)
        weak, strong = ours["image"].chunk(2)
        assert torch.equal(strong, stock["image"])
        assert torch.equal(weak, apply(geometric(transforms), sample, seed)["image"])
        assert not torch.isclose(weak[UNMASKED], strong[UNMASKED]).all()
        for level, expected in zip(ours["segmentation"], stock["segmentation"], strict=True):
            assert torch.equal(level, expected)
        assert set(ours) == set(stock)


def test_as_many_random_numbers_as_stock() -> None:
    transforms = nnunets()
    states = []
    for transform in (transforms, TwoViews(transforms)):
        apply(transform, scan())
        states.append((torch.get_rng_state(), np.random.get_state()[1:3]))  # type: ignore[index]
    assert torch.equal(states[0][0], states[1][0])
    assert np.array_equal(states[0][1][0], states[1][1][0])
    assert states[0][1][1] == states[1][1][1]


def test_transforms_that_stock_skips_are_skipped() -> None:
    transforms = nnunets()
    for transform in transforms.transforms:
        if isinstance(transform, RandomTransform):
            transform.apply_probability = 0.5
    for seed in SEEDS:
        stock = apply(transforms, scan(), seed)["image"]
        assert torch.equal(views(transforms, scan(), seed)[1], stock)


def test_without_intensity_transforms_the_views_are_equal() -> None:
    transforms = nnunets()
    transforms.transforms = [each for each in transforms.transforms if not is_photometric(each)]
    for seed in SEEDS:
        weak, strong = views(transforms, scan(), seed)
        assert torch.equal(weak, strong)
        assert torch.equal(weak, apply(transforms, scan(), seed)["image"])


def test_mirrored_views_show_the_mirrored_labels() -> None:
    transforms = nnunets(mask=(False, False))
    spatial = transforms.transforms[0]
    spatial.p_rotation = spatial.p_scaling = 0  # interpolation would blur the labels
    sample = scan()
    sample["segmentation"][:] = 0
    sample["segmentation"][0, 7:, :9] = 1
    sample["segmentation"][0, 7:, :9, 20:] = 2
    sample["image"] = torch.cat([sample["segmentation"], 2 - sample["segmentation"]]).float()
    orientations = set()
    for seed in range(12):
        result = apply(TwoViews(transforms), sample, seed)
        weak, strong = result["image"].chunk(2)
        labels = result["segmentation"][0][0].float()
        assert torch.equal(weak, torch.stack([labels, 2 - labels]))
        for sign, view in zip((1, -1), strong, strict=True):
            assert sign * np.corrcoef(view.flatten(), labels.flatten())[0, 1] > 0.6  # brighter, not elsewhere
        orientations.add(labels.numpy().tobytes())
    assert len(orientations) > 3


def test_outside_the_patient_masked_channels_are_zero_in_both_views() -> None:
    transforms = nnunets()
    outside = apply(ComposeTransforms(geometric(transforms).transforms[:-2]), scan())["segmentation"][0] < 0
    assert 0.2 < outside.float().mean() < 0.9
    for view in views(transforms, scan()):
        assert (view[MASKED][outside] == 0).all()
        assert (view[MASKED][~outside] != 0).float().mean() > 0.9
        assert (view[UNMASKED][outside] != 0).float().mean() > 0.5


def test_the_input_is_left_as_it_is() -> None:
    transforms = nnunets()
    transforms.transforms[0].p_rotation = transforms.transforms[0].p_scaling = 0  # the crop alone may be a view
    for patch_of in (scan(), {name: tensor[:, 2:-2, 2:-2, 2:-2] for name, tensor in scan().items()}):
        before = copy.deepcopy(patch_of)
        seed_global_streams(0)
        TwoViews(transforms)(**patch_of)
        assert all(torch.equal(patch_of[name], before[name]) for name in before)
