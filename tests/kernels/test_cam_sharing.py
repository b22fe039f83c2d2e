"""How CUDA shares a map out between blocks: one, two levels of them, or a cluster. What the host refuses, and on a GPU
that all give one map. test_interpreted.py has clusters without one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finercam_rt import _core, ops

from ..fakes.kernels import METHODS
from .test_cam import LAYOUTS, arranged, features

CODES = dict(zip(LAYOUTS, (_core.Layout.NCHW, _core.Layout.NHWC, _core.Layout.TOKENS), strict=True))
SIZES = {(1, 2048, 7, 7): (4, 8), (3, 768, 14, 14): (2, 3, 8), (2, 67, 5, 9): (2, 8), (5, 512, 32, 32): (1, 4)}
"""How many blocks are asked for."""


def draw(a: Any, g: Any, out: Any, method: str = "gradcam", layout: str = "nchw", **sharing: Any) -> Any:
    """The map, in `out`."""
    stream = 0
    if hasattr(a, "is_cuda"):
        import torch

        stream = torch.cuda.current_stream().cuda_stream
    code = _core.Method(METHODS.index(method))
    _core.cam(a, g, out, method=code, layout=CODES[layout], prefix_tokens=0, threads=1, stream=stream, **sharing)
    return out


@pytest.mark.parametrize(
    ("sharing", "words"),
    [
        ({"blocks": -1}, "expected blocks of at least 0, got -1"),
        ({"cluster": True}, "expected blocks of at least 1, got 0"),
    ],
)
def test_what_has_no_meaning_is_refused(sharing, words):
    a, g = features((1, 8, 3, 3), "float32")
    with pytest.raises(ValueError, match=words):
        draw(a, g, np.zeros((1, 3, 3), np.float32), **sharing)


def has_clusters() -> bool:
    return _core.cuda_compute_capability(0) >= 90


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", [m for m in METHODS if m != "channel_weights"])
def test_all_give_one_map(gpu, method, size, layout):
    for dtype in ("float32", "float16"):
        a, g = features(size, dtype)
        if method in ("gradcam++", "xgradcam"):  # whose denominators nearly cancel otherwise
            a, g = (np.abs(x) + x.dtype.type(0.1) for x in (a, g))
        a, g = (gpu.put(arranged(x, layout)) for x in (a, g))
        out = gpu.put(np.full((size[0], *size[2:]), -7, np.float32))
        by_size = gpu.get(draw(a, g, out, method, layout))
        assert by_size.any()
        for blocks in SIZES[size]:
            levels = gpu.get(draw(a, g, out, method, layout, blocks=blocks)).copy()
            np.testing.assert_allclose(levels, by_size, rtol=0, atol=2e-5 * by_size.max())
            if has_clusters() and blocks > 1:
                out.fill_(-7)
                for _ in range(3):
                    clustered = gpu.get(draw(a, g, out, method, layout, blocks=blocks, cluster=True))
                    np.testing.assert_array_equal(clustered, levels)


@pytest.mark.gpu
def test_contrasts_and_a_captured_graph(gpu):
    """Of a cluster: one kernel, no memory, the same map at each replay."""
    import torch

    if not has_clusters():
        pytest.skip("this GPU has no clusters")
    a, g = (gpu.put(x) for x in features((2, 512, 7, 7), "float32"))
    g = torch.stack([g, -g, 2 * g], 1)
    levels = draw(a, g, torch.empty(2, 3, 7, 7, device="cuda"), blocks=8).clone()
    out = torch.empty(2, 3, 7, 7, device="cuda")
    draw(a, g, out, blocks=8, cluster=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        draw(a, g, out, blocks=8, cluster=True)
    for _ in range(2):
        out.fill_(-7)
        graph.replay()
        torch.testing.assert_close(out, levels, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("size", "sharing", "words"),
    [
        ((1, 2048, 7, 7), {"blocks": 2}, "expected blocks of at most 512 channels, got 2 for 2048"),
        ((1, 2048, 7, 7), {"blocks": 9, "cluster": True}, "expected a cluster of at most 8 blocks, got 9"),
        ((1, 64, 40, 40), {"blocks": 2, "cluster": True}, "expected maps of at most 1024 positions for a cluster"),
    ],
)
def test_what_cannot_be_had_is_refused(accelerator, size, sharing, words):
    a, g = (accelerator.put(x) for x in features(size, "float32"))
    out = accelerator.put(np.zeros((size[0], *size[2:]), np.float32))
    with pytest.raises(ValueError, match=words):
        draw(a, g, out, **sharing)


def test_a_gpu_without_clusters_says_so(accelerator):
    if has_clusters():
        pytest.skip("this GPU has clusters")
    a, g = (accelerator.put(x) for x in features((1, 64, 7, 7), "float32"))
    with pytest.raises(ValueError, match=r"of compute capability 9\.0 or later"):
        draw(a, g, accelerator.put(np.zeros((1, 7, 7), np.float32)), blocks=2, cluster=True)
    assert accelerator.get(ops.cam(a, g)).shape == (1, 7, 7)
