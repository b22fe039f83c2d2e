"""Times of calls that queue work on a device; where there is no GPU, of the same calls on the CPU."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch

Call = Callable[[], object]

SECONDS = 0.08
"""Of repetitions for each figure, if that is between the least and the most of them."""
LEAST, MOST = 5, 60
COPIED_BYTES = 1 << 30
"""Of the copy that a kernel's bandwidth is held against: half of it is read, half written."""
_FLUSHED_BYTES = 256 << 20
"""Written before each repetition: no L2 holds it, and the host queues the repetition meanwhile."""
_QUERY = "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu,power.draw,pstate"


class Chain(NamedTuple):
    """microseconds: of a call, one figure for each repetition of the chain; graph: whether it was a CUDA graph."""

    microseconds: list[float]
    graph: bool


class Clock(Protocol):
    """What measures on one device."""

    @property
    def device(self) -> str:
        """As torch calls it."""

    @property
    def cache_bytes(self) -> int:
        """Of the device's last cache."""

    def chain(self, calls: Sequence[Call], *, capture: bool = True) -> Chain:
        """The calls one after the other, again and again."""

    def synchronize(self) -> None:
        """Wait for all that is queued."""

    def state(self) -> dict[str, str]:
        """Clocks, temperature and power of this moment."""


class HostClock:
    """On the CPU, for rehearsals: the figures mean nothing, the code is the same."""

    device = "cpu"
    cache_bytes = 1 << 16

    def chain(self, calls: Sequence[Call], *, capture: bool = True) -> Chain:
        """See Clock.chain."""
        found = []
        for _ in range(2):
            began = time.perf_counter()
            for call in calls:
                call()
            found.append(1e6 * (time.perf_counter() - began) / len(calls))
        return Chain(found, graph=False)

    def synchronize(self) -> None:
        """Nothing is queued."""

    def state(self) -> dict[str, str]:
        """Nothing to say."""
        return {}


class CudaClock:
    """By events of the device. A chain is captured in a CUDA graph: between its kernels there is no host."""

    device = "cuda"

    def __init__(self, cuda: Any = torch.cuda) -> None:
        """On the current device; `cuda` is a stand-in in the tests."""
        self._cuda = cuda
        self._stream = cuda.Stream()
        self._scratch = torch.empty(_FLUSHED_BYTES, dtype=torch.uint8, device=self.device)

    @property
    def cache_bytes(self) -> int:
        """Of the L2."""
        return int(self._cuda.get_device_properties(0).L2_cache_size)

    def chain(self, calls: Sequence[Call], *, capture: bool = True) -> Chain:
        """See Clock.chain; `capture`: whether the calls can be captured. Those that wait for the device cannot.

        What cannot be captured all the same is queued call by call.
        """
        cuda, stream = self._cuda, self._stream
        cuda.synchronize()  # inputs were made on another stream
        with cuda.stream(stream):
            for call in calls[:2]:  # loads the modules and grows the pools, which a capture forbids
                call()
        cuda.synchronize()
        graph = self._captured(calls) if capture else None

        def run() -> None:
            if graph is not None:
                graph.replay()
            else:
                for call in calls:
                    call()

        found: list[float] = []
        with cuda.stream(stream):
            run()
            began = time.perf_counter()
            while len(found) < LEAST or (len(found) < MOST and time.perf_counter() - began < SECONDS):
                before, after = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
                self._scratch.zero_()
                if graph is None:  # or the host would queue calls unseen, while the device still writes
                    cuda.synchronize()
                before.record()
                run()
                after.record()
                after.synchronize()
                found.append(1e3 * before.elapsed_time(after) / len(calls))
        return Chain(found, graph is not None)

    def _captured(self, calls: Sequence[Call]) -> Any:
        graph = self._cuda.CUDAGraph()
        try:
            with self._cuda.graph(graph, stream=self._stream):
                for call in calls:
                    call()
        except RuntimeError:
            self._cuda.synchronize()  # which fails again where the GPU is lost
            return None
        return graph

    def synchronize(self) -> None:
        """Wait for all streams."""
        self._cuda.synchronize()

    def state(self) -> dict[str, str]:
        """What nvidia-smi says; nothing is changed."""
        return query(_QUERY)


def open_clock(device: str) -> Clock:
    """The clock of "cuda" or "cpu"."""
    return CudaClock() if device == "cuda" else HostClock()


def copy_bandwidth(clock: Clock) -> float:
    """Bytes a second, read and written together, of a large copy within the device: the best of its repetitions."""
    count = COPIED_BYTES // 2 if clock.device == "cuda" else 1 << 20
    source = torch.ones(count, dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    times = clock.chain([lambda: target.copy_(source)] * 4).microseconds
    return 2 * count / (1e-6 * min(times))


def query(fields: str) -> dict[str, str]:
    """Fields of nvidia-smi of the first GPU; none where it is missing."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields.split(","), map(str.strip, done.stdout.split(",")), strict=False))
