"""The oracle: the model as PyTorch runs it, with autograd from the logits back to the target layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from finercam_rt.errors import ExportError


def run_with_gradients(model: nn.Module, layer: str, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer's output as a leaf that requires gradients, and the logits (N,K) computed from it.

    Only the part of the model after the layer is recorded, whatever the parameters require.
    """
    taps: list[torch.Tensor] = []

    def hook(_module: nn.Module, _inputs: object, output: object) -> torch.Tensor:
        if not isinstance(output, torch.Tensor):
            raise ExportError(
                f"target layer {layer!r} gives a {type(output).__name__}, not a tensor; choose a layer that gives one."
            )
        taps.append(output.detach().clone().requires_grad_())
        return taps[-1].clone()  # what follows may work in place, which a leaf forbids

    handle = model.get_submodule(layer).register_forward_hook(hook)
    try:
        with torch.enable_grad():
            logits = model(images)
    finally:
        handle.remove()
    if len(taps) != 1:
        raise ExportError(
            f"target layer {layer!r} runs {len(taps)} times in one forward pass; choose a layer that runs once."
        )
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise ExportError("the model must return one tensor of logits (N,K); wrap it so that it does.")
    return taps[0], logits


def objective_value(
    logits: torch.Tensor,
    target: Sequence[int],
    references: Sequence[Sequence[int]],
    alpha: Sequence[float],
    objective: str,
) -> torch.Tensor:
    """T = y_c - alpha * (weighted) mean of the references' logits, summed over images; references < 0 are unused."""
    total = logits.new_zeros(())
    for row, chosen, others, strength in zip(logits, target, references, alpha, strict=True):
        total = total + row[chosen]
        scores = row[[index for index in others if index >= 0]]
        if len(scores):
            weights = scores.softmax(0) if objective == "weighted" else torch.full_like(scores, 1 / len(scores))
            total = total - strength * (weights * scores).sum()
    return total
