"""Part of stage 1: a captured graph that writes nothing in place, of operations that have a form of their own.

What torch.export's `run_decompositions` does by tracing the whole program again, a fifth of an export. Here it is done
to the few nodes that it concerns, and left to torch.export where a value that others look into is written to.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import fx

from finercam_rt.export.rewriter import Rewriter, finish, reshaped_to, writes

aten = torch.ops.aten

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


def functionalize(module: fx.GraphModule) -> bool:
    """Change the graph in place. False if something in it has no rule here; the graph is then of no more use."""
    nodes = list(module.graph.nodes)
    work = _Work(module, nodes)
    for node in nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        target = node.target
        if node.op != "call_function" or isinstance(target, torch._ops.HigherOrderOperator):
            return False
        if not isinstance(target, torch._ops.OpOverload):
            continue  # a size's arithmetic, or one of several results
        rule = _RULES.get(target, _in_place if writes(node) else None)
        if rule is None and not _may_stay(target):
            return False
        if rule is not None and not rule(work, node):
            return False
    finish(module)
    return True


def purify(module: fx.GraphModule) -> None:
    """Let a derivative, where its trace writes in place, compute anew, if no other value looks into that memory."""
    nodes = list(module.graph.nodes)
    writing = [node for node in nodes if writes(node)]
    if writing:
        work = _Work(module, nodes)
        for node in writing:
            _in_place(work, node)
        finish(module)


def _may_stay(target: torch._ops.OpOverload) -> bool:
    """Not composite operations whose result may be a view or a copy, and not those that may write in place."""
    if torch.Tag.maybe_aliasing_or_mutating in target.tags or target is aten.native_batch_norm.default:
        return False
    aliases = any(argument.alias_info is not None for argument in target._schema.arguments)
    return not (aliases and target.has_kernel_for_dispatch_key(_COMPOSITE))


class _Work(Rewriter):
    """A graph at work, with what memory its values looked into when it was captured."""

    def __init__(self, module: fx.GraphModule, nodes: list[fx.Node]) -> None:
        super().__init__(module)
        self._places = {node: place for place, node in enumerate(nodes)}
        self._memory = {node: _memory(node.meta.get("val")) for node in nodes}
        self._sharing: dict[int, list[fx.Node]] = defaultdict(list)
        for node in nodes:
            for memory in self._memory[node]:
                self._sharing[memory].append(node)

    def share(self, node: fx.Node, other: fx.Node) -> bool:
        """Whether both look into the same memory."""
        return not self._memory[node].isdisjoint(self._memory[other])

    def written(self, x: fx.Node, node: fx.Node) -> bool:
        """Let what reads `x` behind `node` read `node`; false if others look into x's memory later, or for good."""
        place = self._places[node]

        def later(user: fx.Node) -> bool:
            return self._places[user] > place

        sharing = [other for memory in self._memory[x] for other in self._sharing[memory]]
        if x not in sharing:  # nothing is known of it
            return False
        for other in sharing:
            if other.op in ("placeholder", "get_attr"):
                return False
            if other is not x and self._places[other] < place and any(map(later, other.users)):
                return False
        x.replace_all_uses_with(node, later)
        return True

    def take_first(self, node: fx.Node) -> None:
        """Let what reads a value read the first of three that the node gives in its place."""
        readers = list(node.users)
        with node.graph.inserting_after(node):
            first = node.graph.call_function(operator.getitem, (node, 0))
        first.meta = dict(node.meta)
        node.meta["val"] = (node.meta["val"], *(node.meta["val"].new_empty(0) for _ in range(2)))
        for reader in readers:
            reader.replace_input_with(node, first)
        self._places[first], self._memory[first] = self._places[node], self._memory[node]
        for memory in self._memory[node]:
            self._sharing[memory].append(first)

    def size(self, value: fx.Node, dim: int, node: fx.Node) -> fx.Node:
        """The size of a value along a dimension, ahead of `node`."""
        found = self.at(node).emit(aten.sym_size.int, value, dim)
        self._places[found], self._memory[found] = self._places[node], frozenset()
        return found


def _become(node: fx.Node, target: Any, *args: Any, **kwargs: Any) -> None:
    """Make another operation of a node, which keeps its value's shape and type and its place in the sources."""
    node.target, node.args, node.kwargs = target, args, kwargs


def _memory(value: Any) -> frozenset[int]:
    if isinstance(value, torch.Tensor):
        return frozenset([value.untyped_storage()._cdata])
    parts = value if isinstance(value, (tuple, list)) else ()
    return frozenset(memory for part in parts for memory in _memory(part))


def _in_place(work: _Work, node: fx.Node) -> bool:
    """`x.add_(y)` as `x + y`, where what is read of x later is this."""
    target: Any = node.target
    name = target._schema.name.removeprefix("aten::")
    aliased = [argument.name for argument in target._schema.arguments if argument.alias_info is not None]
    pure = getattr(getattr(aten, name[:-1], None), target._overloadname, None)
    x: Any = node.args[0]
    if not name.endswith("_") or pure is None or not _may_stay(pure) or aliased != ["self"]:
        return False
    if not work.written(x, node):
        return False
    before = node.meta["val"]
    node.target = pure
    if torch.Tag.pointwise in pure.tags:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), _one)
        same = pure(*args, **kwargs).dtype == before.dtype
    else:
        work.refresh(node)
        after = node.meta["val"]
        same = before.dtype == after.dtype and before.shape == after.shape
    if not same:
        node.target, node.meta["val"] = target, before
    return bool(same)


