"""What each kernel computes, in plain torch: what its result is held to in float64, and what it is timed against.

One operation after the other, as someone without kernels of his own would write it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Formula = Callable[..., tuple[Tensor, ...]]


def cam(method: str, layout: str, prefix_tokens: int, grid: tuple[int, int], *, products: bool) -> Formula:
    """The raw map (N,h,w) of A and G in a layout; products: by matrix products, for methods of channel weights."""

    def channels_first(x: Tensor) -> Tensor:
        if layout == "nchw":
            return x
        if layout == "tokens":
            x = x[:, prefix_tokens:].unflatten(1, grid)
        return x.permute(0, 3, 1, 2)

    def formula(activations: Tensor, gradients: Tensor) -> tuple[Tensor]:
        a = channels_first(activations)
        if method in _TERMS:
            return (_TERMS[method](a, channels_first(gradients)).sum(1).relu(),)
        weights = gradients if method == "channel_weights" else _WEIGHTS[method](a, channels_first(gradients))
        if products:
            return (torch.einsum("nc,nchw->nhw", weights, a).relu(),)
        return ((weights[:, :, None, None] * a).sum(1).relu(),)

    return formula


def _plus_plus(a: Tensor, g: Tensor) -> Tensor:
    square = g * g
    alpha = square / (2 * square + a.sum((2, 3), keepdim=True) * square * g + 1e-6)
    return (g.relu() * torch.where(g == 0, 0, alpha)).sum((2, 3))


def _above(a: Tensor, _: Tensor) -> Tensor:
    mean = a.mean((2, 3), keepdim=True)
    spread = (a - mean).square().mean((2, 3), keepdim=True).sqrt()
    return (a > mean + 2 * spread).to(a.dtype).mean((2, 3))


_WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": lambda a, g: g.mean((2, 3)),
    "gradcam++": _plus_plus,
    "xgradcam": lambda a, g: (g * a).sum((2, 3)) / (a.sum((2, 3)) + 1e-7),
    "fem": _above,
}
_TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "layercam": lambda a, g: g.relu() * a,
    "hirescam": lambda a, g: g * a,
    "gradcamelementwise": lambda a, g: (g * a).relu(),
}


def render(size: tuple[int, int], colors: Tensor | None, opacity: float) -> Formula:
    """Min-max, bilinear resize; with colours (256,3) their bytes, blended with photographs where there are some."""

    def formula(maps: Tensor, photos: Tensor | None = None) -> tuple[Tensor]:
        positive = maps.relu()
        low, high = positive.amin((1, 2), keepdim=True), positive.amax((1, 2), keepdim=True)
        normal = ((positive - low) / (high - low))[:, None]
        values = F.interpolate(normal, size, mode="bilinear", align_corners=False)[:, 0]
        if colors is None:
            return (values,)
        rgb = colors[(values * 255 + 0.5).long()].to(maps.dtype)
        if photos is not None:
            rgb = (opacity * rgb + (1 - opacity) * photos + 0.5).floor()
        return (torch.cat([rgb, torch.full_like(rgb[..., :1], 255)], -1).to(torch.uint8),)

    return formula


def preprocess(
    resized: tuple[int, int], crop: tuple[int, int], size: tuple[int, int], mode: str, mean: Tensor, std: Tensor
) -> Formula:
    """Photographs (N,H,W,3) uint8 of one size, resized with antialiasing, cropped, normalised."""

    def formula(photographs: Tensor) -> tuple[Tensor]:
        levels = photographs.permute(0, 3, 1, 2).to(mean.dtype)
        levels = F.interpolate(levels, resized, mode=mode, antialias=True, align_corners=False).round().clamp(0, 255)
        levels = levels[:, :, crop[0] : crop[0] + size[0], crop[1] : crop[1] + size[1]]
        return ((levels / 255 - mean[:, None, None]) / std[:, None, None],)

    return formula


def mask(images: Tensor, maps: Tensor) -> tuple[Tensor]:
    """(N,K,C,H,W): images times maps that are resized and normalised."""
    resized = F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)
    low, high = resized.amin((2, 3), keepdim=True), resized.amax((2, 3), keepdim=True)
    return (images[:, None] * ((resized - low) / (high - low + 1e-8))[:, :, None],)


def remove(counts: Tensor, fill: Tensor) -> Formula:
    """(N,S,C,H,W): the fill (C,) where the rank is below the count of the step (N,S)."""

    def formula(images: Tensor, ranks: Tensor) -> tuple[Tensor]:
        gone = ranks[:, None, None] < counts[:, :, None, None, None]
        return (torch.where(gone, fill.to(images.dtype)[:, None, None], images[:, None]),)

    return formula


def rank(saliency: Tensor) -> tuple[Tensor]:
    """(N,H,W): the place of each pixel, the largest first, ties by index."""
    flat = saliency.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(flat.shape[1], dtype=torch.int32, device=flat.device).expand_as(order)
    return (torch.empty_like(order, dtype=torch.int32).scatter_(1, order, places).view_as(saliency),)


def seed(references: int) -> Formula:
    """Target, references and sparse seed of the predicted class against the nearest, weighted objective, alpha 1."""

    def formula(logits: Tensor) -> tuple[Tensor, ...]:
        target = logits.argmax(1, keepdim=True)
        distance = (logits - logits.gather(1, target)).abs().scatter(1, target, torch.inf)
        nearest = distance.topk(references, 1, largest=False).indices
        y = logits.gather(1, nearest)
        q = y.softmax(1)
        values = -q * (1 + y - (q * y).sum(1, keepdim=True))
        return target[:, 0], nearest, torch.cat([torch.ones_like(values[:, :1]), values], 1)

    return formula


def finite(values: Tensor) -> tuple[Tensor]:
    """(N,1) uint8: 3 where a row holds NaN or infinity, else 0."""
    return ((~values.isfinite().all(1, keepdim=True)).to(torch.uint8) * 3,)
