"""A traced derivative, run in two steps: what does not depend on the seed once, then the rest for one or many seeds."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx

from finercam_rt.errors import ExportError
from finercam_rt.export.many import Many, for_many
from finercam_rt.export.values import dependents


class Staged:
    """The graph of a derivative whose last input is the seed. Outputs that the seed takes no part in come first."""

    def __init__(self, derivative: fx.GraphModule, known: int) -> None:
        """Take the graph, of whose outputs the first `known` do not depend on the seed.

        Raises:
            ExportError: one of the others does not either.
        """
        self._module = derivative
        nodes = list(derivative.graph.nodes)
        *self._inputs, self._seed = (node for node in nodes if node.op == "placeholder")
        outputs: Any = derivative.graph.output_node().args[0]
        self._outputs: Sequence[Any] = outputs
        behind = dependents(nodes, [self._seed])
        if any(output not in behind for output in self._outputs[known:]):
            raise ExportError(
                "the derivative at the target layer, as captured, is zero for every class: there is nothing to draw, "
                "or an operation behind it, as of complex numbers, cannot be captured; choose another layer."
            )
        steps = [node for node in nodes if node.op in ("call_function", "get_attr")]
        self._before = [node for node in steps if node not in behind]
        self._behind = [node for node in steps if node in behind]
        self._values: dict[fx.Node, Any] = {}

    def start(self, inputs: Iterable[Any]) -> list[Any]:
        """Run what the seed takes no part in; the outputs that are known then."""
        self._values = dict(zip(self._inputs, inputs, strict=True))
        self._run(self._before, self._values)
        return [self._values[node] for node in self._outputs if node in self._values]

    def finish(self, seed: torch.Tensor) -> list[torch.Tensor]:
        """The remaining outputs for a seed (N,...)."""
        return self._finish(seed)

    def finish_many(self, seeds: torch.Tensor) -> list[torch.Tensor]:
        """The remaining outputs for P seeds (N,P,...), with P behind N."""
        return [value.stacked.movedim(0, 1) for value in self._finish(Many(seeds.movedim(1, 0)))]

    def _finish(self, seed: Any) -> list[Any]:
        values = {**self._values, self._seed: seed}
        self._run(self._behind, values)
        return [values[node] for node in self._outputs if node not in self._values]

    def _run(self, nodes: Iterable[fx.Node], values: dict[fx.Node, Any]) -> None:
        for node in nodes:
            if node.op == "get_attr":
                values[node] = getattr(self._module, str(node.target))
                continue
            target: Any = node.target
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: values[source])
            several = target is not operator.getitem and any(isinstance(values[n], Many) for n in node.all_input_nodes)
            values[node] = for_many(target, args, kwargs) if several else target(*args, **kwargs)
