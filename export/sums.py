"""Early sums: a sum over rows of a product is the product with the sum of the rows.

The pooled gradient is a sum over positions. Behind an attention it sums the cotangents of queries, keys and values,
each of them a batched product: L x L by L x D. sum_l (A B)[l] = (sum_l A[l]) B takes one row of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from finercam_rt.export.broadcast import shape_of, sizes_for
from finercam_rt.export.dimensions import match_dimensions
from finercam_rt.export.rewriter import Rewriter, finish

aten = torch.ops.aten

_SCALING = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
_COPIES = (aten.clone.default, aten.alias.default)


def sum_early(traced: fx.GraphModule) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """The same graph, changed in place: sums over one dimension taken before batched products rather than behind them.

    Args:
        traced: ATen operations with the values they had when they were traced in meta["val"].
    """
    summer = _Summer(traced)
    count = sum(summer.try_node(node) for node in list(traced.graph.nodes))
    if not count:
        return traced, ()
    finish(traced)
    return traced, (f"early sums: {count} products with the sum of their rows",)


class _Summer(Rewriter):
    """`through` is the heart: the sum over rows [first, last) of a value, keeping the dimension, from before a bmm."""

    def try_node(self, node: fx.Node) -> bool:
        """Rewrite a sum whose way up to a bmm has no other reader."""
        if node.target is not aten.sum.dim_IntList or len(node.args) < 2 or node.kwargs:
            return False
        source, dims = node.args[0], node.args[1]
        shape = shape_of(source) if isinstance(source, fx.Node) else None
        if shape is None or not isinstance(dims, (list, tuple)) or len(dims) != 1:
            return False
        dim = int(dims[0]) % len(shape)  # type: ignore[arg-type]
        self.at(node)
        found = self.through(source, dim, 0, shape[dim])
        if found is None:
            return False
        kept = len(node.args) > 2 and bool(node.args[2])
        node.replace_all_uses_with(found if kept else self.emit(aten.squeeze.dim, found, dim))
        node.graph.erase_node(node)
        return True

    def through(self, node: Any, dim: int, first: int, last: int) -> fx.Node | None:
        """The sum, or None where the way does not end in a product."""
        shape = shape_of(node)
        if shape is None or len(node.users) != 1 or node.op != "call_function":
            return None
        source = node.args[0]
        if node.target in _COPIES:
            return self.through(source, dim, first, last)
        if node.kwargs:
            return None
        if node.target is aten.bmm.default:
            factors = list(node.args)
            if dim == 0:
                return None
            factors[dim - 1] = self.summed(factors[dim - 1], dim, first, last)
            return self.product(factors, dim)
        if node.target is aten.slice.Tensor:
            return self._slice(node, dim, first, last)
        if node.target is aten.permute.default:
            order = [int(i) % len(shape) for i in node.args[1]]
            found = self.through(source, order[dim], first, last)
            return None if found is None else self.emit(aten.permute.default, found, order)
        if node.target in (aten.view.default, aten.reshape.default):
            return self._reshape(node, dim, first, last)
        if node.target in _SCALING and not isinstance(node.args[1], fx.Node):
            found = self.through(source, dim, first, last)
            return None if found is None else self.emit(node.target, found, *node.args[1:])
        return None

    def _slice(self, node: fx.Node, dim: int, first: int, last: int) -> fx.Node | None:
        source, axis, start, stop, *step = (*node.args, 0, 0, 1 << 62)[: max(4, len(node.args))]
        shape = shape_of(source)  # type: ignore[arg-type]
        if shape is None or int(axis) % len(shape) != dim or step not in ([], [1]):  # type: ignore[arg-type]
            return None
        begin, _, _ = slice(start, stop).indices(shape[dim])
        return self.through(source, dim, begin + first, begin + last)

    def _reshape(self, node: fx.Node, dim: int, first: int, last: int) -> fx.Node | None:
        source, new = node.args[0], shape_of(node)
        old = shape_of(source)  # type: ignore[arg-type]
        groups = None if old is None or new is None else match_dimensions(old, new)
        if old is None or new is None or groups is None:
            return None
        (before,) = (before for before, after in groups if dim in after)
        (after,) = (after for _, after in groups if dim in after)
        own = [i for i in before if old[i] == new[dim]]
        if (
            len(own) != 1
            or any(old[i] != 1 for i in before if i != own[0])
            or any(new[j] != 1 for j in after if j != dim)
        ):
            return None
        shape = [1 if i == dim else size for i, size in enumerate(new)]
        if sum(size < 0 for size in sizes_for(shape)) > 1:
            return None
        found = self.through(source, own[0], first, last)
        return None if found is None else self.emit(aten.reshape.default, found, sizes_for(shape))

    def summed(self, node: Any, dim: int, first: int, last: int) -> fx.Node:
        """The sum over rows of a factor, through a product of its own if there is one."""
        found = self.through(node, dim, first, last)
        if found is not None:
            return found
        if node.target is aten.permute.default:
            order = [int(i) % len(node.args[1]) for i in node.args[1]]
            return self.emit(aten.permute.default, self.summed(node.args[0], order[dim], first, last), order)
        shape = shape_of(node)
        if shape is None or (first, last) != (0, shape[dim]):
            node = self.emit(aten.slice.Tensor, node, dim, first, last)
        return self.emit(aten.sum.dim_IntList, node, [dim], True)

    def product(self, factors: list[Any], dim: int) -> fx.Node:
        """(B,1,K) by (B,K,D), or (B,M,K) by (B,K,1), element by element, added up along the rows of (B,K,.).

        Runtimes pad products of matrices to the size of their blocks, in kernels of their own; this they fuse with what
        lies around it.
        """
        factors[0] = self.emit(aten.permute.default, factors[0], [0, 2, 1])
        found = self.emit(aten.mul.Tensor, *factors)
        shape = shape_of(found)
        if shape is None or shape[1] != 1:
            found = self.emit(aten.sum.dim_IntList, found, [1], True)
        return found if dim == 1 else self.emit(aten.permute.default, found, [0, 2, 1])
