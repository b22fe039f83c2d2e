"""The questions that pytorch-grad-cam's callers ask by functions of the scores, read from what these functions do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from finercam_rt.errors import InputError, WrongTypeError, one_line

SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "logits": lambda logits: logits,
    "probabilities": lambda logits: logits.softmax(-1),
    "logits and log-probabilities": lambda logits: logits + logits.log_softmax(-1),
}
"""What is explained of a model: a class's logit, its probability, or (ReST) its logit and log-probability together."""

_TOLERANCE = 1e-3
"""Relative difference of two gradients that count as equal: grad-cam's target has an epsilon that ours has not."""

TargetFunction = Callable[[torch.Tensor], torch.Tensor]


class Question(NamedTuple):
    """Why `target` and not `references`, of one image.

    target: a class; of a model with one logit, 0 is for it and 1 against it. objective: how several references are
    weighted, None where that makes no difference. scores: a key of SCORES.
    """

    target: int
    references: tuple[int, ...] = ()
    alpha: float = 0.0
    objective: str | None = None
    scores: str = "logits"


@dataclass(frozen=True)
class ClassifierOutputTarget:
    """y[category], as pytorch-grad-cam's target of this name."""

    category: int

    def __call__(self, model_output: torch.Tensor) -> torch.Tensor:
        """The score in one row (K,), or in each of several."""
        return model_output[..., self.category]


@dataclass(frozen=True)
class FinerWeightedTarget:
    """y_c - alpha * sum_i q_i y_i, q the softmax over the comparison categories alone.

    pytorch-grad-cam's target of this name has an epsilon in it, which turns the map's sign where the comparison
    categories are improbable (below some 1e-8); this one has none.
    """

    main_category: int
    comparison_categories: Sequence[int]
    alpha: float

    def __call__(self, model_output: torch.Tensor) -> torch.Tensor:
        """The objective of one row (K,), or of each of several."""
        others = model_output[..., list(self.comparison_categories)]
        return model_output[..., self.main_category] - self.alpha * (others.softmax(-1) * others).sum(-1)


def read_target(target: Any, num_classes: int) -> Question:
    """The question that a target function asks.

    It is differentiated at random scores: what it is follows from what it does, whatever library or caller wrote it.
    Known are a class's score, probability or ReST; its difference from one or the mean of several others; and
    FinerWeightedTarget. Of a model with one logit, also that logit's negative.

    Args:
        target: from one row of scores (K,) to a number.
        num_classes: K.

    Raises:
        InputError: it fails, or is none of these.
    """
    if not callable(target):
        raise WrongTypeError(
            f"a target is {target!r}, of type {type(target).__name__}; give a function of the scores, such as "
            "ClassifierOutputTarget(281)."
        )
    known = _known(target, num_classes)
    if known is not None:
        return known
    row, other = torch.randn(2, num_classes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = (row, -row, other)  # the first two have no largest class in common
    with torch.inference_mode(False), torch.enable_grad():
        gradients = [_gradient(target, row) for row in rows]
        for question, function in _guesses(target, num_classes):
            if all(_equal(g, _gradient(function, row)) for g, row in zip(gradients, rows, strict=True)):
                return question
    linear = _linear(gradients[0]) if all(_equal(gradients[0], g) for g in gradients) else None
    if linear is None:
        raise InputError(
            f"the target {_named(target)} cannot be compiled; give ClassifierOutputTarget, FinerWeightedTarget, or "
            "another function that is one class's score, or its difference from one or the mean of several others."
        )
    return linear


def _known(target: Any, num_classes: int) -> Question | None:
    """Of the two classes above and those of grad-cam, which need no differentiating; None of what is out of range."""
    kind = type(target)
    named = (ClassifierOutputTarget.__name__, FinerWeightedTarget.__name__)
    if kind.__module__ not in (__name__, "pytorch_grad_cam.utils.model_targets") or kind.__name__ not in named:
        return None
    classes = [getattr(target, name) for name in ("category", "main_category") if hasattr(target, name)]
    classes += getattr(target, "comparison_categories", ())
    if not all(isinstance(index, int) and -num_classes <= index < num_classes for index in classes):
        return None
    return next((question for question, _ in _guesses(target, num_classes)), None)


def _gradient(target: TargetFunction, row: torch.Tensor) -> torch.Tensor:
    scores = row.clone().requires_grad_()
    try:
        value = target(scores)
    except Exception as error:
        raise InputError(
            f"the target {_named(target)} fails on the scores of {len(row)} classes ({one_line(error)}); correct it."
        ) from error
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        given = f"{value.numel()} values" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        raise InputError(f"the target {_named(target)} gives {given}; it must return a scalar tensor.")
    if not value.requires_grad:
        raise InputError(f"the target {_named(target)} does not depend on the scores; correct it.")
    return torch.autograd.grad(value.sum(), scores)[0]


def _guesses(target: Any, num_classes: int) -> Iterator[tuple[Question, TargetFunction]]:
    """What a target may be by its attributes, and the function that it then is."""
    category, main = getattr(target, "category", None), getattr(target, "main_category", None)
    if category is not None and -num_classes <= category < num_classes:
        index = int(category) % num_classes
        for name, scores in SCORES.items():
            yield Question(index, scores=name), lambda y, scores=scores: scores(y)[index]  # type: ignore[misc]
    if main is not None:
        others = tuple(int(c) % num_classes for c in getattr(target, "comparison_categories", ()))
        alpha = float(getattr(target, "alpha", 1.0))
        if others:
            finer = FinerWeightedTarget(int(main) % num_classes, others, alpha)
            yield Question(finer.main_category, others, alpha, "weighted" if len(others) > 1 else None), finer


def _linear(gradient: torch.Tensor) -> Question | None:
    """The question of y_c, or of y_c - alpha * mean(y_i)."""
    used = [int(index) for index in (gradient.abs() > _TOLERANCE).nonzero()]
    values = gradient[used]
    if len(gradient) == 1 and used:
        return Question(int(values[0] < 0)) if abs(abs(float(values[0])) - 1) <= _TOLERANCE else None
    raised = [index for index in used if gradient[index] > 0]
    lowered = values[values < 0]
    if len(raised) != 1 or abs(float(gradient[raised[0]]) - 1) > _TOLERANCE:
        return None
    if len(lowered) == 0:
        return Question(raised[0])
    if lowered.max() - lowered.min() > _TOLERANCE * lowered.abs().max():
        return None
    others = tuple(index for index in used if index != raised[0])
    return Question(raised[0], others, float(-lowered.sum()), "mean" if len(others) > 1 else None)


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).norm() <= _TOLERANCE * b.norm())


def _named(target: Any) -> str:
    return getattr(target, "__name__", None) or type(target).__name__
