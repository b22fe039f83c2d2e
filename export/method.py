"""Stage 5: activations and gradients become the raw map."""

from __future__ import annotations

import torch

from finercam_rt.manifest import LayerInfo


def gradcam(activations: torch.Tensor, gradients: torch.Tensor, layer: LayerInfo) -> torch.Tensor:
    """Raw Grad-CAM map ReLU(sum_k mean_positions(G_k) A_k), (N,h,w), from A and G in the layer's layout.

    Prefix tokens take no part. Source: Selvaraju et al. 2017; `facts` of the design, part C.
    """
    height, width = layer.grid
    if layer.layout == "nchw":
        weights = gradients.mean((2, 3))
        positions = activations.flatten(2)
        scores = weights[:, None, :] @ positions
    else:
        first = layer.prefix_tokens
        tokens = activations.flatten(1, 2) if layer.layout == "nhwc" else activations[:, first:]
        cotangents = gradients.flatten(1, 2) if layer.layout == "nhwc" else gradients[:, first:]
        scores = tokens @ cotangents.mean(1)[:, :, None]
    return scores.reshape(-1, height, width).relu()
