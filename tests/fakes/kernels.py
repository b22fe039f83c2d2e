"""The code of the CUDA kernels of the maps, compiled for the CPU: see tests/kernels/emulation."""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
EMULATION = Path(__file__).parents[1] / "kernels" / "emulation"
METHODS = ("channel_weights", "gradcam", "gradcam++", "xgradcam", "fem", "layercam", "hirescam", "gradcamelementwise")
"""In the order of the enumeration Method."""


def emulated(name: str) -> ctypes.CDLL:
    """NAME_cuda.cu compiled by the CPU's compiler, its launch a call of the emulation: by <<<>>>, or as it stands."""
    kernel = (CSRC / "kernels" / f"{name}_cuda.cu").read_text()
    launch = re.compile(r"(\w*kernel(?:<.*?>)?)<<<grid, kThreads, 0, .*?>>>(\(.*?\));")
    kernel, launches = launch.subn(r"launch_emulated(grid, kThreads, [&] { \1\2; });", kernel)
    assert launches + kernel.count("cudaLaunchKernelEx(") == 1
    return _compiled(name, re.sub(r'"core/(cuda_check|workspace)\.h"', '"emulation.h"', kernel))


def emulated_plugin() -> ctypes.CDLL:
    """cam_plugin.cuh compiled by the CPU's compiler."""
    library = _compiled("plugin", "")
    library.emulated_plugin.restype = ctypes.c_int64
    return library


@functools.cache
def _compiled(name: str, kernel: str) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "kernels").mkdir()
        (folder / "kernel.cpp").write_text(kernel)
        loops = (CSRC / "kernels" / "cam_cuda.cuh").read_text()
        (folder / "kernels" / "cam_cuda.cuh").write_text(re.sub(r"#include <cuda_\w+\.h>\n", "", loops))
        library = folder / "emulation.so"
        command = [compiler, "-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-I", folder, "-I", EMULATION, "-I", CSRC]
        sources = [folder / "kernel.cpp", EMULATION / f"{name}.cpp", EMULATION / "emulation.cpp"]
        subprocess.run([*command, *sources, "-o", library], check=True)
        return ctypes.CDLL(str(library))
