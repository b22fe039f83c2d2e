"""Sums over the rows of a softmax: a row adds up to one, and its cotangents to nothing.

The pooled gradient of an attention asks for the sum of its probabilities p over the positions of the map, and of the
cotangents of its scores, p * (g - <p, g>). Where there is no prefix token they are 1 and 0: what they are multiplied
with is the product, or vanishes. Behind prefix tokens the positions are all the keys but a few, so that the few tell:
1 - sum p, and the negative of theirs. Where g = a V^T is a product with the values, <p, g> is the product of a with
p V, which the attention itself has computed; the rows of g for all other keys are not needed any more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx

from finercam_rt.export.broadcast import shape_of, sizes_for
from finercam_rt.export.dimensions import match_dimensions
from finercam_rt.export.rewriter import Rewriter, finish

aten = torch.ops.aten

FEW = 8
"""So many keys may be left out of a sum that is taken by them."""
_WHOLE = (aten.alias.default, aten.clone.default, aten.expand.default, aten.slice.Tensor)
_SAME = (*_WHOLE, aten.view.default, aten.reshape.default)
"""What may lie between the operations of an attention: the former where they change no size, the others where the last
dimension keeps its own.
"""

_MOVED = (*_SAME, aten.permute.default, aten.squeeze.dim, aten.unsqueeze.default)
_LINEAR = (*_MOVED, aten.sum.dim_IntList, aten.neg.default, aten.mul.Scalar)
"""Of ones the former make ones, of zeros all make zeros."""


class _Sum(NamedTuple):
    """node: a sum over some of the last dimension of `rows` (B,M,L). few: where those begin and end that it leaves."""

    node: fx.Node
    rows: fx.Node
    few: tuple[int, int]


def sum_by_the_rest(traced: fx.GraphModule) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """The same graph, changed in place: such sums taken from the keys that they leave out, and lines that count them.

    Args:
        traced: ATen operations with the values they had when they were traced in meta["val"].
    """
    summer = _Summer(traced)
    count = sum(summer.try_node(node) for node in list(traced.graph.nodes))
    known = sum(summer.try_whole(node) for node in list(traced.graph.nodes))
    if not count and not known:
        return traced, ()
    finish(traced)
    lines = {"taken from the keys that they leave out": count, "over all keys, known beforehand": known}
    return traced, tuple(f"sums of softmax rows: {number} {what}" for what, number in lines.items() if number)


class _Summer(Rewriter):
    def try_node(self, node: fx.Node) -> bool:
        """Rewrite a sum, if it is one of these."""
        found = _sum_of_most(node)
        if found is None:
            return False
        self.at(node)
        source = _origin(found.rows)
        if _is_softmax(source):
            rest = self.emit(aten.rsub.Scalar, self._few_sum(self._few(found.rows, 2, found.few)), 1)
        else:
            given = _cotangents(source)
            if given is None:
                return False
            if _alone(found.rows, source):
                rest = self._of_cotangents(given, found.few)
            else:  # where somebody reads all of them
                rest = self.emit(aten.neg.default, self._few_sum(self._few(found.rows, 2, found.few)))
        node.replace_all_uses_with(rest)
        node.graph.erase_node(node)
        return True

    def try_whole(self, node: fx.Node) -> bool:
        """Leave out a sum over all keys, if it is one of these and nobody has to be given it."""
        rows = node.args[0] if node.target is aten.sum.dim_IntList and not node.kwargs and len(node.args) == 3 else None
        shape = shape_of(rows) if isinstance(rows, fx.Node) else None
        if not isinstance(rows, fx.Node) or shape is None or len(shape) != 3 or not _are(node.args[1], 2, 3):
            return False
        source = _origin(rows)
        readers: dict[fx.Node, fx.Node] | None = None
        if _is_softmax(source):
            readers = _times_one(node)
        elif _cotangents(source) is not None:
            readers = _with_zero(node)
        for reader, other in (readers or {}).items():
            reader.replace_all_uses_with(other)
        return bool(readers)

    def _of_cotangents(self, given: _Cotangents, few: tuple[int, int]) -> fx.Node:
        """sum p (<a, p V> - g) of the few, which is the negative of their sum."""
        a, values = given.cotangents, self._few(given.values, 1, few)
        probabilities = self._few(given.probabilities, 2, few)
        if few[1] - few[0] == 1:  # no product of matrices, which a runtime would pad to the size of its blocks
            apart = self.emit(aten.sub.Tensor, given.attended, values)
            own = self.emit(aten.sum.dim_IntList, self.emit(aten.mul.Tensor, a, apart), [2], True)
            return self.emit(aten.mul.Tensor, probabilities, own)
        mean = self.emit(aten.sum.dim_IntList, self.emit(aten.mul.Tensor, a, given.attended), [2], True)
        own = self.emit(aten.bmm.default, a, self.emit(aten.permute.default, values, [0, 2, 1]))
        return self._few_sum(self.emit(aten.mul.Tensor, probabilities, self.emit(aten.sub.Tensor, mean, own)))

    def _few(self, value: fx.Node, dim: int, few: tuple[int, int]) -> fx.Node:
        """The few along a dimension, taken where they were computed: a transpose of all of them is not asked for."""
        source = value.args[0] if value.args else None
        shape = shape_of(value)
        if not isinstance(source, fx.Node) or shape is None or value.kwargs.keys() - {"memory_format"}:
            return self.emit(aten.slice.Tensor, value, dim, *few)
        before = shape_of(source)
        if value.target in _SAME and before == shape:
            return self._few(source, dim, few)
        if value.target is aten.permute.default:
            order = [int(i) % len(shape) for i in value.args[1]]  # type: ignore[union-attr, arg-type]
            return self.emit(aten.permute.default, self._few(source, order[dim], few), order)
        if value.target is aten.select.int and before is not None:
            axis, index = int(value.args[1]) % len(before), value.args[2]  # type: ignore[arg-type]
            return self.emit(aten.select.int, self._few(source, dim + (dim >= axis), few), axis, index)
        if value.target in (aten.view.default, aten.reshape.default) and before is not None:
            own = [pair for pair in match_dimensions(before, shape) or () if pair[1] == [dim] and len(pair[0]) == 1]
            sizes = sizes_for([few[1] - few[0] if i == dim else size for i, size in enumerate(shape)])
            if own and sizes.count(-1) <= 1:
                return self.emit(aten.reshape.default, self._few(source, own[0][0][0], few), sizes)
        return self.emit(aten.slice.Tensor, value, dim, *few)

    def _few_sum(self, value: fx.Node) -> fx.Node:
        shape = shape_of(value)
        return value if shape is not None and shape[2] == 1 else self.emit(aten.sum.dim_IntList, value, [2], True)


class _Cotangents(NamedTuple):
    """Of the scores of an attention: p (B,M,L), V (B,L,D), p V (B,M,D), and the cotangents of that, a (B,M,D)."""

    probabilities: fx.Node
    values: fx.Node
    attended: fx.Node
    cotangents: fx.Node


def _times_one(one: fx.Node) -> dict[fx.Node, fx.Node] | None:
    """What its readers give where it is 1: None where one of them is no product, or is larger than the other factor."""
    found: dict[fx.Node, fx.Node] = {}
    for reader in one.users:
        if reader.target in _MOVED:
            further = _times_one(reader)
            if further is None:
                return None
            found |= further
            continue
        factors = _factors(reader)
        other = next((value for value in factors or () if value is not one), None)
        if other is None or shape_of(other) is None or shape_of(other) != shape_of(reader):
            return None
        found[reader] = other
    return found


def _with_zero(zero: fx.Node) -> dict[fx.Node, fx.Node] | None:
    """What the sums are that it ends in, where it is 0: the other term. None where it ends in anything else."""
    found: dict[fx.Node, fx.Node] = {}
    for reader in zero.users:
        linear = reader.target in _LINEAR and all(value is zero for value in reader.all_input_nodes)
        padded = reader.target is aten.constant_pad_nd.default and not any(reader.args[2:])
        if linear or padded or _factors(reader):
            further = _with_zero(reader)
            if further is None:
                return None
            found |= further
            continue
        terms = reader.args if reader.target is aten.add.Tensor and not reader.kwargs else ()
        other = next((value for value in terms if value is not zero), None)
        if not isinstance(other, fx.Node) or shape_of(other) is None or shape_of(other) != shape_of(reader):
            return None
        found[reader] = other
    return found or None


def _sum_of_most(node: fx.Node) -> _Sum | None:
    """A sum over all but a few neighbours at one end of the last of three dimensions, which it keeps."""
    if node.target is not aten.sum.dim_IntList or node.kwargs or len(node.args) != 3 or not node.args[2]:
        return None
    part, dims = node.args[:2]
    if not isinstance(part, fx.Node) or part.target is not aten.slice.Tensor or len(part.args) != 4:
        return None
    rows, dim, start, stop = part.args
    shape = shape_of(rows) if isinstance(rows, fx.Node) else None
    if not isinstance(rows, fx.Node) or shape is None or len(shape) != 3 or dim != 2 or not _are(dims, 2, 3):
        return None
    first, last, _ = slice(start, stop).indices(shape[2])
    few = (0, first) if last == shape[2] else (last, shape[2])
    if (first > 0 and last < shape[2]) or not 1 <= few[1] - few[0] <= FEW or len(part.users) != 1:
        return None
    return _Sum(node, rows, few)


def _cotangents(source: fx.Node) -> _Cotangents | None:
    """What goes into p * g - p * <p, g>, where g is a product with the values."""
    if source.target is not aten.sub.Tensor or source.kwargs:
        return None
    product, mean = source.args[:2]
    factors = _factors(product)
    if factors is None or _factors(mean) is None:
        return None
    softmax = next((_origin(value) for value in factors if _is_softmax(_origin(value))), None)
    given = next((value for value in factors if _origin(value) is not softmax), None)
    if softmax is None or given is None:
        return None
    total = next((value for value in _factors(mean) or () if _origin(value) is not softmax), None)
    dim = len(shape_of(product) or ()) - 1  # type: ignore[arg-type]
    if total is None or total.target is not aten.sum.dim_IntList or total.args[0] is not product:
        return None
    if len(total.args) != 3 or not _are(total.args[1], dim, dim + 1):
        return None
    made = _origin(given)
    if made.target is not aten.bmm.default or (shape_of(made) or ())[-2:] != (shape_of(source) or ())[-2:]:
        return None
    cotangents, transposed = made.args
    if not isinstance(transposed, fx.Node) or transposed.target is not aten.permute.default:
        return None
    values, order = transposed.args
    if order != [0, 2, 1] or not isinstance(values, fx.Node) or not isinstance(cotangents, fx.Node):
        return None
    for reader in values.users:
        if reader.target is aten.bmm.default and reader.args[1] is values:
            probabilities: Any = reader.args[0]
            if _origin(probabilities) is softmax and shape_of(probabilities) == shape_of(made):
                return _Cotangents(probabilities, values, reader, cotangents)
    return None


def _factors(node: Any) -> tuple[fx.Node, fx.Node] | None:
    if not isinstance(node, fx.Node) or node.target is not aten.mul.Tensor:
        return None
    first, second = node.args
    return (first, second) if isinstance(first, fx.Node) and isinstance(second, fx.Node) else None


def _are(dims: Any, dim: int, rank: int) -> bool:
    """Whether this dimension is the only one."""
    return [int(i) % rank for i in dims] == [dim]


def _is_softmax(node: fx.Node) -> bool:
    """Along the last dimension."""
    shape = shape_of(node)
    return node.target is aten._softmax.default and shape is not None and node.args[1] in (-1, len(shape) - 1)


def _origin(node: fx.Node) -> fx.Node:
    """What a value is but for how its leading dimensions are counted."""
    while node.target in _SAME and isinstance(node.args[0], fx.Node):
        before, after = shape_of(node.args[0]), shape_of(node)
        if before is None or after is None or before[-1:] != after[-1:]:
            break
        if node.target in _WHOLE and before != after:
            break
        node = node.args[0]
    return node


def _alone(node: fx.Node, origin: fx.Node) -> bool:
    """Whether nothing else reads what lies between."""
    while len(node.users) == 1 and node is not origin:
        assert isinstance(node.args[0], fx.Node)
        node = node.args[0]
    return len(node.users) == 1
