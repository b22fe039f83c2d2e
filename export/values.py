"""What values of a captured graph were computed from: by numbers, not by a shape or type alone; and what reads them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

_NEW = ("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty")
_LIKE_THE_SECOND = ("type_as", "expand_as", "view_as", "reshape_as")
READ: dict[Any, int] = {
    **{getattr(aten, name).default: 0 for name in _NEW},
    **{getattr(aten, name).default: 1 for name in _LIKE_THE_SECOND},
}
"""How many of their inputs operations read of which the others say a shape or a type."""


def sources(node: Any, but: Collection[fx.Node] = (), *, placed: bool = False) -> set[fx.Node]:
    """The nodes that a node was computed from, itself included, but for some and what only they were computed from.

    placed: along values with positions alone, as no number for the whole image is.
    """
    found = {node}
    entered = [node]
    while entered:
        for source in _read(entered.pop()):
            if source not in found and source not in but and _is_value(source, placed):
                found.add(source)
                entered.append(source)
    return found


def dependents(nodes: Iterable[fx.Node], roots: Iterable[fx.Node]) -> set[fx.Node]:
    """The roots, and which of a graph's nodes, in their order, were computed from them."""
    found = set(roots)
    for node in nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _read(node: fx.Node) -> list[fx.Node]:
    count = READ.get(node.target)
    if count is None:
        return node.all_input_nodes
    return [argument for argument in node.args[:count] if isinstance(argument, fx.Node)]


def _is_value(node: fx.Node, placed: bool) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return isinstance(value, (tuple, list))
    return not placed or (value.ndim > 2 and any(size != 1 for size in value.shape[2:]))
