"""Random weights that behave like trained ones: no branch is silent, no norm is trivial, no activation explodes."""

from __future__ import annotations

import math

import torch
from torch import nn

SILENT = 0.1
"""A scale that begins below this (layer scales begin at 1e-6, last norms of a block at 0) hides its branch."""
LEAST_GAIN = 0.5
"""Of a linear layer, std * sqrt(inputs): transformers begin at 0.02, whose attention is the same for every token."""
GAIN = 0.8
_SHIFTS = ("bias", "beta", "token", "embed", "pos")
"""What names of parameters that are added contain; others of one value scale."""


def randomise(model: nn.Module, images: torch.Tensor, seed: int) -> None:
    """Change the weights in place, the same for the same seed; the model is in evaluation mode before and after.

    Parameters that the library filled with one value are drawn: scales within 20 % of what they are (or from 0.2 to 0.6
    where they are silent), shifts with a standard deviation of 0.1. Weak linear layers are strengthened. Batch norms
    get the statistics of `images` (N,3,H,W), N >= 2, and noise on them.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and bool((parameter == parameter.flatten()[0]).all()):
                parameter.copy_(_drawn(name, parameter, generator))
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.weight.numel() > 1:
                gain = float(module.weight.std()) * math.sqrt(module.in_features)
                if 0 < gain < LEAST_GAIN:
                    module.weight.mul_(GAIN / gain)
        _calibrate([m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)], model, images)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                spread = model.get_buffer(name.replace("running_mean", "running_var")).sqrt()
                buffer.add_(0.1 * spread * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.mul_(_uniform(buffer, 0.8, 1.25, generator))


def _drawn(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    value = float(parameter.flatten()[0])
    leaf = name.rpartition(".")[2]
    if any(word in leaf for word in _SHIFTS):
        return value + 0.1 * torch.randn(parameter.shape, generator=generator)
    if abs(value) < SILENT:
        return _uniform(parameter, 0.2, 0.6, generator)
    return value * _uniform(parameter, 0.8, 1.2, generator)


def _uniform(like: torch.Tensor, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(like.shape, generator=generator)


def _calibrate(norms: list[nn.modules.batchnorm._BatchNorm], model: nn.Module, images: torch.Tensor) -> None:
    """One pass in which batch norms alone are in training mode: the statistics of random weights are not (0, 1)."""
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
        norm.train()
    model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
        variance = norm.running_var
        assert variance is not None
        # a channel that was silent by chance would be blown up by its norm at the next image
        variance.clamp_(min=max(1e-3 * float(variance.mean()), 1e-12))
