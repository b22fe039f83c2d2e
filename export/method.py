"""Stage 5: activations and gradients become the raw map."""

from __future__ import annotations

import torch

from finercam_rt.manifest import LayerInfo


def pooled_gradients(gradients: torch.Tensor, layer: LayerInfo) -> torch.Tensor:
    """Grad-CAM's channel weights: the mean of G over the map's positions, (N,C). Prefix tokens take no part."""
    if layer.layout == "nchw":
        return gradients.mean((2, 3))
    return _positions(gradients, layer).mean(1)


def weighted_map(activations: torch.Tensor, weights: torch.Tensor, layer: LayerInfo) -> torch.Tensor:
    """Raw map ReLU(sum_k w_k A_k), (N,h,w), from activations in the layer's layout and weights (N,C)."""
    height, width = layer.grid
    if layer.layout == "nchw":
        scores = weights[:, None, :] @ activations.flatten(2)
    else:
        scores = _positions(activations, layer) @ weights[:, :, None]
    return scores.reshape(-1, height, width).relu()


def gradcam(activations: torch.Tensor, gradients: torch.Tensor, layer: LayerInfo) -> torch.Tensor:
    """Raw Grad-CAM map, (N,h,w), from A and G in the layer's layout. Source: Selvaraju et al. 2017."""
    return weighted_map(activations, pooled_gradients(gradients, layer), layer)


def _positions(values: torch.Tensor, layer: LayerInfo) -> torch.Tensor:
    """(N,h*w,C) of nhwc and token layouts, without prefix tokens."""
    return values.flatten(1, 2) if layer.layout == "nhwc" else values[:, layer.prefix_tokens :]
