"""Refuse a layer behind a warp that the model chooses itself: no place on its map is one of the image."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import fx

from finercam_rt.errors import ExportError
from finercam_rt.export.capture import Captured
from finercam_rt.manifest import LayerInfo

aten = torch.ops.aten
WARPS = (aten.grid_sampler.default, aten.grid_sampler_2d.default)


def check_not_warped(captured: Captured, layers: Sequence[LayerInfo]) -> None:
    """Refuse a layer whose every way from the image leads through a warp that depends on the image, as of a spatial
    transformer; what samples beside another way, as deformable attention does, moves no positions.

    Raises:
        ExportError: there is a layer that is.
    """
    nodes = list(captured.graph_module.graph.nodes)
    (images,) = (node for node in nodes if node.op == "placeholder")
    warps = {node for node in nodes if node.target in WARPS and images in _sources(node.args[1])}
    for mark, layer in zip(captured.marks, layers, strict=True):
        if warps and images not in _sources(mark, warps):
            raise ExportError(
                f"layer {layer.name!r} comes behind a grid_sample whose grid the model makes of the image, so that its "
                "positions are those of a warped image, and not of the one that its map would be drawn over; export "
                "what comes behind it as a model of its own, of images that are warped already."
            )


def _sources(node: Any, but: Collection[fx.Node] = ()) -> set[fx.Node]:
    """The nodes whose tensors a node was computed from, but for some and what only they were computed from."""
    found = {node}
    entered = [node]
    while entered:
        for source in entered.pop().all_input_nodes:
            if source not in found and source not in but and isinstance(source.meta.get("val"), torch.Tensor):
                found.add(source)
                entered.append(source)
    return found
