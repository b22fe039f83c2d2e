"""What every method answers, whatever it reads of the classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class Asked(NamedTuple):
    """One contrast of every image: references (N,R) and alpha, as `MapSource.explain` takes them.

    objective: how several references count, for the methods that compute it from logits (`objective_values`); None is
    the method's own.
    """

    references: Classes | None = None
    alpha: float = 0.0
    objective: str | None = None


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
            images: (N,C,H,W) float32.
            target: (N,) classes, None for the predicted ones.
            references: (N,R) classes, -1 automatic, -2 unused; None for the R nearest classes.
            alpha: strength of the contrast; 0 is the plain method.
        """

    def explain_each(self, images: Floats, target: Classes | None, asked: Sequence[Asked]) -> list[Maps]:
        """The maps of several contrasts of the same images and classes, in their order.

        They are those of `explain`, but what does not depend on the contrast, such as the classifier's runs on
        perturbed images, is done once for all.
        """


class OneByOne:
    """A method of which contrasts share nothing."""

    def explain(
        self, images: Floats, target: Classes | None = None, references: Classes | None = None, alpha: float = 0.0
    ) -> Maps:
        """See MapSource.explain."""
        raise NotImplementedError

    def explain_each(self, images: Floats, target: Classes | None, asked: Sequence[Asked]) -> list[Maps]:
        """See MapSource.explain_each."""
        return [self.explain(images, target, contrast.references, contrast.alpha) for contrast in asked]


class Together:
    """A method of which contrasts share most: one is a case of several."""

    def explain(
        self, images: Floats, target: Classes | None = None, references: Classes | None = None, alpha: float = 0.0
    ) -> Maps:
        """See MapSource.explain.

        Raises:
            InputError: see `explain_each`.
        """
        (maps,) = self.explain_each(images, target, [Asked(references, alpha)])
        return maps

    def explain_each(self, images: Floats, target: Classes | None, asked: Sequence[Asked]) -> list[Maps]:
        """See MapSource.explain_each."""
        raise NotImplementedError
