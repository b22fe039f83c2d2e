"""Photographs resized, cropped and normalised: against Pillow's own resize, and against `Preprocessor`.

Pillow resizes along one axis, rounds, and resizes along the other. Up to version 12 x came first; version 13 begins
with y where that is less work. The kernel begins with x, so Pillow is called once an axis here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from finercam_rt import ops
from finercam_rt.errors import InputError
from finercam_rt.manifest import InputSpec
from finercam_rt.preprocess import Preprocessor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SIZES = [(33, 47), (24, 24), (5, 300), (301, 7), (480, 640), (1, 1), (24, 61), (700, 24)]


def _photograph(size: tuple[int, int], seed: int) -> np.ndarray:
    """Noise on edges of full contrast: where a cubic filter overshoots, and rounding in between shows."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 2, (size[0] // 5 + 1, size[1] // 7 + 1, 3)) * 255
    image = np.kron(blocks, np.ones((5, 7, 1)))[: size[0], : size[1]] + rng.normal(0, 20, (*size, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def _ramps(size: tuple[int, int]) -> np.ndarray:
    """Red grows to the right, green downwards, blue both ways."""
    y, x = np.meshgrid(*(np.linspace(0, 255, edge) for edge in size), indexing="ij")
    return np.stack([x, y, (x + y) / 2], axis=2).astype(np.uint8)


def _resized(image: np.ndarray, frame: ops.Frame, resample: Image.Resampling) -> np.ndarray:
    height, width = frame.resized
    narrow = Image.fromarray(image).resize((width, image.shape[0]), resample)
    return np.asarray(narrow.resize((width, height), resample))


def _expected(image: np.ndarray, frame: ops.Frame, size: tuple[int, int], interpolation: str, fill: Any) -> np.ndarray:
    resized = _resized(image, frame, RESAMPLING[interpolation])
    view = np.empty((*size, 3), np.uint8)
    view[...] = fill
    for y in range(size[0]):
        for x in range(size[1]):
            if 0 <= y + frame.top < frame.resized[0] and 0 <= x + frame.left < frame.resized[1]:
                view[y, x] = resized[y + frame.top, x + frame.left]
    return view


@pytest.mark.parametrize("interpolation", ops.INTERPOLATIONS)
def test_levels_are_pillows(device: Any, interpolation: str) -> None:
    size = (24, 40)
    images = [_photograph(of, seed) for seed, of in enumerate(SIZES)]
    frames = [ops.Frame((30 + 3 * k, 50 - 2 * k), k - 3, 2 * k - 6) for k in range(len(SIZES))]
    frames[1] = ops.Frame((24, 24), 0, -8)  # not resized at all
    fill = (9, 200, 77)
    view = device.put(np.empty((len(images), *size, 3), np.uint8))
    batch = ops.preprocess(
        [device.put(image) for image in images],
        frames,
        size,
        mean=MEAN,
        std=STD,
        interpolation=interpolation,
        fill=fill,
        view=view,
    )
    levels, values = device.get(view), device.get(batch)
    off = []
    for k, (image, frame) in enumerate(zip(images, frames, strict=True)):
        wanted = _expected(image, frame, size, interpolation, fill)
        off.append(np.abs(levels[k].astype(int) - wanted))
        assert off[-1].max() <= 1, k
    assert np.mean(np.concatenate(off) > 0) < 1e-2  # halves, where Pillow's weights are rounded
    np.testing.assert_array_equal(levels[1], _expected(images[1], frames[1], size, interpolation, fill))
    table = (levels.astype(np.float32) / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    np.testing.assert_array_equal(values, table.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("mode", ["center", "center_floor", "squash", "border"])
@pytest.mark.parametrize("size", [(32, 32), (20, 44)])
def test_frames_are_those_of_the_preprocessor(device: Any, mode: str, size: tuple[int, int]) -> None:
    spec = InputSpec(size, MEAN, STD, crop_pct=0.9, crop_mode=mode)
    preprocessor = Preprocessor(spec)
    # Neither Pillow's order nor rounding in between shows in ramps.
    images = [_ramps(of) for of in [(50, 81), (90, 33), (21, 20), (200, 200)]]
    frames = [preprocessor.frame(image.shape[:2], "x") for image in images]
    found = ops.preprocess(
        [device.put(image) for image in images], frames, size, mean=MEAN, std=STD, fill=preprocessor.fill
    )
    inputs, view = np.empty((3, *size), np.float32), np.empty((*size, 3), np.uint8)
    for k, image in enumerate(images):
        preprocessor(Image.fromarray(image), inputs, view, "x")
        difference = np.abs(device.get(found)[k] - inputs) * np.float32(STD)[:, None, None] * 255
        assert difference.max() < 1.01


def test_any_strides_and_many_at_once(device: Any) -> None:
    """Views of one array, turned, mirrored and thinned, are as their copies; more than one launch takes."""
    whole = _photograph((40, 60), 3)
    views = [whole, whole[::-1], whole.transpose(1, 0, 2), whole[5:, 3::2, ::-1]]
    copies = [np.ascontiguousarray(view) for view in views]
    # torch has no negative strides
    put = views if device.name == "cpu" else [device.put(whole), *map(device.put, copies[1:])]
    frames = [ops.Frame((20, 24), 1, 2)] * len(views)
    found = ops.preprocess(put, frames, (16, 18), mean=MEAN, std=STD)
    alone = ops.preprocess([device.put(copy) for copy in copies], frames, (16, 18), mean=MEAN, std=STD)
    np.testing.assert_array_equal(device.get(found), device.get(alone))
    many = ops.preprocess([put[k % 4] for k in range(500)], frames[:1] * 500, (16, 18), mean=MEAN, std=STD, threads=2)
    np.testing.assert_array_equal(device.get(many), np.tile(device.get(found), (125, 1, 1, 1)))


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("interpolation", ops.INTERPOLATIONS)
def test_each_channel_is_as_the_same_of_three(device: Any, interpolation: str, channels: int) -> None:
    """Of RGB made of one channel again and again; with strides of every kind, and more than one launch takes."""
    size, count = (20, 26), 3
    whole = [np.concatenate([_photograph((31 + k, 40 - 5 * k), 6 * k + c) for c in range(2)], 2) for k in range(count)]
    images = [image[:, :, :channels] for image in whole]
    frames = [ops.Frame((25, 33), 2, 3), ops.Frame((18, 40), -4, 5), ops.Frame((40, 20), 6, -3)]
    mean, std = [0.1 * (c + 1) for c in range(channels)], [0.2 + 0.1 * c for c in range(channels)]
    fill = [20 * c + 5 for c in range(channels)]
    options: dict[str, Any] = {"interpolation": interpolation}
    view = device.put(np.zeros((count, *size, channels), np.uint8))
    put = [device.put(image) for image in images]
    found = ops.preprocess(put, frames, size, mean=mean, std=std, fill=fill, view=view, **options)
    assert device.get(found).shape == (count, channels, *size)
    for c in range(channels):
        levels = {"mean": [mean[c]] * 3, "std": [std[c]] * 3, "fill": [fill[c]] * 3}
        same = [device.put(np.repeat(image[:, :, c : c + 1], 3, axis=2)) for image in images]
        seen = device.put(np.zeros((count, *size, 3), np.uint8))
        wanted = ops.preprocess(same, frames, size, view=seen, **levels, **options)
        np.testing.assert_array_equal(device.get(found)[:, c], device.get(wanted)[:, 1])
        np.testing.assert_array_equal(device.get(view)[..., c], device.get(seen)[..., 1])
    options |= {"mean": mean, "std": std, "fill": fill}
    np.testing.assert_array_equal(device.get(ops.preprocess(put, frames, size, **options)), device.get(found))
    if device.name == "ptx":
        return  # half a minute; test_any_strides_and_many_at_once has as many
    many = ops.preprocess([put[k % 3] for k in range(501)], frames * 167, size, **options)
    np.testing.assert_array_equal(device.get(many), np.tile(device.get(found), (167, 1, 1, 1)))


def test_half_precision_is_rounded_to_nearest(device: Any) -> None:
    torch = pytest.importorskip("torch")
    image, frame = _photograph((30, 30), 1), ops.Frame((30, 30), 0, 0)
    # a tiny std gives infinities and a large one subnormals
    for std in (STD, (1e-6, 1.0, 1e5)):
        whole = device.get(ops.preprocess([device.put(image)], [frame], (30, 30), mean=MEAN, std=std))
        for dtype in (torch.float16, torch.bfloat16):
            out = device.empty((1, 3, 30, 30), dtype)
            assert ops.preprocess([device.put(image)], [frame], (30, 30), mean=MEAN, std=std, out=out) is out
            wanted = torch.from_numpy(whole).to(dtype)
            found = device.get(out if device.name == "ptx" else out.view(torch.int16))
            np.testing.assert_array_equal(np.asarray(found), wanted.view(torch.int16).numpy(), f"{dtype} {std}")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"images": []}, "0 images and 1 frames"),
        ({"images": [np.zeros((4, 4), np.uint8)]}, "give \\(height,width,C\\)"),
        ({"images": [np.zeros((4, 4, 3), np.float32)]}, "convert them to 'uint8'"),
        ({"frames": [ops.Frame((0, 4), 0, 0)]}, "frame of an image"),
        ({"size": (0, 3)}, "the size is"),
        ({"interpolation": "lanczos"}, "has 'bilinear', 'bicubic'"),
        ({"mean": (0.5, 0.5)}, "a finite number for each of 3 channels"),
        ({"std": (0.5, 0.0, 1)}, "other than 0"),
        ({"fill": (0, 0, 256)}, "a level from 0 to 255 for each of 3 channels"),
        ({"out": np.zeros((1, 3, 4, 5), np.float32)}, "must be"),
        ({"out": np.zeros((1, 3, 4, 4))}, "convert them to 'float32'"),
        ({"view": np.zeros((1, 4, 4, 4), np.uint8)}, "must be"),
        ({"size": (2**16, 2**16)}, "give fewer images"),
        ({"images": [np.zeros((4, 4, 2), np.uint8)]}, "a finite number for each of 2 channels"),
        ({"images": [np.zeros((4, 4, 0), np.uint8)]}, "with sizes of at least 1"),
        (
            {"images": [np.zeros((4, 4, c), np.uint8) for c in (3, 4)], "frames": [ops.Frame((4, 4), 0, 0)] * 2},
            "the images have 3 and 4 channels; give as many each",
        ),
    ],
)
def test_mistakes(change: dict[str, Any], says: str) -> None:
    arguments: dict[str, Any] = {
        "images": [np.zeros((4, 4, 3), np.uint8)],
        "frames": [ops.Frame((4, 4), 0, 0)],
        "size": (4, 4),
        "mean": MEAN,
        "std": STD,
        **change,
    }
    with pytest.raises(InputError, match=says) as error:
        ops.preprocess(**arguments)
    assert str(error.value).count("\n") == 0
