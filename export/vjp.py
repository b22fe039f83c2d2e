"""Stage 4: the tail, its seed, the VJP with respect to the activations, and the map, traced into one graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from finercam_rt.errors import ExportError
from finercam_rt.export.capture import first_line
from finercam_rt.export.contrast import contrast
from finercam_rt.export.cut import Split
from finercam_rt.export.decompositions import decompositions
from finercam_rt.export.method import gradcam
from finercam_rt.manifest import LayerInfo


def explained_tail(split: Split, layer: LayerInfo, objective: str, references: int) -> fx.GraphModule:
    """Trace (boundary, target, references, alpha) -> (logits, saliency_map, target_class, reference_classes).

    Autograd runs once, here, over the tail only; the graph that comes out holds plain forward operations.

    Raises:
        ExportError: the tail holds an operation that has no derivative.
    """

    def run(
        boundary: tuple[Any, ...], target: torch.Tensor, reference_classes: torch.Tensor, alpha: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        activations = boundary[0].detach().requires_grad_()
        with torch.enable_grad():
            (logits,) = split.tail(activations, *boundary[1:])
        with torch.no_grad():
            chosen = contrast(logits.detach(), target, reference_classes, alpha, objective)
        (gradients,) = torch.autograd.grad(logits, activations, chosen.seed)
        raw_map = gradcam(activations.detach(), gradients, layer)
        return logits.detach(), raw_map, chosen.target, chosen.references

    fake_mode = split.boundary[0].fake_mode
    batch = split.boundary[0].shape[0]
    with fake_mode:
        target = torch.empty(batch, dtype=torch.int64)
        reference_classes = torch.empty(batch, references, dtype=torch.int64)
        alpha = torch.empty(batch)
    try:
        # the flash attention of the CPU has a fused backward that nothing can export; the plain one decomposes
        with sdpa_kernel(SDPBackend.MATH):
            graph_module = make_fx(
                run, tracing_mode="symbolic", decomposition_table=decompositions(), _allow_non_fake_inputs=True
            )(split.boundary, target, reference_classes, alpha)
    except (RuntimeError, NotImplementedError) as error:
        raise ExportError(f"the model's tail cannot be differentiated: {first_line(error)}.") from error
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return graph_module
