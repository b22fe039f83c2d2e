"""`ops.render` and `ops.status` against a float64 oracle and against torch."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from finercam_rt import InputError, _core, colormaps, ops
from finercam_rt.ops import Status

# (h, w) -> (H, W): up, down, the same, to one pixel, from one row, odd, larger than the shared memory of a block.
SIZES = [
    ((7, 7), (224, 224)),
    ((7, 9), (50, 33)),
    ((14, 14), (14, 14)),
    ((20, 31), (7, 5)),
    ((5, 6), (1, 1)),
    ((1, 8), (9, 17)),
    ((8, 1), (17, 9)),
    ((70, 67), (101, 97)),
    ((3, 2), (65, 1)),
]


def maps_of(batch: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    maps = np.random.default_rng([seed, batch, *size]).standard_normal((batch, *size)).astype(np.float32)
    maps[:, 0, 0], maps[:, -1, -1] = -1, 2  # whatever the draw, there is something to see
    return maps


def photos_of(batch: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, (batch, *size, 3), dtype=np.uint8)


def normalised(maps: np.ndarray) -> np.ndarray:
    positive = np.maximum(maps.astype(np.float64), 0)
    low, high = (f(positive, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    return (positive - low) / (high - low)


def weights(source: int, target: int) -> np.ndarray:
    """(target, source): row t holds the bilinear weights of output cell t; half-pixel centres, edges clamped."""
    matrix = np.zeros((target, source))
    for t in range(target):
        position = min(max((t + 0.5) * source / target - 0.5, 0.0), source - 1.0)
        low = int(position)
        matrix[t, low] += 1 - (position - low)
        matrix[t, min(low + 1, source - 1)] += position - low
    return matrix


def oracle(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = (weights(s, t) for s, t in zip(maps.shape[1:], size, strict=True))
    return np.einsum("yh,nhw,xw->nyx", rows, normalised(maps), columns)


def rgb_bounds(values, table, photos, opacity):
    """The least and the greatest colour that a value within 1e-6 of `values` may have."""
    blur = 0.0 if (4 * opacity).is_integer() else 1e-4  # quarters of a byte are exact in float32
    candidates = []
    for nudge in (-1e-6, 1e-6):
        color = table[np.floor(np.clip(values + nudge, 0, 1) * 255 + 0.5).astype(int)].astype(np.float64)
        mixed = color if photos is None else opacity * color + (1 - opacity) * photos
        candidates += [np.floor(mixed + 0.5 - blur), np.floor(mixed + 0.5 + blur)]
    return np.min(candidates, axis=0), np.max(candidates, axis=0)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_values_equal_oracle(device, batch, source, target):
    maps = maps_of(batch, source)
    image, status = ops.render(device.put(maps), target)
    found = device.get(image)
    assert found.dtype == np.float32
    assert not device.get(status).any()
    np.testing.assert_allclose(found, oracle(maps, target), rtol=0, atol=5e-7)
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_values_equal_torch(source, target):
    torch = pytest.importorskip("torch")
    maps = maps_of(2, source)
    normal = torch.from_numpy(normalised(maps))[:, None]
    resized = torch.nn.functional.interpolate(normal, size=target, mode="bilinear", align_corners=False)[:, 0]
    np.testing.assert_allclose(ops.render(maps, target).image, resized.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("opacity", [0.0, 0.25, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("name", colormaps.NAMES)
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_blend_equals_oracle(device, source, target, name, opacity):
    maps, photos = maps_of(2, source), photos_of(2, target)
    result = ops.render(device.put(maps), target, images=device.put(photos), colormap=name, opacity=opacity)
    found = device.get(result.image)
    low, high = rgb_bounds(oracle(maps, target), colormaps.table(name), photos, opacity)
    assert found.dtype == np.uint8
    assert ((low <= found[..., :3]) & (found[..., :3] <= high)).all()
    assert (low == high).mean() > 0.8  # the bounds bind
    assert (found[..., 3] == 255).all()


def test_colours_without_photograph(device):
    maps = maps_of(2, (6, 5))
    table = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    found = device.get(ops.render(device.put(maps), (40, 30), colormap=table).image)
    low, high = rgb_bounds(oracle(maps, (40, 30)), table, None, 1.0)
    assert ((low <= found[..., :3]) & (found[..., :3] <= high)).all()
    assert (found[..., 3] == 255).all()


LAST_BYTE = """
import ctypes, mmap
import numpy as np
from finercam_rt import ops

