"""What a call of torch-cam's extractors is given, checked: scores, classes and references, in its own sentences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finercam_rt.compat.explainer import Answer
from finercam_rt.compat.targets import SCORES
from finercam_rt.errors import InputError, WrongTypeError
from finercam_rt.ops import Status

SAME_SCORES = 1e-3
"""Difference of the scores that are given from those of the engine, over the largest of them."""


def checked_scores(scores: object) -> torch.Tensor:
    """Scores (N,K), detached.

    Raises:
        InputError, WrongTypeError: none, or something else.
    """
    if scores is None:
        raise InputError("the model's output scores is required; pass what model(images) returned.")
    if not isinstance(scores, torch.Tensor):
        raise WrongTypeError(f"scores must be a tensor, and are of type {type(scores).__name__}.")
    if scores.ndim != 2 or len(scores) < 1:
        raise InputError(f"scores must have shape (batch size, classes), and have {tuple(scores.shape)}.")
    return scores.detach()


def answer_for(given: NDArray[Any], ask: Callable[[str], Answer]) -> Answer:
    """The answer for that kind of scores, of SCORES, which these (N,K) are: those that the engine finds, too.

    Raises:
        InputError: they are of none.
    """
    # logits, too, may be shares of one
    probable = given.shape[1] > 1 and given.min() >= 0 and np.abs(given.sum(axis=1) - 1).max() < SAME_SCORES
    for kind in ("probabilities", "logits") if probable else ("logits",):
        answer = ask(kind)
        expected = SCORES[kind](torch.from_numpy(answer.logits)).numpy()
        finite = answer.status != Status.NON_FINITE
        difference = np.abs(given - expected)[finite]
        if not difference.size or difference.max() <= SAME_SCORES * np.abs(expected[finite]).max():
            return answer
    raise InputError(
        "scores are not what the model gives for its last batch in evaluation mode; call model.eval() first, and pass "
        "the output of model(images) as it is, or its softmax."
    )


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def classes_of(class_idx: object, count: int, num_classes: int) -> list[int]:
    """One class an image.

    Raises:
        InputError, WrongTypeError: another number of them, classes that there are not, or something else.
    """
    if _is_index(class_idx):
        found = [class_idx] * count
    elif isinstance(class_idx, list):
        if len(class_idx) != count:
            raise InputError(f"class_idx has {len(class_idx)} classes, and the batch size is {count}.")
        if not all(map(_is_index, class_idx)):
            raise WrongTypeError("class_idx must contain integers.")
        found = class_idx
    else:
        raise WrongTypeError("class_idx must be an integer, or a list of one an image.")
    if not all(0 <= index < num_classes for index in found):  # type: ignore[operator]
        raise InputError(f"class_idx has an out-of-range class; there are {num_classes}, from 0 on.")
    return found  # type: ignore[return-value]


def references_of(comparison_idx: object, count: int) -> list[list[int]]:
    """One list of references an image, all of one length.

    Raises:
        InputError, WrongTypeError: another number of lists, empty or unequal ones, or something else.
    """
    if _is_index(comparison_idx):
        return [[comparison_idx]] * count  # type: ignore[list-item]
    if not isinstance(comparison_idx, list):
        raise WrongTypeError("comparison_idx must be an integer, a list, or a nested list.")
    if not comparison_idx:
        raise InputError("comparison_idx cannot be empty; leave it out for the nearest classes.")
    if not all(isinstance(row, list) for row in comparison_idx):
        if any(isinstance(row, list) for row in comparison_idx):
            raise WrongTypeError("comparison_idx must contain integers or lists of integers, not both.")
        return [comparison_idx] * count
    if len(comparison_idx) != count:
        raise InputError(f"comparison_idx has {len(comparison_idx)} rows, and the batch size is {count}.")
    if not all(comparison_idx):
        raise InputError("comparison_idx rows cannot be empty.")
    if len({len(row) for row in comparison_idx}) > 1:
        raise InputError("comparison_idx rows must have equal lengths.")
    return comparison_idx


def check_row(image: int, target: int, row: list[int], num_classes: int) -> None:
    """Hold the references of one image against its target and the classes that there are.

    Raises:
        InputError, WrongTypeError: a class that there is not, one twice, or the target.
    """
    if not all(map(_is_index, row)):
        raise WrongTypeError("comparison_idx must contain integers.")
    if not all(0 <= index < num_classes for index in row):
        raise InputError(f"comparison_idx has an out-of-range class for image {image}; there are {num_classes}.")
    if len(set(row)) < len(row):
        raise InputError(f"comparison_idx has duplicates for image {image}.")
    if target in row:
        raise InputError(f"comparison_idx has the target class for image {image}.")
