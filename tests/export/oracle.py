"""What the maps must be, written from the paper's formulas with hooks and autograd: no code of the export stage."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

RELATIVE_L2 = 1e-4
"""The bound of the design on every float32 map."""


class Answer(NamedTuple):
    """signed (N,h,w): the weighted sum of activations before its ReLU; targets (N,); references, -2 where unused."""

    signed: np.ndarray
    targets: list[int]
    references: list[list[int]]

    @property
    def raw(self) -> np.ndarray:
        """The raw map: the signed one rectified."""
        return np.maximum(self.signed, 0)

    def rows(self, rows: slice) -> Answer:
        """The answer for some of the images: eager evaluation keeps the images of a batch apart."""
        return Answer(self.signed[rows], self.targets[rows], self.references[rows])


class Oracle:
    """One model on one batch in float64, recorded once from the target layer to the logits."""

    def __init__(self, model: nn.Module, layer: str, images: torch.Tensor, prefix_tokens: int = 0) -> None:
        double = copy.deepcopy(model).double().requires_grad_(False)
        taps: list[torch.Tensor] = []

        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            taps.append(output.detach().clone().requires_grad_())
            return taps[-1] * 1  # what follows may work in place

        handle = double.get_submodule(layer).register_forward_hook(hook)
        self._logits = double(images.double())
        handle.remove()
        (self._activations,) = taps
        self._prefix_tokens = prefix_tokens
        self.logits: np.ndarray = self._logits.detach().numpy()

    def targets(self, target: Sequence[int] | None) -> list[int]:
        return [int(c) for c in self.logits.argmax(1)] if target is None else list(target)

    def nearest(self, row: int, target: int, count: int, taken: Sequence[int] = ()) -> list[int]:
        """The `count` classes with the logits nearest to the target's, ties to the lower index."""
        distance = np.abs(self.logits[row] - self.logits[row, target])
        order = [int(c) for c in np.argsort(distance, kind="stable")]
        return [c for c in order if c != target and c not in taken][:count]

    def explain(
        self,
        grid: tuple[int, int],
        layout: str,
        *,
        target: Sequence[int] | None = None,
        references: Sequence[Sequence[int]] | int = 3,
        alpha: Sequence[float],
        objective: str,
    ) -> Answer:
        """The signed Grad-CAM map of T. `references`: rows of classes, -1 automatic, -2 unused; or R automatic ones."""
        targets = self.targets(target)
        rows = [[-1] * references] * len(targets) if isinstance(references, int) else references
        resolved = []
        for row, (c, wanted) in enumerate(zip(targets, rows, strict=True)):
            pinned = [index for index in wanted if index >= 0]
            automatic = iter(self.nearest(row, c, list(wanted).count(-1), pinned))
            resolved.append([next(automatic) if index == -1 else index for index in wanted])

        value = sum(
            objective_value(y, c, [i for i in row if i >= 0], a, objective)
            for y, c, row, a in zip(self._logits, targets, resolved, alpha, strict=True)
        )
        (gradients,) = torch.autograd.grad(value, self._activations, retain_graph=True)
        return Answer(self._grad_cam(gradients, grid, layout), targets, resolved)

    def _grad_cam(self, gradients: torch.Tensor, grid: tuple[int, int], layout: str) -> np.ndarray:
        """sum_k mean_positions(G_k) A_k, with both brought to (N,C,h,w) first."""
        a, g = (self._as_nchw(v, grid, layout).detach() for v in (self._activations, gradients))
        return np.asarray((g.mean((2, 3), keepdim=True) * a).sum(1).numpy())

    def _as_nchw(self, values: torch.Tensor, grid: tuple[int, int], layout: str) -> torch.Tensor:
        if layout == "tokens":
            values = values[:, self._prefix_tokens :].reshape(len(values), *grid, -1)
        return values if layout == "nchw" else values.permute(0, 3, 1, 2)


def objective_value(
    logits: torch.Tensor, target: int, references: Sequence[int], alpha: float, objective: str
) -> torch.Tensor:
    """T of one image, as DESIGN section 2 writes it; "softmax" is "mean" of the probabilities over all classes."""
    if objective == "softmax":
        p = logits.softmax(0)
        return p[target] - (alpha * p[list(references)].mean() if references else 0.0)
    if not references:
        return logits[target]
    y = logits[list(references)]
    mean = (y.softmax(0) * y).sum() if objective == "weighted" else y.mean()
    return logits[target] - alpha * mean


def relative_l2(got: np.ndarray, answer: Answer, expected: np.ndarray | None = None) -> np.ndarray:
    """||got - expected|| / scale(answer) for each image; `expected` is the answer's own raw map by default."""
    raw = answer.raw if expected is None else expected
    difference = got.astype(np.float64) - raw
    return np.asarray(np.linalg.norm(difference.reshape(len(got), -1), axis=1) / scale(answer))


def scale(answer: Answer) -> np.ndarray:
    """||raw|| of each image, or ||signed|| where less than a hundredth of that is positive.

    There the ReLU keeps little but the rounding of a sum that cancelled.
    """
    whole = np.linalg.norm(answer.signed.reshape(len(answer.signed), -1), axis=1)
    assert np.all(whole > 0), "the oracle's map is zero: nothing would be compared"
    return np.where(has_evidence(answer), np.linalg.norm(answer.raw.reshape(len(whole), -1), axis=1), whole)


def has_evidence(answer: Answer) -> np.ndarray:
    """Whether at least a hundredth of a signed map, by norm, is positive, (N,)."""
    signed, raw = (v.reshape(len(v), -1) for v in (answer.signed, answer.raw))
    return np.asarray(np.linalg.norm(raw, axis=1) > 0.01 * np.linalg.norm(signed, axis=1))


def perturb(model: nn.Module, seed: int = 0, scale: float = 0.02) -> nn.Module:
    """Moves every parameter a little, because fresh heads, biases and layer scales are zero or tiny."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def noise(count: int, size: tuple[int, int] = (224, 224), seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def blobs(count: int, size: tuple[int, int], seed: int) -> torch.Tensor:
    """Smooth noise: unlike white noise, it makes the cells of a map differ."""
    values = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return 2 * nn.functional.interpolate(values, size, mode="bicubic")
