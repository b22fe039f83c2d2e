"""Where the positions of a layer's output look: images that fade into one another show it, by forward passes alone.

An image X that fades into an image Z from left to right has, at every place, a known share of X. A layer's position
that looks at that place answers with about that share of the way from its activation on Z to its activation on X. What
every position feels alike (attention, squeeze-and-excitation) shifts all answers, not their order; the same fade the
other way round takes out what a position prefers by itself. Left to right gives the position's column, top to bottom
its row, and a reading of the layout is right where the columns and rows it claims are those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from finercam_rt.errors import ExportError
from finercam_rt.export.hooks import hooked
from finercam_rt.export.outputs import feature_map
from finercam_rt.export.reading import image_shape

PAIRS = 3
"""Pairs of images to fade at most: a second and a third one only where the first leaves a doubt."""

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sight:
    """Where each slot of an output looks, by which of an image's axes holds the channels: (rows, columns), (slots,).

    In shares of the image's height and width from -1 to 1, pulled towards 0 by all that reaches a slot from elsewhere.
    """

    by_channels: dict[str, tuple[_Array, _Array]]


def together(sights: Sequence[Sight]) -> Sight:
    """What several pairs of images show of one output: for each slot the sum of what they do."""
    return Sight(
        {axis: tuple(np.sum([sight.by_channels[axis] for sight in sights], axis=0)) for axis in sights[0].by_channels}
    )


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
        self._sights: list[dict[str, Sight]] = []

    def sights(self, name: str, count: int = PAIRS) -> list[Sight]:
        """What one layer's positions show of each of the first `count` pairs of images.

        Raises:
            ExportError: no axis of the output follows the batch.
        """
        for pair in range(len(self._sights), count):
            self._sights.append(self._run(pair))
        return [sights[name] for sights in self._sights[:count]]

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
        with hooked((self._model.get_submodule(name), hook(name)) for name in self._names), torch.no_grad():
            for start in range(0, len(images), len(self._example)):
                self._model(images[start : start + len(self._example)].to(self._example))
        return {
            name: Sight(
                {
                    channels: _coordinates(torch.cat(found), axis)
                    for channels, axis in (("first", 1 + folded[name]), ("last", -1))
                }
            )
            for name, found in outputs.items()
        }


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
