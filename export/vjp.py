"""Stage 4: the tail, its seed, the VJP with respect to the perturbation, and the map, traced into one graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.utils._python_dispatch import _disable_current_modes

from finercam_rt.errors import ExportError
from finercam_rt.export.broadcast import delay_broadcasts
from finercam_rt.export.capture import first_line
from finercam_rt.export.contrast import Contrast, contrast, dense_seed
from finercam_rt.export.cut import Split
from finercam_rt.export.decompositions import decompositions
from finercam_rt.export.head import Head, take_head
from finercam_rt.export.lift import Lifted, LiftedTail
from finercam_rt.export.method import METHODS, as_map, positions
from finercam_rt.export.sink import sink_selections
from finercam_rt.export.sums import sum_early
from finercam_rt.manifest import LayerInfo


@dataclass(frozen=True)
class ExplainedTail:
    """The traced graph, and what the passes did, a line each."""

    graph_module: fx.GraphModule
    passes: tuple[str, ...]


def explained_tail(split: Split, layer: LayerInfo, objective: str, references: int, method: str) -> ExplainedTail:
    """Trace (boundary, target, references, alpha) -> (logits, saliency_map, target_class, reference_classes).

    Autograd runs once, here, over the tail only; the graph that comes out holds plain forward operations. It
    differentiates with respect to what the method needs: one number a channel, added at every position (DESIGN,
    section 2.1), or the activations themselves, or nothing.

    Raises:
        ExportError: the tail holds an operation that has no derivative.
    """
    needs = METHODS[method].needs
    tail, sunk = sink_selections(split.tail)
    head = take_head(tail)
    interpreter = LiftedTail(tail if head is None else head.features)

    def run(
        boundary: tuple[Any, ...], target: torch.Tensor, reference_classes: torch.Tensor, alpha: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        activations = boundary[0].detach()
        start, leaf = _perturbed(activations, layer, needs)
        with torch.enable_grad():
            (result,) = interpreter.run(start, *boundary[1:])
            result = result.merged() if isinstance(result, Lifted) else result
        with torch.no_grad():
            logits = result.detach() if head is None else functional.linear(result.detach(), head.weight, head.bias)
            chosen = contrast(logits, target, reference_classes, alpha, objective)
            cotangent = _cotangent(chosen, logits, head)
        values = positions(activations, layer)
        gradients = activations
        if needs != "nothing":
            (gradients,) = torch.autograd.grad(result, leaf, cotangent)
        if needs == "pooled":
            gradients = gradients.flatten(1) / (layer.grid[0] * layer.grid[1])
        elif needs == "gradients":
            gradients = positions(gradients, layer).data
        return logits, as_map(METHODS[method].score(values, gradients), layer), chosen.target, chosen.references

    fake_mode = split.boundary[0].fake_mode
    batch = split.boundary[0].shape[0]
    with fake_mode:
        target = torch.empty(batch, dtype=torch.int64)
        reference_classes = torch.empty(batch, references, dtype=torch.int64)
        alpha = torch.empty(batch)
    try:
        graph_module = make_fx(
            run, tracing_mode="symbolic", decomposition_table=decompositions(), _allow_non_fake_inputs=True
        )(split.boundary, target, reference_classes, alpha)
    except (RuntimeError, NotImplementedError) as error:
        raise ExportError(f"the model's tail cannot be differentiated: {first_line(error)}.") from error
    graph_module.graph.eliminate_dead_code()
    graph_module, summed = sum_early(graph_module)
    graph_module, delayed = delay_broadcasts(graph_module)
    graph_module.recompile()
    return ExplainedTail(graph_module, (*sunk, *_report(interpreter, head, needs), *summed, *delayed))


def _perturbed(activations: torch.Tensor, layer: LayerInfo, needs: str) -> tuple[torch.Tensor | Lifted, torch.Tensor]:
    """What the tail starts from, and the leaf whose gradient the method needs."""
    if needs == "pooled":
        delta = torch.zeros(_perturbation_shape(activations, layer)).requires_grad_()
        return Lifted(activations, delta, _mask(activations, layer)), delta
    leaf = activations.requires_grad_(needs == "gradients")
    return leaf, leaf


def _perturbation_shape(activations: torch.Tensor, layer: LayerInfo) -> list[int]:
    """One number for each image and channel: size 1 along the positions."""
    channel = 1 if layer.layout == "nchw" else activations.ndim - 1
    return [size if i in (0, channel) else 1 for i, size in enumerate(activations.shape)]


def _mask(activations: torch.Tensor, layer: LayerInfo) -> torch.Tensor:
    """1 at the map's positions, 0 at prefix tokens; a real tensor, known when the graph is traced."""
    with _disable_current_modes():
        if layer.layout != "tokens" or layer.prefix_tokens == 0:
            return torch.ones([1] * activations.ndim)
        mask = torch.ones(1, int(activations.shape[1]), 1)
        mask[:, : layer.prefix_tokens] = 0
        return mask


def _cotangent(chosen: Contrast, logits: torch.Tensor, head: Head | None) -> torch.Tensor:
    """The seed itself, or, behind a last linear layer, its product with the rows of the weight that it touches."""
    if head is None:
        return dense_seed(chosen, int(logits.shape[1]))
    rows = functional.embedding(chosen.classes, head.weight)
    return (chosen.cotangents[:, None, :] @ rows).squeeze(1)


def _report(interpreter: LiftedTail, head: Head | None, needs: str) -> tuple[str, ...]:
    if needs == "nothing":
        return ("gradients: none, the method needs only activations",)
    seed = "dense" if head is None else "sparse, rows of the last linear layer gathered"
    if needs == "gradients":
        return ("gradients: at every position, as the method needs", f"seed: {seed}")
    merged = ", ".join(interpreter.merged_at) or "nowhere: closed form"
    return (f"pooled perturbation: merged at {merged}", f"seed: {seed}")
