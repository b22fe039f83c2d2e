"""Stage 5: activations and gradients become the raw map.

Formulas: pytorch-grad-cam 1.5.7 where it has the method (`facts` of the design, part C). A method gets A and G over
the map's positions only, as (N,C,L) or (N,L,C) with its two axes named, so that no layout is ever transposed. With
several contrasts an axis P follows N on the gradients, and on the map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional
from torch.utils._python_dispatch import _disable_current_modes

from finercam_rt.manifest import METHODS, LayerInfo

SQUARINGS, PRODUCTS = 14, 3
"""Of the Gram matrix in Eigen-CAM: a column of its 65536th power, in which the first eigenvector is left alone. A
second eigenvalue up to 0.9997 of the first is told from it, as nearly as float32 knows eigenvectors at all."""


class Values(NamedTuple):
    """Activations or gradients over the positions of the map, and which axis is which, counted from the last."""

    data: torch.Tensor
    channel: int
    position: int

    def beside(self, gradients: torch.Tensor) -> torch.Tensor:
        """The data with an axis of size 1 for the contrasts, where the gradients have one."""
        return self.data if gradients.ndim == self.data.ndim else self.data[:, None]


_ALIGNED = 4
"""Of as many float32 values, 16 bytes, TensorRT's matrix products want whole multiples."""

Score = Callable[[Values, torch.Tensor], torch.Tensor]
"""A and G (N,C,L or N,L,C), or A and pooled G (N,C), to (N,L) before ReLU."""


def raw_map(activations: torch.Tensor, gradients: torch.Tensor, layer: LayerInfo, method: str) -> torch.Tensor:
    """The raw map (N,h,w) of a method, from A and G in the layer's layout. Prefix tokens take no part."""
    values, cotangents = positions(activations, layer), positions(gradients, layer)
    pooled = METHODS[method] == "pooled"
    return as_map(
        SCORES[method](values, cotangents.data.mean(cotangents.position) if pooled else cotangents.data), layer
    )


def positions(values: torch.Tensor, layer: LayerInfo) -> Values:
    """A value in the layer's layout, without prefix tokens, its grid flattened."""
    if layer.layout == "nchw":
        return Values(values.flatten(-2), -2, -1)
    if layer.layout == "nhwc":
        return Values(values.flatten(-3, -2), -1, -2)
    return Values(values[..., layer.prefix_tokens :, :], -1, -2)


def channels_of(activations: torch.Tensor, layer: LayerInfo) -> int:
    """C of the activations in the layer's layout."""
    return int(activations.shape[1 if layer.layout == "nchw" else -1])


def as_map(scores: torch.Tensor, layer: LayerInfo) -> torch.Tensor:
    """ReLU of the scores (...,h*w), as (...,h,w)."""
    return scores.reshape(*scores.shape[:-1], *layer.grid).relu()


def mean_of_normalised(maps: Sequence[torch.Tensor], grid: tuple[int, int]) -> torch.Tensor:
    """The mean of several layers' raw maps (...,h_i,w_i), each min-max normalised and resized to `grid`, bilinear.

    A map without a range counts as zeros, one that is not finite makes the mean so.
    """
    resized = []
    for values in maps:
        least, most = values.amin((-2, -1), keepdim=True), values.amax((-2, -1), keepdim=True)
        span = most - least
        normal = (values - least) / torch.where(span == 0, 1.0, span)
        rows, columns = (_interpolation(int(normal.shape[axis]), grid[axis]) for axis in (-2, -1))
        normal = normal if rows is None else rows @ normal
        resized.append(normal if columns is None else normal @ columns.T)
    return torch.stack(resized).mean(0)


def _interpolation(size: int, wanted: int) -> torch.Tensor | None:
    """The matrix (wanted,size) of bilinear resizing with half-pixel centres along one axis."""
    if size == wanted:
        return None
    with _disable_current_modes():
        return functional.interpolate(torch.eye(size)[None], wanted, mode="linear", align_corners=False)[
            0
        ].T.contiguous()


def _gradcam(a: Values, weights: torch.Tensor) -> torch.Tensor:
    """sum_k w_k A_k, w = mean_positions(G).

    As a product and a sum where TensorRT would pad a matrix product: those it runs as one kernel, and that as three.
    ONNX Runtime takes some ten microseconds longer for a small map, and half a millisecond for one of 56 x 56.
    """
    several = weights.ndim == a.data.ndim
    if a.channel == -1:
        return (a.data @ weights.transpose(1, 2)).transpose(1, 2) if several else (a.data * weights[:, None]).sum(2)
    if several:
        return weights @ a.data
    if a.data.shape[-1] % _ALIGNED:
        return (a.data * weights[:, :, None]).sum(1)
    return (weights[:, None, :] @ a.data).squeeze(1)


def _weighted(a: Values, weights: torch.Tensor) -> Values:
    """w_k A_k, by weights (N,C) or (N,P,C)."""
    data = a.data if weights.ndim == 2 else a.data[:, None]
    return Values(data * weights.unsqueeze(a.position), a.channel, a.position)


