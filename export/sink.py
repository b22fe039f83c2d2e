"""Select sinking: what the head does not read is not computed. DESIGN, section 2.2.

A head that reads one token makes the other rows dead after the last attention. Here the selection is moved up through
operations that work on each row alone, into the attention's queries, and, where queries, keys and values come out of
one linear layer, into the rows of its weight.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher

from finercam_rt.export.dimensions import match_dimensions
from finercam_rt.export.rewriter import drop_dead, fake_mode, finish, new_constant

aten = torch.ops.aten

WORTHWHILE = 2
"""Rows there are for each row read, at least: slicing off a class token alone would only add copies."""

ELEMENTWISE = {
    aten.gelu.default,
    aten.relu.default,
    aten.silu.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.clone.default,
    aten.neg.default,
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
}


def sink_selections(tail: fx.GraphModule) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """The tail with its selections moved towards the inputs, and a line for each one moved."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(tail.graph, copies)
    graph.output(output)
    sunk = fx.GraphModule(tail, graph)
    sinker = _Sinker(sunk)
    for node in reversed(list(sunk.graph.nodes)):
        if sinker.try_node(node):
            # what has become dead no longer reads the nodes above, whose remaining users may now agree
            drop_dead(sunk.graph)
    finish(sunk)
    return sunk, tuple(sinker.report)