page = mmap.PAGESIZE
memory = mmap.mmap(-1, 2 * page)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + page), ctypes.c_size_t(page), 0) == 0
pixels = page // 3
photo = np.frombuffer(memory, np.uint8)[page - 3 * pixels : page].reshape(1, 1, pixels, 3)
photo[:] = 200
maps = np.arange(4, dtype=np.float32).reshape(1, 2, 2)
for cells in (maps, 0 * maps):
    found = ops.render(cells, (1, pixels), images=photo, colormap="gray", opacity=0.0).image
    assert (found[..., :3] == 200).all()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects a page of memory by mprotect")
def test_a_photograph_is_not_read_beyond_its_end():
    """The page after the photograph must not be touched; touching it ends the process."""
    subprocess.run([sys.executable, "-c", LAST_BYTE], check=True)


@pytest.mark.parametrize("view", ["transposed", "sliced", "bgr"])
def test_strides(device, view):
    maps, photos = maps_of(4, (12, 10)), photos_of(4, (40, 60))

    def viewed(x, is_photo):
        if view == "transposed":
            return x.swapaxes(1, 2)
        if view == "sliced":
            return x[1::2, 2:, ::3]
        return x[..., [2, 1, 0]] if is_photo else x

    m, p = viewed(device.put(maps), False), viewed(device.put(photos), True)
    size = tuple(p.shape[1:3])
    found = device.get(ops.render(m, size, images=p, colormap="jet").image)
    again = [np.ascontiguousarray(viewed(x, is_photo)) for x, is_photo in ((maps, False), (photos, True))]
    low, high = rgb_bounds(oracle(again[0], size), colormaps.table("jet"), again[1], 0.5)
    assert ((low <= found[..., :3]) & (found[..., :3] <= high)).all()


def test_negative_strides():
    maps, photos = maps_of(2, (5, 6)), photos_of(2, (20, 30))
    flipped = ops.render(maps[:, ::-1, ::-1], (20, 30), images=photos[..., ::-1], colormap="turbo").image
    copied = ops.render(maps[:, ::-1, ::-1].copy(), (20, 30), images=photos[..., ::-1].copy(), colormap="turbo").image
    np.testing.assert_array_equal(flipped, copied)


BLANK = {
    "nan": (np.array([[1.0, np.nan], [2.0, 3.0]]), Status.NON_FINITE),
    "inf": (np.array([[1.0, np.inf], [2.0, 3.0]]), Status.NON_FINITE),
    "minus inf": (np.array([[1.0, -np.inf], [2.0, 3.0]]), Status.NON_FINITE),
    "nan alone": (np.full((2, 2), np.nan), Status.NON_FINITE),
    "negative": (np.array([[-1.0, -2.0], [-3.0, -4.0]]), Status.NO_POSITIVE_EVIDENCE),
    "zero": (np.zeros((2, 2)), Status.NO_POSITIVE_EVIDENCE),
    "minus zero": (np.full((2, 2), -0.0), Status.NO_POSITIVE_EVIDENCE),
    "constant": (np.full((2, 2), 0.7), Status.CONSTANT),
}


@pytest.mark.parametrize("case", BLANK)
def test_a_map_that_explains_nothing_is_not_drawn(device, case):
    cells, expected = BLANK[case]
    maps = np.stack([np.array([[0.0, 1.0], [2.0, 4.0]]), cells]).astype(np.float32)
    photos = photos_of(2, (9, 8))
    put = device.put(maps)
    assert device.get(ops.status(put)).tolist() == [Status.OK, expected]
    assert Status(int(ops.status(maps)[1])).label == expected.name.lower()

    values = ops.render(put, (9, 8))
    assert device.get(values.status).tolist() == [Status.OK, expected]
    assert not device.get(values.image)[1].any()
    assert device.get(values.image)[0].any()
    colours = device.get(ops.render(put, (9, 8), colormap="jet").image)
    assert not colours[1].any()
    assert colours[0].all(axis=-1).any() or (colours[0, ..., 3] == 255).all()
    blended = device.get(ops.render(put, (9, 8), colormap="jet", images=device.put(photos)).image)
    np.testing.assert_array_equal(blended[1, ..., :3], photos[1])
    assert (blended[1, ..., 3] == 255).all()
    assert (blended[0, ..., :3] != photos[0]).any()


