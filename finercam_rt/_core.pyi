"""
The kernels of finercam_rt. Use finercam_rt.ops, which checks its arguments.
"""

import enum
from collections.abc import Sequence
from typing import Annotated

import numpy
import numpy.typing
from numpy.typing import NDArray

def describe(object: object) -> tuple[tuple[int, ...], str, str, bool, bool] | None:
    """
    Shape, dtype, device, whether aligned to the elements, whether C-contiguous and aligned to 4 bytes.
    """

class Layout(enum.Enum):
    """Order of a feature map's axes."""

    NCHW = 0

    NHWC = 1

    TOKENS = 2

class Method(enum.Enum):
    """How activations and gradients, or channel weights, become a map."""

    CHANNEL_WEIGHTS = 0

    GRADCAM = 1

    GRADCAM_PLUS_PLUS = 2

    XGRADCAM = 3

    FEM = 4

    LAYERCAM = 5

    HIRESCAM = 6

    GRADCAM_ELEMENTWISE = 7

def cam(
    activations: object,
    gradients: object | None,
    out: object,
    *,
    method: Method,
    layout: Layout,
    prefix_tokens: int,
    threads: int,
    stream: int,
    blocks: int = 0,
    cluster: bool = False,
) -> None:
    """
    Write the raw maps into out, (N, h, w) or (N, P, h, w). On CUDA so many blocks share a map; 0: by size.
    """

def map_status(
    maps: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), writable=False)],
    status: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order="C")],
    *,
    threads: int,
    stream: int,
) -> None:
    """Write the status of each raw map."""

def mark_non_finite(
    values: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C", writable=False)],
    status: Annotated[NDArray[numpy.uint8], dict(shape=(None, None))],
    *,
    threads: int,
    stream: int,
) -> None:
    """Set the status of rows with a value that is not finite."""

def render_values(
    maps: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), writable=False)],
    status: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order="C")],
    out: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order="C")],
    *,
    box: tuple[float, float, float, float] | None,
    value_range: tuple[float, float] | None,
    threads: int,
    stream: int,
) -> None:
    """Write the normalised maps, resized to the size of out."""

def render_rgba(
    maps: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), writable=False)],
    status: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order="C")],
    out: Annotated[NDArray[numpy.uint8], dict(shape=(None, None, None, 4), order="C")],
    *,
    colors: Annotated[NDArray[numpy.uint8], dict(shape=(256, 3), order="C", device="cpu", writable=False)],
    photos: Annotated[NDArray[numpy.uint8], dict(shape=(None, None, None, 3), writable=False)] | None,
    opacity: float,
    box: tuple[float, float, float, float] | None,
    value_range: tuple[float, float] | None,
    threads: int,
    stream: int,
) -> None:
    """
    Write the coloured maps, resized to the size of out and blended with the photographs.
    """

def rank(
    maps: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), writable=False)],
    out: Annotated[NDArray[numpy.int32], dict(shape=(None, None, None), order="C")],
    *,
    threads: int,
    stream: int,
) -> int:
    """
    Write the place of each pixel; the first map that is not finite, or -1.
    """

def remove_values(
    images: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None, None), writable=False)],
    ranks: Annotated[NDArray[numpy.int32], dict(shape=(None, None, None), writable=False)],
    counts: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order="C", device="cpu", writable=False)],
    fill: Annotated[NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)],
    out: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None, None, None), order="C")],
    *,
    threads: int,
    stream: int,
) -> None:
    """Write copies with ranked pixels replaced by one value a channel."""

def remove_pixels(
    images: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None, None), writable=False)],
    ranks: Annotated[NDArray[numpy.int32], dict(shape=(None, None, None), writable=False)],
    counts: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order="C", device="cpu", writable=False)],
    fill: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None, None), writable=False)],
    out: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None, None, None), order="C")],
    *,
    threads: int,
    stream: int,
) -> None:
    """Write copies with ranked pixels replaced by those of the fill."""

def mask(
    images: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None, None), writable=False)],
    maps: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None, None), writable=False)],
    out: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None, None, None), order="C")],
    *,
    align_corners: bool,
    threads: int,
    stream: int,
) -> None:
    """Write copies of the images, each multiplied by a resized map."""

class ResizeFilter(enum.Enum):
    """How photographs are resized."""

    BILINEAR = 0

    BICUBIC = 1

def preprocess(
    images: list[object],
    frames: list[tuple[int, int, int, int]],
    out: object,
    view: object | None,
    *,
    filter: ResizeFilter,
    mean: list[float],
    std: list[float],
    fill: list[int],
    threads: int,
    stream: int,
) -> None:
    """
    Write photographs resized, cropped, normalised; a frame is (resized height, resized width, top, left).
    """

class Objective(enum.Enum):
    """What the seed is the derivative of."""

    WEIGHTED = 0

    MEAN = 1

def seed(
    logits: object,
    target: object,
    references: object,
    alpha: object,
    target_class: object,
    reference_classes: object,
    seed_classes: object,
    values: object,
    dense: object | None,
    *,
    objective: Objective,
    threads: int,
    stream: int,
) -> None:
    """
    Write the seed of the logits (N, K) for targets and alphas (N,) or (N, P), references (N, R) or (N, P, R).
    """

def cuda_status() -> tuple[int, str]:
    """Number of usable CUDA devices, and why there is none."""

def cuda_compute_capability(device: int) -> int:
    """10 * major + minor of a CUDA device, such as 89."""

def cuda_device_name(device: int) -> str:
    """As the driver calls a CUDA device, such as "NVIDIA H200"."""

