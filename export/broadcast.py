"""Delayed broadcasts: behind a mean over positions the cotangent is the same at each, so one row is computed, not L.

The derivative of a mean expands (N,1,D) to (N,L,D) at once, and all that follows, the multiplications with the weights
of an MLP first of all, then does the same work L times. Here a value is held as mask * core, where core still has size
1 along the positions, through everything that treats positions alike, until it meets a value that varies along them.
The mask, a constant, is 0 at prefix tokens, which the mean does not read; it waits longer, through all that is linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from finercam_rt.export.dimensions import match_dimensions
from finercam_rt.export.rewriter import drop_dead, new_constant

aten = torch.ops.aten

BATCH = 1_000_003
"""Stands for the symbolic batch in the shapes below; a prime above every size of a network."""


@dataclass(frozen=True)
class Delayed:
    """mask * core, broadcast to `shape`, seen by its readers as `seen`, in which neighbouring dimensions are merged.

    core has size 1 along the dimensions in `narrow` and the size in `shape` along the others. mask, None for ones,
    has the rank of `shape` and size 1 where it does not vary.
    """

    core: fx.Node
    shape: tuple[int, ...]
    narrow: frozenset[int]
    mask: torch.Tensor | None
    seen: tuple[int, ...]

    @property
    def core_shape(self) -> tuple[int, ...]:
        """The sizes of core."""
        return tuple(1 if i in self.narrow else size for i, size in enumerate(self.shape))

    @property
    def special(self) -> set[int]:
        """The dimensions along which core is narrow or the mask varies."""
        varying = () if self.mask is None else (i for i, size in enumerate(self.mask.shape) if size != 1)
        return {*self.narrow, *varying}


def delay_broadcasts(traced: fx.GraphModule) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """The same graph with its expands moved down, and a line that says how many multiplications became narrow.

    Args:
        traced: ATen operations with the values they had when they were traced in meta["val"]; at most one symbolic
            size, the batch.
    """
    rewriter = _Rewriter(traced)
    rewriter.run()
    if not rewriter.products:
        return traced, ()
    drop_dead(rewriter.graph)
    rewriter.graph.lint()
    result = fx.GraphModule(rewriter.root, rewriter.graph)
    return result, (
        f"delayed broadcast: {rewriter.products} products with one row an image in place of one a position",
    )


class _Rewriter:
    """Copies the graph node by node; `values` maps an old node to its copy or to what stands for it."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.graph = fx.Graph()
        self.graph.set_codegen(traced.graph._codegen)  # how inputs are nested
        self.root = traced
        self.products = 0
        self._nodes = list(traced.graph.nodes)
        self._values: dict[fx.Node, fx.Node | Delayed] = {}
        self._whole: dict[fx.Node, fx.Node] = {}

    def run(self) -> None:
        """Rewrite all nodes in order."""
        for node in self._nodes:
            self._values[node] = self._rewritten(node)

    def _rewritten(self, node: fx.Node) -> fx.Node | Delayed:
        rule = _RULES.get(node.target) if node.op == "call_function" else None
        concerned = node.target is aten.expand.default or any(self.delayed(value) for value in node.args)
        if rule is None or not concerned or (node.kwargs and rule is not _same) or shape_of(node) is None:
            return self.graph.node_copy(node, self.whole)
        found = rule(self, node)
        if found is None:
            return self.graph.node_copy(node, self.whole)
        return found if found.special else self.plain(found)

    def delayed(self, value: Any) -> Delayed | None:
        """What stands for an argument, if that is not a plain value."""
        found = self._values.get(value) if isinstance(value, fx.Node) else None
        return found if isinstance(found, Delayed) else None

    def value(self, argument: Any) -> Any:
        """An argument that is not delayed, in the new graph."""
        return self._values[argument] if isinstance(argument, fx.Node) else argument

    def whole(self, node: fx.Node) -> fx.Node:
        """A value as one tensor of its full shape, made once."""
        found = self._values[node]
        if not isinstance(found, Delayed):
            return found
        if node not in self._whole:
            self._whole[node] = self.plain(found)
        return self._whole[node]

    def plain(self, found: Delayed) -> fx.Node:
        """mask * core at its full size, with the shape that its readers see."""
        core = found.core
        if found.narrow:
            sizes = [size if i in found.narrow else -1 for i, size in enumerate(found.shape)]
            core = self.emit(aten.expand.default, core, sizes)
        if found.mask is not None:
            core = self.emit(aten.mul.Tensor, core, self.constant(found.mask))
        return core if _unmerged(found) else self.emit(aten.reshape.default, core, sizes_for(found.seen))

    def emit(self, target: Any, *args: Any) -> fx.Node:
        """A new operation."""
        return self.graph.call_function(target, args)

    def constant(self, value: torch.Tensor) -> fx.Node:
        """A new constant of the graph."""
        return self.graph.get_attr(new_constant(self.root, "mask", value))


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """The sizes of a node's value, BATCH for the batch; None where it is no tensor or has other symbols."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    sizes = [_size(size) for size in value.shape]
    return None if any(size is None for size in sizes) else tuple(sizes)  # type: ignore[arg-type]


def _size(size: int | torch.SymInt) -> int | None:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    symbols = expression.free_symbols
    value = expression.subs({symbol: BATCH for symbol in symbols}) if len(symbols) <= 1 else None
    return int(value) if value is not None and value.is_integer else None


def sizes_for(shape: Sequence[int]) -> list[int]:
    """Sizes for a reshape: the batch is what is left."""
    return [-1 if size % BATCH == 0 else size for size in shape]


def _one_batch(shape: Sequence[int]) -> bool:
    return sum(size % BATCH == 0 for size in shape) <= 1


def _expand(rewriter: _Rewriter, node: fx.Node) -> Delayed | None:
    source, shape = node.args[0], shape_of(node)
    assert isinstance(source, fx.Node)
    assert shape is not None
    before = shape_of(source)
    if before is None or not _one_batch(shape):
        return None
    lead = len(shape) - len(before)
    before = (*(1,) * lead, *before)
    grown = frozenset(i for i, size in enumerate(before) if size != shape[i])
    found = rewriter.delayed(source)
    if any(shape[i] % BATCH == 0 for i in grown) or not (found or grown) or (found and not _unmerged(found)):
        return None
    core = found.core if found else rewriter.value(source)
    for _ in range(lead):
        core = rewriter.emit(aten.unsqueeze.default, core, 0)
    if found is None:
        return Delayed(core, shape, grown, None, shape)
    mask = None if found.mask is None else found.mask.reshape(*(1,) * lead, *found.mask.shape)
    return Delayed(core, shape, frozenset(i + lead for i in found.narrow) | grown, mask, shape)


def _unmerged(found: Delayed) -> bool:
    return found.seen == found.shape


def _elementwise(rewriter: _Rewriter, node: fx.Node) -> Delayed | None:
    """Without masks anything that works on each element alone; with one, what is linear in it."""
    shape = shape_of(node)
    assert shape is not None
    found = [value for value in map(rewriter.delayed, node.args) if value is not None]
    if not all(_unmerged(value) and len(value.shape) == len(shape) for value in found):
        return None
    masks = [value.mask for value in found if value.mask is not None]
    if masks and not _keeps_mask(rewriter, node, masks):
        return None
    if any(isinstance(value, fx.Node) and _is_unknown(value) for value in node.args):
        return None
    sizes = [size for value in node.args if (size := _aligned(rewriter, value, len(shape))) is not None]
    core_shape = [max(size[i] for size in sizes) for i in range(len(shape))]
    narrow = frozenset(i for i, size in enumerate(core_shape) if size != shape[i])
    args = [value.core if (value := rewriter.delayed(a)) else rewriter.value(a) for a in node.args]
    return Delayed(rewriter.emit(node.target, *args), shape, narrow, masks[0] if masks else None, shape)


def _is_unknown(node: fx.Node) -> bool:
    """Whether an operand may be a tensor of a shape that is not known."""
    return shape_of(node) is None and not isinstance(node.meta.get("val"), (int, float, torch.SymInt, torch.SymFloat))


def _same(rewriter: _Rewriter, node: fx.Node) -> Delayed | None:
    """A copy, whatever its strides."""
    return rewriter.delayed(node.args[0])


def _keeps_mask(rewriter: _Rewriter, node: fx.Node, masks: list[torch.Tensor]) -> bool:
    if node.target in (aten.add.Tensor, aten.sub.Tensor):
        return len(node.args) == 2 and len(masks) == 2 and _equal(*masks)
    if node.target in (aten.div.Tensor, aten.div.Scalar):
        found = rewriter.delayed(node.args[0])
        return len(masks) == 1 and found is not None and found.mask is not None
    return node.target is aten.neg.default or (node.target in (aten.mul.Tensor, aten.mul.Scalar) and len(masks) == 1)


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def _aligned(rewriter: _Rewriter, value: Any, rank: int) -> tuple[int, ...] | None:
    """The sizes of an operand as its operation broadcasts them; None for a number."""
    found = rewriter.delayed(value)
    shape = found.core_shape if found else shape_of(value) if isinstance(value, fx.Node) else None
    return None if shape is None else (*(1,) * (rank - len(shape)), *shape)


def _view(rewriter: _Rewriter, node: fx.Node) -> Delayed | None:
    found, new = rewriter.delayed(node.args[0]), shape_of(node)
    assert found is not None
    assert new is not None
    groups = match_dimensions(found.shape, new)
    if groups is None or not _one_batch(new):
        return None
    if all(len(after) <= 1 for _, after in groups):
        return replace(found, seen=new)  # merged with their neighbours, the positions are still those
    moved: dict[int, int] = {}
    for before, after in groups:
        for i in set(before) & found.special:
            kept = [j for j in after if new[j] == found.shape[i]]
            if len(kept) != 1 or math.prod(new[j] for j in after) != found.shape[i]:
                return None
            moved[i] = kept[0]
    narrow = frozenset(moved[i] for i in found.narrow)
    core_shape = [1 if j in narrow else size for j, size in enumerate(new)]
    mask = found.mask
    if mask is not None:
        mask_shape = [1] * len(new)
        for i, size in enumerate(mask.shape):
            if size != 1:
                mask_shape[moved[i]] = size
        mask = mask.reshape(mask_shape)
    core = rewriter.emit(aten.reshape.default, found.core, sizes_for(core_shape))
    return Delayed(core, new, narrow, mask, new)


def _mm(rewriter: _Rewriter, node: fx.Node) -> Delayed | None:
    """Rows times a matrix."""
    found, seen = rewriter.delayed(node.args[0]), shape_of(node)
    assert seen is not None
    last = 0 if found is None else len(found.shape) - 1
    if found is None or rewriter.delayed(node.args[1]) or last in found.special or found.shape[last] != found.seen[1]:
        return None
    rows = rewriter.emit(aten.reshape.default, found.core, [-1, found.shape[last]])
    product = rewriter.emit(node.target, rows, rewriter.value(node.args[1]))
    shape = (*found.shape[:last], seen[1])
    result = replace(found, shape=shape, seen=seen)
    if found.narrow:
        rewriter.products += 1
    core = rewriter.emit(aten.reshape.default, product, sizes_for(result.core_shape))
    return replace(result, core=core)


def _permute(rewriter: _Rewriter, node: fx.Node) -> Delayed | None:
    found, new = rewriter.delayed(node.args[0]), shape_of(node)
    assert found is not None
    assert new is not None
    if not _unmerged(found):
        return None
    order = [int(i) % len(new) for i in node.args[1]]  # type: ignore[union-attr, arg-type]
    narrow = frozenset(order.index(i) for i in found.narrow)
    mask = None if found.mask is None else found.mask.permute(order)
    return Delayed(rewriter.emit(node.target, found.core, order), new, narrow, mask, new)


def _unsqueeze(rewriter: _Rewriter, node: fx.Node) -> Delayed | None:
    found, new = rewriter.delayed(node.args[0]), shape_of(node)
    assert found is not None
    assert new is not None
    if not _unmerged(found):
        return None
    at = int(node.args[1]) % len(new)  # type: ignore[arg-type]
    narrow = frozenset(i + (i >= at) for i in found.narrow)
    mask = None if found.mask is None else found.mask.unsqueeze(at)
    return Delayed(rewriter.emit(node.target, found.core, at), new, narrow, mask, new)


def _pad(rewriter: _Rewriter, node: fx.Node) -> Delayed | None:
    """Zeros beside the positions are zeros of the mask; elsewhere core is padded."""
    found, new = rewriter.delayed(node.args[0]), shape_of(node)
    assert found is not None
    assert new is not None
    pads = [int(size) for size in node.args[1]]  # type: ignore[union-attr, arg-type]
    if not _unmerged(found) or any(value != 0 for value in node.args[2:]) or any(size < 0 for size in pads):
        return None
    padded = {len(new) - 1 - i // 2 for i, size in enumerate(pads) if size}
    if not padded <= found.narrow:
        return None
    dtype = node.meta["val"].dtype
    mask = torch.ones((1,) * len(new), dtype=dtype) if found.mask is None else found.mask
    mask = mask.expand([size if i in padded else mask.shape[i] for i, size in enumerate(found.shape)])
    return replace(found, shape=new, seen=new, mask=functional.pad(mask, pads))


def _reduce(rewriter: _Rewriter, node: fx.Node) -> Delayed | None:
    """A sum or a mean over other dimensions than the positions."""
    found, new = rewriter.delayed(node.args[0]), shape_of(node)
    assert found is not None
    assert new is not None
    dims = {int(i) % len(found.shape) for i in node.args[1]}  # type: ignore[union-attr, arg-type]
    kept = len(node.args) > 2 and bool(node.args[2])
    if not _unmerged(found) or not dims or dims & found.special or not kept:
        return None
    return replace(found, core=rewriter.emit(node.target, found.core, sorted(dims), True), shape=new, seen=new)


_ELEMENTWISE = (
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.mul.Scalar,
    aten.div.Tensor,
    aten.div.Scalar,
    aten.neg.default,
    aten.erf.default,
    aten.exp.default,
    aten.where.self,
)
_RULES: dict[Any, Callable[[_Rewriter, fx.Node], Delayed | None]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    aten.clone.default: _same,
    aten.alias.default: _same,
    aten.expand.default: _expand,
    aten.view.default: _view,
    aten.reshape.default: _view,
    aten.mm.default: _mm,
    aten.permute.default: _permute,
    aten.unsqueeze.default: _unsqueeze,
    aten.constant_pad_nd.default: _pad,
    aten.sum.dim_IntList: _reduce,
    aten.mean.dim: _reduce,
}
