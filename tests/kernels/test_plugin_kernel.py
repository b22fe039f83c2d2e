"""The kernel of the TensorRT plug-in: its PTX, and what it computes in the interpreter as the plug-in launches it."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest

from finercam_rt import _core
from finercam_rt.manifest import LayerInfo, TapsInfo
from finercam_rt.ops import KERNEL_METHODS
from finercam_rt.tensorrt import plugin
from finercam_rt.tensorrt.plugin import KERNEL, MapPlugin

from ..fakes.kernels import METHODS
from ..fakes.ptx import draw_by_plugin
from .test_cam import arranged, features
from .test_cam_taps import oracle
from .test_machine_code import CMAKE, WITHOUT_CUDA

SIZES = {
    "one of all": (1, 1, 1, 1),
    "planes that do not start on 16 bytes": (2, 67, 7, 7),
    "more channels than weights fit": (1, 2100, 3, 5),
    "several tiles of planes": (1, 20, 20, 28),
    "several tiles of tokens, the last one short": (2, 24, 6, 7),
    "planes of an odd size, several tiles": (1, 5, 19, 17),
}


def drawn(method: str, layout: str, a: np.ndarray, second: np.ndarray, grid: tuple[int, int], prefix: int):
    """The maps (N,P,h,w) of arrays as they lie in the plan, launched as TensorRT is told to."""
    channels = a.shape[1] if layout == "nchw" else a.shape[-1]
    contrasts = second.shape[1]
    layer = LayerInfo("layer", layout, grid, prefix)
    launch = MapPlugin(method, layer, TapsInfo(channels, method != "channel_weights"), contrasts)
    columns, tiles = launch.grid
    canary = np.float32(-7)
    maps = np.full(len(a) * contrasts * grid[0] * grid[1] + 1, canary, np.float32)
    loads = draw_by_plugin(method, a, second, launch.scalars, (columns, len(a), tiles), plugin._THREADS, maps)
    assert maps[-1] == canary
    return maps[:-1].reshape(len(a), contrasts, *grid), loads


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "tokens"])
@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_it_equals_the_formulas(method, case, layout):
    size = SIZES[case]
    for contrasts in (1, 2):
        a, first = features(size, "float32")
        gradients = [first, features(size, "float32", seed=1)[1]][:contrasts]
        if method in ("gradcam++", "xgradcam"):  # whose denominators nearly cancel otherwise
            a, *gradients = (np.abs(x) + np.float32(0.1) for x in (a, *gradients))
        prefix = 3 if layout == "tokens" else 0
        wanted = [oracle("gradcam" if method == "channel_weights" else method, a, g) for g in gradients]
        second = np.stack([arranged(g, layout, prefix) for g in gradients], 1)
        if method == "channel_weights":
            second = np.stack(gradients, 1).astype(np.float64).mean((3, 4)).astype(np.float32)
        found, _ = drawn(method, layout, arranged(a, layout, prefix), second, size[2:], prefix)
        for p in range(contrasts):
            np.testing.assert_allclose(found[:, p], wanted[p], rtol=0, atol=2e-5 * max(wanted[p].max(), 1e-3))


def test_nan_is_seen():
    a, g = features((1, 8, 4, 4), "float32")
    a[0, 3, 1, 2] = np.nan
    found, _ = drawn("layercam", "nchw", a, g[:, None], (4, 4), 0)
    assert np.isnan(found[0, 0, 1, 2])
    assert np.isnan(found).sum() == 1


def test_each_tap_is_read_once_by_sixteen_bytes():
    """Of the method without sums, and of tokens, however many blocks share them."""
    a, g = (arranged(x, "tokens") for x in features((2, 64, 8, 8), "float32"))
    _, loads = drawn("hirescam", "tokens", a, g[:, None], (8, 8), 0)
    assert loads == 2 * a.size // 4


@pytest.fixture(scope="module")
def ptx() -> dict[str, str]:
    if _core.cuda_status()[1] == WITHOUT_CUDA:
        pytest.skip("finercam-rt was built without CUDA")
    return {file.stem: file.read_text() for file in plugin.PTX.iterdir()}


def test_each_method_has_its_ptx(ptx):
    assert set(ptx) == set(METHODS)
    assert set(METHODS) == {"channel_weights", *KERNEL_METHODS}
    assert len(set(ptx.values())) == len(METHODS)


def test_the_ptx_takes_what_tensorrt_passes(ptx):
    """Two inputs, the integers, and the output, in this order; for every GPU that is served."""
    oldest = re.search(r'FINERCAM_CUDA_ARCHITECTURES "(\d+)', CMAKE.read_text())
    assert oldest is not None
    for name, text in ptx.items():
        assert re.findall(r"\.target sm_(\d+)", text) == [oldest[1]], name
        (entry,) = re.findall(r"\.visible \.entry (\w+)\((.*?)\)\n(.*?)\{", text, re.DOTALL)
        assert entry[0] == KERNEL
        layer = LayerInfo("layer", "nchw", (7, 7))
        scalars = len(MapPlugin(name, layer, TapsInfo(8, True), 1).scalars)
        assert re.findall(r"\.param \.(\w+)", entry[1]) == ["u64", "u64", *["u32"] * scalars, "u64"]
        assert f".maxntid {plugin._THREADS}" in entry[2]
        assert ".local" not in text
        assert ".extern" not in text


@pytest.mark.parametrize("arch", ["75", "90", "120"])
def test_ptxas_takes_it_without_a_spill(ptx, arch, tmp_path):
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        pytest.skip("ptxas is not on PATH")
    known = subprocess.run([ptxas, "--help"], capture_output=True, text=True, check=True).stdout
    if f"sm_{arch}" not in known:
        pytest.skip(f"this ptxas does not know sm_{arch}")
    for name, text in ptx.items():
        file = tmp_path / f"{name}.ptx"
        file.write_text(text)
        command = [ptxas, "-v", f"-arch=sm_{arch}", file, "-o", tmp_path / "out"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in said, name
        registers = re.search(r"Used (\d+) registers", said)
        assert registers is not None
        assert int(registers[1]) <= 128, name  # two blocks on a multiprocessor
