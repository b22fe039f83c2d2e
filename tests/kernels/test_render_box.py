"""`ops.render` where the maps lie in a part of the image, and where the caller gives the range of values."""

from __future__ import annotations

import numpy as np
import pytest

from finercam_rt import colormaps, ops

MAPS = np.random.default_rng(4).standard_normal((2, 5, 7)).astype(np.float32)
MAPS[:, 0, 0], MAPS[:, -1, -1] = -1, 2
SIZE = (31, 45)
# left, top, right, bottom: whole; integers; fractions; edges on pixel centres; reaching out on one side and on all;
# narrower than a pixel, between two centres; beyond the image
BOXES = [
    (0, 0, 45, 31),
    (5, 3, 40, 29),
    (4.3, 2.9, 38.2, 30.4),
    (4.5, 2.5, 38.5, 30.5),
    (-10.7, 3, 20.2, 60.1),
    (-3.5, -8, 50, 40),
    (7.6, 3.6, 8.4, 4.4),
    (50, 3, 60, 20),
    (-60, -60, -50, -50),
]


def axis(cells: int, pixels: int, start: float, end: float) -> tuple[np.ndarray, np.ndarray]:
    """(pixels, cells) bilinear weights, and which pixels have their centres in [start, end)."""
    matrix, inside = np.zeros((pixels, cells)), np.zeros(pixels, bool)
    for pixel in range(pixels):
        inside[pixel] = start <= pixel + 0.5 < end
        position = min(max((pixel + 0.5 - start) / (end - start) * cells - 0.5, 0.0), cells - 1.0)
        low = int(position)
        matrix[pixel, low] += 1 - (position - low)
        matrix[pixel, min(low + 1, cells - 1)] += position - low
    return matrix, inside


def oracle(maps: np.ndarray, box, value_range=None) -> np.ndarray:
    """Values in [0, 1], NaN outside of the box."""
    positive = np.maximum(maps.astype(np.float64), 0)
    low, high = value_range or (positive.min((1, 2), keepdims=True), positive.max((1, 2), keepdims=True))
    left, top, right, bottom = box
    (rows, y), (columns, x) = axis(maps.shape[1], SIZE[0], top, bottom), axis(maps.shape[2], SIZE[1], left, right)
    values = np.einsum("yh,nhw,xw->nyx", rows, np.clip((positive - low) / (high - low), 0, 1), columns)
    return np.where(y[:, None] & x, values, np.nan)


@pytest.mark.parametrize("box", BOXES)
def test_values(device, box):
    found = device.get(ops.render(device.put(MAPS), SIZE, box=box).image)
    np.testing.assert_allclose(found, oracle(MAPS, box), rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("box", BOXES)
def test_colours_and_blend(device, box):
    """Outside of the box: transparent, or the photograph under black of the same opacity."""
    expected = oracle(MAPS, box)
    outside = np.isnan(expected)
    colours = colormaps.table("jet")[np.floor(np.nan_to_num(expected) * 255 + 0.5).astype(int)].astype(float)
    found = device.get(ops.render(device.put(MAPS), SIZE, box=box, colormap="jet").image)
    assert not found[outside].any()
    assert (found[~outside][:, 3] == 255).all()
    # a value on the edge between two colours may fall on either side
    near = np.abs(found[..., :3] - colours).max(axis=-1)
    assert near[~outside].max(initial=0) <= 8
    assert (near[~outside] == 0).mean() > 0.98 if (~outside).any() else True

    photos = np.random.default_rng(1).integers(0, 256, (2, *SIZE, 3), dtype=np.uint8)
    put = device.put(photos)
    blended = device.get(ops.render(device.put(MAPS), SIZE, box=box, images=put, colormap="jet", opacity=0.25).image)
    assert (blended[..., 3] == 255).all()
    np.testing.assert_array_equal(blended[outside][:, :3], np.floor(0.75 * photos[outside] + 0.5))
    mixed = np.floor(0.25 * found[..., :3] + 0.75 * photos + 0.5)
    np.testing.assert_array_equal(blended[..., :3], np.where(outside[..., None], blended[..., :3], mixed))


def test_a_map_that_explains_nothing_leaves_the_whole_photograph(device):
    photos = np.random.default_rng(1).integers(0, 256, (1, *SIZE, 3), dtype=np.uint8)
    put = device.put(0 * MAPS[:1])
    found = device.get(ops.render(put, SIZE, box=BOXES[1], images=device.put(photos), colormap="jet").image)
    np.testing.assert_array_equal(found[..., :3], photos)
    values = device.get(ops.render(put, SIZE, box=BOXES[1]).image)
    assert np.isnan(values).any()
    assert not np.nan_to_num(values).any()


def test_a_box_of_the_whole_image_changes_no_bit(device):
    put = device.put(MAPS)
    whole = device.get(ops.render(put, SIZE, box=(0, 0, SIZE[1], SIZE[0]), colormap="turbo").image)
    np.testing.assert_array_equal(whole, device.get(ops.render(put, SIZE, colormap="turbo").image))


def test_threads_change_no_bit():
    one, seven = (ops.render(MAPS, (301, 203), box=(-4.2, 9.7, 130, 250), threads=n).image for n in (1, 7))
    np.testing.assert_array_equal(one, seven)


@pytest.mark.parametrize("value_range", [(0, 2), (0, 5), (0.5, 1.25), (1e-30, 2e-30)])
def test_value_range(device, value_range):
    """The same scale for every map: values beyond the range are drawn as its ends."""
    maps = MAPS * np.array([1, 0.4], np.float32)[:, None, None]
    box = (0, 0, 45, 31)
    found = device.get(ops.render(device.put(maps), SIZE, value_range=value_range).image)
    np.testing.assert_allclose(found, oracle(maps, box, value_range), rtol=0, atol=1e-6)
    status = ops.render(0 * MAPS, SIZE, value_range=value_range, colormap="jet").status
    assert status.tolist() == [ops.Status.NO_POSITIVE_EVIDENCE] * 2