def cuda_memory_info(device: int) -> tuple[int, int]:
    """Free bytes and all bytes of a CUDA device."""

def cuda_make_current(device: int) -> tuple[int, int]:
    """
    Make a CUDA device the current one of this thread, and give what cuda_restore_current takes.
    """

def cuda_restore_current(device: int, mode: int) -> None:
    """
    Put back what cuda_make_current gave, unless that device has no context yet.
    """

class CudaError(RuntimeError):
    """A CUDA call failed; `fatal`: so will all later ones of this process."""

class CudaMemoryError(MemoryError):
    """There is too little memory for the `bytes` asked for."""

def cuda_view(address: int, dtype: str, shape: Sequence[int], device: int) -> object:
    """An array over memory of a CUDA device that the caller keeps alive."""

class DeviceMemory:
    """Memory of a CUDA device, freed with this object."""

    def __init__(self, bytes: int, device: int) -> None:
        """Raises CudaMemoryError where there is too little."""

    @property
    def address(self) -> int:
        """Where it begins; 0 once it is released."""

    @property
    def bytes(self) -> int:
        """Its size."""

    @property
    def device(self) -> int:
        """The number of the device."""

    def release(self) -> None:
        """Free it now, once the work that may use it has ended."""

    def view(self, dtype: str, shape: Sequence[int], offset: int = 0, strides: Sequence[int] | None = None) -> object:
        """
        An array with DLPack that shares it: offset in bytes, strides in elements.
        """

class PinnedMemory:
    """Memory of the host for asynchronous copies, freed with this object."""

    def __init__(self, bytes: int, device: int) -> None:
        """Raises CudaMemoryError where there is too little."""

    @property
    def address(self) -> int:
        """Where it begins."""

    @property
    def bytes(self) -> int:
        """Its size."""

    def array(self) -> numpy.typing.NDArray[numpy.uint8]:
        """A NumPy array of its bytes, which keeps it alive."""

class Event:
    """A point in a stream's work."""

    def __init__(self, device: int, timing: bool = False) -> None:
        """timing: whether milliseconds_since may be asked."""

    def synchronize(self) -> None:
        """Wait until the work before it has ended."""

    def done(self) -> bool:
        """Whether the work before it has ended."""

    def milliseconds_since(self, earlier: Event) -> float:
        """Between two events that are done."""

class Graph:
    """What a stream has captured, to be launched again and again."""

    @property
    def nodes(self) -> int:
        """How many kernels, copies and the like it holds."""

class Stream:
    """A queue of work of a CUDA device."""

    def __init__(self, device: int, handle: int | None = None) -> None:
        """
        A new one, which does not wait for the default stream, or the caller's, by its handle.
        """

    @property
    def handle(self) -> int:
        """A cudaStream_t."""

    @property
    def device(self) -> int:
        """The number of the device."""

    def copy(self, to: int, source: int, bytes: int) -> None:
        """
        Queue a copy between addresses of the device or of the host, whose memory should be pinned.
        """

    def fill(self, to: int, value: int, bytes: int) -> None:
        """Queue writing one value to every byte."""

    def record(self, event: Event) -> None:
        """Put an event behind the work queued so far."""

    def wait(self, event: Event) -> None:
        """Hold later work back until an event has come."""

    def launch(self, graph: Graph) -> None:
        """Queue all that a graph holds."""

    def synchronize(self) -> None:
        """Wait until all its work has ended."""

    def begin_capture(self) -> None:
        """From here on what this thread queues becomes a graph and does not run."""

    def end_capture(self) -> Graph:
        """
        The graph, ready to be launched; the capture has ended even where this raises.
        """

    def abandon_capture(self) -> None:
        """End a capture, if there is one, for nothing."""

    def capturing(self) -> bool:
        """Whether what is queued becomes a graph, of whatever thread."""

class ResultCopies:
    """What is copied out of a run's buffers, and where to in its results."""

    def __init__(self, copies: Sequence[tuple[int, int, int]]) -> None:
        """Of each the address, the offset in the results and the size in bytes."""

class Exchange:
    """
    A run's inputs brought, its results taken away, and its place among the streams.
    """

    def __init__(self, device: int, questions: int, bytes: int) -> None:
        """
        questions: where runs read the inputs that are neither images nor class embeddings.
        """

    def begin(self, images: int, images_at: int, image_bytes: int, questions: bytes | None, caller: int | None) -> int:
        """
        Queue the copies of the inputs: the stream for the run. images_at 0: in place; None: as before, the host.
        """

    def end(self, copies: ResultCopies, results: int) -> None:
        """
        Queue the copies of the results to an address, for what the caller queues from then on.
        """

    def abandon(self) -> None:
        """In the place of end, of a run that could not be queued."""

    def replay(
        self,
        graph: Graph,
        images: int,
        images_at: int,
        image_bytes: int,
        questions: bytes | None,
        caller: int | None,
        copies: ResultCopies,
        results: int,
    ) -> None:
        """All of a captured run."""

    def replay_host(
        self,
        graph: Graph,
        images: object,
        staging: PinnedMemory,
        images_at: int,
        questions: bytes | None,
        copies: ResultCopies,
        mirror: PinnedMemory,
        out: object,
    ) -> None:
        """
        All of a captured run of arrays of the host, by pinned memory; its results are in `out` on return.
        """

    def synchronize(self) -> None:
        """Wait until the last run has ended."""

    @property
    def stream(self) -> int:
        """The handle of its own stream."""
