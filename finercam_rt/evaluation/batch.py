"""What a metric is given, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from finercam_rt.errors import InputError
from finercam_rt.methods.objective import softmax

Floats: TypeAlias = NDArray[np.float32]
Values: TypeAlias = NDArray[np.float64]
"""(N,) of a metric, one an image; NaN where it is not defined."""
T = TypeVar("T")

DEFAULT_FORWARD_SIZE = 16
"""Images that a metric hands to the classifier at once: what MobileNetV2 does not get faster beyond on a CPU."""


class Explained(NamedTuple):
    """saliency (M,H,W) float32, the raw maps resized bilinearly to the images; logits (M,K); target (M,) int64."""

    saliency: Floats
    logits: Floats
    target: NDArray[np.int64]


class Explain(Protocol):
    """The method, seed and alpha that are being measured, asked about other images."""

    def __call__(self, images: Floats, target: NDArray[np.int64] | None, *, shared: bool = False) -> Explained:
        """Explain (M,C,H,W) images, for these classes (M,) or for those predicted. Any number of images.

        shared: whether every method is asked about this very array, which the batch keeps (`MeasuredBatch.once`), so
        that methods may share their runs.
        """


class Pool(Protocol):
    """The photographs of the data set, from which a metric may take others than the batch's."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(D,) the true class of each photograph, -1 where it is not known."""

    def load(self, indices: Sequence[int]) -> Floats:
        """(M,C,H,W) float32, prepared as the batch's images are."""


@dataclass(frozen=True, eq=False)
class MeasuredBatch:
    """Images with what the classifier says of them, the same for every map that is measured.

    images: (N,C,H,W) float32, as the classifier takes them. logits: (N,K). target: (N,) int64, the class explained.
    forward: (M,C,H,W) float32 -> (M,K) logits, for any M; it is called with at most `forward_size` images. masks:
    (N,H,W) bool, where the object is (the union of its boxes or masks, in the input's coordinates), all False for an
    image without; None where no image has one. indices: (N,) int64, the places of the images in the data set: what is
    drawn by chance for an image is drawn by its place, so that neither the batch size nor a resumed run changes it.
    pool: the data set. explain: the method behind the maps, for the metrics that ask it about images of their own.
    """

    images: Floats
    logits: Floats
    target: NDArray[np.int64]
    forward: Callable[[Floats], Floats]
    masks: NDArray[np.bool_] | None = None
    indices: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    pool: Pool | None = None
    explain: Explain | None = None
    forward_size: int = DEFAULT_FORWARD_SIZE
    _made: dict[Hashable, Any] = field(default_factory=dict, repr=False)
    _made_of_map: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Number the images from 0 where they have no places in a data set."""
        if not len(self.indices):
            object.__setattr__(self, "indices", np.arange(len(self.images), dtype=np.int64))

    def explained_by(self, explain: Explain) -> MeasuredBatch:
        """The same batch for the maps of one method; what was computed for the images is shared."""
        return replace(self, explain=explain, _made_of_map={})

    @property
    def nearest(self) -> NDArray[np.int64]:
        """(N,) the class whose logit is nearest to the target's, itself excluded, ties to the lower index."""
        return self.once("nearest", lambda: nearest_class(self.logits, self.target))

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """(N,K), the softmax of the logits."""
        return self.once("probabilities", lambda: softmax(self.logits))

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, computed once for the images of this batch and kept, whatever maps are measured."""
        if key not in self._made:
            self._made[key] = make()
        return cast("T", self._made[key])

    def once_for(self, saliency: Floats, key: Hashable, make: Callable[[], T]) -> T:
        """The same for one array of maps: kept until another array is measured, so it must not be changed in place."""
        if self._made_of_map.get("map") is not saliency:
            self._made_of_map.clear()
            self._made_of_map["map"] = saliency
        if (key := ("made", key)) not in self._made_of_map:
            self._made_of_map[key] = make()
        return cast("T", self._made_of_map[key])


class Metric(Protocol):
    """One or several figures of a map."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of its figures."""

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        """Of each column."""

    @property
    def needs_explain(self) -> bool:
        """Whether it asks `MeasuredBatch.explain` for maps of other images, which costs as much as explaining those."""

    def measure(self, batch: MeasuredBatch, saliency: Floats) -> dict[str, Values]:
        """Each column's (N,) float64, NaN where it is not defined for that image.

        saliency: (N,H,W) float32, the raw maps after ReLU, resized bilinearly to the input.
        """


def nearest_class(logits: Floats, target: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) argmin_j |y_j - y_c| over j != c, ties to the lower index; logits (N,K) with K >= 2, target (N,).

    Raises:
        InputError: a classifier of one class.
    """
    if logits.shape[1] < 2:
        raise InputError("the classifier has one class, so no other is nearest to it; measure one with two or more.")
    rows = np.arange(len(logits))
    distance = np.abs(logits - logits[rows, target][:, None])
    distance[rows, target] = np.inf
    return np.asarray(distance.argmin(axis=1), np.int64)


def drawable(saliency: Floats) -> NDArray[np.bool_]:
    """(N,) whether a map says anything: finite, not constant."""
    flat = saliency.reshape(len(saliency), -1)
    low, high = flat.min(axis=1), flat.max(axis=1)
    return np.asarray(np.isfinite(low) & np.isfinite(high) & (high > low))
