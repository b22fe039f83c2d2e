"""What the host takes of a replayed call on a GPU, by a CUDA runtime that does nothing: python tests/tools/overhead.py

The engine is real, as are its checks, its bindings and csrc/graph; the runtime of CUDA and the network are not there.
Each line is the median, and the least and the greatest, of series of calls in CPU time of the thread, for one small
image: of NumPy, of torch, and of a framework that speaks DLPack. Arrays of torch lie on the CPU behind a module that
says that they lie on a GPU, since torch without CUDA makes none there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from tests.fakes.null_cuda import NullDevice, NullLoaded, build

SIZE = (32, 48)
STREAM = 0x700000


class DlpackArray:
    """Of a framework `plain`, made on STREAM."""

    __module__ = "plain.arrays"

    def __init__(self, values: np.ndarray) -> None:
        self._values = values
        self._interface = {**values.__array_interface__, "stream": STREAM, "strides": None}

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self._interface

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **options: Any) -> Any:
        raise AssertionError("the batch must not be exported")


class Torch:
    """The module torch, its tensors those of the CPU; STREAM is its current stream."""

    def __init__(self, torch: Any) -> None:
        self.uint8, self.float32, self.int64 = torch.uint8, torch.float32, torch.int64
        self.cuda = self
        self.empty = torch.empty  # a device of None is the CPU
        self._current = types.SimpleNamespace(cuda_stream=STREAM)

    def current_stream(self, device: Any) -> Any:
        return self._current

    def ExternalStream(self, handle: int, device: Any) -> Any:  # noqa: N802
        return handle

    def stream(self, stream: Any) -> Any:
        import contextlib

        return contextlib.nullcontext()


def torch_tensor(torch: Any, values: np.ndarray) -> Any:
    """A tensor that says of itself what one on a GPU does, at the price of torch's own answers."""
    tensor = torch.from_numpy(values)

    class OnGpu:
        __module__ = "torch"
        shape, dtype, device = property(lambda self: tensor.shape), property(lambda self: tensor.dtype), None
        data_ptr, is_contiguous = tensor.data_ptr, tensor.is_contiguous
        is_cuda, requires_grad = True, False

        def get_device(self) -> int:
            return 0

        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            data = tensor.data_ptr(), False
            return {"typestr": "<f4", "shape": tuple(tensor.shape), "strides": None, "data": data, "version": 2}

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    return OnGpu()


def engine_over(device: NullDevice, folder: Path, taps: bool) -> Any:
    """A toy engine on the null device."""
    from finercam_rt import engine
    from finercam_rt.backends.gpu import GpuBackend
    from finercam_rt.backends.interface import Value, expected_interface
    from finercam_rt.onnx_metadata import read_manifest
    from tests.conftest import make_toy

    toy = make_toy.__wrapped__(folder)()  # type: ignore[attr-defined]
    path = toy.path
    if taps:
        from tests.fakes.taps import with_taps

        path = with_taps(toy, gradients=False)
    manifest = read_manifest(path)
    inputs, outputs = (
        {name: Value(dtype.name, [d if d >= 0 else "N" for d in shape]) for name, (dtype, shape) in values.items()}
        for values in expected_interface(manifest)
    )
    engine.open_backend = lambda path, manifest, **options: GpuBackend(  # type: ignore[assignment]
        "tensorrt", path, manifest, device, lambda: NullLoaded(inputs, outputs), cuda_graphs=True
    )
    return engine.Engine(path)


def series(call: Callable[[], object], calls: int) -> float:
    """CPU microseconds of one call."""
    began = time.thread_time_ns()
    for _ in range(calls):
        call()
    return (time.thread_time_ns() - began) / calls / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, default=31)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--profile", metavar="NAME", help="profile these calls instead")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        device = NullDevice(build(folder, "-O3"))
        engine = engine_over(device, folder, taps=False)
        values = np.random.default_rng(0).normal(size=(1, 3, *SIZE)).astype(np.float32)
        plain = types.ModuleType("plain")
        plain.from_dlpack = lambda array: (array.__dlpack__(stream=STREAM), array)[1]  # type: ignore[attr-defined]
        sys.modules["plain"] = plain
        array = DlpackArray(values)
        calls: dict[str, Callable[[], object]] = {
            "NumPy": lambda: engine(values),
            "DLPack": lambda: engine(array),
            "NumPy, a target given": lambda: engine(values, target=3),
        }
        try:
            import torch
        except ImportError:
            pass
        else:
            tensor = torch_tensor(torch, values)
            stands_in = Torch(torch)
            sys.modules["torch"] = stands_in  # type: ignore[assignment]
            calls["torch"] = lambda: engine(tensor)
        for call in calls.values():
            series(call, options.calls)
        if options.profile:
            import cProfile
            import pstats

            profile = cProfile.Profile()
            profile.runcall(series, calls[options.profile], 5000)
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)
            return
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(options.series):
            for name, call in calls.items():
                found[name].append(series(call, options.calls))
    if options.json:
        print(json.dumps(found))
        return
    for name, times in found.items():
        print(f"{name:24} {statistics.median(times):6.1f} us  ({min(times):.1f} to {max(times):.1f})")


if __name__ == "__main__":
    main()
