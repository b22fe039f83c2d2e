"""The CUDA kernels themselves on a machine without a GPU: csrc compiled to PTX alone, which an interpreter runs.

`build` compiles it, over a CUDA runtime that is an interpreter (tests/kernels/ptx); `Interpreter` is what tests use. It
stops a kernel that leaves its arrays, reads global memory that nothing has written, has a race in shared memory, or
whose threads wait for what does not come. The order of accesses to global memory, ptxas, streams, graphs and speed are
not in it.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from finercam_rt import _core as installed
from finercam_rt.tensorrt import plugin

from . import extension
from .extension import CSRC

INTERPRETER = Path(__file__).parents[1] / "kernels" / "ptx"
BUILT = Path(__file__).parents[2] / "build" / "ptx"
"""Everything that was compiled, by the digest of what it was compiled from."""
CMAKE = CSRC.parent / "CMakeLists.txt"
_PLUGIN_METHODS = re.compile(r"set\(plugin_methods\s([^)]+)\)")
_WITH_CLUSTERS = "cam_cuda.cu"
"""Compiled for 9.0, too: the only file that asks for it."""
_TURN = 24
"""The most instructions that a thread runs before another does, where they are interleaved."""


def compilers() -> tuple[str, str]:
    """g++ and nvcc; skips where one is missing."""
    found = [shutil.which(name) for name in ("g++", "nvcc")]
    if None in found:
        pytest.skip("g++ or nvcc is not on PATH")
    return str(found[0]), str(found[1])


def build(changed: Path | None = None) -> Path:
    """The extension, compiled from csrc where it is not there yet; with one file of csrc/kernels changed, if given."""
    gxx, nvcc = compilers()
    kernels = sorted(path for path in CSRC.glob("*/*.cu") if path.name != "cam_plugin.cu")
    if changed is not None:
        kernels = [changed if path.name == changed.name else path for path in kernels]
    host = sorted(path for path in CSRC.glob("*/*.cpp") if not path.stem.endswith("_no_cuda"))
    # those that take longest first
    commands = [_kernel_command(nvcc, path) for path in sorted(kernels, key=lambda path: -path.stat().st_size)]
    commands += [
        [gxx, "-O0", *extension.flags("ptx_core"), path] for path in (extension.NANOBIND / "nb_combined.cpp", *host)
    ]
    commands += [
        [nvcc, "-std=c++17", "-Xcompiler=-O2,-fPIC,-fvisibility=hidden,-frounding-math", path]
        for path in sorted(INTERPRETER.glob("*.cpp"))
    ]
    with _locked(), ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda command: _compiled(command, ".o"), commands))
        # -Bsymbolic: to its own runtime of CUDA, whichever other one the process has loaded
        return _made([gxx, "-shared", "-Wl,-Bsymbolic", *objects], _digest(map(str, objects)), ".so")


def draw_by_plugin(
    method: str,
    activations: np.ndarray,
    second: np.ndarray,
    scalars: Sequence[int],
    grid: Sequence[int],
    threads: int,
    maps: np.ndarray,
) -> int:
    """Fills the maps by the plug-in's kernel, launched as TensorRT would; how many loads of 16 bytes it took."""
    device = interpreter()
    put = [device.put(array, writable=False) for array in (activations, second)]
    out = device.put(maps)
    numbers = [ctypes.c_int32(int(scalar)) for scalar in scalars]
    with device.watched():
        device.run(_plugin_kernel(method), plugin.KERNEL, grid, threads, [*put, *numbers, out])
        loads = device.vector_loads()
    maps[...] = device.get(out)
    return loads


@functools.cache
def _plugin_kernel(method: str) -> str:
    """Its PTX, compiled as CMakeLists.txt says."""
    policies = dict(re.findall(r"(\S+)=(\w+)", _PLUGIN_METHODS.search(CMAKE.read_text())[1]))
    command = [compilers()[1], "-arch=compute_75", "-std=c++17", f"-I{CSRC}", f"-DFINERCAM_METHOD={policies[method]}"]
    with _locked():
        return _compiled([*command, CSRC / "kernels" / "cam_plugin.cu"], ".ptx").read_text()


