"""Where the positions of a layer's output look: images that fade into one another show it, by forward passes alone.

An image X that fades into an image Z from left to right has, at every place, a known share of X. A layer's position
that looks at that place answers with about that share of the way from its activation on Z to its activation on X. What
every position feels alike (attention, squeeze-and-excitation) shifts all answers, not their order; the same fade the
other way round takes out what a position prefers by itself. Left to right gives the position's column, top to bottom
its row, and a reading of the layout is right where the columns and rows it claims are those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from finercam_rt.errors import ExportError
from finercam_rt.export.outputs import feature_map
from finercam_rt.export.reading import Reading, image_shape

PAIRS = 3
"""Pairs of images to fade at most: a second and a third one only where the first leaves a doubt."""

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

SEEN = 5.0
"""Over the root of the number of positions and 10: the least correlation of windows alone, and of what is in them."""

ASUNDER = 0.9
"""How far apart windows must look, of what they claim by the positions in them; halves that overlap look 0.5 apart."""

CEILING = 0.95
"""Of the correlation that noise leaves (Spearman and Brown): an order that is nearly right is a shift away from it."""

WITHIN = 0.5
"""The same of positions in one unit, by the units: 0.75 to 1 in MobileViT and Hiera, 0.04 of an attention's heads."""

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sight:
    """Where each slot of an output looks, by which of an image's axes holds the channels: (rows, columns), (slots,).

    In shares of the image's height and width from -1 to 1, pulled towards 0 by all that reaches a slot from elsewhere.
    """

    by_channels: dict[str, tuple[_Array, _Array]]

    def __add__(self, other: Sight) -> Sight:
        """What two pairs of images show together."""
        return Sight(
            {
                axis: (rows + other.by_channels[axis][0], columns + other.by_channels[axis][1])
                for axis, (rows, columns) in self.by_channels.items()
            }
        )


@dataclass(frozen=True)
class Fit:
    """How well a reading explains a sight.

    correlation: the lower of those of rows and columns. misfit: the share left unexplained. sure: whether chance does
    not reach that correlation.
    """

    correlation: float
    misfit: float
    sure: bool


class Looker:
    """Where the positions of several layers look, from one run of six images a pair, made when it is asked for."""

    def __init__(self, model: nn.Module, names: Sequence[str], example: torch.Tensor) -> None:
        """Nothing is run yet.

        Args:
            model: images (N,C,H,W) -> anything, in evaluation mode.
            names: modules whose outputs have three or four axes, one of which follows the batch.
            example: (N,C,H,W) float32; the images are run in batches of its size.
        """
        self._model, self._names, self._example = model, list(dict.fromkeys(names)), example
        self._sights: dict[int, dict[str, Sight]] = {}

    def sight(self, name: str, pair: int) -> Sight:
        """What one layer's positions show of a pair of images, 0 to PAIRS - 1.

        Raises:
            ExportError: no axis of the output follows the batch.
        """
        if pair not in self._sights:
            self._sights[pair] = self._run(pair)
        return self._sights[pair][name]

    def _run(self, pair: int) -> dict[str, Sight]:
        outputs: dict[str, list[torch.Tensor]] = {name: [] for name in self._names}
        folded = dict.fromkeys(self._names, False)

        def hook(name: str) -> Callable[[nn.Module, object, Any], None]:
            def enter(_module: nn.Module, _inputs: object, output: Any) -> None:
                found = feature_map(output, name).detach().to(torch.float32)
                shape = image_shape(found.shape, len(self._example))
                if shape is None:
                    raise ExportError(
                        f"the output of layer {name!r} does not have one row an image; choose another layer."
                    )
                folded[name] = shape.folded
                found = found.transpose(0, 1) if shape.second else found
                outputs[name].append(found.reshape(shape.sizes).clone())

            return enter

        images = _fades(self._example.shape[1:], pair)
        handles = [self._model.get_submodule(name).register_forward_hook(hook(name)) for name in self._names]
        try:
            with torch.no_grad():
                for start in range(0, len(images), len(self._example)):
                    self._model(images[start : start + len(self._example)].to(self._example))
        finally:
            for handle in handles:
                handle.remove()
        return {
            name: Sight(
                {
                    channels: _coordinates(torch.cat(found), axis)
                    for channels, axis in (("first", 1 + folded[name]), ("last", -1))
                }
            )
            for name, found in outputs.items()
        }


