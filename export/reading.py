"""The ways to read an output's shape as positions of the image, and how each is put into a layout."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from finercam_rt.arrangement import Arrangement

LEVELS = (2, 3)
"""Of positions that come in units of 2x2: how deep units of units are looked for."""

_Array = NDArray[np.float64]


class ImageShape(NamedTuple):
    """An output's shape with the images as its first axis.

    sizes: (N,...). second: whether the images are the output's second axis. folded: whether what is the second axis
    here, windows or heads, is folded into the output's first.
    """

    sizes: tuple[int, ...]
    second: bool = False
    folded: bool = False


def image_shape(shape: Sequence[int], images: int) -> ImageShape | None:
    """A shape of three or four axes by images, where one of its first two axes is theirs; else None."""
    sizes = tuple(shape)
    if len(sizes) not in (3, 4):
        return None
    if sizes[0] == images:
        return ImageShape(sizes)
    if len(sizes) == 3 and sizes[1] == images:
        return ImageShape((images, sizes[0], sizes[2]), second=True)
    if sizes[0] and sizes[0] % images == 0:
        return ImageShape((images, sizes[0] // images, *sizes[1:]), folded=True)
    return None


@dataclass(frozen=True)
class Order:
    """Positions (h,w) in an order of their own: the grid is reshaped to `split` and its axes transposed to `axes`.

    split: h in factors, then w in as many. shift: by how many rows and columns the grid was rolled back before.
    """

    kind: str
    split: tuple[int, ...]
    axes: tuple[int, ...]
    shift: tuple[int, int] = (0, 0)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The factors in the order of the slots."""
        return tuple(self.split[axis] for axis in self.axes)


@dataclass(frozen=True)
class Reading:
    """One way to read an output's shape as positions (h,w) of the image.

    layout: of manifest.LAYOUTS. columns: positions that run down the columns. channels_first: tokens (N,C,L). order:
    of positions that come window by window, or in units; the layout is then the one that they are put into.
    """

    layout: str
    grid: tuple[int, int]
    prefix_tokens: int = 0
    suffix_tokens: int = 0
    columns: bool = False
    mirrored: tuple[bool, bool] = (False, False)
    channels_first: bool = False
    order: Order | None = None

    @property
    def plain(self) -> bool:
        """Whether positions and channels lie as they usually do in a map or among tokens."""
        return not (self.suffix_tokens or self.columns or any(self.mirrored) or self.channels_first or self.order)

    @property
    def supported(self) -> bool:
        """Whether a map can be drawn from an output of this kind."""
        return not any(self.mirrored) and not (self.columns and (self.prefix_tokens or self.suffix_tokens))

    @property
    def slots(self) -> slice:
        """Where the positions stand among an image's slots."""
        return slice(self.prefix_tokens, self.prefix_tokens + math.prod(self.grid))

    @property
    def channels(self) -> str:
        """Whether an image's channels come "first", up to windows, or "last"."""
        return "first" if self.channels_first or self.layout == "nchw" else "last"

    def __str__(self) -> str:
        """As a refusal names it."""
        height, width = self.grid
        text = "(N,C,L) tokens" if self.channels_first else self.layout
        text += f" {'of' if self.layout == 'tokens' else 'with'} a {height}x{width} grid"
        if self.prefix_tokens:
            text += f" behind {self.prefix_tokens} prefix token{'s' * (self.prefix_tokens > 1)}"
        if self.suffix_tokens:
            text += f" before {self.suffix_tokens} suffix token{'s' * (self.suffix_tokens > 1)}"
        if self.columns:
            text += ", column by column"
        if self.order:
            text += f", in {self.order.kind}"
        down, across = self.mirrored
        if down or across:
            text += ", mirrored " + " and ".join(["upside down"] * down + ["left to right"] * across)
        return text

    def claimed(self) -> tuple[_Array, _Array]:
        """The row and the column of each slot, (h*w,)."""
        height, width = self.grid
        rows, columns = (values.astype(np.float64) for values in np.indices(self.grid))
        down, across = self.mirrored
        rows = height - 1 - rows if down else rows
        columns = width - 1 - columns if across else columns
        order = _order(self)
        if order is not None:
            back = tuple(-shift for shift in order.shift)
            rows, columns = (
                np.roll(values, back, (0, 1)).reshape(order.split).transpose(order.axes) for values in (rows, columns)
            )
        return rows.ravel(), columns.ravel()


def map_readings(shape: Sequence[int]) -> Iterator[Reading]:
    """Every reading of an output of four axes that the proof must tell apart, supported or not."""
    for layout, (a, b) in (("nchw", (shape[2], shape[3])), ("nhwc", (shape[1], shape[2]))):
        if a * b > 1:
            yield from _orientations(Reading(layout, (a, b)))


def token_readings(count: int, grid: tuple[int, int], *, channels_first: bool) -> Iterator[Reading]:
    """Every reading of `count` tokens of which some are a grid, supported or not; the others are before or after it."""
    others = count - grid[0] * grid[1]
    for prefix in range(others + 1):
        yield from _orientations(Reading("tokens", grid, prefix, others - prefix, channels_first=channels_first))


