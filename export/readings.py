"""The layout of a layer's output: the readings that its shape allows, and the one that where it looks proves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from finercam_rt.errors import ExportError
from finercam_rt.export.probe import (
    APART,
    PAIRS,
    RELIABLE,
    Fit,
    Looker,
    Sight,
    agreement,
    fit,
    near_ceiling,
    order_holds,
    others_look,
)
from finercam_rt.export.reading import (
    ImageShape,
    Reading,
    arrangement_of,
    image_shape,
    map_readings,
    ordered_readings,
    token_readings,
)
from finercam_rt.manifest import LayerInfo

MAX_PREFIX_TOKENS = 16
"""More than these are looked for only where the grid is given."""


MANY = 9
"""Positions that a grid must have for an unusual order to be believed."""

MANY_ROWS = 32
"""A map of so many rows shows where it looks; a matrix of an attention between tokens shows nothing."""

NOWHERE = 0.25
"""The mean square of how far tokens look that are no positions, at most, where that of the positions is 1."""


class LayerError(ExportError):
    """A layer that no map can be drawn from: the reason, and what else to do where no layer near it is better."""

    def __init__(self, reason: str, advice: str) -> None:
        """Both without a full stop: they become one sentence."""
        super().__init__(f"{reason}; {advice}.")
        self.reason, self.advice = reason, advice


@dataclass(frozen=True)
class LayoutRequest:
    """What the caller pinned of the layout; None is found from the shapes and proved."""

    layout: str | None = None
    grid: tuple[int, int] | None = None
    prefix_tokens: int | None = None

    def allows(self, reading: Reading) -> bool:
        """Whether a reading is one that no map is refused for and agrees with what was pinned."""
        return (
            reading.supported
            and (reading.order is not None or self.layout in (None, reading.layout))
            and self.grid in (None, reading.grid)
            and self.prefix_tokens in (None, reading.prefix_tokens)
        )

    @property
    def complete(self) -> bool:
        """Whether nothing is left to be found."""
        if self.layout != "tokens":
            return self.layout is not None
        return self.grid is not None and self.prefix_tokens is not None


UNPINNED = LayoutRequest()


def has_positions(shape: Sequence[int], input_shape: Sequence[int]) -> bool:
    """Whether a shape can be read as one row an image, of positions whose grid is the image divided by one stride."""
    found = image_shape(shape, input_shape[0])
    return found is not None and not found.folded and position_count(shape, input_shape) > 0


def position_count(shape: Sequence[int], input_shape: Sequence[int]) -> int:
    """How many positions, or tokens, an output has at first sight; 0 where it has none."""
    image = (input_shape[2], input_shape[3])
    if len(shape) not in (3, 4) or _is_pooled(shape):
        return 0
    shape = _by_images(shape, input_shape)
    if len(shape) == 3:
        return shape[1] if any(True for _ in token_grids(shape[1], image)) else 0
    grids = [grid for grid in ((shape[2], shape[3]), (shape[1], shape[2])) if _divides(grid, image)]
    return math.prod(grids[0]) if grids else 0


def channel_counts(shape: Sequence[int], input_shape: Sequence[int]) -> set[int]:
    """How many channels an output has: one number for each axis of it that leaves positions to the others."""
    image, shape = (input_shape[2], input_shape[3]), _by_images(shape, input_shape)
    if len(shape) == 3:
        return {shape[axis] for axis in (2, 1) if any(True for _ in token_grids(shape[3 - axis], image))}
    grids = {1: (shape[2], shape[3]), 3: (shape[1], shape[2])}
    return {shape[axis] for axis, grid in grids.items() if _divides(grid, image)}


def token_grids(count: int, image: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The grids of `count` tokens, prefix and suffix tokens included, that are the image divided by one stride.

    The other tokens are few, and fewer than the positions.
    """
    for grid in _strided(image):
        cells = grid[0] * grid[1]
        if 1 < cells <= count <= min(cells + MAX_PREFIX_TOKENS, 2 * cells):
            yield grid


