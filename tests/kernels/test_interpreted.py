"""The CUDA kernels of `cam`, `render`, `mask` and `remove` in the interpreter, at the sizes where their code forks."""

from __future__ import annotations

import numpy as np
import pytest

from finercam_rt import colormaps, ops

from ..fakes import ptx
from ..fakes.kernels import METHODS
from .test_cam import arranged, features, options
from .test_cam_sharing import draw
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


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "tokens"])
@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_cam_equals_the_formulas(interpreted, method, case, layout):
    size = SIZES[case]
    for dtype, contrasts, processors in (("float32", 1, 1), ("float16", 2, 40)):
        ptx.interpreter().reset(processors=processors)
        a, first = features(size, dtype)
        gradients = [first, features(size, dtype, seed=1)[1]][:contrasts]
        if method in ("gradcam++", "xgradcam"):  # whose denominators nearly cancel otherwise
            a, *gradients = (np.abs(x) + x.dtype.type(0.1) for x in (a, *gradients))
        prefix = 3 if layout == "tokens" else 0
        given = options(layout, size, prefix)
        put = interpreted.put(arranged(a, layout, prefix))
        if method == "channel_weights":
            means = [g.astype(np.float64).mean((2, 3)).astype(dtype) for g in gradients]
            wanted = [oracle("gradcam", a, np.broadcast_to(m[:, :, None, None], size)) for m in means]
            found = ops.cam(put, channel_weights=interpreted.put(np.stack(means, 1)), **given)
        else:
            wanted = [oracle(method, a, g) for g in gradients]
            second = interpreted.put(np.stack([arranged(g, layout, prefix) for g in gradients], 1))
            found = ops.cam(put, second, method=method, **given)
        for p, maps in enumerate(np.moveaxis(interpreted.get(found), 1, 0)):
            np.testing.assert_allclose(maps, wanted[p], rtol=0, atol=2e-5 * max(wanted[p].max(), 1e-3))


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
def test_a_cluster_gives_what_as_many_blocks_by_themselves_give(interpreted, method, case, layout):
    """To the last bit: it adds the same parts up in the same order. And it loads what these load."""
    size, blocks = CLUSTERED[case]
    interpreter = ptx.interpreter()
    for dtype, contrasts in (("float32", 2), ("float16", 1)):
        a, first = features(size, dtype)
        gradients = [first, features(size, dtype, seed=1)[1]][:contrasts]
        given = [arranged(g, layout) for g in gradients]
        if method == "channel_weights":
            given = [g.astype(np.float64).mean((2, 3)).astype(dtype) for g in gradients]
        put, second = interpreted.put(arranged(a, layout)), interpreted.put(np.stack(given, 1))
        found = []
        for cluster in (True, False):
            interpreter.reset(capability=90)
            out = interpreted.put(np.full((size[0], contrasts, *size[2:]), -7, np.float32))
            drawn = interpreted.get(draw(put, second, out, method, layout, blocks=blocks, cluster=cluster))
            found.append((drawn, interpreter.vector_loads()))
            assert interpreter.launches() == 1
        np.testing.assert_array_equal(found[0][0], found[1][0])
        assert found[0][1] == found[1][1]
        assert found[0][0].any() or size[1] == 1


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(("method", "passes"), [("hirescam", 2), ("channel_weights", 1)])
def test_cam_reads_by_sixteen_bytes(interpreted, method, passes, layout):
    """Nearly all of a 7 x 7 map's planes, and of positions; each input as often as the method says."""
    a, g = features((2, 64, 7, 7), "float32")
    put = interpreted.put(arranged(a, layout))
    if method == "hirescam":
        ops.cam(put, interpreted.put(arranged(g, layout)), method=method, layout=layout)
    else:
        ops.cam(put, channel_weights=interpreted.put(g[:, :, 0, 0]), layout=layout)
    assert ptx.interpreter().vector_loads() == passes * a.size // 4


