"""What is right, without anything of the export stage: a hook, autograd, and the formulas of the maps.

Besides what an engine's own verification asks, other images are used and other classes, and the reading of the layer's
layout is put to the test: see `placement`.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from comparison.verification import channels_first, features_of, run_with_leaf
from numpy.typing import NDArray
from torch import nn

from finercam_rt.manifest import LayerInfo
from sweep.cases import BARS
from sweep.formulas import signed_map

CHANGES = ((2.0, 1), (0.1, 4))
"""The standard deviation of what is added to an image, whose own is about 1, and how often."""
PLACED = 0.95
"""A correlation that leaves no doubt."""


class Contrast(NamedTuple):
    """target (N,), references (N,R) (those below 0 are unused), alpha (N,)."""

    target: NDArray[np.int64]
    references: NDArray[np.int64]
    alpha: NDArray[np.float32]


class Expected(NamedTuple):
    """A map (N,h,w) and the norm (N,) of what it was before its ReLU, which its error is relative to."""

    saliency_map: NDArray[np.float64]
    scale: NDArray[np.float64]


class Errors(NamedTuple):
    """The largest of any image: relative L2 of maps, relative largest difference of logits."""

    saliency_map: float
    logits: float


class Oracle:
    """The model's logits and maps for some images, as PyTorch computes them."""

    def __init__(
        self,
        model: nn.Module,
        layer: LayerInfo,
        images: torch.Tensor,
        method: str = "gradcam",
        objective: str = "weighted",
    ) -> None:
        """Run the model once on images (N,3,H,W); every contrast asked for afterwards is one derivative."""
        self.images = images
        self._model, self._layer, self._asked = model, layer, (method, objective)
        self._activations, self._logits = run_with_leaf(model, layer.name, images)
        self._known: dict[bytes, Expected] = {}
        self.logits: NDArray[np.float64] = self._logits.detach().double().numpy()

    def expected(self, contrast: Contrast) -> Expected:
        """The maps of the first images, one for each row of the contrast."""
        key = b"".join(np.ascontiguousarray(part).tobytes() for part in contrast)
        if key not in self._known:
            self._known[key] = self._differentiate(contrast)
        return self._known[key]

    def _differentiate(self, contrast: Contrast) -> Expected:
        """The map is ReLU of a signed sum, by the derivative of T = y_c - alpha * sum of q_i y_i over the references.

        q is the softmax of their logits (objective "weighted") or all the same; with "softmax" the y are probabilities.
        """
        method, objective = self._asked
        count = len(contrast.target)
        value = self._logits.new_zeros((), dtype=torch.float64)
        for row, target, references, alpha in zip(self._logits[:count].double(), *contrast, strict=True):
            values = row.softmax(0) if objective == "softmax" else row
            scores = values[[int(index) for index in references if index >= 0]]
            shares = scores.softmax(0) if objective == "weighted" else torch.full_like(scores, 1 / max(1, len(scores)))
            value = value + values[int(target)] - float(alpha) * (shares * scores).sum()
        (gradients,) = torch.autograd.grad(value, self._activations, retain_graph=True, allow_unused=True)
        if gradients is None:  # the logits do not depend on it
            gradients = torch.zeros_like(self._activations)
        g, a = (
            torch.as_tensor(channels_first(tensor, self._layer))[:count].double()
            for tensor in (gradients, self._activations.detach())
        )
        signed = signed_map(method, a, g)
        return Expected(signed.relu().numpy(), signed.flatten(1).norm(dim=1).numpy())

    def nearest(self, references: int) -> Contrast:
        """For every image its largest logit, the logits nearest to that, and alpha 1."""
        target = self.logits.argmax(1)
        distance = np.abs(self.logits - np.take_along_axis(self.logits, target[:, None], 1))
        order = np.argsort(distance, axis=1, kind="stable")
        return Contrast(target, order[:, 1 : references + 1], np.ones(len(target), np.float32))

    def rounded_again(self, seed: int) -> Oracle:
        """The same with each weight and pixel moved by float32's last digit, up, down or not at all."""
        draw, model = np.random.default_rng(seed), copy.deepcopy(self._model)
        with torch.no_grad():
            for weight in model.parameters():
                weight *= _next_to_one(draw, weight.shape)
        return Oracle(model, self._layer, self.images * _next_to_one(draw, self.images.shape), *self._asked)

    def in_float64(self) -> Oracle | None:
        """The same with a copy of the model in float64; None where it computes in float32 whatever it is given."""
        model = copy.deepcopy(self._model).double()
        try:
            return Oracle(model, self._layer, self.images.double(), *self._asked)
        except RuntimeError:
            return None


