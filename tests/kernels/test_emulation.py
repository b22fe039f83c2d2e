"""The code of the CUDA kernels of `cam`, `render`, `mask` and `remove`, run on the CPU thread by thread."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from finercam_rt import colormaps, ops

from ..fakes.kernels import METHODS, emulated
from .test_cam import arranged, features
from .test_cam_taps import oracle

SIZES = {
    "one of all": (1, 1, 1, 1),
    "planes that do not start on 16 bytes": (2, 67, 7, 7),
    "planes that do": (1, 40, 12, 16),
    "planes of more vectors than a block has threads": (1, 9, 33, 35),
    "one position": (2, 300, 1, 1),
    "fewer positions than a vector has values": (1, 530, 3, 1),
    "several chunks": (1, 200, 5, 9),
}


@pytest.fixture(scope="module")
def cam() -> ctypes.CDLL:
    found = emulated("cam")
    found.emulated_cam.restype = ctypes.c_int64
    return found


@pytest.fixture(scope="module")
def render() -> ctypes.CDLL:
    return emulated("render")


@pytest.fixture(scope="module")
def mask() -> ctypes.CDLL:
    return emulated("mask")


@pytest.fixture(scope="module")
def remove() -> ctypes.CDLL:
    return emulated("remove")


def seen(array: np.ndarray, layout: str, size: tuple[int, ...], prefix_tokens: int) -> np.ndarray:
    """An array of a layout as (...,C,h,w), in the same memory."""
    if layout == "nchw":
        return array
    if layout == "tokens":
        patches = array[..., prefix_tokens:, :]
        array = patches.reshape(*patches.shape[:-2], *size[2:], size[1])
        assert np.shares_memory(array, patches)
    return np.moveaxis(array, -1, -3)


def aligned(array: np.ndarray) -> np.ndarray:
    """The same values and strides from an address on 16 bytes."""
    memory = np.empty(array.nbytes + 16, np.uint8)
    start = -memory.ctypes.data % 16
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def numbers(values) -> ctypes.Array:
    return (ctypes.c_int64 * len(values))(*values)


def run(
    library: ctypes.CDLL,
    method: str,
    a: np.ndarray,
    g: np.ndarray,
    processors: int,
    sharing: tuple[int, bool] = (0, False),
) -> tuple[np.ndarray, int]:
    """The map (N,P,h,w), and how many 16-byte loads it took; sharing: blocks, and whether they are a cluster."""
    n, channels, height, width = a.shape
    maps = np.full((n, g.shape[1], height, width), -7, np.float32)

    def described(x):
        last = x.ctypes.data + sum((s - 1) * t for s, t in zip(x.shape, x.strides, strict=True)) + x.itemsize
        return ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(last), numbers([t // x.itemsize for t in x.strides])

    loads = library.emulated_cam(
        METHODS.index(method),
        ["float32", "float16"].index(str(a.dtype)),
        *described(a),
        *described(g),
        numbers([n, g.shape[1], channels, height, width, *sharing]),
        processors,
        ctypes.c_void_p(maps.ctypes.data),
    )
    return maps, loads


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "tokens"])
@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_emulated_kernel_equals_the_formulas(cam, method, case, layout):
    size = SIZES[case]
    for dtype, contrasts, processors in (("float32", 1, 1), ("float16", 2, 40)):
        a, first = features(size, dtype)
        second = features(size, dtype, seed=1)[1]
        if method in ("gradcam++", "xgradcam"):  # whose denominators nearly cancel otherwise
            a, first, second = (np.abs(x) + x.dtype.type(0.1) for x in (a, first, second))
        prefix = 3 if layout == "tokens" else 0
        wanted = [oracle("gradcam" if method == "channel_weights" else method, a, g) for g in (first, second)]
        gradients = np.stack([arranged(g, layout, prefix) for g in (first, second)[:contrasts]], 1)
        given = seen(aligned(gradients), layout, size, prefix)
        if method == "channel_weights":
            means = np.stack([first, second][:contrasts], 1).astype(np.float64).mean((3, 4)).astype(dtype)
            given = means[..., None, None]
            wanted = [oracle("gradcam", a, np.broadcast_to(means[:, p, :, None, None], size)) for p in range(contrasts)]
        found, loads = run(
            cam, method, seen(aligned(arranged(a, layout, prefix)), layout, size, prefix), given, processors
        )
        assert loads >= 0, "a load by 16 bytes is not aligned, or leaves the input"
        for p in range(contrasts):
            np.testing.assert_allclose(found[:, p], wanted[p], rtol=0, atol=2e-5 * max(wanted[p].max(), 1e-3))


CLUSTERED = {
    "two blocks": ((1, 67, 7, 7), 2),
    "as many as there are, one with one channel": ((2, 57, 5, 9), 8),
    "fewer than were asked for": ((1, 40, 3, 3), 8),
    "one channel, one block": ((1, 1, 2, 2), 4),
    "all positions that half of the scratch memory takes": ((1, 24, 32, 32), 3),
}
"""Sizes, and how many blocks are asked for."""


@pytest.mark.parametrize("layout", ["nchw", "tokens"])
@pytest.mark.parametrize("case", CLUSTERED)
@pytest.mark.parametrize("method", METHODS)
def test_a_cluster_gives_what_as_many_blocks_by_themselves_give(cam, method, case, layout):
    """To the last bit: it adds the same parts up in the same order. And it loads what these load."""
    size, blocks = CLUSTERED[case]
    for dtype, contrasts in (("float32", 2), ("float16", 1)):
        a, first = features(size, dtype)
        gradients = np.stack([first, features(size, dtype, seed=1)[1]][:contrasts], 1)
        if method == "channel_weights":
            given = gradients.astype(np.float64).mean((3, 4)).astype(dtype)[..., None, None]
        else:
            given = seen(aligned(np.stack([arranged(g, layout) for g in gradients.swapaxes(0, 1)], 1)), layout, size, 0)
        a = seen(aligned(arranged(a, layout)), layout, size, 0)
        found, wanted = (run(cam, method, a, given, 1, (blocks, cluster)) for cluster in (True, False))
        assert found[1] == wanted[1] >= 0, "a load of another block's memory too early, or too late"
        np.testing.assert_array_equal(found[0], wanted[0])
        assert found[0].any() or size[1] == 1


def test_small_planes_and_tokens_are_read_by_sixteen_bytes(cam):
    """Nearly all of a 7 x 7 map's planes, and of tokens; each input as often as the method says."""
    a, g = (aligned(x) for x in features((2, 64, 7, 7), "float32"))
    vectors = a.size // 4
    passes = {"hirescam": 2, "channel_weights": 1}
    for method, times in passes.items():
        given = g[:, None] if method == "hirescam" else g[:, :, :1, :1][:, None]
        for x, y in ((a, given), (a.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2), given)):
            if method == "hirescam" and x is not a:
                y = aligned(g.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)[:, None]
            _, loads = run(cam, method, aligned_view(x), y, 1)
            assert loads == times * vectors


