"""What the engine asks of a runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from finercam_rt.backends.device_results import ResultLayout
from finercam_rt.contrast import ContrastArrays
from finercam_rt.cuda import Device

Run: TypeAlias = Callable[[Mapping[str, NDArray[np.float32]]], dict[str, NDArray[np.float32]]]
"""A loaded graph: inputs by name, to outputs by name."""


class Filling(Protocol):
    """Images that are made on a GPU, in the place where a run reads them."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, rows: slice) -> Filling:
        """Some of them."""

    def fill(self, stream: Any, images: int) -> None:
        """Queue what makes them, (N,C,H,W) float32, at an address."""


HostImages: TypeAlias = "NDArray[np.float32] | Filling"


class Wanted(NamedTuple):
    """What the caller reads of an engine of head "taps": the map by which method, and whether the taps themselves."""

    method: str
    taps: bool


class RunTimes(NamedTuple):
    """Milliseconds of one run of host arrays on a GPU, in trtexec's terms, by the GPU's own clock but for the last.

    h2d, compute, d2h: copies to the GPU, everything between, copies back. enqueue: of the host's clock, what queueing
    the compute takes. graph_nodes: of the CUDA graph that was replayed; None where the run was queued call by call.
    """

    h2d: float
    compute: float
    d2h: float
    enqueue: float
    graph_nodes: int | None

    @property
    def latency(self) -> float:
        """From the first copy to the last."""
        return self.h2d + self.compute + self.d2h


class Backend(Protocol):
    """A loaded graph with the interface of DESIGN, section 3; any number of threads may call `run`."""

    @property
    def name(self) -> str:
        """The runtime's name, such as "onnxruntime"."""

    @property
    def device(self) -> str:
        """Where it computes, such as "cpu"."""

    @property
    def fixed_batch(self) -> int | None:
        """N where the graph's batch is fixed, None where it is dynamic."""

    @property
    def batch_range(self) -> tuple[int, int] | None:
        """Least and largest N of a run where there are such, as in a plan's profile; None where any number will do."""

    def run(self, feeds: Mapping[str, NDArray[Any]], wanted: Wanted | None = None) -> Mapping[str, NDArray[Any]]:
        """The outputs by name. They are the backend's buffers: valid until this thread's next run, so copy them.

        With `wanted`, a backend on a device adds "saliency_map" to the outputs of head "taps" where it can draw by that
        method, and then leaves out the taps that are not read.

        Raises:
            BackendError: the runtime failed, or the backend is closed.
        """

    def logits(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The logits alone, of the images and, where the classes are an input, their embeddings.

        What only the explanation needs is left out as far as the runtime can. The buffer is as those of `run`.

        Raises:
            BackendError: see `run`.
        """

    def close(self) -> None:
        """Give the memory back, once the runs under way have ended; `run` fails afterwards."""


@runtime_checkable
class DeviceBackend(Backend, Protocol):
    """A backend on a GPU, which also takes images that lie there."""

    @property
    def gpu(self) -> Device:
        """The GPU."""

    def record_times(self, times: list[RunTimes] | None) -> None:
        """From now on, append the times of every run of host arrays; None for no more of that."""

    @property
    def largest(self) -> int:
        """The most images of one run."""

    def draws(self, method: str) -> bool:
        """Whether the map by this method is made on the GPU."""

    def results(self, count: int, classes: int, wanted: Wanted, names: tuple[str, ...] | None) -> ResultLayout:
        """How the results of `count` images lie: all that is wanted, with "status" and "alpha", or those of `names`.

        classes: K where the classes are an input.

        Raises:
            InputError: a map that is not drawn on the GPU.
        """

    def run_on_host(
        self,
        images: HostImages,
        contrast: ContrastArrays | None,
        constants: Mapping[str, NDArray[Any]],
        wanted: Wanted,
        layout: ResultLayout,
    ) -> NDArray[np.uint8]:
        """A run of arrays of the host: the results as `layout` has them, in new memory.

        Args:
            images: (N,C,H,W), contiguous, or what makes them; at most `largest`.
            contrast: of as many, with as many contrasts as the graph; None where only logits are read.
            constants: the inputs that are the same for many runs.
            wanted: as `results` was asked.
            layout: of as many images.

        Raises:
            BackendError: see `run`.
        """

    def run_on_device(
        self,
        images: int,
        count: int,
        contrast: ContrastArrays | None,
        constants: Mapping[str, NDArray[Any]],
        wanted: Wanted,
        stream: int,
        layout: ResultLayout,
        results: int,
    ) -> None:
        """Queue a run of images at an address into results at another; nothing waits for it.

        Args:
            images: (N,C,H,W) float32, contiguous, made on `stream`.
            count: N, any number.
            contrast, constants, wanted: see `run_on_host`.
            stream: the caller's, by its handle.
            layout: of `results`.
            results: where they go; they are there for what is queued on `stream` from then on.

        Raises:
            BackendError: see `run`.
        """