def _plus_plus_weights(a: Values, g: torch.Tensor) -> torch.Tensor:
    """w_k = sum ReLU(G) * alpha, alpha = G^2 / (2 G^2 + (sum A) G^3 + 1e-6)."""
    square = g * g
    denominator = 2 * square + a.beside(g).sum(a.position, keepdim=True) * square * g + 1e-6
    alpha = torch.where(g == 0, 0.0, square / denominator)
    return (g.relu() * alpha).sum(a.position)


def _xgradcam_weights(a: Values, g: torch.Tensor) -> torch.Tensor:
    """w_k = sum G A / (sum A + 1e-7)."""
    data = a.beside(g)
    return (g * data).sum(a.position) / (data.sum(a.position) + 1e-7)


def _layercam_terms(a: Values, g: torch.Tensor) -> Values:
    """ReLU(G) A."""
    return Values(g.relu() * a.beside(g), a.channel, a.position)


def _hirescam_terms(a: Values, g: torch.Tensor) -> Values:
    """G A."""
    return Values(g * a.beside(g), a.channel, a.position)


def _elementwise_terms(a: Values, g: torch.Tensor) -> Values:
    """ReLU(G A)."""
    return Values((g * a.beside(g)).relu(), a.channel, a.position)


def _by(weights: Score) -> Score:
    """sum_k w_k A_k."""
    return lambda a, g: _gradcam(a, weights(a, g))


def _sum(terms: Callable[[Values, torch.Tensor], Values]) -> Score:
    """The sum over the channels."""
    return lambda a, g: terms(a, g).data.sum(a.channel)


def _principal(terms: Callable[[Values, torch.Tensor], Values]) -> Score:
    """Eigen-CAM of the terms."""
    return lambda a, g: _eigencam(terms(a, g), g)


def _principal_by(weights: Score) -> Score:
    """Eigen-CAM of w_k A_k."""
    return _principal(lambda a, g: _weighted(a, weights(a, g)))


def _fem(a: Values, _g: torch.Tensor) -> torch.Tensor:
    """w_k = share of positions where A > mean + 2 (population) standard deviations."""
    mean = a.data.mean(a.position, keepdim=True)
    deviation = (a.data - mean).square().mean(a.position, keepdim=True).sqrt()
    return _gradcam(a, (a.data > mean + 2 * deviation).to(a.data.dtype).mean(a.position))


def _eigencam(a: Values, _g: torch.Tensor) -> torch.Tensor:
    """X v1 of the centred positions-by-channels matrix X; of the two signs the one along the mean activations.

    v1 is the first eigenvector of X'X, and sigma times that of XX' is X v1: the smaller of the two matrices is taken.
    """
    x = a.data if a.channel == -1 else a.data.transpose(-2, -1)
    mean = x.mean(-2, keepdim=True)
    centred = x - mean
    turned = centred.transpose(-2, -1)
    if centred.shape[-1] < centred.shape[-2]:
        v = _first_eigenvector(turned @ centred)
        sign = torch.where((mean @ v) < 0, -1.0, 1.0)
        return (sign * (centred @ v)).squeeze(-1)
    u = _first_eigenvector(centred @ turned)
    projected = turned @ u  # sigma v1, (N,C,1)
    sigma = projected.square().sum(-2, keepdim=True).sqrt()
    sign = torch.where((mean @ projected) < 0, -1.0, 1.0)
    return (sign * sigma * u).squeeze(-1)


def _first_eigenvector(gram: torch.Tensor) -> torch.Tensor:
    """(...,L,L), symmetric and not negative -> (...,L,1) of length 1, or 0 for a matrix of zeros; by squaring."""
    power = _of_trace_one(gram)
    for step in range(1, SQUARINGS + 1):
        power = power @ power
        power = power if step % 2 else _of_trace_one(power)
    best = power.diagonal(dim1=-2, dim2=-1).argmax(-1)
    vector = power.gather(-1, best[..., None, None].expand(*power.shape[:-1], 1))
    for _ in range(PRODUCTS):
        vector = power @ vector
    return vector / vector.square().sum(-2, keepdim=True).sqrt().clamp(min=1e-30)


def _of_trace_one(matrix: torch.Tensor) -> torch.Tensor:
    """Of trace 1, so that the largest eigenvalue is between 1/L and 1."""
    return matrix / matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp(min=1e-30)


SCORES: dict[str, Score] = {
    "gradcam": _gradcam,
    "gradcam++": _by(_plus_plus_weights),
    "xgradcam": _by(_xgradcam_weights),
    "layercam": _sum(_layercam_terms),
    "hirescam": _sum(_hirescam_terms),
    "gradcamelementwise": _sum(_elementwise_terms),
    "eigengradcam": _principal(_hirescam_terms),
    "fem": _fem,
    "eigencam": _eigencam,
    # pytorch-grad-cam's eigen_smooth=True; that of Hi-Res-CAM is Eigen-Grad-CAM
    "gradcam-eigen": _principal(_weighted),
    "gradcam++-eigen": _principal_by(_plus_plus_weights),
    "xgradcam-eigen": _principal_by(_xgradcam_weights),
    "layercam-eigen": _principal(_layercam_terms),
    "gradcamelementwise-eigen": _principal(_elementwise_terms),
}