def _one(node: fx.Node) -> Any:
    """A value of one number for another: it shows types, and takes no time."""
    value = node.meta["val"]
    return torch.ones([1] * value.ndim, dtype=value.dtype) if isinstance(value, torch.Tensor) else 1


def _as_it_is(work: _Work, node: fx.Node) -> bool:
    """`contiguous`, `to`, and dropout that drops nothing: the value itself, in another type, or a copy to write to."""
    x: Any = node.args[0]
    before, after = x.meta["val"], node.meta["val"]
    if before.device != after.device:
        return False
    if before.dtype != after.dtype:
        _become(node, aten._to_copy.default, x, dtype=after.dtype)
    elif not work.share(x, node):
        _become(node, aten.clone.default, x, memory_format=torch.contiguous_format)
    else:
        node.replace_all_uses_with(x)
        node.graph.erase_node(node)
    return True


def _dropout(work: _Work, node: fx.Node) -> bool:
    """Of `dropout(x, p, train)`."""
    return node.args[2] is False and _as_it_is(work, node)


def _reshaped(work: _Work, node: fx.Node) -> bool:
    """A reshape, of whose sizes one at most depends on the batch."""
    sizes = reshaped_to(node.meta["val"])
    _become(node, aten.reshape.default, node.args[0], sizes)
    return sizes is not None


def _expanded(work: _Work, node: fx.Node) -> bool:
    """Of `expand_as(x, other)`: its sizes."""
    x, other = cast(Any, node.args)
    before, after = x.meta["val"].shape, node.meta["val"].shape
    before = (*[1] * (len(after) - len(before)), *before)
    sizes = [
        size if isinstance(size, int) else -1 if str(old) == str(size) else work.size(other, dim, node)
        for dim, (old, size) in enumerate(zip(before, after, strict=True))
    ]
    _become(node, aten.expand.default, x, sizes)
    return True


def _permuted(work: _Work, node: fx.Node) -> bool:
    """A permutation, found with a tensor whose axes are all of another size."""
    target: Any = node.target
    x, *order = cast(Any, node.args)
    axes = torch.empty(list(range(x.meta["val"].ndim)), device="meta")
    moved = target(axes, *order, **node.kwargs)
    _become(node, aten.permute.default, x, list(moved.shape))
    return True


def _chunk(work: _Work, node: fx.Node) -> bool:
    """Pieces of known sizes."""
    x, _, dim = (*cast(Any, node.args), 0)[:3]
    sizes = [piece.shape[dim] for piece in node.meta["val"]]
    _become(node, aten.split_with_sizes.default, x, sizes, dim)
    return all(isinstance(size, int) for size in sizes)


def _batch_norm(work: _Work, node: fx.Node) -> bool:
    """The first result of the operation that only reads its statistics, or, as of standardised weights, has none."""
    x, weight, bias, mean, variance, training, momentum, eps = cast(Any, node.args)[:8]
    if training == (mean is not None):
        return False
    work.take_first(node)
    if training:
        _become(node, aten._native_batch_norm_legit.no_stats, x, weight, bias, True, momentum, eps)
    else:
        _become(node, aten._native_batch_norm_legit_no_training.default, x, weight, bias, mean, variance, momentum, eps)
    return True


def _padded(_work: _Work, node: fx.Node) -> bool:
    """A convolution whose padding is a word, where it is the same on both sides."""
    given: tuple[Any, ...] = node.args
    defaults: tuple[Any, ...] = (None, [1, 1], "valid", [1, 1], 1)
    x, weight, bias, stride, padding, dilation, groups = (*given, *defaults[len(given) - 2 :])
    kernel = weight.meta["val"].shape[2:]
    added = [0, 0] if padding == "valid" else [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    if all(size % 2 == 0 for size in added):
        _become(node, aten.conv2d.default, x, weight, bias, stride, [size // 2 for size in added], dilation, groups)
    return True


_TO = ("device", "dtype", "dtype_layout", "other")
_RULES: dict[Any, Callable[[_Work, fx.Node], bool]] = {
    aten.batch_norm.default: _batch_norm,
    aten.chunk.default: _chunk,
    aten.conv2d.padding: _padded,
    aten.expand_as.default: _expanded,
    **dict.fromkeys(
        [
            aten.dropout.default,
            aten.dropout_.default,
            aten.feature_dropout.default,
            aten.feature_dropout_.default,
            aten.alpha_dropout.default,
            aten.alpha_dropout_.default,
        ],
        _dropout,
    ),
    **dict.fromkeys([aten.contiguous.default, *(getattr(aten.to, name) for name in _TO)], _as_it_is),
    **dict.fromkeys(
        [
            aten.reshape.default,
            aten.reshape_as.default,
            aten.view_as.default,
            aten.flatten.using_ints,
            aten.unflatten.int,
        ],
        _reshaped,
    ),
    **dict.fromkeys(
        [
            aten.movedim.int,
            aten.movedim.intlist,
            aten.swapaxes.default,
            aten.swapdims.default,
            aten.numpy_T.default,
            aten.mT.default,
        ],
        _permuted,
    ),
}
