"""
The kernels of finercam_rt. Use finercam_rt.ops, which checks its arguments.
"""

import enum
from collections.abc import Sequence
from typing import Annotated

import numpy
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
) -> None:
    """
    Write the raw maps into out, (N, h, w) or (N, P, h, w) where the gradients have an axis P too; h and w are the grid.
    """

def map_status(
    maps: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), writable=False)],
    status: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order="C")],
    *,
    threads: int,
    stream: int,
) -> None:
    """Write the status of each raw map."""

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
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    fill: tuple[int, int, int],
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

def cuda_empty_float32(shape: Sequence[int], device: int) -> Annotated[NDArray[numpy.float32], dict(device="cuda")]:
    """An uninitialised float32 array that owns memory of a CUDA device."""

def cuda_empty_int32(shape: Sequence[int], device: int) -> Annotated[NDArray[numpy.int32], dict(device="cuda")]:
    """An uninitialised int32 array that owns memory of a CUDA device."""

def cuda_empty_int64(shape: Sequence[int], device: int) -> Annotated[NDArray[numpy.int64], dict(device="cuda")]:
    """An uninitialised int64 array that owns memory of a CUDA device."""

def cuda_empty_uint8(shape: Sequence[int], device: int) -> Annotated[NDArray[numpy.uint8], dict(device="cuda")]:
    """An uninitialised uint8 array that owns memory of a CUDA device."""
