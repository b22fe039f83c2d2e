"""Scale before the broadcast: the derivative of a mean expands a row and divides every copy, and one would do.

Besides, OpenVINO 2026.4.1 mixes up the channels of what a ConvTranspose gives, where an Expand and a scaling follow.
"""

from __future__ import annotations

import torch
from torch import fx

from finercam_rt.export.rewriter import finish

aten = torch.ops.aten

_SCALINGS = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)


def scale_first(traced: fx.GraphModule) -> fx.GraphModule:
    """The same graph, changed in place: multiplications of expanded values with numbers come before the expands.

    Args:
        traced: ATen operations, the shapes of the expands given as sizes.
    """
    changed = False
    for node in traced.graph.nodes:
        if node.target not in _SCALINGS or isinstance(node.args[1], fx.Node) or node.kwargs:
            continue
        expanded = node.args[0]
        if not isinstance(expanded, fx.Node) or expanded.target is not aten.expand.default:
            continue
        value = expanded.args[0].meta.get("val")  # type: ignore[union-attr]
        if value is None or value.dtype != node.meta["val"].dtype:  # a whole number divided
            continue
        with traced.graph.inserting_before(node):
            scaled = traced.graph.call_function(node.target, (expanded.args[0], node.args[1]))
            scaled.meta["val"] = value
            again = traced.graph.call_function(expanded.target, (scaled, *expanded.args[1:]))
            again.meta["val"] = node.meta["val"]
            if any(user.target is aten.view.default for user in node.users):
                # the product lay in one piece, which a view asks for and an expanded value does not
                again = traced.graph.call_function(
                    aten.clone.default, (again,), {"memory_format": torch.contiguous_format}
                )
                again.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(again)
        changed = True
    if changed:
        finish(traced)
    return traced
