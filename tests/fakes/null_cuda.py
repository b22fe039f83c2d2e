"""CUDA's streams, memory and graphs over a runtime that does nothing: csrc/graph itself, on a machine without a GPU.

What a call costs on the host is measured with it (tests/tools/overhead.py), and which calls of CUDA it makes, in which
order, is read from its journal (tests/runtime/test_exchange.py).
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import extension

_HERE = Path(__file__).parent / "cuda_runtime"
_SOURCES = (
    _HERE / "module.cpp",
    *(extension.CSRC / name for name in ("bindings/graph.cpp", "bindings/exchange.cpp", "graph/exchange.cpp")),
    *(extension.CSRC / name for name in ("graph/stream_cuda.cu", "core/device_cuda.cu", "core/workspace_cuda.cu")),
)


def compiler() -> str | None:
    return shutil.which("g++")


def build(folder: Path, *options: str) -> Any:
    """The module, compiled into a folder; it takes some six seconds."""
    flags = [f"-I{_HERE}", *extension.flags("null_core"), *options]
    objects = []
    for file in (extension.NANOBIND / "nb_combined.cpp", *_SOURCES):
        objects.append(folder / f"{file.parent.name}-{file.name}.o")
        subprocess.run([str(compiler()), "-x", "c++", *flags, "-c", file, "-o", objects[-1]], check=True)
    library = folder / "_null_core.so"
    subprocess.run([str(compiler()), "-shared", *objects, "-o", library], check=True)
    return extension.load(library, "_null_core")


class NullDevice:
    """As cuda.CudaDevice, of the module above; kernels are not called."""

    index = 0

    def __init__(self, core: Any) -> None:
        self.core = core

    def memory(self, size: int) -> Any:
        return self.core.DeviceMemory(size, 0)

    def pinned(self, size: int) -> Any:
        return self.core.PinnedMemory(size, 0)

    def stream(self, handle: int | None = None) -> Any:
        return self.core.Stream(0, handle)

    def event(self, timing: bool = False) -> Any:
        return self.core.Event(0, timing)

    def exchange(self, questions: int, size: int) -> Any:
        return self.core.Exchange(0, questions, size)

    def copies(self, copies: Sequence[tuple[int, int, int]]) -> Any:
        return self.core.ResultCopies(copies)

    def view(self, address: int, dtype: str, shape: Sequence[int]) -> Any:
        return self.core.cuda_view(address, dtype, shape, 0)

    def queue(self, stream: Any, kernel: Callable[[int], object]) -> None:
        pass

    @contextmanager
    def current(self) -> Iterator[None]:
        yield


class NullLoaded:
    """A loaded graph that runs for no time."""

    def __init__(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        self._interface = inputs, outputs

    def interface(self) -> Any:
        return self._interface

    def sizes(self, name: str) -> tuple[int, int]:
        return 1, 64

    def context(self, inputs: Any, outputs: Any) -> NullExecutor:
        return NullExecutor()


class NullExecutor:
    bytes, rebindable, captures = 0, True, False

    def bind(self, name: str, address: int) -> None:
        pass

    def enqueue(self, stream: int) -> None:
        pass

    def capturable(self, stream: int) -> bool:
        return True

    def ran(self) -> None:
        pass

    def close(self) -> None:
        pass