def aligned_view(x: np.ndarray) -> np.ndarray:
    """Aligned memory behind a view of contiguous memory with its axes in another order."""
    order = np.argsort([-s for s in x.strides], kind="stable")
    return aligned(x.transpose(order)).transpose(np.argsort(order))


def address(array):
    return None if array is None else ctypes.c_void_p(array.ctypes.data)


RENDERED = {
    "up": ((2, 7, 7), (40, 300)),
    "more rows than are found at a time": ((1, 3, 5), (2100, 3)),
    "a map larger than the shared memory": ((1, 66, 65), (33, 20)),
    "one pixel": ((3, 4, 6), (1, 1)),
}


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("picture", ["values", "colours", "blend"])
@pytest.mark.parametrize("case", RENDERED)
def test_emulated_render_is_that_of_the_cpu(render, case, picture, boxed):
    (n, *cells), size = RENDERED[case]
    rng = np.random.default_rng(n)
    maps = rng.standard_normal((n, *cells)).astype(np.float32)
    maps[-1, 0, 0] = 3  # whatever the draw, there is something to see
    if n > 1:
        maps[0] *= 0  # and one that is not drawn
    box = (-1.5, 0.25 * size[0], 0.8 * size[1], 1.5 * size[0]) if boxed else (0.0, 0.0, float(size[1]), float(size[0]))
    photos = rng.integers(0, 256, (n, *size, 3), dtype=np.uint8)
    table = colormaps.table("turbo")
    given = {} if picture == "values" else {"colormap": table, "opacity": 0.25}
    wanted = ops.render(maps, size, box=box, **given, **({"images": photos} if picture == "blend" else {}))

    for multiprocessors in (1, 3):
        status = np.full(n, 9, np.uint8)
        shape = (n, *size) if picture == "values" else (n, *size, 4)
        out = np.full(shape, 77, np.float32 if picture == "values" else np.uint8)
        outputs = (out, None) if picture == "values" else (None, out)
        render.emulated_render(
            address(maps),
            numbers([n, *cells, *size]),
            (ctypes.c_double * 4)(*box),
            address(np.ascontiguousarray(table)) if picture != "values" else None,
            address(photos) if picture == "blend" else None,
            ctypes.c_float(0.25),
            multiprocessors,
            *map(address, outputs),
            address(status),
        )
        np.testing.assert_array_equal(status, wanted.status)
        if picture == "values":
            np.testing.assert_allclose(out, wanted.image, rtol=0, atol=2e-7)
        else:
            # a value on the edge between two colours may fall on either side
            assert (np.abs(out.astype(int) - wanted.image).max(-1) > 0).mean() < 0.02


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("cells", "size"), [((7, 7), (40, 300)), ((3, 5), (601, 3)), ((66, 65), (33, 20))])
def test_emulated_mask_is_that_of_the_cpu(mask, cells, size, align_corners):
    rng = np.random.default_rng(1)
    images = rng.standard_normal((2, 3, *size)).astype(np.float32)
    maps = rng.standard_normal((2, 4, *cells)).astype(np.float32)
    maps[0, 1, 0, 0], maps[1, 2] = np.nan, 0.5
    wanted = ops.mask(images, maps, align_corners=align_corners)
    for multiprocessors in (1, 9):
        out = np.full((2, 4, 3, *size), 77, np.float32)
        of = numbers([2, 4, 3, *size, *cells])
        mask.emulated_mask(address(images), address(maps), of, int(align_corners), multiprocessors, address(out))
        np.testing.assert_allclose(out, wanted, rtol=0, atol=5e-6)


