"""Batches with classifiers whose answers are known in closed form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from finercam_rt.evaluation.batch import Batch


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """A batch of images (N,3,H,W); `forward` sums the channels unless another is given; the target is class 0."""

    def make(images: np.ndarray, forward: Callable | None = None, target: np.ndarray | None = None, **fields) -> Batch:
        def sums(images: np.ndarray) -> np.ndarray:
            return images.sum(axis=(2, 3))

        run = forward or sums
        target = np.zeros(len(images), np.int64) if target is None else target
        return Batch(images, run(images), target, run, **fields)

    return make
