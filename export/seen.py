"""Which part of the image a layer's map depends on: what is cropped away before it cannot be on its map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from finercam_rt.export.outputs import feature_map
from finercam_rt.manifest import LayerInfo

MOVED = 1e-5
"""How much a band of pixels must change, of what all of them do, to be seen; rounding alone changes a tenth of it."""

Edges = tuple[int, int, int, int]
"""Of a part of an image: its first row and column, and those behind its last."""


def unseen_edges(model: nn.Module, layer: LayerInfo, example: torch.Tensor) -> Edges | None:
    """The part of the image that the layer's positions see, where they leave out a cell of its map or more at an edge.

    Args:
        model: images (N,C,H,W) -> anything, in evaluation mode.
        layer: as its layout was proved.
        example: (N,C,H,W) float32; images are run in batches of its size.

    Returns:
        None where what is left out is less, as by patches or strides that do not divide the image.
    """
    sides = (example.shape[2], example.shape[3])
    cells = [math.ceil(side / count) for side, count in zip(sides, layer.grid, strict=True)]
    seen = _change(model, layer, example, [cells[0], cells[1], cells[0], cells[1]])
    if all(seen):
        return None
    unseen, too_much = [0] * 4, [sides[0], sides[1], sides[0], sides[1]]
    while any(more - most > 1 for most, more in zip(unseen, too_much, strict=True)):
        widths = [(most + more) // 2 for most, more in zip(unseen, too_much, strict=True)]
        for edge, changed in enumerate(_change(model, layer, example, widths)):
            (too_much if changed else unseen)[edge] = widths[edge]
    top, left, bottom, right = unseen
    return top, left, sides[0] - bottom, sides[1] - right


def _change(model: nn.Module, layer: LayerInfo, example: torch.Tensor, widths: Sequence[int]) -> list[bool]:
    """Whether bands of so many rows or columns at the top, left, bottom and right change the positions."""
    generator = torch.Generator().manual_seed(0)
    image, other = torch.randn(2, *example.shape[1:], generator=generator)
    images = torch.stack([image, other, *[image] * len(widths)])
    for edge, width in enumerate(widths):
        axis, length = 1 + edge % 2, image.shape[1 + edge % 2]
        band = torch.arange(length - width, length) if edge // 2 else torch.arange(width)
        images[2 + edge].index_copy_(axis, band, other.index_select(axis, band))
    found: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        value = feature_map(output, layer).detach().to(torch.float32)
        found.append(value[:, layer.prefix_tokens :].clone() if layer.layout == "tokens" else value.clone())

    handle = model.get_submodule(layer.name).register_forward_hook(keep)
    try:
        with torch.no_grad():
            for start in range(0, len(images), len(example)):
                model(images[start : start + len(example)].to(example))
    finally:
        handle.remove()
    changes = [float((value - torch.cat(found)[0]).abs().max()) for value in torch.cat(found)[1:]]
    return [change > MOVED * changes[0] for change in changes[1:]]