@pytest.mark.parametrize("scale", [1e-30, 1e-42, 1e38])
def test_extreme_ranges(device, scale):
    maps = (np.arange(12).reshape(1, 3, 4) * (scale / 11)).astype(np.float32)
    found = device.get(ops.render(device.put(maps), (3, 4)).image)
    np.testing.assert_allclose(found, normalised(maps), atol=1e-6)


def test_threads_change_no_bit():
    maps, photos = maps_of(3, (14, 14)), photos_of(3, (301, 203))
    for extra in ({}, {"colormap": "turbo"}, {"colormap": "turbo", "images": photos}):
        one, two, seven = (ops.render(maps, (301, 203), threads=threads, **extra).image for threads in (1, 2, 7))
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, seven)


def test_many_python_threads_at_once():
    maps, photos = maps_of(2, (7, 7)), photos_of(2, (100, 90))
    expected = ops.render(maps, (100, 90), images=photos, colormap="jet", threads=1).image
    wrong = []

    def work():
        for _ in range(30):
            found = ops.render(maps, (100, 90), images=photos, colormap="jet", threads=2).image
            if not np.array_equal(found, expected):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_out_is_written_in_place(device):
    maps = maps_of(2, (5, 5))
    for dtype, shape, extra in (("float32", (2, 30, 20), {}), ("uint8", (2, 30, 20, 4), {"colormap": "gray"})):
        out = device.put(np.full(shape, 7, dtype))
        result = ops.render(device.put(maps), (30, 20), out=out, **extra)
        assert result.image is out
        np.testing.assert_array_equal(
            device.get(out), device.get(ops.render(device.put(maps), (30, 20), **extra).image)
        )


def test_torch_in_torch_out():
    torch = pytest.importorskip("torch")
    maps = maps_of(2, (5, 5))
    image, status = ops.render(torch.from_numpy(maps), (12, 12))
    assert isinstance(image, torch.Tensor)
    assert isinstance(status, torch.Tensor)
    np.testing.assert_array_equal(image.numpy(), ops.render(maps, (12, 12)).image)


def test_colour_tables():
    """Ends and landmarks of the published maps."""
    turbo, jet, gray = (colormaps.table(name) for name in ("turbo", "jet", "gray"))
    assert turbo[[0, 128, 255]].tolist() == [[48, 18, 59], [164, 252, 60], [122, 4, 3]]
    assert jet[[0, 255]].tolist() == [[0, 0, 128], [128, 0, 0]]
    assert jet[96].tolist() == [2, 255, 254]
    assert (gray == np.arange(256)[:, None]).all()
    with pytest.raises(KeyError):
        colormaps.table("rainbow")