def ordered_readings(shape: ImageShape, grid: tuple[int, int]) -> Iterator[Reading]:
    """The readings of an output whose slots are the grid's positions in windows or units, each order once.

    Channels come last, or behind windows that are folded into the batch; an axis for the rows and one for the columns
    is a map.
    """
    sizes = shape.sizes
    for layout, slots in (("nhwc", sizes[1:-1]), ("nchw", (*sizes[1:2], *sizes[3:]) if shape.folded else ())):
        if math.prod(slots) != math.prod(grid) or (slots == grid and not shape.folded):
            continue
        seen: set[bytes] = set()
        for order in _orders(grid):
            reading = Reading(layout, grid, order=order)
            claimed = np.concatenate(reading.claimed()).tobytes()
            if claimed not in seen and _fills(order.sizes, slots):
                seen.add(claimed)
                yield reading


def arrangement_of(reading: Reading, given: Sequence[int], images: int) -> tuple[str, int, Arrangement | None]:
    """The layout that a supported reading is put into, its prefix tokens, and how, for outputs of the shape given."""
    shape = image_shape(given, images)
    assert shape is not None
    raw = tuple(-1 if axis == int(shape.second) else size for axis, size in enumerate(given))
    order = _order(reading)
    if order is not None:
        windows = shape.sizes[1] if shape.folded else 1
        how = _in_order(order, reading, raw, windows)
        return ("nhwc" if reading.channels == "last" else "nchw"), 0, how
    kinds = {
        "the batch in the second axis": shape.second,
        "the channels before the tokens": reading.channels_first,
        "suffix tokens, which are put before the others": reading.suffix_tokens > 0,
    }
    kind = ", ".join(kind for kind, holds in kinds.items() if holds)
    if not kind:
        return reading.layout, reading.prefix_tokens, None
    first, tokens = (1, 0) if shape.second else (0, 1)
    axes = (first, 2, tokens) if reading.channels_first else (first, tokens, 2)
    merged = tuple(raw[axis] for axis in axes)
    how = Arrangement(kind, raw, raw, axes, merged, (reading.suffix_tokens, 0))
    return reading.layout, reading.prefix_tokens + reading.suffix_tokens, how


def _in_order(order: Order, reading: Reading, given: tuple[int, ...], windows: int) -> Arrangement:
    """How positions are put row by row: to (N,h,w,C), or of channels that stand behind so many windows to (N,C,h,w)."""
    sizes, back = order.sizes, sorted(range(len(order.axes)), key=order.axes.__getitem__)
    if reading.channels == "last":
        split, axes = (-1, *sizes, given[-1]), (0, *(1 + axis for axis in back), 1 + len(back))
        return Arrangement(order.kind, given, split, axes, (-1, *reading.grid, given[-1]), (*order.shift, 0))
    lead = next(count for count in range(len(sizes) + 1) if math.prod(sizes[:count]) == windows)
    split = (-1, *sizes[:lead], given[1], *sizes[lead:])
    axes = (0, 1 + lead, *(1 + axis + (axis >= lead) for axis in back))
    return Arrangement(order.kind, given, split, axes, (-1, given[1], *reading.grid), (0, *order.shift))


def _order(reading: Reading) -> Order | None:
    """The order of the slots, where it is not row by row."""
    return Order("positions down the columns", reading.grid, (1, 0)) if reading.columns else reading.order


def _orientations(reading: Reading) -> Iterator[Reading]:
    """The eight ways to lay positions out; of tokens, column by column keeps the grid, of a map it turns it."""
    a, b = reading.grid
    for columns in (False, True) if min(a, b) > 1 else (False,):
        grid = (b, a) if columns and reading.layout != "tokens" else (a, b)
        for down in (False, True) if grid[0] > 1 else (False,):
            for across in (False, True) if grid[1] > 1 else (False,):
                yield replace(reading, grid=grid, columns=columns, mirrored=(down, across))


def _orders(grid: tuple[int, int]) -> Iterator[Order]:
    """In windows, row by row, shifted by half of one or not; every so many rows and columns; units of units of 2x2."""
    height, width = grid
    for a, b in itertools.product(_divisors(height), _divisors(width)):
        split = (height // a, a, width // b, b)
        for shift in itertools.product(sorted({0, a // 2 * (a < height)}), sorted({0, b // 2 * (b < width)})):
            shifted = f" shifted by {shift[0]}x{shift[1]}" if any(shift) else ""
            kind = "rows in axes of their own" if a == b == 1 else f"windows of {a}x{b}{shifted}"
            yield Order(kind, split, (0, 2, 1, 3), shift)
        yield Order(f"strides of {a}x{b}", split, (1, 3, 0, 2))
    for levels in LEVELS:
        unit = 2**levels
        if height % unit == 0 and width % unit == 0:
            split = (height // unit, *[2] * levels, width // unit, *[2] * levels)
            axes = (axis for level in range(levels, -1, -1) for axis in (level, levels + 1 + level))
            yield Order(f"units of {unit}x{unit}", split, tuple(axes))


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _fills(sizes: Sequence[int], slots: Sequence[int]) -> bool:
    """Whether factors, in their order, are those of the axes of an output, in theirs."""
    left = list(sizes)
    for size in slots:
        while size > 1:
            if not left or size % left[0]:
                return False
            size //= left.pop(0)
    return all(factor == 1 for factor in left)
