"""Writes operations into a captured graph in the place of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher

from finercam_rt.errors import ExportError

aten = torch.ops.aten


class Rewriter:
    """Adds operations ahead of the node that is replaced, with their values' shapes."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        """Take the graph."""
        self._module, self._node = graph_module, next(iter(graph_module.graph.nodes))
        self._mode = fake_mode(graph_module.graph)

    def at(self, node: fx.Node) -> Rewriter:
        """This rewriter, at work on `node`."""
        self._node = node
        return self

    def emit(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A new operation."""
        with self._module.graph.inserting_before(self._node):
            node = self._module.graph.call_function(target, args, kwargs)
        self.refresh(node)
        return node

    def refresh(self, node: fx.Node) -> None:
        """Find the value's shape and type anew, of an operation or a constant."""
        if node.op == "get_attr":
            node.meta["val"] = self._mode.from_tensor(attribute(self._module, str(node.target)), static_shapes=True)
            return
        # the dispatcher in C++ would fix the symbolic batch for some operations, constant_pad_nd for one
        with self._mode, enable_python_dispatcher():
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._value)
            node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]

    def converted(self, value: fx.Node, dtype: torch.dtype) -> fx.Node:
        """A floating value in a type; any other as it is."""
        if not is_floating(value) or value.meta["val"].dtype == dtype:
            return value
        return self.emit(aten._to_copy.default, value, dtype=dtype)

    def constant(self, value: torch.Tensor) -> fx.Node:
        """A new constant of the graph."""
        name = new_constant(self._module, "rewritten", value)
        with self._module.graph.inserting_before(self._node):
            return self._module.graph.get_attr(name)

    def number(self, value: Any) -> float | None:
        """A constant of one element as a number; None for anything else."""
        if isinstance(value, (int, float)):
            return float(value)
        found = self.tensor(value)
        return float(found) if found is not None and found.numel() == 1 else None

    def tensor(self, value: Any) -> torch.Tensor | None:
        """A constant; None for anything else."""
        while isinstance(value, fx.Node) and value.target in _COPIES:
            value = value.args[0]
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        return attribute(self._module, str(value.target))

    def _value(self, node: fx.Node) -> Any:
        if "val" not in node.meta:
            self.refresh(node)
        return node.meta["val"]


def arguments(node: fx.Node, *defaults: Any) -> tuple[Any, ...]:
    """Positional arguments, with the defaults of those that were left out."""
    return (*node.args, *defaults[len(node.args) :])


_COPIES = (aten.clone.default, aten.lift_fresh_copy.default, aten.detach.default, aten.alias.default)
Rule = Callable[[Rewriter, fx.Node], fx.Node | None]


def reshaped_to(value: torch.Tensor) -> list[int] | None:
    """The sizes that a reshape to this value is told, -1 for one that depends on the batch; None where several do."""
    sizes = [size if isinstance(size, int) else -1 for size in value.shape]
    return sizes if sizes.count(-1) <= 1 else None


def writes(node: fx.Node) -> bool:
    """Whether an operation writes to one of its arguments."""
    return isinstance(node.target, torch._ops.OpOverload) and bool(node.target._schema.is_mutable)


def drop_dead(graph: fx.Graph) -> None:
    """Remove what nothing reads and what writes nothing; attention too, which fx takes for random and would keep."""
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output") or writes(node))


def finish(module: fx.GraphModule) -> None:
    """After a pass over its graph: remove what nothing reads, and make the module's code anew."""
    drop_dead(module.graph)
    module.graph.lint()
    module.recompile()


def is_floating(node: fx.Node) -> bool:
    """Whether a node's value is a tensor of floating numbers."""
    value = node.meta["val"]
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def fake_mode(graph: fx.Graph) -> Any:
    """That of the inputs' values, in which the shapes of new operations are found."""
    inputs = (node for node in graph.nodes if node.op == "placeholder")
    return next(node.meta["val"].fake_mode for node in inputs if isinstance(node.meta.get("val"), torch.Tensor))


def new_constant(module: torch.nn.Module, prefix: str, value: torch.Tensor) -> str:
    """Put a constant into a module, under the first name `prefix`_<index> that is free; that name."""
    index = 0
    while hasattr(module, name := f"{prefix}_{index}"):
        index += 1
    module.register_buffer(name, value)
    return name


def attribute(module: torch.nn.Module, path: str) -> torch.Tensor:
    """The weight or constant that a get_attr node names.

    Raises:
        ExportError: it is no tensor.
    """
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    if not isinstance(value, torch.Tensor):
        raise ExportError(f"the captured graph holds {path!r}, which is no tensor; the model cannot be compiled.")
    return value
