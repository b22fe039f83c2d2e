"""Where the object is, in the pixels of the model's input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finercam_rt.errors import InputError
from finercam_rt.geometry import Geometry
from finercam_rt.images import load_image
from finercam_rt.ops import Box


def object_mask(geometry: Geometry, boxes: Sequence[Box], mask: Path | None) -> NDArray[np.bool_]:
    """The union of the boxes and the mask, (H,W) bool: a pixel belongs to it whose centre does.

    Args:
        geometry: where the input lies in the photograph.
        boxes: left, top, right, bottom in pixels of the photograph.
        mask: an image of the photograph's size, not black where the object is.

    Raises:
        InputError: a box lies outside of the photograph; the mask cannot be read, or has another size.
    """
    height, width = geometry.crop_size
    inside = np.zeros((height, width), np.bool_)
    x, y = np.arange(width, dtype=np.float64) + 0.5, np.arange(height, dtype=np.float64) + 0.5
    for box in boxes:
        if not (box[0] < geometry.size[1] and box[1] < geometry.size[0] and box[2] > 0 and box[3] > 0):
            raise InputError(
                f"the box {' '.join(f'{edge:g}' for edge in box)} lies outside of its photograph of "
                f"{geometry.size[1]}x{geometry.size[0]} pixels; give pixels of the upright photograph."
            )
    for left, top, right, bottom in geometry.to_crop(np.reshape(boxes, (-1, 4))).tolist():
        inside |= ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))[None]
    if mask is not None:
        inside |= _sampled(geometry, mask, x, y)
    return inside


def _sampled(geometry: Geometry, mask: Path, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    image = np.asarray(load_image(mask))
    if image.shape[:2] != geometry.size:
        (height, width), found = geometry.size, image.shape
        raise InputError(
            f"{mask} is {found[1]}x{found[0]} pixels and its photograph {width}x{height}; give a mask of the "
            "photograph's size."
        )
    values = np.asarray(image.any(axis=2))
    columns = geometry.to_original(np.stack([x, np.zeros_like(x)], 1))[:, 0]
    rows = geometry.to_original(np.stack([np.zeros_like(y), y], 1))[:, 1]
    there = ((rows >= 0) & (rows < geometry.size[0]))[:, None] & ((columns >= 0) & (columns < geometry.size[1]))[None]
    at_row, at_column = (
        np.clip(np.floor(at).astype(np.intp), 0, edge - 1)
        for at, edge in zip((rows, columns), geometry.size, strict=True)
    )
    sampled: NDArray[np.bool_] = values[at_row[:, None], at_column[None]] & there
    return sampled
