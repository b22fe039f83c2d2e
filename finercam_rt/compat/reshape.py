"""What a caller's reshape_transform does: the layout that it reads, from where it takes each element."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from finercam_rt.errors import InputError

ReshapeTransform = Callable[[torch.Tensor], torch.Tensor]


class Reading(NamedTuple):
    """How a layer's output is read: layout, grid (h, w) and prefix tokens, as in manifest.LayerInfo."""

    layout: str
    grid: tuple[int, int]
    prefix_tokens: int

    def __str__(self) -> str:
        """In words, for an error."""
        kind = {"nchw": "(N,C,h,w)", "nhwc": "(N,h,w,C)"}.get(self.layout, f"tokens after {self.prefix_tokens} others")
        return f"{kind} with a grid of {self.grid[0]}x{self.grid[1]}"


def read_reshape(transform: ReshapeTransform, shape: torch.Size, name: str) -> Reading:
    """The layout that `transform` reads in an output of `shape`, to (N,C,h,w).

    It is called once, on a tensor that holds its own indices; nothing but a plain reading of (N,C,h,w), (N,h,w,C) or
    (N,prefix+h*w,C), row by row, is accepted.

    Args:
        transform: the caller's function.
        shape: of the layer's output, with at least two images.
        name: of the layer, for errors.

    Raises:
        InputError: it fails on that shape, or does anything else.
    """
    index = torch.arange(shape.numel(), dtype=torch.float64).reshape(shape)
    about = f"reshape_transform, on the output of layer {name!r} of shape {tuple(shape)},"
    try:
        found = transform(index.clone())
    except Exception as error:
        detail = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"{about} fails ({detail}); make it fit that shape, or leave it out.") from error
    if not isinstance(found, torch.Tensor) or found.ndim != 4 or len(found) != shape[0]:
        given = f"shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise InputError(f"{about} gives {given} and not (N,C,h,w); correct it, or leave it out.")
    grid = (int(found.shape[2]), int(found.shape[3]))
    found = found.detach()
    for reading, expected in _readings(index, found, grid):
        if torch.equal(found, expected):
            return reading
        if torch.equal(found, expected.reshape(*expected.shape[:2], grid[1], grid[0]).transpose(2, 3)):
            raise InputError(
                f"{about} puts rows where columns are: it reads the positions down instead of across, which turns the "
                "map over its diagonal; correct it, or leave it out."
            )
    raise InputError(
        f"{about} does more than to drop leading tokens and to put the rest as (N,C,h,w), row by row; correct it, or "
        "leave it out."
    )


def _readings(index: torch.Tensor, found: torch.Tensor, grid: tuple[int, int]) -> list[tuple[Reading, torch.Tensor]]:
    """The plain readings of a layer's output that have the shape of `found`."""
    cells = grid[0] * grid[1]
    every = []
    if index.ndim == 4:
        every = [
            (Reading("nchw", (int(index.shape[2]), int(index.shape[3])), 0), index),
            (Reading("nhwc", (int(index.shape[1]), int(index.shape[2])), 0), index.permute(0, 3, 1, 2)),
        ]
    elif index.ndim == 3 and 0 < cells <= index.shape[1]:
        prefix = int(index.shape[1]) - cells
        patches = index[:, prefix:].transpose(1, 2).reshape(len(index), -1, *grid)
        every = [(Reading("tokens", grid, prefix), patches)]
    return [(reading, expected) for reading, expected in every if expected.shape == found.shape]
