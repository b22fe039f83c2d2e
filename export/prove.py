"""The layout of a layer's output: the readings that its shape allows, and the one that where it looks proves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from finercam_rt.errors import ExportError
from finercam_rt.export.evidence import APART, RELIABLE, Fit, agreement, fit, is_reliable, roll_of
from finercam_rt.export.grids import ImageGrids, divides, is_even, is_pooled, may_be_attention, token_grids
from finercam_rt.export.probe import PAIRS, Looker, Sight, together
from finercam_rt.export.reading import (
    ImageShape,
    Order,
    Reading,
    arrangement_of,
    image_shape,
    map_readings,
    ordered_readings,
    token_readings,
)
from finercam_rt.manifest import LayerInfo


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


def prove(looker: Looker, name: str, shape: Sequence[int], image: ImageGrids, request: LayoutRequest) -> LayerInfo:
    """The reading of a layer's output that is pinned or possible and that agrees with where its positions look.

    A reading is proved where it explains what is seen (SURE) and every other, mirrored, turned, shifted by a token or
    of another layout, explains it worse (APART). Where no reading in a usual order does, as of windows or of tokens
    (L,N,C), one in an order of its own is believed if nothing speaks against it (is_reliable), and so is a map that was
    rolled. Where nothing is seen clearly, as with random weights that mix all positions, a complete request is
    believed, and so is a map of four axes whose shape has one usual reading.

    Args:
        looker: knows where the layer's positions look.
        name: the layer.
        shape: of its output for as many images.
        image: their size, and what the model divides it into.
        request: what the caller pinned.

    Raises:
        LayerError: no reading is possible, or what is seen contradicts all that are, or it shows none clearly.
    """
    by_image = image_shape(shape, image.images)
    output = f"the output of layer {name!r}, of shape {tuple(shape)}"
    if by_image is None or is_pooled(by_image.sizes):
        raise LayerError(f"{output}, is not a feature map", "choose a layer whose output has positions")
    plain = _possible(by_image, image, request)
    best = _seen(looker, name, plain, range(1, PAIRS + 1))
    if best is None or not best.supported:
        ordered = [*_ordered(by_image, image, request), *_rolled(looker, name, plain)]
        best = _seen(looker, name, [*plain, *ordered], [PAIRS] if ordered else []) or best
    else:
        ordered = [best]
    allowed = [reading for reading in (*plain, *ordered) if request.allows(reading)]
    if best is None and not allowed and by_image.folded:
        raise LayerError(
            f"{output} for {by_image.sizes[0]} images, has several rows an image, as of crops or flipped copies that "
            "are put into one batch, and no order of positions in them is known",
            "choose a layer with one row an image",
        )
    if best is None and not allowed:
        pinned = " of the layout, grid or prefix tokens given" if request != UNPINNED else ""
        raise LayerError(f"{output}, is not a feature map{pinned}", "choose a layer whose output has positions")
    if best is None:
        best = _unclear(looker, name, output, by_image, allowed, image, request)
    if best in allowed and not best.plain and not is_reliable(best, looker.sights(name)):
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
    layout, prefix_tokens, arrangement = arrangement_of(best, shape, image.images)
    return LayerInfo(name, layout, best.grid, prefix_tokens, arrangement)


def _possible(shape: ImageShape, image: ImageGrids, request: LayoutRequest) -> list[Reading]:
    """The readings of an output with one row an image, supported or not."""
    sizes = shape.sizes
    if shape.folded:
        return []
    if len(sizes) == 4:
        # strides may differ, but a single row or column of them is what pooling leaves
        found = [
            reading
            for reading in map_readings(sizes)
            if min(reading.grid) > 1 or divides(reading.grid, image.size) or request.layout == reading.layout
        ]
    else:
        pinned = [] if request.grid is None else [request.grid]
        found = [
            reading
            for channels_first, count in ((False, sizes[1]), (True, sizes[2]))
            for grid in dict.fromkeys([*token_grids(count, image), *pinned])
            for reading in token_readings(count, grid, channels_first=channels_first)
        ]
    return [r for r in found if all(cells <= pixels for cells, pixels in zip(r.grid, image.size, strict=True))]


def _ordered(shape: ImageShape, image: ImageGrids, request: LayoutRequest) -> list[Reading]:
    """The readings of an output as windows or units of positions."""
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
        total = together(looker.sights(name, count))
        fits = {reading: fit(reading, total) for reading in readings}
        best = _best(fits)
        if _is_clear(best, fits):
            return _as_rolled(best, total)
    return None


def _rolled(looker: Looker, name: str, readings: Sequence[Reading]) -> list[Reading]:
    """Those readings of maps that explain more with a roll, with it."""
    plain = [reading for reading in readings if _is_plain_map(reading)]
    if not plain:
        return []
    total = together(looker.sights(name))
    return [rolled for reading in plain if (rolled := _as_rolled(reading, total)) != reading]


def _as_rolled(reading: Reading, sight: Sight) -> Reading:
    """A map's reading with the roll that is seen, if any."""
    shift = roll_of(reading, sight) if _is_plain_map(reading) else (0, 0)
    order = Order(f"rows and columns rolled back by {shift[0]}x{shift[1]}", reading.grid, (0, 1), shift)
    return replace(reading, order=order) if any(shift) else reading


def _is_plain_map(reading: Reading) -> bool:
    return reading.plain and reading.layout != "tokens"


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
    image: ImageGrids,
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
    usual = [reading for reading in plain if divides(reading.grid, image.size)]
    best = min(usual or plain, key=lambda reading: reading.prefix_tokens)
    sights = looker.sights(name)
    # of two rows or columns noise agrees with itself as easily
    agrees = min(best.grid) > 2 and agreement(best, sights[0], sights[1]) >= RELIABLE
    if agrees and not fit(best, together(sights)).sure:
        raise LayerError(
            f"{output}, has positions that look at places of the image in another order than that of {best}",
            "choose another layer",
        )
    # of one row or column the channels of another layout look like positions, and so do windows and what is in them
    one = len(usual) == 1 and len(shape.sizes) == 4 and min(best.grid) > 1
    if request.complete or (one and is_even(best.grid, image.size) and not may_be_attention(best.grid, image)):
        return best
    raise LayerError(
        f"where {output} looks in the image does not show whether it is {best}",
        "say what it is with layout, grid and prefix tokens, or choose another layer",
    )
