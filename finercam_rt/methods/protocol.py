"""What every method answers, whatever it reads of the classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Classes: TypeAlias = NDArray[np.int64]
OnProgress: TypeAlias = Callable[[int, int], None]
"""Called with the steps done and in all; a step is a run of the classifier on one perturbed image."""


class Maps(NamedTuple):
    """saliency_map (N,h,w) float32, raw; target (N,) int64; references (N,R) int64, -2 where unused; logits (N,K).

    The logits are those of the images themselves. (h,w) is the layer's grid, or the input's size for a method that
    looks at no layer.
    """

    saliency_map: Floats
    target: Classes
    references: Classes
    logits: Floats


class MapSource(Protocol):
    """A method of one classifier, ready to explain."""

    @property
    def name(self) -> str:
        """What it is called in tables, such as "scorecam"."""

    def explain(
        self, images: Floats, target: Classes | None = None, references: Classes | None = None, alpha: float = 0.0
    ) -> Maps:
        """Explain a preprocessed batch of any size.

        Args:
            images: (N,3,H,W) float32.
            target: (N,) classes, None for the predicted ones.
            references: (N,R) classes, -1 automatic, -2 unused; None for the R nearest classes.
            alpha: strength of the contrast; 0 is the plain method.
        """
