"""The oracle: the model as PyTorch runs it, with autograd from the logits back to the target layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from finercam_rt.errors import ExportError
from finercam_rt.export.hooks import frozen, hooked
from finercam_rt.export.outputs import feature_map, layer_name, with_feature_map
from finercam_rt.manifest import LayerInfo


def run_with_gradients(
    model: nn.Module, layers: Sequence[str | LayerInfo], images: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The layers' outputs, which autograd can differentiate with respect to, and the logits (N,K) computed from them.

    Only the part of the model after the layers is recorded, whatever the parameters require. `model` is images ->
    logits (N,K), as `as_classifier` gives it; of a layer that returns several values it is the feature map, and of one
    that has only a name its output as it comes.
    """
    taps: list[list[torch.Tensor]] = [[] for _ in layers]

    def hook(index: int) -> Callable[[nn.Module, object, Any], Any]:
        def enter(_module: nn.Module, _inputs: object, output: Any) -> Any:
            found = feature_map(output, layers[index])
            # behind another layer it depends on that one's output, and must go on to do so
            value = found.clone() if found.requires_grad else found.detach().clone().requires_grad_()
            taps[index].append(value)
            # what follows may work in place, which a leaf forbids
            return with_feature_map(output, value.clone(), layers[index])

        return enter

    names = [layer_name(layer) for layer in layers]
    hooks = ((model.get_submodule(name), hook(index)) for index, name in enumerate(names))
    with hooked(hooks), frozen(model), torch.enable_grad():
        logits = model(images)
    for name, found in zip(names, taps, strict=True):
        if len(found) != 1:
            raise ExportError(
                f"target layer {name!r} runs {len(found)} times in one forward pass; choose a layer that runs once."
            )
    return [found[0] for found in taps], logits


def objective_value(
    logits: torch.Tensor,
    target: Sequence[int],
    references: Sequence[Sequence[int]],
    alpha: Sequence[float],
    objective: str,
) -> torch.Tensor:
    """T = y_c - alpha * (weighted) mean of y_i over the references i, summed over images; references < 0 are unused.

    y are the logits, or for the objective "softmax" their softmax over all classes, and T is then up to a constant.
    """
    total = logits.new_zeros(())
    for row, chosen, others, strength in zip(logits, target, references, alpha, strict=True):
        used = [index for index in others if index >= 0]
        if objective == "softmax":
            probabilities = row.double().softmax(0)
            weights = torch.zeros_like(probabilities)
            weights[chosen] = 1
            weights[used] -= strength / max(1, len(used))
            # sum p is 1: this is T but for a constant, and its derivative does not cancel where one class is certain
            weights -= weights[probabilities.argmax()].clone()
            total = total + (weights * probabilities).sum()
            continue
        total = total + row[chosen]
        scores = row[used]
        if len(scores):
            weights = scores.softmax(0) if objective == "weighted" else torch.full_like(scores, 1 / len(scores))
            total = total - strength * (weights * scores).sum()
    return total
