"""Stage 6, ahead of the exporter: graphs put together as a program of torch.export's, without tracing them again.

Their nodes know the values' shapes and types already. A third of the time of an export went into finding them anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx
from torch._export.verifier import TrainingIRVerifier
from torch.export import ExportedProgram, ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from finercam_rt.export.rewriter import attribute, drop_dead, reshaped_to

aten = torch.ops.aten

_RESHAPES = {aten.view.default, aten.reshape.default, aten._unsafe_view.default}
_PADS = {aten.pad.default, aten.constant_pad_nd.default}
_MAY_CHANGE_NOTHING = {*_RESHAPES, *_PADS, aten.expand.default, aten.slice.Tensor, aten.sum.dim_IntList, aten.mean.dim}
"""Where their values are of the same shape as what they are given."""


class Assembly:
    """One graph that grows by whole graphs; weights become inputs of it, as in all programs of torch.export's."""

    def __init__(self, mode: Any) -> None:
        """Start it, in the mode in which the graphs were traced."""
        self._mode = mode
        self._graph = fx.Graph()
        self._weights: dict[str, torch.Tensor] = {}
        self._lifted: dict[tuple[Any, ...], fx.Node] = {}
        self._inputs: list[fx.Node] = []

    def input(self, name: str, value: Any) -> fx.Node:
        """The next input, and the fake value that stands for it; the first comes ahead of all graphs."""
        node = self._graph.placeholder(name)
        node.meta["val"] = value
        self._inputs.append(node)
        return node

    def add(self, module: fx.GraphModule, inputs: Iterable[fx.Node]) -> list[fx.Node]:
        """Append a graph of such inputs, however they are nested; its outputs."""
        given = iter(inputs)
        copies: dict[fx.Node, fx.Node] = {}
        for node in module.graph.nodes:
            if node.op == "placeholder":
                copies[node] = next(given)
            elif node.op == "get_attr":
                copies[node] = self._weight(attribute(module, str(node.target)), node.name)
            elif node.op == "output":
                leaves = pytree.tree_leaves(node.args[0])
                return [copies[leaf] for leaf in leaves]
            else:
                copies[node] = self._graph.node_copy(node, copies.__getitem__)
        raise AssertionError("a graph without an output")

    def call(self, target: Any, *args: Any, value: Any) -> fx.Node:
        """Append one operation, whose fake value is known."""
        node = self._graph.call_function(target, args)
        node.meta["val"] = value
        return node

    def program(self, outputs: Sequence[fx.Node]) -> ExportedProgram:
        """The program of these outputs; nothing can be added to it any more."""
        weights = [
            InputSpec(InputKind.BUFFER, TensorArgument(node.name), node.name, persistent=True)
            for node in self._lifted.values()
        ]
        inputs = [InputSpec(InputKind.USER_INPUT, TensorArgument(node.name), None) for node in self._inputs]
        results = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in outputs]
        self._graph.output(tuple(outputs))
        self._write_sizes()
        drop_dead(self._graph)
        call = ModuleCallSignature(
            inputs=[],
            outputs=[],
            in_spec=pytree.tree_structure((tuple(range(len(inputs))), {})),
            out_spec=pytree.tree_structure(tuple(range(len(results)))),
        )
        return ExportedProgram(
            root=torch.nn.Module(),
            graph=self._graph,
            graph_signature=ExportGraphSignature([*weights, *inputs], results),
            state_dict=self._weights,
            range_constraints={},
            module_call_graph=[ModuleCallEntry("", call)],
            verifiers=[TrainingIRVerifier],  # where something writes in place, `to_onnx` makes it pure
        )

    def _write_sizes(self) -> None:
        """Let no reshape compute its sizes: of a number of elements, as traces have it, ONNX has no form.

        What gives back what it is given goes: runtimes copy it, or keep it out of the kernels around it.
        """
        for node in self._graph.nodes:
            if node.target not in _MAY_CHANGE_NOTHING:
                continue
            before, after = node.args[0].meta["val"], node.meta["val"]
            unchanged = str(before.shape) == str(after.shape) and before.dtype == after.dtype
            if unchanged and not (node.target in _PADS and any(node.args[1])):
                node.replace_all_uses_with(node.args[0], lambda user: user.op != "output")
            elif node.target in _RESHAPES and (sizes := reshaped_to(after)) is not None:
                node.update_arg(1, sizes)

    def _weight(self, value: torch.Tensor, name: str) -> fx.Node:
        """The input that is this weight, or another view of the same numbers."""
        key = (value.data_ptr(), value.dtype, tuple(value.shape), tuple(value.stride()), value.device)
        if key not in self._lifted:
            with self._graph.inserting_before(self._inputs[0]):
                node = self._graph.placeholder(name)
            node.meta["val"] = self._mode.from_tensor(value, static_shapes=True)
            self._weights[node.name] = value.detach()
            self._lifted[key] = node
        return self._lifted[key]
