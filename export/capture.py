"""Stage 1: a model and an example become a functional ATen graph with a mark at each target layer's output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from finercam_rt.errors import ExportError
from finercam_rt.export.constants import fold_constants
from finercam_rt.export.distances import AnyBatch
from finercam_rt.export.functionalize import functionalize
from finercam_rt.export.hooks import hooked
from finercam_rt.export.outputs import feature_map, layer_name, with_feature_map
from finercam_rt.export.plain_attention import plain_attention
from finercam_rt.export.quiet import quiet
from finercam_rt.export.refusal import first_line
from finercam_rt.export.rewrite import rewrite
from finercam_rt.export.whole_numbers import whole_quotients
from finercam_rt.manifest import LayerInfo

MAX_BATCH = 1 << 16
EXAMPLE_CLASSES, MAX_CLASSES = 7, 1 << 24
"""Where the classes are an input: while tracing, any number that is no other size of the graph, and at most."""


@torch.library.custom_op("finercam::tap", mutates_args=())
def tap(x: torch.Tensor, index: int) -> torch.Tensor:
    """The identity; as a custom operation it survives capture and marks target layer `index` in the graph."""
    return x.clone()


@tap.register_fake
def _(x: torch.Tensor, index: int) -> torch.Tensor:
    return torch.empty_like(x)


@dataclass(frozen=True)
class Captured:
    """The model as one graph module, images (N,C,H,W) -> logits (N,K), and the nodes that mark the target layers."""

    graph_module: torch.fx.GraphModule
    marks: tuple[torch.fx.Node, ...]
    logits: torch.fx.Node


def capture(model: nn.Module, layers: Sequence[str | LayerInfo], example: torch.Tensor) -> Captured:
    """Capture `model` with its batch dimension dynamic, N >= 1.

    Composite operations (linear, layer_norm, scaled_dot_product_attention, gelu) are kept whole; mutation and
    dropout are gone.

    Args:
        model: images -> logits (N,K), as `as_classifier` gives it.
        layers: the target layers, or names of modules; of an output with several values the feature map is marked.
        example: (N,C,H,W) float32 with N >= 2, so that the batch is not taken for a constant.

    Raises:
        ExportError: torch.export cannot trace the model, or a layer does not run exactly once.
    """

    def mark(index: int, layer: str | LayerInfo) -> Callable[[nn.Module, object, Any], Any]:
        return lambda _module, _inputs, output: with_feature_map(output, tap(feature_map(output, layer), index), layer)

    names = [layer_name(layer) for layer in layers]
    marked = enumerate(zip(names, layers, strict=True))
    with hooked((model.get_submodule(name), mark(index, layer)) for index, (name, layer) in marked):
        graph_module = _exported(model, example)
    fold_constants(graph_module)
    taps = [node for node in graph_module.graph.nodes if node.target is torch.ops.finercam.tap.default]
    for index, name in enumerate(names):
        times = sum(node.args[1] == index for node in taps)
        if times != 1:
            raise ExportError(
                f"target layer {name!r} runs {times} times in one forward pass; choose a layer that runs once."
            )
    marks = sorted(taps, key=lambda node: int(node.args[1]))
    rewrite(graph_module, marks)
    return Captured(graph_module, tuple(marks), _only_output(graph_module))


def _exported(model: nn.Module, example: torch.Tensor) -> torch.fx.GraphModule:
    """The graph of the model's forward, followed as it runs, or else out of its bytecode.

    The first is quick. The second knows that len(x) and int(x.shape[0]) are the batch and not a number.
    """
    first: Exception | None = None
    for strict in (False, True):
        try:
            # a mode of functions is not for what is followed through its bytecode
            with torch.no_grad(), quiet(), plain_attention(model), whole_quotients() if strict else AnyBatch():
                program = torch.export.export(
                    model, (example,), dynamic_shapes=({0: Dim("batch", min=1, max=MAX_BATCH)},), strict=strict
                )
                graph_module = _module(program)
                return graph_module if functionalize(graph_module) else _decomposed(program)
        except ExportError:
            raise
        except Exception as error:
            first = first or error
    assert first is not None
    constant = any(text in str(first) for text in ("specialized it to be a constant", "Constraints violated"))
    reason = "the forward makes a number of the batch size" if constant else first_line(first)
    raise ExportError(
        f"torch.export cannot capture the model with a dynamic batch ({reason}); "
        "rewrite that part of its forward without data-dependent Python or a fixed batch size."
    ) from first


def _module(program: torch.export.ExportedProgram) -> torch.fx.GraphModule:
    """The program without the input checks that torch.export appends; the engine's runtime has its own."""
    graph_module = program.module()
    assert isinstance(graph_module, torch.fx.GraphModule)
    for node in list(graph_module.graph.nodes):
        if node.op == "call_module" and node.name.startswith("_guards_fn"):
            graph_module.graph.erase_node(node)
    return graph_module


def _decomposed(program: torch.export.ExportedProgram) -> torch.fx.GraphModule:
    """The program as torch.export makes it functional, without the last step, which stores what a forward keeps."""
    graph_module = _module(program.run_decompositions({}))
    for node in list(graph_module.graph.nodes):
        if node.target is torch.ops.aten.copy_.default and not node.users:
            graph_module.graph.erase_node(node)
    return graph_module


def _only_output(graph_module: torch.fx.GraphModule) -> torch.fx.Node:
    value: Any = graph_module.graph.output_node().args[0]
    while isinstance(value, (tuple, list)):
        (value,) = value
    assert isinstance(value, torch.fx.Node)
    return value
