"""Which part of the image a layer's map depends on: what is cropped away before it cannot be on its map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from finercam_rt.export.hooks import hooked
from finercam_rt.export.method import positions
from finercam_rt.export.outputs import feature_map
from finercam_rt.manifest import LayerInfo

MOVED = 1e-5
"""How much a band of pixels must change, of what all of them do, to be seen; rounding alone changes a tenth of it."""

BORDER = 1 / 32
"""The share of a side that may be left out at the top or the left, where convolutions and patches leave nothing out."""


class Part(NamedTuple):
    """A part of an image, in pixels: its first row and column, and those behind its last."""

    top: int
    left: int
    bottom: int
    right: int


def cropped(model: nn.Module, layer: LayerInfo, example: torch.Tensor) -> Part | None:
    """The part of the image that the layer's map shows, where it is another than the whole.

    What patches or strides leave out at the end, less than one of them, does not count, nor does what is masked: it
    moves nothing, and the cells over it look there.

    Args:
        model: images (N,C,H,W) -> anything, in evaluation mode.
        layer: as its layout was proved.
        example: (N,C,H,W) float32; images are run in batches of its size.
    """
    look = _Look(model, layer, example)
    sides = (example.shape[2], example.shape[3])
    at_most = [math.ceil(side * BORDER) for side in sides] + [
        math.ceil(side / count) for side, count in zip(sides, layer.grid, strict=True)
    ]
    if all(look.sees(at_most)):
        return None
    unseen, too_much = [0] * 4, [*sides, *sides]
    while any(more - most > 1 for most, more in zip(unseen, too_much, strict=True)):
        widths = [(most + more) // 2 for most, more in zip(unseen, too_much, strict=True)]
        for edge, seen in enumerate(look.sees(widths)):
            (too_much if seen else unseen)[edge] = widths[edge]
    ends = [side - left_out for side, left_out in zip(sides, unseen[2:], strict=True)]
    crops = (_is_crop(look, axis, unseen[axis], ends[axis], sides[axis], layer.grid[axis]) for axis in (0, 1))
    return Part(unseen[0], unseen[1], ends[0], ends[1]) if any(crops) else None


def _is_crop(look: _Look, axis: int, start: int, end: int, side: int, count: int) -> bool:
    """Whether the cells of an axis lie on what is seen of it, from `start` to `end`, and not on all of it."""
    cell, width = side / count, math.ceil((end - start) / count)
    if start <= side * BORDER and side - end < width:
        return False
    for drawn, edge, first in (
        (int(start / cell), 0, start),
        (math.ceil(end / cell) - 1, count - 1, end - width),
    ):
        if abs(drawn - edge) > 1:  # neighbours answer as strongly
            found = look.answering(axis, first, width)
            return abs(found - edge) <= abs(found - drawn)
    return True


class _Look:
    """Runs images of noise of which a part is other noise, and looks at the layer's positions."""

    def __init__(self, model: nn.Module, layer: LayerInfo, example: torch.Tensor) -> None:
        self._model, self._layer, self._example = model, layer, example
        generator = torch.Generator().manual_seed(0)
        self._image, self._other = torch.randn(2, *example.shape[1:], generator=generator)

    def sees(self, widths: Sequence[int]) -> list[bool]:
        """Whether bands of so many rows or columns at the top, left, bottom and right change anything."""
        bands = [
            (edge % 2, self._image.shape[1 + edge % 2] - width if edge > 1 else 0, width)
            for edge, width in enumerate(widths)
        ]
        whole, *changes = self._changes([(0, 0, self._image.shape[1]), *bands])
        return [bool(change.max() > MOVED * whole.max()) for change in changes]

    def answering(self, axis: int, start: int, width: int) -> int:
        """The row (axis 0) or column (axis 1) of the map that a band of so many rows or columns changes most."""
        (change,) = self._changes([(axis, start, width)])
        return int(change.mean(1 - axis).argmax())

    def _changes(self, bands: Sequence[tuple[int, int, int]]) -> list[torch.Tensor]:
        """(h,w) a band (axis, start, width): the largest change of each position's channels."""
        images = self._image.repeat(1 + len(bands), 1, 1, 1)
        for index, (axis, start, width) in enumerate(bands, 1):
            images[index].narrow(1 + axis, start, width).copy_(self._other.narrow(1 + axis, start, width))
        found: list[torch.Tensor] = []

        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            values = positions(feature_map(output, self._layer).detach().to(torch.float32), self._layer)
            found.append(values.data.movedim(values.channel, -1).clone())

        with hooked([(self._model.get_submodule(self._layer.name), keep)]), torch.no_grad():
            for start in range(0, len(images), len(self._example)):
                self._model(images[start : start + len(self._example)].to(self._example))
        values = torch.cat(found)
        return list((values[1:] - values[0]).abs().amax(-1).reshape(len(bands), *self._layer.grid))
