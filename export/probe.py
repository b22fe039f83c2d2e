"""Where the positions of a layer's output look: images that fade into one another show it, by forward passes alone.

An image X that fades into an image Z from left to right has, at every place, a known share of X. A layer's position
that looks at that place answers with about that share of the way from its activation on Z to its activation on X. What
every position feels alike (attention, squeeze-and-excitation) shifts all answers, not their order; the same fade the
other way round takes out what a position prefers by itself. Left to right gives the position's column, top to bottom
its row, and a reading of the layout is right where the columns and rows it claims are those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from finercam_rt.errors import ExportError
from finercam_rt.export.outputs import feature_map
from finercam_rt.manifest import LAYOUTS

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

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Reading:
    """One way to read an output's shape as positions (h,w) of the image.

    layout: of manifest.LAYOUTS, or "channels_first_tokens", (N,C,L), which is recognised and not supported; the same
    holds for suffix tokens, positions that run down the columns, and mirrored ones.
    """

    layout: str
    grid: tuple[int, int]
    prefix_tokens: int = 0
    suffix_tokens: int = 0
    columns: bool = False
    mirrored: tuple[bool, bool] = (False, False)

    @property
    def supported(self) -> bool:
        """Whether a map can be drawn from an output of this kind."""
        return self.layout in LAYOUTS and not (self.suffix_tokens or self.columns or any(self.mirrored))

    def __str__(self) -> str:
        """As a refusal names it."""
        height, width = self.grid
        text = {"nchw": "nchw with", "nhwc": "nhwc with", "tokens": "tokens of"}.get(self.layout, "(N,C,L) tokens of")
        text += f" a {height}x{width} grid"
        if self.prefix_tokens:
            text += f" behind {self.prefix_tokens} prefix token{'s' * (self.prefix_tokens > 1)}"
        if self.suffix_tokens:
            text += f" before {self.suffix_tokens} suffix token{'s' * (self.suffix_tokens > 1)}"
        if self.columns:
            text += ", column by column"
        down, across = self.mirrored
        if down or across:
            text += ", mirrored " + " and ".join(["upside down"] * down + ["left to right"] * across)
        return text


@dataclass(frozen=True)
class Sight:
    """Where each slot of an output looks, by the axis that holds the channels: (rows, columns), each (slots,).

    In shares of the image's height and width from -1 to 1, pulled towards 0 by all that reaches a slot from elsewhere.
    """

    by_channel_axis: dict[int, tuple[_Array, _Array]]

    def __add__(self, other: Sight) -> Sight:
        """What two pairs of images show together."""
        return Sight(
            {
                axis: (rows + other.by_channel_axis[axis][0], columns + other.by_channel_axis[axis][1])
                for axis, (rows, columns) in self.by_channel_axis.items()
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
            names: modules whose outputs have three or four axes, the first of which is N.
            example: (N,C,H,W) float32; the images are run in batches of its size.
        """
        self._model, self._names, self._example = model, list(dict.fromkeys(names)), example
        self._sights: dict[int, dict[str, Sight]] = {}

    def sight(self, name: str, pair: int) -> Sight:
        """What one layer's positions show of a pair of images, 0 to PAIRS - 1.

        Raises:
            ExportError: the output's first axis does not follow the batch.
        """
        if pair not in self._sights:
            self._sights[pair] = self._run(pair)
        return self._sights[pair][name]

    def _run(self, pair: int) -> dict[str, Sight]:
        outputs: dict[str, list[torch.Tensor]] = {name: [] for name in self._names}

        def hook(name: str) -> Callable[[nn.Module, object, Any], None]:
            def enter(_module: nn.Module, _inputs: object, output: Any) -> None:
                outputs[name].append(feature_map(output, name).detach().to(torch.float32).clone())

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
        return {name: _sight(name, torch.cat(found), len(images)) for name, found in outputs.items()}


def fit(reading: Reading, sight: Sight) -> Fit:
    """Compare where a reading says that the slots look with where they do.

    Axes of the grid with one position only say nothing and are left out.
    """
    rows, columns = sight.by_channel_axis[_channel_axis(reading.layout)]
    height, width = reading.grid
    seen = [values[reading.prefix_tokens :][: height * width] for values in (rows, columns)]
    correlations = [
        _correlation(values, claimed)
        for values, claimed, size in zip(seen, _claimed(reading), reading.grid, strict=True)
        if size > 1
    ]
    misfits = [1 - max(value, 0.0) ** 2 for value in correlations]
    correlation = min(correlations)
    sure = correlation >= max(SURE, SURE_OF_FEW / math.sqrt(height * width + 10))
    return Fit(correlation, sum(misfits) / len(misfits), sure)


def agreement(reading: Reading, first: Sight, second: Sight) -> float:
    """How far two pairs of images agree on where the slots look, whatever the reading's order: a correlation."""
    axis = _channel_axis(reading.layout)
    return min(
        _correlation(a, b) for a, b in zip(first.by_channel_axis[axis], second.by_channel_axis[axis], strict=True)
    )


def map_readings(shape: Sequence[int]) -> Iterator[Reading]:
    """Every reading of an output of four axes that the proof must tell apart, supported or not."""
    for layout, (a, b) in (("nchw", (shape[2], shape[3])), ("nhwc", (shape[1], shape[2]))):
        if a * b > 1:
            yield from _orientations(layout, a, b, 0, 0)


def token_readings(layout: str, count: int, grid: tuple[int, int]) -> Iterator[Reading]:
    """Every reading of `count` tokens of which some are a grid, supported or not; the others are before or after it."""
    others = count - grid[0] * grid[1]
    for prefix in range(others + 1):
        yield from _orientations(layout, *grid, prefix, others - prefix)


def _orientations(layout: str, a: int, b: int, prefix: int, suffix: int) -> Iterator[Reading]:
    """The eight ways to lay a x b positions out; of tokens, column by column keeps the grid, of a map it turns it."""
    for columns in (False, True) if min(a, b) > 1 else (False,):
        grid = (b, a) if columns and layout in ("nchw", "nhwc") else (a, b)
        for down in (False, True) if grid[0] > 1 else (False,):
            for across in (False, True) if grid[1] > 1 else (False,):
                yield Reading(layout, grid, prefix, suffix, columns, (down, across))


def _claimed(reading: Reading) -> tuple[_Array, _Array]:
    """The row and the column of each slot."""
    height, width = reading.grid
    rows, columns = (values.astype(np.float64) for values in np.indices(reading.grid))
    down, across = reading.mirrored
    rows = height - 1 - rows if down else rows
    columns = width - 1 - columns if across else columns
    if reading.columns:
        rows, columns = rows.T, columns.T
    return rows.ravel(), columns.ravel()


def _channel_axis(layout: str) -> int:
    return {"nchw": 1, "nhwc": 3, "tokens": 2, "channels_first_tokens": 1}[layout]


def _correlation(values: _Array, other: _Array) -> float:
    """Of two vectors, the first without its outliers: a few tokens of trained transformers answer wildly."""
    low, high = np.quantile(values, (0.05, 0.95))
    x, y = np.clip(values, low, high), other
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0 else 0.0


def _sight(name: str, activations: torch.Tensor, images: int) -> Sight:
    if len(activations) != images:
        raise ExportError(f"the output of layer {name!r} does not have one row an image; choose another layer.")
    return Sight({axis: _coordinates(activations, axis) for axis in ((1, 2) if activations.ndim == 3 else (1, 3))})


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