M = np.arange(18, dtype=np.float32).reshape(2, 3, 3)
P = np.zeros((2, 8, 9, 3), np.uint8)
BAD = {
    "rank": (M[0], (8, 9), {}, "give (N,h,w)"),
    "dtype": (M.astype("f2"), (8, 9), {}, "saliency maps are float16; convert them to 'float32'"),
    "size": (M, (8, 0), {}, "two integers of at least 1"),
    "size number": (M, 8, {}, "two integers of at least 1"),
    "size fraction": (M, (8.5, 9), {}, "two integers of at least 1"),
    "size infinite": (M, (np.inf, 7), {}, "two integers of at least 1"),
    "size huge": (M, (8, 40000), {}, "a side is at most 32767"),
    "colormap": (M, (8, 9), {"colormap": "rainbow"}, "use one of 'turbo', 'jet', 'gray'"),
    "table": (M, (8, 9), {"colormap": np.zeros((255, 3), "u1")}, "give (256,3) uint8"),
    "opacity": (M, (8, 9), {"colormap": "jet", "opacity": 1.5}, "from 0 to 1"),
    "opacity nan": (M, (8, 9), {"colormap": "jet", "opacity": np.nan}, "from 0 to 1"),
    "images alone": (M, (8, 9), {"images": P}, "without a colormap"),
    "images size": (M, (9, 9), {"images": P, "colormap": "jet"}, "images have shape (2, 8, 9, 3)"),
    "images batch": (M, (8, 9), {"images": P[:1], "colormap": "jet"}, "images have shape (1, 8, 9, 3)"),
    "images channels": (M, (8, 9), {"images": P[..., :1], "colormap": "jet"}, "give (N,H,W,3)"),
    "images dtype": (M, (8, 9), {"images": P.astype("f4"), "colormap": "jet"}, "convert them to 'uint8'"),
    "out": (M, (8, 9), {"out": np.zeros((2, 8, 9, 4), "u1")}, "it must be (2, 8, 9) float32"),
    "out rgba": (M, (8, 9), {"colormap": "jet", "out": np.zeros((2, 8, 9), "f4")}, "it must be (2, 8, 9, 4) uint8"),
    "out odd": (
        M,
        (8, 9),
        {"colormap": "jet", "out": np.zeros(2 * 8 * 9 * 4 + 1, "u1")[1:].reshape(2, 8, 9, 4)},
        "aligned to 4 bytes",
    ),
    "threads": (M, (8, 9), {"threads": -1}, "threads is -1"),
    "box": (M, (8, 9), {"box": (1, 2, 3)}, "give (left, top, right, bottom) in pixels"),
    "box number": (M, (8, 9), {"box": 3}, "give (left, top, right, bottom) in pixels"),
    "box empty": (M, (8, 9), {"box": (3, 0, 3, 8)}, "left < right"),
    "box upside down": (M, (8, 9), {"box": (0, 8, 9, 0)}, "top < bottom"),
    "box nan": (M, (8, 9), {"box": (0, 0, np.nan, 8)}, "left < right"),
    "box far": (M, (8, 9), {"box": (-1e12, 0, 9, 8)}, "left < right"),
    "range": (M, (8, 9), {"value_range": (2, 1)}, "0 <= low < high"),
    "range number": (M, (8, 9), {"value_range": 3}, "0 <= low < high"),
    "range negative": (M, (8, 9), {"value_range": (-1, 1)}, "0 <= low < high"),
    "range infinite": (M, (8, 9), {"value_range": (0, np.inf)}, "0 <= low < high"),
    "range nan": (M, (8, 9), {"value_range": (0, np.nan)}, "0 <= low < high"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_sentence(case):
    maps, size, extra, words = BAD[case]
    with pytest.raises(InputError) as caught:
        ops.render(maps, size, **extra)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert message.endswith(".")


def test_the_kernels_check_by_themselves():
    status = np.zeros(2, np.uint8)
    with pytest.raises(
        ValueError, match=r"^\[render\] expected a status of 2 maps, got 1 \(csrc/bindings/render\.cpp:"
    ):
        _core.map_status(M, status[:1], threads=1, stream=0)
    table = colormaps.table("jet")
    out = np.zeros((2, 8, 9, 4), np.uint8)
    rest = {"box": None, "value_range": None, "threads": 1, "stream": 0}
    with pytest.raises(ValueError, match=r"\[render\] expected an opacity in \[0, 1\], got 2"):
        _core.render_rgba(M, status, out, colors=table, photos=None, opacity=2.0, **rest)
    with pytest.raises(ValueError, match=r"\[render\] expected a box with left < right"):
        _core.render_rgba(M, status, out, colors=table, photos=None, opacity=0.5, **(rest | {"box": (1, 0, 1, 2)}))
    with pytest.raises(ValueError, match=r"\[render\] expected a range of values with 0 <= low < high"):
        _core.render_rgba(M, status, out, colors=table, photos=None, opacity=0.5, **(rest | {"value_range": (2, 1)}))


@pytest.mark.parametrize("name", ["map_status", "render_values", "render_rgba"])
def test_outputs_that_would_be_converted_are_refused(name):
    """nanobind would write into a converted copy, and the result would be lost without an error."""
    status, wide = np.zeros(2, np.uint8), np.zeros((2, 8, 9, 8), np.uint8)
    more = {"threads": 1, "stream": 0}
    if name != "map_status":
        more |= {"box": None, "value_range": None}
    if name == "map_status":
        bad = [(M, status.astype("i4"))]
    elif name == "render_values":
        bad = [(M, status, np.zeros((2, 8, 9))), (M, status, np.zeros((2, 8, 18), "f4")[..., ::2])]
    else:
        more |= {"colors": colormaps.table("jet"), "photos": None, "opacity": 0.5}
        bad = [(M, status, wide[..., ::2]), (M, status, wide[..., :4].astype("i4"))]
    for arguments in bad:
        with pytest.raises(TypeError):
            getattr(_core, name)(*arguments, **more)


def test_cuda_status_says_what_is():
    devices, reason = _core.cuda_status()
    expected = f"available: {devices} device" if devices else f"unavailable: {reason}"
    assert ops.cuda_status().startswith(expected)
    assert devices or reason
