"""How well a reading of an output explains where its positions look, and whether chance could do as well."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finercam_rt.export.probe import Sight, together
from finercam_rt.export.reading import Reading

SURE = 0.6
"""The least correlation, in either axis, between where a position looks and where a reading says that it does."""

SURE_OF_FEW = 3.5
"""Over the root of the number of positions and 10: the least correlation where there are so few that chance reaches it.

0.94 of 2x2 positions, 0.8 of 3x3, 0.6 of 5x5.
"""

APART = 1.25
"""How many times worse the next best reading must explain what was seen."""

RELIABLE = 0.8
"""Two pairs of images that agree as well as this on where the positions look leave no doubt that they look there."""

MANY = 9
"""Positions that a grid must have for an unusual order to be believed."""

NOWHERE = 0.25
"""The mean square of how far tokens look that are no positions, at most, where that of the positions is 1."""

CEILING = 0.95
"""Of the correlation that noise leaves (Spearman and Brown): an order that is nearly right is a shift away from it."""

SEEN = 5.0
"""Over the root of the number of positions and 10: the least correlation of windows alone, and of what is in them."""

ASUNDER = 0.9
"""How far apart windows must look, of what they claim by the positions in them; halves that overlap look 0.5 apart."""

WITHIN = 0.5
"""The same of positions in one unit, by the units: 0.75 to 1 in MobileViT and Hiera, 0.04 of an attention's heads."""

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """How well a reading explains a sight.

    correlation: the lower of those of rows and columns. misfit: the share left unexplained. sure: whether chance does
    not reach that correlation.
    """

    correlation: float
    misfit: float
    sure: bool


def fit(reading: Reading, sight: Sight) -> Fit:
    """Compare where a reading says that the slots look with where they do.

    Axes of the grid with one position only say nothing and are left out.
    """
    correlations = [
        _correlation(values[reading.slots], claimed)
        for values, claimed, size in zip(
            sight.by_channels[reading.channels], reading.claimed(), reading.grid, strict=True
        )
        if size > 1
    ]
    misfits = [1 - max(value, 0.0) ** 2 for value in correlations]
    correlation = min(correlations)
    sure = correlation >= max(SURE, SURE_OF_FEW / math.sqrt(math.prod(reading.grid) + 10))
    return Fit(correlation, sum(misfits) / len(misfits), sure)


def roll_of(reading: Reading, sight: Sight) -> tuple[int, int]:
    """By how many rows and columns the grid was rolled back before; 0 unless another number explains clearly more.

    A roll by few of many rows leaves most of a correlation.
    """
    found = []
    for values, claimed, size in zip(sight.by_channels[reading.channels], reading.claimed(), reading.grid, strict=True):
        correlations = [_correlation(values[reading.slots], (claimed + shift) % size) for shift in range(size)]
        misfits = [1 - max(value, 0.0) ** 2 for value in correlations]
        best = int(np.argmin(misfits))
        found.append(best if misfits[0] >= APART * misfits[best] else 0)
    return found[0], found[1]


def is_reliable(reading: Reading, sights: Sequence[Sight]) -> bool:
    """Whether an unusual reading, one of many, is none that chance shows.

    Tokens behind the positions look nowhere; where some positions were dropped, those that a smaller grid leaves over
    do not.
    """
    total = together(sights)
    sure = fit(reading, total).correlation >= RELIABLE and agreement(reading, *sights[:2]) >= RELIABLE
    alone = not reading.suffix_tokens or others_look(reading, total) <= NOWHERE
    whole = near_ceiling(reading, sights) and order_holds(reading, total)
    return math.prod(reading.grid) >= MANY and sure and alone and whole


def order_holds(reading: Reading, sight: Sight) -> bool:
    """Whether the order of windows, or of units, is seen, and that of the positions in each of them as well.

    One of the two alone makes most of the correlation. Windows that overlap are nearer to one another, in steps of
    what is in them, than those that lie side by side; what mixes inside of a window only makes them look further apart.
    """
    if reading.order is None:
        return True
    sizes = reading.order.sizes
    for lead in range(2, len(sizes), 2):
        groups = math.prod(sizes[:lead])
        for values, claims in zip(sight.by_channels[reading.channels], reading.claimed(), strict=True):
            (seen, seen_inside), (claimed, claimed_inside) = (_parts(v, groups) for v in (values, claims))
            least = min(SURE, SEEN / math.sqrt(values.size + 10))
            if claimed_inside.any() and _correlation(seen_inside, claimed_inside) < least:
                return False
            if not claimed.var() > 0:
                continue  # there is one window
            # what lies in one unit differs by a step, which says little by itself; of heads it does not differ
            units = claimed.var() < claimed_inside.var()
            outer, inner = _slope(seen, claimed), _slope(seen_inside, claimed_inside)
            if outer < (WITHIN if units else ASUNDER) * inner or (not units and _correlation(seen, claimed) < least):
                return False
            # what attends in other groups than these looks like the group it is in, and like hardly anything in it
            if claimed_inside.any() and inner < WITHIN * outer:
                return False
    return True


def near_ceiling(reading: Reading, sights: Sequence[Sight]) -> bool:
    """Whether a reading explains what is seen about as well as what the pairs of images have in common lets it."""
    total = together(sights)
    for axis, size in enumerate(reading.grid):
        if size == 1:
            continue
        rows = [sight.by_channels[reading.channels][axis][reading.slots] for sight in sights]
        count = len(rows)
        pairs = [_correlation(rows[i], rows[j]) for i in range(count) for j in range(i)]
        mean = max(sum(pairs) / len(pairs), 0.0)
        reliability = count * mean / (1 + (count - 1) * mean)
        found = _correlation(total.by_channels[reading.channels][axis][reading.slots], reading.claimed()[axis])
        if found < CEILING * math.sqrt(reliability):
            return False
    return True


def others_look(reading: Reading, sight: Sight) -> float:
    """How far the slots look that a reading leaves out, from where the others do on average: the larger mean square.

    That of the positions themselves is 1, along the rows and along the columns.
    """
    found = []
    for values, size in zip(sight.by_channels[reading.channels], reading.grid, strict=True):
        inside, outside = values[reading.slots], np.delete(values, reading.slots)
        if size > 1 and len(outside):
            found.append(float(np.square(outside - inside.mean()).mean() / max(inside.var(), 1e-30)))
    return max(found, default=0.0)


def agreement(reading: Reading, first: Sight, second: Sight) -> float:
    """How far two pairs of images agree on where the slots look, whatever the reading's order: a correlation."""
    sights = (first.by_channels[reading.channels], second.by_channels[reading.channels])
    return min(_correlation(a, b) for a, b in zip(*sights, strict=True))


def _parts(values: _Array, groups: int) -> tuple[_Array, _Array]:
    """The mean of each group in the place of its values, and how far these are from it."""
    grouped = values.reshape(groups, -1)
    means = np.repeat(grouped.mean(1), grouped.shape[1])
    return means, values - means


def _slope(values: _Array, other: _Array) -> float:
    """Of the line through the values over the others; 0 where those are all the same."""
    centred = other - other.mean()
    length = float(centred @ centred)
    return float(values @ centred) / length if length > 0 else 0.0


def _correlation(values: _Array, other: _Array) -> float:
    """Of two vectors, the first without its outliers: a few tokens of trained transformers answer wildly."""
    low, high = np.quantile(values, (0.05, 0.95))
    x, y = np.clip(values, low, high), other
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0 else 0.0