def _next_to_one(draw: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    steps = draw.integers(-1, 1, shape, endpoint=True)
    return torch.as_tensor(1 + np.finfo(np.float32).eps * steps, dtype=torch.float32)


def map_error(got: NDArray[Any], expected: Expected) -> float:
    """The largest ||got - expected|| / scale of any image; infinite where one is not finite."""
    if got.shape != expected.saliency_map.shape:
        return float("inf")
    difference = np.linalg.norm((got - expected.saliency_map).reshape(len(got), -1), axis=1)
    return _largest(difference / np.maximum(expected.scale, 1e-300))


def logit_error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference over the largest logit; infinite where one is not finite."""
    if got.shape != expected.shape:
        return float("inf")
    return _largest(np.abs(got - expected) / np.abs(expected).max())


def choice_error(logits: NDArray[Any], contrast: Contrast, rank: int = 0) -> float:
    """How much better the right choice is than this one, over the largest logit.

    The target should have the logit of that rank, the references should be others, nearest to the target's.
    """
    worst = 0.0
    for row, target, references in zip(logits, contrast.target, contrast.references, strict=True):
        if len({int(target), *references.tolist()}) != 1 + len(references) or references.min() < 0:
            return float("inf")
        nearest = np.sort(np.abs(np.delete(row, target) - row[target]))[: len(references)]
        chosen = np.sort(np.abs(row[references] - row[target]))
        worst = max(worst, abs(float(np.sort(row)[::-1][rank] - row[target])), float(np.abs(chosen - nearest).max()))
    return worst / float(np.abs(logits).max())


def degenerate(oracle: Oracle, references: int) -> str | None:
    """Why the model's maps would prove nothing, or None."""
    if not np.isfinite(oracle.logits).all():
        return "the logits are not finite"
    if np.ptp(oracle.logits, axis=0).max() < 1e-3 * np.abs(oracle.logits).max():
        return "the logits are the same for every image"
    found = oracle.expected(oracle.nearest(references))
    maps = found.saliency_map.reshape(len(found.scale), -1)
    if not found.scale.min() > 0:
        return "the gradient is zero"
    if not maps.max() > 0:
        return "no map has a positive value"
    if np.ptp(maps, axis=1).max() < 1e-3 * maps.max():
        return "the maps are constant"
    return None


def placement(model: nn.Module, layer: LayerInfo, images: torch.Tensor, seed: int) -> float:
    """Whether the grid lies on the images as the layer's reading says: a correlation, 1 where it does.

    To each image (N,3,H,W) a bar of noise is added, at BARS places along each axis in turn, and where along this
    axis the activation changes is compared with the bar's place; the worse axis counts. What changes alike at
    every position (by a mean over the image, by attention) is taken off before. Attention with random weights answers a
    strong change everywhere: where one leaves a doubt, several faint ones are taken together.
    """
    generator = torch.Generator().manual_seed(seed)
    before = _features(model, layer, images)
    best = 0.0
    for strength, draws in CHANGES:
        profiles = [torch.zeros(BARS, cells, dtype=torch.float64) for cells in layer.grid]
        for _ in range(draws):
            noise = strength * torch.randn(images.shape, generator=generator)
            for axis, cells in enumerate(layer.grid):
                for bar in range(BARS if cells > 1 else 0):
                    edge = images.shape[2 + axis]
                    place = torch.arange(edge * bar // BARS, edge * (bar + 1) // BARS)
                    changed = images.index_add(2 + axis, place, noise.index_select(2 + axis, place))
                    change = _local(_features(model, layer, changed) - before).norm(dim=1).sum(2 - axis)  # (N,cells)
                    profiles[axis][bar] += (change / change.sum(1, keepdim=True).clamp(min=1e-300)).mean(0)
        best = max(best, min((_follows(profile) for profile in profiles if profile.shape[1] > 1), default=0.0))
        if best > PLACED:
            break
    return best


def _follows(profiles: torch.Tensor) -> float:
    """The correlation of the places of bars and of cells, from shares of the change (BARS,cells).

    A pair weighs by the square of how much more the bar changes the cell than the others do, so that a bar which is
    seen by attention alone, in a part of the image that convolutions with strides leave out, has no say.
    """
    weights = (profiles / profiles.mean(0).clamp(min=1e-300) - 1).relu().square().numpy()
    if not weights.any():
        return 0.0
    bars, cells = np.indices(weights.shape, dtype=np.float64)
    bars -= np.average(bars, weights=weights)
    cells -= np.average(cells, weights=weights)
    spread = (weights * bars**2).sum() * (weights * cells**2).sum()
    return float((weights * bars * cells).sum() / np.sqrt(spread)) if spread > 0 else 0.0


def _features(model: nn.Module, layer: LayerInfo, images: torch.Tensor) -> torch.Tensor:
    """What the layer gives for images (N,3,H,W), as (N,C,h,w) in float64."""
    taps: list[torch.Tensor] = []
    # copied, because what follows may work in place
    handle = model.get_submodule(layer.name).register_forward_hook(
        lambda _module, _in, out: taps.append(features_of(out).clone())
    )
    try:
        with torch.no_grad():
            model(images)
    finally:
        handle.remove()
    found: torch.Tensor = channels_first(taps[0], layer).double()
    return found


def _local(change: torch.Tensor) -> torch.Tensor:
    """(N,C,h,w) without what the positions have in common: the mean of the quarter of them that change least.

    Not the median: where a bar reaches more than half of the positions, the others would seem to be the changed ones.
    """
    found = change.flatten(2)
    least = found.norm(dim=1).argsort(dim=1)[:, : max(1, found.shape[2] // 4)]
    common = found.gather(2, least[:, None].expand(-1, found.shape[1], -1)).mean(dim=2)
    return change - common[:, :, None, None]


def _largest(values: NDArray[Any]) -> float:
    worst = float(values.max())
    return worst if np.isfinite(worst) else float("inf")
