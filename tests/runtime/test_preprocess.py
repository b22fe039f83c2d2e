"""Preprocessing equals timm's evaluation transform."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from finercam_rt.errors import InputError
from finercam_rt.manifest import CROP_MODES, INTERPOLATIONS, InputSpec
from finercam_rt.preprocess import Preprocessor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# (width, height): square, odd, smaller than the crop, one edge smaller, extreme, and rounding cases of .5
SIZES = [
    (64, 64),
    (301, 199),
    (199, 301),
    (17, 23),
    (5, 300),
    (300, 5),
    (640, 33),
    (37, 37),
    (75, 50),
    (1, 1),
    (129, 86),
]


def photograph(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def ours(image: Image.Image, spec: InputSpec) -> tuple[np.ndarray, np.ndarray]:
    out = np.full((3, *spec.size), np.nan, np.float32)
    view = np.full((*spec.size, 3), 77, np.uint8)
    Preprocessor(spec)(image, out, view, "image 0")
    return out, view


def timms(image: Image.Image, spec: InputSpec) -> np.ndarray:
    factory = pytest.importorskip("timm.data.transforms_factory", reason="timm is not installed")
    transform = factory.transforms_imagenet_eval(
        img_size=spec.size,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
    )
    return transform(image).numpy()


@pytest.mark.parametrize("crop_mode", sorted(set(CROP_MODES) - {"center_floor"}))  # that one is transformers'
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(56, 56), (48, 64), (65, 41)])
def test_equals_timm(size, interpolation, crop_mode):
    for crop_pct in (0.875, 0.95, 1.0, 0.7):
        spec = InputSpec(size, MEAN, STD, interpolation, crop_pct, crop_mode)
        for width, height in SIZES:
            image = photograph(width, height)
            try:
                expected = timms(image, spec)
            except ValueError:  # timm resizes to zero pixels; ours is refused below
                with pytest.raises(InputError, match="too narrow"):
                    ours(image, spec)
                continue
            out, view = ours(image, spec)
            assert np.abs(out - expected).max() <= 1e-6, (width, height, crop_pct)
            normalised = (view / 255.0 - np.array(MEAN)) / np.array(STD)
            assert np.abs(normalised.transpose(2, 0, 1) - out).max() < 1e-5, "the view is what the model sees"


def test_a_real_size_with_each_default_of_timm():
    """224 and 518 pixels with the crop fractions that timm's models use."""
    for size, crop_pct in ((224, 0.875), (224, 0.9), (224, 0.96), (288, 1.0), (518, 1.0), (299, 0.897)):
        spec = InputSpec((size, size), (0.5,) * 3, (0.5,) * 3, "bicubic", crop_pct)
        for width, height in ((1024, 683), (683, 1024), (500, 375), (225, 224)):
            image = photograph(width, height)
            assert np.abs(ours(image, spec)[0] - timms(image, spec)).max() <= 1e-6


def test_a_strip_that_would_take_gigabytes_is_refused():
    spec = InputSpec((224, 224), MEAN, STD)
    with pytest.raises(InputError, match="too narrow"):
        ours(Image.new("RGB", (1, 100_000)), spec)


def test_border_pads_with_the_mean_colour():
    spec = InputSpec((40, 40), MEAN, STD, crop_pct=1.0, crop_mode="border")
    _, view = ours(Image.new("RGB", (80, 20), (255, 255, 255)), spec)
    assert view[0, 0].tolist() == [round(255 * v) for v in MEAN]
    assert view[20, 20].tolist() == [255, 255, 255]
