"""torch.cdist in operations that are captured for any batch and that ONNX has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode

from finercam_rt.export.rewriter import Rewriter

aten = torch.ops.aten

FEW = 25
"""Rows up to which PyTorch takes differences; of more it takes the products, which are quicker and less exact."""


class AnyBatch(TorchFunctionMode):
    """While it is active distances do not ask how large the batch is, which chooses how PyTorch computes them."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function."""
        options = dict(kwargs or {})
        if function is torch.cdist:
            options["compute_mode"] = "donot_use_mm_for_euclid_dist"
        return function(*args[:3] if function is torch.cdist else args, **options)


def distances(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """(...,L,C) and (...,P,C) -> (...,L,P): norms of differences, or by products as PyTorch does where P is large.

    The derivative of a distance that is 0 is 0.
    """
    x, y, *rest = node.args
    p = float((*rest, node.kwargs.get("p", 2.0))[0])  # type: ignore[arg-type]
    rows = y.meta["val"].shape[-2]  # type: ignore[union-attr]
    if p not in (1.0, 2.0):
        return None
    if p == 1 or (isinstance(rows, int) and rows <= FEW):
        left, right = rewriter.emit(aten.unsqueeze.default, x, -2), rewriter.emit(aten.unsqueeze.default, y, -3)
        apart = rewriter.emit(aten.sub.Tensor, left, right)
        return rewriter.emit(aten.linalg_vector_norm.default, apart, p, [-1])
    lengths = [rewriter.emit(aten.sum.dim_IntList, rewriter.emit(aten.square.default, v), [-1], True) for v in (x, y)]
    products = rewriter.emit(aten.matmul.default, x, rewriter.emit(aten.transpose.int, y, -2, -1))
    both = rewriter.emit(aten.add.Tensor, lengths[0], rewriter.emit(aten.transpose.int, lengths[1], -2, -1))
    squares = rewriter.emit(aten.sub.Tensor, both, rewriter.emit(aten.mul.Tensor, products, 2.0))
    positive = rewriter.emit(aten.gt.Scalar, squares, 0.0)
    one, none = (rewriter.emit(full, squares) for full in (aten.ones_like.default, aten.zeros_like.default))
    roots = rewriter.emit(aten.sqrt.default, rewriter.emit(aten.where.self, positive, squares, one))
    return rewriter.emit(aten.where.self, positive, roots, none)
