"""The grids of positions that a shape may hold: the image divided by one stride, or as the model itself divides it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from finercam_rt.export.hooks import hooked
from finercam_rt.export.reading import image_shape
from finercam_rt.export.refusal import running

_DIVIDES = (nn.Conv2d, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd)

MAX_PREFIX_TOKENS = 16
"""More than these are looked for only where the grid is given."""

STRETCHED = 4
"""Times that a patch is longer than wide, or wider than long, at most: what is longer is no patch but a pooled row."""

MANY_ROWS = 32
"""A map of so many rows shows where it looks; a matrix of an attention between tokens shows nothing."""


class ImageGrids(NamedTuple):
    """The images that a model is run on, and what it divides them into.

    images: how many. size: (height, width). made: the grids of its convolutions and poolings, of which tokens may be
    the cells: of patches that are no squares or overlap.
    """

    images: int
    size: tuple[int, int]
    made: tuple[tuple[int, int], ...] = ()


def image_grids(model: nn.Module, example: torch.Tensor) -> ImageGrids:
    """Of a model that is run on images (N,C,H,W)."""
    size = (example.shape[2], example.shape[3])
    made: dict[tuple[int, int], None] = {}

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4:
            grid = (output.shape[2], output.shape[3])
            strides = [pixels / max(cells, 1) for pixels, cells in zip(size, grid, strict=True)]
            if min(strides) >= 1 and max(strides) <= STRETCHED * min(strides):
                made[grid] = None

    dividing = (module for module in model.modules() if isinstance(module, _DIVIDES))
    with hooked((module, keep) for module in dividing), running("the model", example), torch.no_grad():
        model(example)
    return ImageGrids(len(example), size, tuple(made))


def has_positions(shape: Sequence[int], image: ImageGrids) -> bool:
    """Whether a shape can be read as one row an image, of positions whose grid is the image divided by one stride."""
    found = image_shape(shape, image.images)
    return found is not None and not found.folded and position_count(shape, image) > 0


def position_count(shape: Sequence[int], image: ImageGrids) -> int:
    """How many positions, or tokens, an output has at first sight; 0 where it has none."""
    if len(shape) not in (3, 4) or is_pooled(shape):
        return 0
    shape = _by_images(shape, image)
    if len(shape) == 3:
        return shape[1] if any(True for _ in token_grids(shape[1], image)) else 0
    grids = [grid for grid in ((shape[2], shape[3]), (shape[1], shape[2])) if _is_grid(grid, image)]
    return math.prod(grids[0]) if grids else 0


def channel_counts(shape: Sequence[int], image: ImageGrids) -> set[int]:
    """How many channels an output has: one number for each axis of it that leaves positions to the others."""
    shape = _by_images(shape, image)
    if len(shape) == 3:
        return {shape[axis] for axis in (2, 1) if any(True for _ in token_grids(shape[3 - axis], image))}
    grids = {1: (shape[2], shape[3]), 3: (shape[1], shape[2])}
    return {shape[axis] for axis, grid in grids.items() if _is_grid(grid, image)}


def token_grids(count: int, image: ImageGrids) -> Iterator[tuple[int, int]]:
    """The grids of `count` tokens, prefix and suffix tokens included, that are the image divided by one stride, or as
    the model divides it.

    The other tokens are few, and fewer than the positions.
    """
    for grid in dict.fromkeys([*_strided(image.size), *image.made]):
        cells = grid[0] * grid[1]
        if 1 < cells <= count <= min(cells + MAX_PREFIX_TOKENS, 2 * cells):
            yield grid


def divides(grid: tuple[int, int], image: tuple[int, int]) -> bool:
    """Whether a grid of more than one position is the image divided by one stride, up to borders."""
    if grid[0] * grid[1] < 2 or any(cells > pixels for cells, pixels in zip(grid, image, strict=True)):
        return False
    # up to two cells may be lost or gained at the borders: unpadded convolutions and pooling do that
    largest = min(size / (cells - 2) if cells > 2 else math.inf for size, cells in zip(image, grid, strict=True))
    smallest = max(size / (cells + 2) for size, cells in zip(image, grid, strict=True))
    return smallest <= largest


def is_even(grid: tuple[int, int], image: tuple[int, int]) -> bool:
    """Whether a grid is the image divided by one stride, with as many cells lost or gained in both axes."""
    strided = set(_strided(image))
    return any((grid[0] + lost, grid[1] + lost) in strided for lost in range(-2, 3))


def is_pooled(shape: Sequence[int]) -> bool:
    """(N,C,1,1) or (N,1,1,C): channels and no positions, whatever C may look like."""
    return len(shape) == 4 and shape[2] == 1 and 1 in (shape[1], shape[3])


def may_be_attention(grid: tuple[int, int], image: ImageGrids) -> bool:
    """Whether a map would have as many rows, and columns, as an image has tokens: more than maps that show nothing."""
    count, other = grid
    tokens = {height * width for height, width in (*_strided(image.size), *image.made)}
    return count == other >= MANY_ROWS and bool(tokens & {count, count - 1})


def _strided(image: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The image divided by each stride, rounded down and up."""
    height, width = image
    seen = set()
    for stride in range(1, max(image)):
        for grid in ((height // stride, width // stride), (-(-height // stride), -(-width // stride))):
            if grid not in seen:
                seen.add(grid)
                yield grid


def _is_grid(grid: tuple[int, int], image: ImageGrids) -> bool:
    """Whether an output of four axes with this grid is a map at first sight."""
    return divides(grid, image.size) or (grid in image.made and grid[0] * grid[1] > 1)


def _by_images(shape: Sequence[int], image: ImageGrids) -> Sequence[int]:
    """The shape of an output with the images first, where windows are not folded into them."""
    found = image_shape(shape, image.images)
    return shape if found is None or found.folded else found.sizes