class _Sinker:
    """The graph being rewritten. `narrowed` is the heart: rows [first, last) of a value, computed from less."""

    def __init__(self, tail: fx.GraphModule) -> None:
        self.tail = tail
        self.graph = tail.graph
        self.report: list[str] = []
        self._crossed: list[str] = []
        self._fake_mode = fake_mode(tail.graph)

    def try_node(self, node: fx.Node) -> bool:
        """If all users of a value read one range of one dimension, and little of it, compute only that range."""
        ranges = [_range_read(user, node) for user in node.users]
        dims = {found[0] for found in ranges if found is not None}
        if None in ranges or len(dims) != 1 or node.op != "call_function":
            return False  # None among the ranges: somebody reads all of it
        (dim,) = dims
        first, last = min(r[1] for r in ranges if r), max(r[2] for r in ranges if r)
        size = _shape(node)[dim]
        if not isinstance(size, int) or (last - first) * WORTHWHILE > size:
            return False
        self._crossed = []
        users = list(node.users)
        less = self.narrowed(node, dim, first, last, root=True)
        if not self._crossed:
            return False
        for user, found in zip(users, ranges, strict=True):
            assert found is not None
            _, start, stop = found
            if user.target is aten.select.int:
                user.args = (less, dim, start - first)
            elif (start, stop) == (first, last):
                user.replace_all_uses_with(less)
            else:
                user.args = (less, dim, start - first, stop - first)
        self.report.append(
            f"select sinking: {last - first} of {size} rows read at {node.name}, "
            f"moved through {len(self._crossed)} operations"
        )
        return True

    def narrowed(self, node: fx.Node, dim: int, first: int, last: int, root: bool = False) -> fx.Node:
        """The rows [first, last) of a value along `dim`, through as many operations as can be.

        Below the root only operations are crossed that nobody else reads: theirs would be computed twice.
        """
        rule = _RULES.get(node.target) if node.op == "call_function" else None
        if node.target in ELEMENTWISE:
            rule = _elementwise
        if rule is not None and (root or len(node.users) <= 1):
            result = rule(self, node, dim, first, last)
            if result is not None:
                self._crossed.append(str(node.target))
                return result
        return self.slice_of(node, dim, first, last)

    def slice_of(self, node: fx.Node, dim: int, first: int, last: int) -> fx.Node:
        """A plain slice, where no operation can be crossed."""
        if (first, last) == (0, _shape(node)[dim]):
            return node
        return self.emit(node, aten.slice.Tensor, node, dim, first, last)

    def emit(self, after: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A new operation behind `after`, with its value's shape."""
        if after.op == "placeholder":  # they stay together
            after = [node for node in self.graph.nodes if node.op == "placeholder"][-1]
        with self.graph.inserting_after(after):
            node = self.graph.call_function(target, args, kwargs)
        with self._fake_mode, enable_python_dispatcher():
            values = fx.node.map_arg((args, kwargs), self._value)
            node.meta["val"] = target(*values[0], **values[1])
        return node

    def constant(self, before: fx.Node, value: torch.Tensor) -> fx.Node:
        """A new weight, ahead of `before`."""
        name = new_constant(self.tail, "sunk", value)
        with self.graph.inserting_before(before):
            return self.graph.get_attr(name)

    def buffer(self, node: fx.Node) -> torch.Tensor:
        """The weight that a get_attr node reads."""
        return self.tail.get_buffer(str(node.target))

    def _value(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return self._fake_mode.from_tensor(self.buffer(node), static_shapes=True)
        return node.meta["val"]


def _shape(node: fx.Node) -> tuple[Any, ...]:
    return tuple(node.meta["val"].shape)


def _range_read(user: fx.Node, node: fx.Node) -> tuple[int, int, int] | None:
    """(dimension, first, last) if `user` is a selection from `node`."""
    if user.target is aten.select.int and user.args[0] is node and isinstance(user.args[2], int):
        dim = int(user.args[1]) % len(_shape(node))  # type: ignore[arg-type]
        size = _shape(node)[dim]
        if isinstance(size, int):
            index = user.args[2] % size
            return dim, index, index + 1
    if user.target is aten.slice.Tensor and user.args[0] is node and len(user.args) == 4 and not user.kwargs:
        dim = int(user.args[1]) % len(_shape(node))  # type: ignore[arg-type]
        size, start, stop = _shape(node)[dim], user.args[2], user.args[3]
        if isinstance(size, int) and isinstance(start, int) and isinstance(stop, int):
            first, last, _ = slice(start, stop).indices(size)
            return (dim, first, last) if first < last else None
    return None


def _elementwise(sinker: _Sinker, node: fx.Node, dim: int, first: int, last: int) -> fx.Node | None:
    ndim = len(_shape(node))

    def less(value: Any) -> Any:
        if not isinstance(value, fx.Node) or value.op == "get_attr" or not hasattr(value.meta.get("val"), "shape"):
            return value
        own = dim - (ndim - len(_shape(value)))
        if own < 0 or _shape(value)[own] == 1:
            return value
        return sinker.narrowed(value, own, first, last)

    for value in node.args:  # a weight that varies along the rows stays as it is: nothing to gain
        if isinstance(value, fx.Node) and value.op == "get_attr":
            shape = sinker.buffer(value).shape
            own = dim - (ndim - len(shape))
            if own >= 0 and shape[own] != 1:
                return None
    if ndim != max(len(_shape(v)) for v in node.args if isinstance(v, fx.Node) and v.op != "get_attr"):
        return None
    # read one by one: narrowing the first may rewrite the second
    values = [less(node.args[i]) for i in range(len(node.args))]
    return sinker.emit(node, node.target, *values, **node.kwargs)


def _layer_norm(sinker: _Sinker, node: fx.Node, dim: int, first: int, last: int) -> fx.Node | None:
    source, normalized, *rest = node.args
    if dim >= len(_shape(node)) - len(normalized):  # type: ignore[arg-type]
        return None
    return sinker.emit(node, node.target, sinker.narrowed(_node(source), dim, first, last), normalized, *rest)


def _linear(sinker: _Sinker, node: fx.Node, dim: int, first: int, last: int) -> fx.Node | None:
    source, weight, bias = (*node.args, None)[:3]
    if dim != len(_shape(node)) - 1:
        return sinker.emit(node, node.target, sinker.narrowed(_node(source), dim, first, last), weight, bias)
    # outputs of a linear layer are rows of its weight
    parameters = [value for value in (weight, bias) if value is not None]
    if any(not isinstance(value, fx.Node) or value.op != "get_attr" for value in parameters):
        return None
    rows = [sinker.constant(node, sinker.buffer(_node(value))[first:last]) for value in parameters]
    return sinker.emit(node, node.target, source, *rows)


def _permute(sinker: _Sinker, node: fx.Node, dim: int, first: int, last: int) -> fx.Node | None:
    order = list(node.args[1])  # type: ignore[arg-type]
    source = sinker.narrowed(_node(node.args[0]), order[dim] % len(order), first, last)
    return sinker.emit(node, node.target, source, order)


def _transpose(sinker: _Sinker, node: fx.Node, dim: int, first: int, last: int) -> fx.Node | None:
    ndim = len(_shape(node))
    a, b = int(node.args[1]) % ndim, int(node.args[2]) % ndim  # type: ignore[arg-type]
    own = {a: b, b: a}.get(dim, dim)
    return sinker.emit(node, node.target, sinker.narrowed(_node(node.args[0]), own, first, last), a, b)


def _reshape(sinker: _Sinker, node: fx.Node, dim: int, first: int, last: int) -> fx.Node | None:
    """A dimension that a reshape keeps, or the outermost of those that it splits one into."""
    source = _node(node.args[0])
    old, new = _shape(source), _shape(node)
    groups = match_dimensions(old, new)
    group = next((g for g in groups or () if dim in g[1]), None)
    if group is None or len(group[0]) != 1 or group[1][0] != dim:
        return None
    inner = 1
    for other in group[1][1:]:
        inner *= new[other]
    less = sinker.narrowed(source, group[0][0], first * inner, last * inner)
    shape = list(node.args[1])  # type: ignore[arg-type]
    shape[dim] = last - first
    return sinker.emit(node, node.target, less, shape)


def _select(sinker: _Sinker, node: fx.Node, dim: int, first: int, last: int) -> fx.Node | None:
    """Rows of one row of a value, as queries are of what projects queries, keys and values at once."""
    axis = int(node.args[1]) % len(_shape(_node(node.args[0])))  # type: ignore[arg-type]
    own = _own_piece(sinker, node, axis)
    if own is None:
        return None
    return sinker.emit(node, aten.select.int, sinker.narrowed(own, dim + (dim >= axis), first, last), axis, 0)


def _slice(sinker: _Sinker, node: fx.Node, dim: int, first: int, last: int) -> fx.Node | None:
    """Rows of one range of a value: as `_select`, or, along the dimension that is sliced, rows of the value."""
    found = _range_read(node, _node(node.args[0]))
    if found is None or found[0] == dim:
        return None
    own = _own_piece(sinker, node, found[0])
    return None if own is None else sinker.narrowed(own, dim, first, last)


def _own_piece(sinker: _Sinker, node: fx.Node, axis: int) -> fx.Node | None:
    """What `node` reads of a value that is read in disjoint pieces along `axis`: every piece gets its own value."""
    source = _node(node.args[0])
    users = list(source.users)
    ranges = [found for user in users if (found := _range_read(user, source)) is not None and found[0] == axis]
    rule = _RULES.get(source.target)
    if rule is None or len(ranges) != len(users) or not _disjoint(ranges):
        return None
    own: fx.Node | None = None
    for user, (_, start, stop) in list(zip(users, ranges, strict=True)):
        piece = rule(sinker, source, axis, start, stop)
        if piece is None:
            return None
        if user is node:
            own = piece
        elif user.target is aten.select.int:
            user.args = (piece, axis, 0)
        else:
            user.replace_all_uses_with(piece)
    return own


def _disjoint(ranges: list[tuple[int, int, int]]) -> bool:
    ordered = sorted(ranges)
    return all(before[2] <= behind[1] for before, behind in pairwise(ordered))


def _getitem(sinker: _Sinker, node: fx.Node, dim: int, first: int, last: int) -> fx.Node | None:
    """A piece of an unbind is a select and one of a split a slice, and so are its siblings."""
    pieces = _node(node.args[0])
    if pieces.target not in _PIECES or any(user.target is not operator.getitem for user in pieces.users):
        return None
    source, axis = _node(pieces.args[0]), int((*pieces.args, 0)[_PIECES[pieces.target]])  # type: ignore[arg-type]
    if len(source.users) != 1:
        return None
    axis %= len(_shape(source))
    sizes = [1 if pieces.target is aten.unbind.int else value.shape[axis] for value in pieces.meta["val"]]
    if not all(isinstance(size, int) for size in sizes):
        return None
    own: fx.Node | None = None
    for piece in list(pieces.users):
        index = int(piece.args[1])  # type: ignore[arg-type]
        start = sum(sizes[:index])
        if pieces.target is aten.unbind.int:
            found = sinker.emit(piece, aten.select.int, source, axis, index)
        else:
            found = sinker.emit(piece, aten.slice.Tensor, source, axis, start, start + sizes[index])
        piece.replace_all_uses_with(found)
        if piece is node:
            own = found
        sinker.graph.erase_node(piece)
    sinker.graph.erase_node(pieces)
    assert own is not None
    return sinker.narrowed(own, dim, first, last)


def _attention(sinker: _Sinker, node: fx.Node, dim: int, first: int, last: int) -> fx.Node | None:
    """Rows of an attention's output are those of its queries."""
    rest = node.args[3:]
    ndim = len(_shape(node))
    if dim != ndim - 2 or any(r is not None for r in rest[:1]) or node.kwargs.get("attn_mask") is not None:
        return None
    if any(rest[2:3]) or node.kwargs.get("is_causal"):
        return None
    query = sinker.narrowed(_node(node.args[0]), dim, first, last)
    # keys and values are read only now: narrowing the queries may have rewritten what all three come from
    return sinker.emit(node, node.target, query, *node.args[1:], **node.kwargs)


def _node(value: Any) -> fx.Node:
    assert isinstance(value, fx.Node)
    return value


_PIECES = {aten.unbind.int: 1, aten.split.Tensor: 2, aten.split_with_sizes.default: 2}
"""What takes a value apart, and where among its arguments the dimension stands."""

_RULES: dict[Any, Callable[[_Sinker, fx.Node, int, int, int], fx.Node | None]] = {
    aten.layer_norm.default: _layer_norm,
    aten.linear.default: _linear,
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.reshape.default: _reshape,
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    operator.getitem: _getitem,
    aten.scaled_dot_product_attention.default: _attention,
}
