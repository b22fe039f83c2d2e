"""Stage 5: activations and gradients become the raw map.

Formulas: pytorch-grad-cam 1.5.7 where it has the method (`facts` of the design, part C). A method gets A and G over
the map's positions only, as (N,C,L) or (N,L,C) with its two axes named, so that no layout is ever transposed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch

from finercam_rt.manifest import LayerInfo

SQUARINGS = 8
"""Of the Gram matrix in Eigen-CAM: its 256th power, in which the first eigenvector is left alone."""


class Values(NamedTuple):
    """Activations or gradients over the positions of the map, and which axis is which."""

    data: torch.Tensor
    channel: int
    position: int


class Method(NamedTuple):
    """needs: what of the gradients; score: A and G (N,C,L or N,L,C), or A and pooled G (N,C), to (N,L) before ReLU."""

    needs: Literal["pooled", "gradients", "nothing"]
    score: Callable[[Values, torch.Tensor], torch.Tensor]


def raw_map(activations: torch.Tensor, gradients: torch.Tensor, layer: LayerInfo, method: str) -> torch.Tensor:
    """The raw map (N,h,w) of a method, from A and G in the layer's layout. Prefix tokens take no part."""
    found, values, cotangents = METHODS[method], positions(activations, layer), positions(gradients, layer)
    pooled = found.needs == "pooled"
    return as_map(found.score(values, cotangents.data.mean(cotangents.position) if pooled else cotangents.data), layer)


def positions(values: torch.Tensor, layer: LayerInfo) -> Values:
    """A value in the layer's layout, without prefix tokens, its grid flattened."""
    if layer.layout == "nchw":
        return Values(values.flatten(2), 1, 2)
    return Values(values.flatten(1, 2) if layer.layout == "nhwc" else values[:, layer.prefix_tokens :], 2, 1)


def as_map(scores: torch.Tensor, layer: LayerInfo) -> torch.Tensor:
    """ReLU of the scores (N,h*w), as (N,h,w)."""
    return scores.reshape(-1, *layer.grid).relu()


def _gradcam(a: Values, weights: torch.Tensor) -> torch.Tensor:
    """sum_k w_k A_k, w = mean_positions(G)."""
    if a.channel == 1:
        return (weights[:, None, :] @ a.data).squeeze(1)
    return (a.data @ weights[:, :, None]).squeeze(2)


def _gradcam_plus_plus(a: Values, g: torch.Tensor) -> torch.Tensor:
    """w_k = sum ReLU(G) * alpha, alpha = G^2 / (2 G^2 + (sum A) G^3 + 1e-6)."""
    square = g * g
    denominator = 2 * square + a.data.sum(a.position, keepdim=True) * square * g + 1e-6
    alpha = torch.where(g == 0, 0.0, square / denominator)
    return _gradcam(a, (g.relu() * alpha).sum(a.position))


def _xgradcam(a: Values, g: torch.Tensor) -> torch.Tensor:
    """w_k = sum G A / (sum A + 1e-7)."""
    return _gradcam(a, (g * a.data).sum(a.position) / (a.data.sum(a.position) + 1e-7))


def _layercam(a: Values, g: torch.Tensor) -> torch.Tensor:
    """sum_k ReLU(G) A."""
    return (g.relu() * a.data).sum(a.channel)


def _hirescam(a: Values, g: torch.Tensor) -> torch.Tensor:
    """sum_k G A."""
    return (g * a.data).sum(a.channel)


def _elementwise(a: Values, g: torch.Tensor) -> torch.Tensor:
    """sum_k ReLU(G A)."""
    return (g * a.data).relu().sum(a.channel)


def _fem(a: Values, _g: torch.Tensor) -> torch.Tensor:
    """w_k = share of positions where A > mean + 2 (population) standard deviations."""
    mean = a.data.mean(a.position, keepdim=True)
    deviation = (a.data - mean).square().mean(a.position, keepdim=True).sqrt()
    return _gradcam(a, (a.data > mean + 2 * deviation).to(a.data.dtype).mean(a.position))


def _eigencam(a: Values, _g: torch.Tensor) -> torch.Tensor:
    """X v1 of the centred positions-by-channels matrix X; of the two signs the one along the mean activations."""
    x = a.data if a.channel == 2 else a.data.transpose(1, 2)
    mean = x.mean(1, keepdim=True)
    centred = x - mean
    gram = centred @ centred.transpose(1, 2)
    power = gram
    for _ in range(SQUARINGS):
        # the trace keeps the largest eigenvalue between 1/L and 1
        power = power / power.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp(min=1e-30)
        power = power @ power
    best = power.diagonal(dim1=1, dim2=2).argmax(1)
    u = power.gather(2, best[:, None, None].expand(-1, power.shape[1], 1))
    u = u / u.square().sum(1, keepdim=True).sqrt().clamp(min=1e-30)
    projected = centred.transpose(1, 2) @ u  # sigma v1, (N,C,1)
    sigma = projected.square().sum(1, keepdim=True).sqrt()
    sign = torch.where((mean @ projected) < 0, -1.0, 1.0)
    return (sign * sigma * u).squeeze(2)


def _eigengradcam(a: Values, g: torch.Tensor) -> torch.Tensor:
    """Eigen-CAM of G A."""
    return _eigencam(Values(a.data * g, a.channel, a.position), g)


METHODS: dict[str, Method] = {
    "gradcam": Method("pooled", _gradcam),
    "gradcam++": Method("gradients", _gradcam_plus_plus),
    "xgradcam": Method("gradients", _xgradcam),
    "layercam": Method("gradients", _layercam),
    "hirescam": Method("gradients", _hirescam),
    "gradcamelementwise": Method("gradients", _elementwise),
    "eigengradcam": Method("gradients", _eigengradcam),
    "fem": Method("nothing", _fem),
    "eigencam": Method("nothing", _eigencam),
}
