"""Refuse a layer whose positions are those of another image: warped by what the model sees, cut out, or padded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx

from finercam_rt.errors import ExportError
from finercam_rt.export.capture import Captured
from finercam_rt.export.values import sources
from finercam_rt.manifest import LayerInfo

SAMPLERS = ("grid_sampler", "grid_sampler_2d", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")
"""Operations that take an image from places that their second input names."""
PADS = ("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d")


def check_not_warped(captured: Captured, layers: Sequence[LayerInfo]) -> None:
    """Refuse a layer whose every way from the image leads through a warp that depends on the image, as of a spatial
    transformer; what samples beside another way, as deformable attention does, moves no positions. So is one whose map
    has a row or a column of what the model has put around the image.

    Raises:
        ExportError: there is a layer that is.
    """
    nodes = list(captured.graph_module.graph.nodes)
    images = next(node for node in nodes if node.op == "placeholder")
    warps = {node for node in nodes if _is(node, SAMPLERS) and images in sources(node.args[1])}
    for mark, layer in zip(captured.marks, layers, strict=True):
        if warps and images not in sources(mark, warps, placed=True):
            raise ExportError(
                f"layer {layer.name!r} comes behind a grid_sample or a crop whose place the model finds in the image, "
                "so that its positions are those of another image than its map would be drawn over; export what comes "
                "behind it as a model of its own, of images that are warped already."
            )
        for pad in sources(mark):
            if _is(pad, PADS) and pad.meta["val"].ndim > 2 and _is_image(pad.args[0], images):
                _check_padding(pad, images, layer)


def _is(node: fx.Node, names: Iterable[str]) -> bool:
    """Whether a node is one of these operations, of PyTorch or torchvision."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.name.partition("::")[2] in names


def _is_image(node: Any, images: fx.Node) -> bool:
    """Whether a value is the images, prepared: of as many channels from there on."""
    wanted = images.meta["val"].shape[1]
    behind = sources(node)
    values = [source.meta.get("val") for source in behind]
    return images in behind and all(
        value.ndim != 4 or value.shape[1] == wanted for value in values if isinstance(value, torch.Tensor)
    )


def _check_padding(pad: fx.Node, images: fx.Node, layer: LayerInfo) -> None:
    widths: Any = pad.args[1]
    height, width = (int(size) for size in pad.meta["val"].shape[-2:])
    across, down = sum(widths[:2]), sum(widths[2:4])
    if down * layer.grid[0] >= height or across * layer.grid[1] >= width:
        given = "x".join(str(size) for size in images.meta["val"].shape[2:])
        raise ExportError(
            f"the model pads its images of {given} by {down} rows and {across} columns, on which a part of the map of "
            f"layer {layer.name!r} lies, and it would be drawn over the images alone; pad them before the model, to "
            f"{height}x{width}."
        )
