"""Random weights that behave like trained ones: no branch is silent, no norm is trivial, no activation explodes."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

SILENT = 0.1
"""A scale that begins below this (layer scales begin at 1e-6, last norms of a block at 0) hides its branch."""
LEAST_GAIN = 0.5
"""Of a linear layer or a convolution, std * sqrt(inputs): transformers begin at 0.02, whose attention is the same for
every token, and behind whose small convolutions nothing is left but the shifts of batch norms."""
GAIN = 0.8
LOCAL = 0.2
"""The share of a batch norm's input that differs from position to position, below which the norm damps it."""
TAMING = ((1.0, 0.0), (0.5, 0.0), (0.25, 0.0), (1.0, 1.0))
"""Factors of the branches' scales and of the shifts, and what is added to the shifts of batch norms, in this order.

Damped branches tame residual networks. A deep network without them blows up what is put in by its rectifiers, each of
which cuts half of what a norm gives; lifted, they cut little.
"""
ROUNDING = 2e-5
"""Of the logits in float32, relative: above it the layers blow up whatever is put in, as trained ones do not."""
_SHIFTS = ("bias", "beta", "token", "embed", "pos")
"""What names of parameters that are added contain; others of one value scale."""


def randomise(model: nn.Module, images: torch.Tensor, seed: int) -> None:
    """Change the weights in place, the same for the same seed; the model is in evaluation mode before and after.

    Parameters that the library filled with one value are drawn: scales within 20 % of what they are (or from 0.2 to 0.6
    where they are silent), shifts with a standard deviation of 0.1. Weak linear layers and convolutions are
    strengthened. Batch norms get the statistics of `images` (N,3,H,W), and noise on them. Where rounding grows, the
    weights are tamed.
    """
    before = copy.deepcopy(model.state_dict())
    found: list[tuple[float, int]] = []
    with torch.no_grad():
        for number, (damping, lift) in enumerate(TAMING):
            model.load_state_dict(before)
            _draw(model, images, seed, damping, lift)
            rounding = _rounding(model, images)
            if rounding <= ROUNDING:
                return
            found.append((rounding if math.isfinite(rounding) else math.inf, number))
        _, least = min(found)
        model.load_state_dict(before)
        _draw(model, images, seed, *TAMING[least])


def _draw(model: nn.Module, images: torch.Tensor, seed: int, damping: float, lift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.numel() and parameter.min() == parameter.max():
            parameter.copy_(_drawn(name, parameter, generator, damping))
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.numel() > 1:
            gain = float(module.weight.std()) * math.sqrt(module.weight[0].numel())
            if 0 < gain < LEAST_GAIN:
                module.weight.mul_(GAIN / gain)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            if module.weight.mean().abs() < module.weight.std():  # transformers draws MobileViT's around 0
                module.weight.copy_(_uniform(module.weight, 0.8, 1.2, generator))
            module.bias.add_(lift)
    _calibrate(model, images, generator, lifted=lift > 0)


def _rounding(model: nn.Module, images: torch.Tensor) -> float:
    """How far the logits (N,K) in float32 are from those in float64, relative to the largest; 0 where there is none."""
    try:
        exact = copy.deepcopy(model).double()(images.double())
    except (RuntimeError, TypeError):  # float32 in its code
        return 0.0
    return float((model(images) - exact).abs().max() / exact.abs().max().clamp(min=1e-300))


def _drawn(name: str, parameter: torch.Tensor, generator: torch.Generator, damping: float) -> torch.Tensor:
    value = float(parameter.flatten()[0])
    leaf = name.rpartition(".")[2]
    if any(word in leaf for word in _SHIFTS):
        return value + 0.1 * damping * torch.randn(parameter.shape, generator=generator)
    if abs(value) < SILENT:
        return damping * _uniform(parameter, 0.2, 0.6, generator)
    return value * _uniform(parameter, 0.8, 1.2, generator)


def _uniform(like: torch.Tensor, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(like.shape, generator=generator)


def _calibrate(model: nn.Module, images: torch.Tensor, generator: torch.Generator, *, lifted: bool) -> None:
    """One pass in which each batch norm takes the statistics of its input, and noise on them, before it runs.

    As variance the second moment is taken, and more where the input is nearly the same at every position: an attention
    with random weights takes the mean of everything, and normalised it would drown what is local. Of lifted norms it is
    the variance itself: what is lifted has a large mean.
    """

    def measure(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        channels = inputs[0].transpose(0, 1).flatten(1)
        moment = channels.var(1) if lifted else channels.square().mean(1)
        # a channel that was silent by chance would be blown up too
        moment.clamp_(min=max(1e-3 * float(moment.mean()), 1e-12))
        mean_noise = 0.1 * moment.sqrt() * torch.randn(len(channels), generator=generator)
        norm.get_buffer("running_mean").copy_(channels.mean(1) + mean_noise)
        local = 1.0 if lifted else _local_share(inputs[0]) / LOCAL
        variance = moment / min(1.0, max(local, 1e-3))
        norm.get_buffer("running_var").copy_(variance * _uniform(variance, 0.8, 1.25, generator))

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    handles = [norm.register_forward_pre_hook(measure) for norm in norms]
    try:
        if norms:
            model(images)
    finally:
        for handle in handles:
            handle.remove()


def _local_share(features: torch.Tensor) -> float:
    """How much of what (N,C,h,w) holds differs from position to position; 1 where there is one position."""
    if features.ndim != 4 or features.shape[2] * features.shape[3] == 1:
        return 1.0
    within = features.flatten(2).var(2).mean()
    return float(within / features.square().mean().clamp(min=1e-30))