@contextmanager
def _locked() -> Iterator[None]:
    """No other process that runs tests compiles."""
    BUILT.mkdir(parents=True, exist_ok=True)
    with (BUILT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _kernel_command(nvcc: str, path: Path) -> list[Any]:
    targets = [75, 90] if path == CSRC / "kernels" / _WITH_CLUSTERS else [75]
    codes = [f"--generate-code=arch=compute_{target},code=compute_{target}" for target in targets]
    return [nvcc, "-std=c++17", "--no-compress", *codes, "-Xcompiler=-fPIC,-fvisibility=hidden", f"-I{CSRC}", path]


def _digest(parts: Any) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _compiled(command: Sequence[Any], suffix: str) -> Path:
    """What a command that ends in a source makes of it; its digest is that of all headers, too."""
    *options, source = command
    options.append("-ptx" if suffix == ".ptx" else "-c")
    folder = INTERPRETER if source.parent == INTERPRETER else CSRC
    texts = [path.read_text() for path in [*sorted(folder.rglob("*.*h")), source]]
    return _made([*options, source], _digest([*texts, *map(str, options)]), suffix)


def _made(command: Sequence[Any], digest: str, suffix: str) -> Path:
    result = BUILT / f"{digest}{suffix}"
    if not result.exists():
        unfinished = result.with_suffix(".unfinished" + suffix)
        done = subprocess.run([*command, "-o", unfinished], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        unfinished.rename(result)
    return result


class _Tensor(ctypes.Structure):
    """DLTensor, of dlpack.h, and what DLManagedTensor adds."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


_CUDA = 2
_CODES = {"i": 0, "u": 1, "f": 2}
_BFLOAT16 = 4
_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda tensor: None)
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class DeviceArray:
    """A view of memory that is registered with the interpreter; `owner` keeps that there."""

    def __init__(self, values: np.ndarray, owner: Any, dtype: str | None = None) -> None:
        self.values, self._owner = values, owner
        self._code = _BFLOAT16 if dtype == "bfloat16" else _CODES[np.dtype(dtype or values.dtype).kind]
        self._exported: list[Any] = []
        self.shape, self.dtype, self.ndim = values.shape, values.dtype, values.ndim

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, 0

    def __dlpack__(self, **options: Any) -> Any:
        values = self.values
        numbers = ctypes.c_int64 * values.ndim
        shape, strides = numbers(*values.shape), numbers(*(s // values.itemsize for s in values.strides))
        tensor = _Tensor(values.ctypes.data, _CUDA, 0, values.ndim, self._code, 8 * values.itemsize, 1)
        tensor.shape, tensor.strides = shape, strides
        tensor.deleter = ctypes.cast(_DELETER, ctypes.c_void_p)
        self._exported.append((tensor, shape, strides))
        return _new_capsule(ctypes.addressof(tensor), b"dltensor", None)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, key: Any) -> DeviceArray:
        values = self.values[key]
        return self._view(values) if np.shares_memory(values, self.values) else interpreter().put(values)

    def swapaxes(self, *axes: int) -> DeviceArray:
        return self._view(self.values.swapaxes(*axes))

    def transpose(self, *axes: int) -> DeviceArray:
        return self._view(self.values.transpose(*axes))

    def reshape(self, *shape: int) -> DeviceArray:
        return self._view(self.values.reshape(*shape))

    def fill_(self, value: Any) -> None:
        self.values.fill(value)

    def _view(self, values: np.ndarray) -> DeviceArray:
        assert np.shares_memory(values, self.values), "a copy, which no kernel may see"
        return DeviceArray(values, self._owner)


class _Registered:
    """Memory from an address on 256 bytes, as CUDA allocates it, with as much around it that no kernel may touch."""

    def __init__(self, library: ctypes.CDLL, array: np.ndarray, writable: bool) -> None:
        memory = np.full(array.nbytes + 1024, 0xAB, np.uint8)
        start = -memory.ctypes.data % 256 + 256
        self.bytes = memory[start : start + array.nbytes]
        self._library, self._address = library, self.bytes.ctypes.data
        what = f"an array of {array.dtype} {array.shape}".encode()
        library.ptx_register(ctypes.c_void_p(self._address), ctypes.c_size_t(array.nbytes), what, writable, True)

    def __del__(self) -> None:
        self._library.ptx_unregister(ctypes.c_void_p(self._address))


class _Core:
    """The functions of the interpreted extension, which take the enumerations of the installed one."""

    def __init__(self, core: ModuleType) -> None:
        self._core = core

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._core, name)
        if isinstance(found, type) or not callable(found):
            return found

        @functools.wraps(found)
        def call(*given: Any, **named: Any) -> Any:
            return found(*map(self._own, given), **{key: self._own(value) for key, value in named.items()})

        return call

    def _own(self, value: Any) -> Any:
        kind = type(value)
        return getattr(self._core, kind.__name__)[value.name] if kind.__module__ == installed.__name__ else value


class Interpreter:
    """A device of 6 processors; its faults say which kernel, block, thread and line."""

    def __init__(self, library: Path) -> None:
        self._module = extension.load(library, "interpreted._core")
        self.core = _Core(self._module)
        self._library = ctypes.CDLL(str(library))
        self._library.ptx_fault.restype = ctypes.c_char_p
        self._library.ptx_launches.restype = self._library.ptx_vector_loads.restype = ctypes.c_long
        self._library.ptx_run.restype = ctypes.c_bool

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A device without a past, and no fault inside."""
        self.reset()
        yield
        fault = self._library.ptx_fault().decode()
        assert not fault, fault

    def reset(self, capability: int = 75, processors: int = 6) -> None:
        """Another device, of which nothing is known."""
        self._library.ptx_reset(capability, processors, _TURN)

    def launches(self) -> int:
        """Since the reset."""
        return int(self._library.ptx_launches())

    def vector_loads(self) -> int:
        """How many times a thread has loaded 16 bytes at once, since the reset."""
        return int(self._library.ptx_vector_loads())

    def put(self, array: np.ndarray, dtype: str | None = None, writable: bool = True) -> DeviceArray:
        """A copy on the device; dtype: what its values are there, where NumPy does not have that."""
        array = np.asarray(array)
        memory = _Registered(self._library, array, writable)
        values = memory.bytes.view(array.dtype).reshape(array.shape)
        values[...] = array
        return DeviceArray(values, memory, dtype)

    def get(self, result: Any) -> np.ndarray:
        if isinstance(result, DeviceArray):
            return result.values.copy()
        capsule = result.__dlpack__()
        tensor = _Tensor.from_address(_pointer_of(capsule, b"dltensor"))
        kinds = {code: kind for kind, code in _CODES.items()}
        dtype = np.dtype(f"{kinds[tensor.code]}{tensor.bits // 8}")
        shape = tensor.shape[: tensor.ndim]
        memory = (ctypes.c_uint8 * (int(np.prod(shape)) * dtype.itemsize)).from_address(tensor.data)
        return np.frombuffer(memory, dtype).reshape(shape).copy()

    def run(self, text: str, kernel: str, grid: Sequence[int], threads: int, arguments: Sequence[Any]) -> None:
        """A kernel that is no part of the extension; arguments: arrays on the device and ctypes numbers."""
        values = [ctypes.c_uint64(x.values.ctypes.data) if isinstance(x, DeviceArray) else x for x in arguments]
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        done = self._library.ptx_run(text.encode(), kernel.encode(), (ctypes.c_uint * 3)(*grid), threads, addresses)
        assert done, self._library.ptx_fault().decode()


@functools.cache
def interpreter() -> Interpreter:
    """The one of this process; skips where it cannot be compiled."""
    return Interpreter(build())
