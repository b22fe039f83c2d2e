"""From a photograph to the graph's input, as timm's evaluation transform does it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finercam_rt.errors import InputError
from finercam_rt.geometry import Geometry
from finercam_rt.manifest import InputSpec

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
_LARGEST_RESIZED = 2**25
"""Pixels of the resized photograph before the crop: a strip of 1 x 100000 pixels would otherwise ask for gigabytes."""


class Preprocessor:
    """Makes the normalised input (3,H,W) and the view, the uint8 RGB crop (H,W,3) that the model sees.

    value = (view / 255 - mean) / std in float32, per channel. The result equals
    timm.data.transforms_factory.transforms_imagenet_eval, rounding included. Reentrant.
    """

    def __init__(self, spec: InputSpec) -> None:
        """Prepare what depends on the specification alone."""
        self.spec = spec
        self._scale = tuple(math.floor(edge / spec.crop_pct) for edge in spec.size)
        # 256 values a channel, so normalising is a look-up; each entry is computed in float32 in timm's order.
        levels = np.arange(256, dtype=np.float32) / np.float32(255)
        mean, std = (np.asarray(v, dtype=np.float32)[:, None] for v in (spec.mean, spec.std))
        self._levels: NDArray[np.float32] = (levels[None, :] - mean) / std

    def __call__(self, image: Image.Image, out: NDArray[np.float32], view: NDArray[np.uint8], name: str) -> Geometry:
        """Write the input to `out` (3,H,W) float32 and the crop to `view` (H,W,3) uint8; `image` is RGB.

        Returns:
            Where in the image the crop lies.

        Raises:
            InputError: the photograph is so narrow that its resized form would not fit in memory.
        """
        height, width = resized_size((image.height, image.width), self.spec, self._scale)
        if height * width > _LARGEST_RESIZED or min(height, width) < 1:
            raise InputError(
                f"{name} is {image.width}x{image.height} pixels, too narrow to be resized for the model; crop it."
            )
        resample = _RESAMPLING[self.spec.interpolation]
        resized = image if image.size == (width, height) else image.resize((width, height), resample)
        fill = tuple(round(255 * v) for v in self.spec.mean) if self.spec.crop_mode == "border" else (0, 0, 0)
        top, left = _centre(np.asarray(resized), view, fill, floor=self.spec.crop_mode == "center_floor")
        for channel in range(3):
            np.take(self._levels[channel], view[:, :, channel], out=out[channel], mode="clip")
        # Pillow lays the resized photograph's edges on the photograph's, so one factor an axis tells all.
        y, x = image.height / height, image.width / width
        box = (left * x, top * y, (left + view.shape[1]) * x, (top + view.shape[0]) * y)
        return Geometry((image.height, image.width), (view.shape[0], view.shape[1]), box)


def resized_size(size: tuple[int, int], spec: InputSpec, scale: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) of the photograph before the crop; `scale` is floor(spec.size / crop_pct).

    Sources: torchvision _compute_resized_output_size (int() of the longer edge), timm ResizeKeepRatio (round()).
    """
    height, width = size
    if spec.crop_mode == "squash":
        return scale[0], scale[1]
    if spec.crop_mode in ("center", "center_floor") and scale[0] == scale[1]:
        if width <= height:
            return int(scale[0] * height / width), scale[0]
        return scale[0], int(scale[0] * width / height)
    ratios = height / scale[0], width / scale[1]
    # timm blends the two ratios with weights 0 and 1; the sum with a zero is exact.
    ratio = max(ratios) if spec.crop_mode == "border" else min(ratios)
    return round(height / ratio), round(width / ratio)


def _centre(image: NDArray[np.uint8], view: NDArray[np.uint8], fill: tuple[int, ...], floor: bool) -> tuple[int, int]:
    """Copy the centre of `image` (h,w,3) into `view` (H,W,3); where the image is smaller, `fill` surrounds it.

    Returns (top, left), where in the image the view begins: below zero by the width of what surrounds it.
    """
    rows, columns = (_span(image.shape[axis], view.shape[axis], floor) for axis in (0, 1))
    if rows[1] - rows[0] < view.shape[0] or columns[1] - columns[0] < view.shape[1]:
        view[...] = np.asarray(fill, dtype=np.uint8)
    source = image[rows[0] : rows[1], columns[0] : columns[1]]
    view[rows[2] : rows[2] + source.shape[0], columns[2] : columns[2] + source.shape[1]] = source
    return rows[0] - rows[2], columns[0] - columns[2]


def _span(edge: int, crop: int, floor: bool) -> tuple[int, int, int]:
    """(start, end) of what is copied, and where it lands: torchvision's center_crop along one edge.

    Where the edge is shorter, the padding before it is (crop - edge) // 2. Otherwise the offset is
    round((edge - crop) / 2), halves to even, or rounded down, as transformers does it.
    """
    if edge < crop:
        return 0, edge, (crop - edge) // 2
    start = (edge - crop) // 2 if floor else round((edge - crop) / 2.0)
    return start, start + crop, 0