def fit(reading: Reading, sight: Sight) -> Fit:
    """Compare where a reading says that the slots look with where they do.

    Axes of the grid with one position only say nothing and are left out.
    """
    rows, columns = sight.by_channels[reading.channels]
    height, width = reading.grid
    seen = [values[reading.prefix_tokens :][: height * width] for values in (rows, columns)]
    correlations = [
        _correlation(values, claimed)
        for values, claimed, size in zip(seen, reading.claimed(), reading.grid, strict=True)
        if size > 1
    ]
    misfits = [1 - max(value, 0.0) ** 2 for value in correlations]
    correlation = min(correlations)
    sure = correlation >= max(SURE, SURE_OF_FEW / math.sqrt(height * width + 10))
    return Fit(correlation, sum(misfits) / len(misfits), sure)


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
    total = sights[0]
    for sight in sights[1:]:
        total = total + sight
    for axis, size in enumerate(reading.grid):
        if size == 1:
            continue
        begin, end = reading.prefix_tokens, reading.prefix_tokens + math.prod(reading.grid)
        rows = [sight.by_channels[reading.channels][axis][begin:end] for sight in sights]
        count = len(rows)
        pairs = [_correlation(rows[i], rows[j]) for i in range(count) for j in range(i)]
        mean = max(sum(pairs) / len(pairs), 0.0)
        reliability = count * mean / (1 + (count - 1) * mean)
        found = _correlation(total.by_channels[reading.channels][axis][begin:end], reading.claimed()[axis])
        if found < CEILING * math.sqrt(reliability):
            return False
    return True


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


def others_look(reading: Reading, sight: Sight) -> float:
    """How far the slots look that a reading leaves out, from where the others do on average: the larger mean square.

    That of the positions themselves is 1, along the rows and along the columns.
    """
    begin, end = reading.prefix_tokens, reading.prefix_tokens + math.prod(reading.grid)
    found = []
    for values, size in zip(sight.by_channels[reading.channels], reading.grid, strict=True):
        inside, outside = values[begin:end], np.concatenate([values[:begin], values[end:]])
        if size > 1 and len(outside):
            found.append(float(np.square(outside - inside.mean()).mean() / max(inside.var(), 1e-30)))
    return max(found, default=0.0)


def agreement(reading: Reading, first: Sight, second: Sight) -> float:
    """How far two pairs of images agree on where the slots look, whatever the reading's order: a correlation."""
    sights = (first.by_channels[reading.channels], second.by_channels[reading.channels])
    return min(_correlation(a, b) for a, b in zip(*sights, strict=True))


def _correlation(values: _Array, other: _Array) -> float:
    """Of two vectors, the first without its outliers: a few tokens of trained transformers answer wildly."""
    low, high = np.quantile(values, (0.05, 0.95))
    x, y = np.clip(values, low, high), other
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0 else 0.0


def _coordinates(activations: torch.Tensor, channel_axis: int) -> tuple[_Array, _Array]:
    """(6,...) -> the row and the column that each slot looks at, (slots,) each."""
    a = activations.movedim(channel_axis, -1).flatten(1, -2)  # (6, slots, channels)
    spread = a.std((0, 1))
    a = a[..., spread > 1e-6 * spread.max()] / spread[spread > 1e-6 * spread.max()]
    way = a[0] - a[1]
    length = way.square().sum(-1)
    length = length.clamp_min(1e-3 * float(length.mean()) + 1e-30)
    across, down, across_back, down_back = a[2:]
    rows, columns = (
        # what all slots feel alike is no place, and would be mistaken for one where the way differs between slots
        ((there - back - (there - back).median(0).values) * way).sum(-1) / length
        for there, back in ((down, down_back), (across, across_back))
    )
    return rows.to(torch.float64).numpy(), columns.to(torch.float64).numpy()


def _fades(shape: torch.Size, pair: int) -> torch.Tensor:
    """(6,C,H,W): X, Z, and X growing out of Z towards the right, the bottom, the left and the top; shape is (C,H,W)."""
    height, width = shape[1:]
    x, z = _pair(shape, pair)
    across = ((torch.arange(width) + 0.5) / width).expand(height, width)
    down = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    fades = [share * x + (1 - share) * z for share in (across, down, 1 - across, 1 - down)]
    return torch.stack([x, z, *fades])


def _pair(shape: torch.Size, pair: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two seeded images, each of one texture everywhere: noise both, or strong and faint, or squares and noise."""
    generator = torch.Generator().manual_seed(pair)
    grain = torch.randn(2, *shape, generator=generator)
    if pair == 2:
        squares = torch.randn(1, shape[0], *(max(1, side // 8) for side in shape[1:]), generator=generator)
        return nn.functional.interpolate(squares, shape[1:])[0] + 0.3 * grain[0], 0.3 * grain[1]
    return (grain[0], grain[1]) if pair == 0 else (1.5 * grain[0], 0.05 * grain[1])