def run_remove(library, images, ranks, counts, fill, multiprocessors, *, captured=False):
    """The copies, and why there are none."""
    out = np.full((len(images), counts.shape[1], *images.shape[1:]), 77, np.float32)
    reason = ctypes.create_string_buffer(256)
    of = numbers([*out.shape])
    arguments = map(address, (images, ranks, counts, fill))
    size = ctypes.c_size_t(len(reason))
    failed = library.emulated_remove(*arguments, of, multiprocessors, int(captured), address(out), reason, size)
    assert failed == bool(reason.value), "a load by 16 bytes is not aligned, or leaves the input"
    return out, reason.value.decode()


@pytest.mark.parametrize("size", [(8, 12), (7, 5), (1, 2053)])
def test_emulated_remove_is_that_of_the_cpu(remove, size):
    rng = np.random.default_rng(2)
    images = aligned(rng.standard_normal((2, 3, *size)).astype(np.float32))
    ranks = aligned(ops.rank(rng.standard_normal((2, *size)).astype(np.float32)))
    counts = rng.integers(0, size[0] * size[1] + 1, (2, 4), dtype=np.int32)
    fill = np.float32([0.5, -1, 2])
    wanted = ops.remove(images, ranks, counts, fill)
    for multiprocessors in (1, 9):
        found, reason = run_remove(remove, images, ranks, counts, fill, multiprocessors)
        np.testing.assert_array_equal(found, wanted)
        assert not reason


def test_remove_is_not_captured(remove):
    """A graph would read the counts and the fill from memory of the host that is long gone."""
    images, ranks = np.zeros((1, 3, 4, 4), np.float32), np.zeros((1, 4, 4), np.int32)
    counts, fill = np.ones((1, 2), np.int32), np.zeros(3, np.float32)
    found, reason = run_remove(remove, images, ranks, counts, fill, 1, captured=True)
    assert reason.startswith("[remove] expected a stream that is not captured (")
    assert (found == 77).all()
