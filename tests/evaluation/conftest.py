"""Batches with classifiers whose answers are known in closed form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from finercam_rt.evaluation.batch import MeasuredBatch

SIZE = 24
WING, TAIL, BODY = (np.s_[4:10, 4:10], np.s_[14:20, 14:20], np.s_[2:22, 2:22])
"""Of the planted classifier, in rows and columns: the wing speaks for class 0, the tail for class 1, the body for
both."""


@pytest.fixture
def make_batch() -> Callable[..., MeasuredBatch]:
    """A batch of images (N,3,H,W); `forward` sums the channels unless another is given; the target is class 0."""

    def make(
        images: np.ndarray, forward: Callable | None = None, target: np.ndarray | None = None, **fields
    ) -> MeasuredBatch:
        def sums(images: np.ndarray) -> np.ndarray:
            return images.sum(axis=(2, 3))

        run = forward or sums
        target = np.zeros(len(images), np.int64) if target is None else target
        return MeasuredBatch(images, run(images), target, run, **fields)

    return make


def planted(images: np.ndarray) -> np.ndarray:
    """Logits (M,4) of a classifier that looks at brightness: of the wing, of the tail, of the body and nowhere."""
    gray = images.mean(axis=1)
    wing, tail, body = (gray[(slice(None), *part)].mean(axis=(1, 2)) for part in (WING, TAIL, BODY))
    return np.stack([4 * wing + 2 * body, 4 * tail + 2 * body + 1, 0 * body, 0 * body - 1], axis=1).astype(np.float32)


def planted_maps() -> dict[str, np.ndarray]:
    """(1,24,24) float32 maps of class 0: the truth, the whole body, chance, the truth inverted; none has ties."""
    chance, order = np.random.default_rng(3).random((2, SIZE, SIZE))
    truth, body = np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE))
    truth[WING], body[BODY] = 1, 1
    maps = {"truth": truth, "body": body, "chance": chance, "inverted": 1 - truth}
    return {name: (values + 1e-3 * order).astype(np.float32)[None] for name, values in maps.items()}


@pytest.fixture
def planted_batch(make_batch) -> MeasuredBatch:
    """One bright noisy image that the planted classifier takes for class 0."""
    images = 1 + 0.2 * np.random.default_rng(0).normal(size=(1, 3, SIZE, SIZE))
    images[:, :, WING[0], WING[1]] += 1
    return make_batch(images.astype(np.float32), planted)
