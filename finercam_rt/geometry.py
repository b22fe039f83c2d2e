"""Where in a photograph the crop lies that the model saw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finercam_rt.errors import InputError
from finercam_rt.ops import Box

CROP, ORIGINAL = "crop", "original"
COORDINATES = (CROP, ORIGINAL)
"""Of pictures and maps: the crop's, (0, 0) to the model's input size, or the upright photograph's."""


@dataclass(frozen=True)
class Geometry:
    """How the crop that the model saw lies in the photograph.

    All lengths are in pixels and all points are (x, y) from the top left corner, where the first pixel reaches from 0
    to 1 and its centre is at 0.5. The original is the photograph as it is looked at: upright, with its EXIF orientation
    applied.

    size: (height, width) of the original. crop_size: (height, width) of the crop. box: (left, top, right, bottom), what
    of the original the crop shows; it reaches beyond the original where the crop is padded.
    """

    size: tuple[int, int]
    crop_size: tuple[int, int]
    box: Box

    @property
    def scale(self) -> tuple[float, float]:
        """(x, y): pixels of the original for one of the crop."""
        left, top, right, bottom = self.box
        return (right - left) / self.crop_size[1], (bottom - top) / self.crop_size[0]

    @property
    def visible(self) -> Box:
        """The part of `box` that lies in the photograph."""
        (height, width), (left, top, right, bottom) = self.size, self.box
        return max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))

    def to_original(self, points: ArrayLike) -> NDArray[np.float64]:
        """Points (...,2) or boxes (...,4), left top right bottom, of the crop as those of the original.

        Raises:
            InputError: another shape, or not numbers.
        """
        values = _points(points)
        return values * self._repeated(self.scale, values) + self._repeated(self.box[:2], values)

    def to_crop(self, points: ArrayLike) -> NDArray[np.float64]:
        """Points or boxes of the original as those of the crop; the inverse of `to_original`."""
        values = _points(points)
        return (values - self._repeated(self.box[:2], values)) / self._repeated(self.scale, values)

    def resized(self, size: tuple[int, int]) -> Geometry:
        """The same crop of the original in another size, (height, width)."""
        x, y = size[1] / self.size[1], size[0] / self.size[0]
        left, top, right, bottom = self.box
        return Geometry(size, self.crop_size, (left * x, top * y, right * x, bottom * y))

    @staticmethod
    def _repeated(pair: tuple[float, float], values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.tile(np.array(pair), values.shape[-1] // 2)


def check_coordinates(coordinates: str) -> None:
    """Refuse what is neither "crop" nor "original"."""
    if coordinates not in COORDINATES:
        raise InputError(f"the coordinates are {coordinates!r}; use 'crop' or 'original'.")


def _points(points: ArrayLike) -> NDArray[np.float64]:
    try:
        values = np.asarray(points, np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.ndim == 0 or values.shape[-1] not in (2, 4):
        raise InputError("the points are no array of numbers (...,2), x y, or boxes (...,4), left top right bottom.")
    return values