def _strided(image: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The image divided by each stride, rounded down and up."""
    height, width = image
    seen = set()
    for stride in range(1, max(image)):
        for grid in ((height // stride, width // stride), (-(-height // stride), -(-width // stride))):
            if grid not in seen:
                seen.add(grid)
                yield grid


def _by_images(shape: Sequence[int], input_shape: Sequence[int]) -> Sequence[int]:
    """The shape of an output with the images first, where windows are not folded into them."""
    found = image_shape(shape, input_shape[0])
    return shape if found is None or found.folded else found.sizes


def _is_pooled(shape: Sequence[int]) -> bool:
    """(N,C,1,1) or (N,1,1,C): channels and no positions, whatever C may look like."""
    return len(shape) == 4 and shape[2] == 1 and 1 in (shape[1], shape[3])


def _divides(grid: tuple[int, int], image: tuple[int, int]) -> bool:
    """Whether a grid of more than one position is the image divided by one stride, up to borders."""
    if grid[0] * grid[1] < 2 or any(cells > pixels for cells, pixels in zip(grid, image, strict=True)):
        return False
    # up to two cells may be lost or gained at the borders: unpadded convolutions and pooling do that
    largest = min(size / (cells - 2) if cells > 2 else math.inf for size, cells in zip(image, grid, strict=True))
    smallest = max(size / (cells + 2) for size, cells in zip(image, grid, strict=True))
    return smallest <= largest


def _is_even(grid: tuple[int, int], image: tuple[int, int]) -> bool:
    """Whether a grid is the image divided by one stride, with as many cells lost or gained in both axes."""
    strided = set(_strided(image))
    return any((grid[0] + lost, grid[1] + lost) in strided for lost in range(-2, 3))


def _may_be_attention(grid: tuple[int, int], image: tuple[int, int]) -> bool:
    """Whether a map would have as many rows, and columns, as an image has tokens: more than maps that show nothing."""
    count, other = grid
    tokens = {height * width for height, width in _strided(image)}
    return count == other >= MANY_ROWS and bool(tokens & {count, count - 1})


def prove(
    looker: Looker, name: str, shape: Sequence[int], input_shape: Sequence[int], request: LayoutRequest
) -> LayerInfo:
    """The reading of a layer's output that is pinned or possible and that agrees with where its positions look.

    A reading is proved where it explains what is seen (SURE) and every other, mirrored, turned, shifted by a token or
    of another layout, explains it worse (APART). Where nothing is seen clearly, as with random weights that mix all
    positions, a complete request is believed, and so is a map of four axes whose shape has one usual reading.

    Args:
        looker: knows where the layer's positions look.
        name: the layer.
        shape: of its output for an input of `input_shape`, (N,C,H,W).
        request: what the caller pinned.

    Raises:
        LayerError: no reading is possible, or what is seen contradicts all that are, or it shows none clearly.
    """
    images = input_shape[0]
    by_image = image_shape(shape, images)
    output = f"the output of layer {name!r}, of shape {tuple(shape)}"
    if by_image is None or _is_pooled(by_image.sizes):
        raise LayerError(f"{output}, is not a feature map", "choose a layer whose output has positions")
    plain = _possible(by_image, input_shape, request)
    best = _seen(looker, name, plain, range(1, PAIRS + 1))
    ordered = [] if best is not None and best.supported else _ordered(by_image, input_shape, request)
    best = _seen(looker, name, [*plain, *ordered], [PAIRS] if ordered else []) or best
    allowed = [reading for reading in (*plain, *ordered) if request.allows(reading)]
    if best is None and not allowed:
        pinned = " of the layout, grid or prefix tokens given" if request != UNPINNED else ""
        raise LayerError(f"{output}, is not a feature map{pinned}", "choose a layer whose output has positions")
    if best is None:
        best = _unclear(looker, name, output, by_image, allowed, input_shape, request)
    if best in allowed and not best.plain and not _is_reliable(looker, name, best):
        raise LayerError(
            f"{output}, seems to be {best}, and does not show it beyond doubt", "choose a layer in a usual order"
        )
    if best not in allowed and best.supported:
        raise LayerError(
            f"{output}, is not what the layout, grid or prefix tokens given say: where it looks in the image shows "
            f"{best}",
            "give those, or leave them out",
        )
    if best not in allowed:
        raise LayerError(
            f"{output}, has its positions in an order that no map is drawn from: where it looks in the image shows "
            f"{best}",
            "choose another layer",
        )
    layout, prefix_tokens, arrangement = arrangement_of(best, shape, images)
    return LayerInfo(name, layout, best.grid, prefix_tokens, arrangement)


def _possible(shape: ImageShape, input_shape: Sequence[int], request: LayoutRequest) -> list[Reading]:
    """The readings of an output with one row an image, supported or not."""
    image, sizes = (input_shape[2], input_shape[3]), shape.sizes
    if shape.folded:
        return []
    if len(sizes) == 4:
        # strides may differ, but a single row or column of them is what pooling leaves
        found = [
            reading
            for reading in map_readings(sizes)
            if min(reading.grid) > 1 or _divides(reading.grid, image) or request.layout == reading.layout
        ]
    else:
        pinned = [] if request.grid is None else [request.grid]
        found = [
            reading
            for channels_first, count in ((False, sizes[1]), (True, sizes[2]))
            for grid in dict.fromkeys([*token_grids(count, image), *pinned])
            for reading in token_readings(count, grid, channels_first=channels_first)
        ]
    return [r for r in found if all(cells <= pixels for cells, pixels in zip(r.grid, image, strict=True))]


def _ordered(shape: ImageShape, input_shape: Sequence[int], request: LayoutRequest) -> list[Reading]:
    """The readings of an output as windows or units of positions."""
    image = (input_shape[2], input_shape[3])
    counts = {math.prod(shape.sizes[1:-1]), math.prod(shape.sizes[1:]) // shape.sizes[1 + shape.folded]}
    grids = {grid for count in counts for grid in token_grids(count, image)}
    return [
        reading
        for grid in sorted(grids if request.grid is None else {request.grid})
        for reading in ordered_readings(shape, grid)
    ]


def _seen(looker: Looker, name: str, readings: Sequence[Reading], pairs: Iterable[int]) -> Reading | None:
    """The reading that explains what so many pairs of images show, and that no other explains as well."""
    if not readings:
        return None
    for count in pairs:
        total = _sum([looker.sight(name, pair) for pair in range(count)])
        fits = {reading: fit(reading, total) for reading in readings}
        best = _best(fits)
        if _is_clear(best, fits):
            return best
    return None


def _is_reliable(looker: Looker, name: str, reading: Reading) -> bool:
    """Whether an unusual reading, one of many, is none that chance shows.

    Tokens behind the positions look nowhere; where some positions were dropped, those that a smaller grid leaves over
    do not.
    """
    sights = [looker.sight(name, pair) for pair in range(PAIRS)]
    total = _sum(sights)
    sure = fit(reading, total).correlation >= RELIABLE and agreement(reading, *sights[:2]) >= RELIABLE
    alone = not reading.suffix_tokens or others_look(reading, total) <= NOWHERE
    whole = near_ceiling(reading, sights) and order_holds(reading, total)
    return math.prod(reading.grid) >= MANY and sure and alone and whole


def _sum(sights: Sequence[Sight]) -> Sight:
    total = sights[0]
    for sight in sights[1:]:
        total = total + sight
    return total


def _best(fits: dict[Reading, Fit]) -> Reading:
    """The reading that explains most; of readings that hold one another's rows, the largest that explains as much."""
    best = min(fits, key=lambda reading: fits[reading].misfit)
    misfit = fits[best].misfit
    larger = [r for r in fits if _holds(r, best) and fits[r].misfit <= max(APART * misfit, _misfit_of_others(r, best))]
    return max([best, *larger], key=lambda reading: math.prod(reading.grid))


def _misfit_of_others(larger: Reading, smaller: Reading) -> float:
    """Half of what the larger reading would leave unexplained if its other rows were tokens, which look nowhere."""
    inside = slice(smaller.prefix_tokens - larger.prefix_tokens, None)
    misfits = []
    for claimed, size in zip(larger.claimed(), larger.grid, strict=True):
        if size > 1:
            seen = np.full_like(claimed, claimed.mean())
            rows = seen[inside][: math.prod(smaller.grid)]
            rows[:] = claimed[inside][: len(rows)]
            misfits.append(1 - np.corrcoef(seen, claimed)[0, 1] ** 2)
    return 0.5 * float(np.mean(misfits))


def _is_clear(best: Reading, fits: dict[Reading, Fit]) -> bool:
    others = [fits[r].misfit for r in fits if r != best and not _holds(best, r)]
    return fits[best].sure and min(others, default=2.0) >= APART * fits[best].misfit


def _holds(larger: Reading, smaller: Reading) -> bool:
    """Whether the smaller one is the larger one without some of its first and last rows (or columns, of such)."""
    line, lines = (0, 1) if larger.columns else (1, 0)
    apart = smaller.prefix_tokens - larger.prefix_tokens
    length = larger.grid[line]
    return (
        larger != smaller
        and (larger.layout, larger.columns, larger.mirrored) == (smaller.layout, smaller.columns, smaller.mirrored)
        and (larger.channels_first, larger.order) == (smaller.channels_first, smaller.order)
        and smaller.grid[line] == length
        and apart >= 0
        and apart % length == 0
        and apart // length + smaller.grid[lines] <= larger.grid[lines]
    )


def _unclear(
    looker: Looker,
    name: str,
    output: str,
    shape: ImageShape,
    allowed: Sequence[Reading],
    input_shape: Sequence[int],
    request: LayoutRequest,
) -> Reading:
    """Where nothing is seen clearly: what is pinned is believed, and a map of four axes that has one reading."""
    if shape.folded:
        raise LayerError(
            f"{output} for {shape.sizes[0]} images, folds windows or heads into the batch, and where it looks in the "
            "image shows no order of them",
            "choose a layer with one row an image",
        )
    plain = [reading for reading in allowed if reading.plain]
    if not plain:
        raise LayerError(f"where {output} looks in the image does not show its order", "choose another layer")
    usual = [reading for reading in plain if _divides(reading.grid, (input_shape[2], input_shape[3]))]
    best = min(usual or plain, key=lambda reading: reading.prefix_tokens)
    sights = [looker.sight(name, pair) for pair in range(PAIRS)]
    # of two rows or columns noise agrees with itself as easily
    agrees = min(best.grid) > 2 and agreement(best, sights[0], sights[1]) >= RELIABLE
    if agrees and not fit(best, _sum(sights)).sure:
        raise LayerError(
            f"{output}, has positions that look at places of the image in another order than that of {best}",
            "choose another layer",
        )
    # of one row or column the channels of another layout look like positions, and so do windows and what is in them
    one = len(usual) == 1 and len(shape.sizes) == 4 and min(best.grid) > 1
    image = (input_shape[2], input_shape[3])
    if request.complete or (one and _is_even(best.grid, image) and not _may_be_attention(best.grid, image)):
        return best
    raise LayerError(
        f"where {output} looks in the image does not show whether it is {best}",
        "say what it is with layout, grid and prefix tokens, or choose another layer",
    )