RENDERED = {
    "up": ((2, 7, 7), (40, 300)),
    "more rows than are found at a time": ((1, 3, 5), (2100, 3)),
    "a map larger than the shared memory": ((1, 66, 65), (33, 20)),
    "one pixel": ((3, 4, 6), (1, 1)),
}


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("picture", ["values", "colours", "blend"])
@pytest.mark.parametrize("case", RENDERED)
def test_render_is_that_of_the_cpu(interpreted, case, picture, boxed):
    (n, *cells), size = RENDERED[case]
    rng = np.random.default_rng(n)
    maps = rng.standard_normal((n, *cells)).astype(np.float32)
    maps[-1, 0, 0] = 3  # whatever the draw, there is something to see
    if n > 1:
        maps[0] *= 0  # and one that is not drawn
    box = (-1.5, 0.25 * size[0], 0.8 * size[1], 1.5 * size[0]) if boxed else (0.0, 0.0, float(size[1]), float(size[0]))
    photos = rng.integers(0, 256, (n, *size, 3), dtype=np.uint8)
    given = {} if picture == "values" else {"colormap": colormaps.table("turbo"), "opacity": 0.25}
    wanted = ops.render(maps, size, box=box, **given, **({"images": photos} if picture == "blend" else {}))
    put = {"images": interpreted.put(photos)} if picture == "blend" else {}
    for processors in (1, 3):
        ptx.interpreter().reset(processors=processors)
        found = ops.render(interpreted.put(maps), size, box=box, **given, **put)
        image = interpreted.get(found.image)
        np.testing.assert_array_equal(interpreted.get(found.status), wanted.status)
        if picture == "values":
            np.testing.assert_allclose(image, wanted.image, rtol=0, atol=2e-7)
        else:
            # a value on the edge between two colours may fall on either side
            assert (np.abs(image.astype(int) - wanted.image).max(-1) > 0).mean() < 0.02


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("cells", "size"), [((7, 7), (40, 300)), ((3, 5), (601, 3)), ((66, 65), (33, 20))])
def test_mask_is_that_of_the_cpu(interpreted, cells, size, align_corners):
    rng = np.random.default_rng(1)
    images = rng.standard_normal((2, 3, *size)).astype(np.float32)
    maps = rng.standard_normal((2, 4, *cells)).astype(np.float32)
    maps[0, 1, 0, 0], maps[1, 2] = np.nan, 0.5
    wanted = ops.mask(images, maps, align_corners=align_corners)
    for processors in (1, 9):
        ptx.interpreter().reset(processors=processors)
        found = ops.mask(interpreted.put(images), interpreted.put(maps), align_corners=align_corners)
        np.testing.assert_allclose(interpreted.get(found), wanted, rtol=0, atol=5e-6)


@pytest.mark.parametrize("size", [(8, 12), (7, 5), (1, 2053)])
def test_remove_is_that_of_the_cpu(interpreted, size):
    rng = np.random.default_rng(2)
    images = rng.standard_normal((2, 3, *size)).astype(np.float32)
    ranks = ops.rank(rng.standard_normal((2, *size)).astype(np.float32))
    counts = rng.integers(0, size[0] * size[1] + 1, (2, 4), dtype=np.int32)
    fill = np.float32([0.5, -1, 2])
    wanted = ops.remove(images, ranks, counts, fill)
    for processors in (1, 9):
        ptx.interpreter().reset(processors=processors)
        found = ops.remove(interpreted.put(images), interpreted.put(ranks), counts, fill)
        np.testing.assert_array_equal(interpreted.get(found), wanted)


def test_remove_is_not_captured(interpreted):
    """A graph would read the counts and the fill from memory of the host that is long gone."""
    images, ranks = np.zeros((1, 3, 4, 4), np.float32), np.zeros((1, 4, 4), np.int32)
    out = interpreted.put(np.full((1, 2, 3, 4, 4), 77, np.float32))
    with pytest.raises(ValueError, match=r"\[remove\] expected a stream that is not captured"):
        ops.remove(interpreted.put(images), interpreted.put(ranks), [1, 2], np.zeros(3, np.float32), out=out, stream=3)
    assert (interpreted.get(out) == 77).all()
