"""What is explained against what: the caller's target, references and alpha as the graph's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from finercam_rt.classes import Classes, ClassSpec
from finercam_rt.errors import InputError

AUTOMATIC = -1
"""As a target: the predicted class. As a reference: chosen by the graph."""
UNUSED = -2
"""As a reference: none."""

Target: TypeAlias = "ClassSpec | Sequence[ClassSpec | None] | NDArray[np.integer[Any]] | None"
References: TypeAlias = (
    "ClassSpec | Sequence[ClassSpec] | Sequence[Sequence[ClassSpec] | None] | NDArray[np.integer[Any]] | None"
)
Alpha: TypeAlias = "float | Sequence[float] | NDArray[np.floating[Any]] | None"


class Contrast(NamedTuple):
    """target (N,) int64, references (N,R) int64, alpha (N,) float32: one contrast an image (DESIGN, section 3)."""

    target: NDArray[np.int64]
    references: NDArray[np.int64]
    alpha: NDArray[np.float32]

    def rows(self, rows: slice | Sequence[int]) -> Contrast:
        """The contrasts of some of the images."""
        return Contrast(self.target[rows], self.references[rows], self.alpha[rows])


@dataclass(frozen=True)
class ContrastResolver:
    """Turns what a caller gives into a Contrast, for an engine with these classes and R references."""

    classes: Classes
    references: int
    default_alpha: float

    def resolve(self, count: int, target: Target, references: References, alpha: Alpha) -> Contrast:
        """The contrasts of `count` images.

        Args:
            count: N, the number of images.
            target: None for the predicted class; a class for all images; or a class or None for each image.
            references: None for the R nearest classes; a class or a list of at most R for all images, [] for none
                (the plain map); a list of such lists, one an image; or an integer array (N, at most R) in which -1
                means automatic and -2 unused.
            alpha: None for the objective's default; a number for all images; or one for each image.

        Raises:
            InputError: a class that there is not, more than R references, a reference twice, one that is the target,
                alpha negative or not finite, or not one value an image.
        """
        resolved = Contrast(
            self._targets(count, target), self._references(count, references), self._alphas(count, alpha)
        )
        if references is not None and self.references:
            self._check_distinct(resolved)
        return resolved

    def _targets(self, count: int, target: Target) -> NDArray[np.int64]:
        if target is None or isinstance(target, (str, int, np.integer)):
            return np.full(count, AUTOMATIC if target is None else self.classes.index(target), dtype=np.int64)
        values = _values(target, "target")
        _check_count(len(values), count, "target")
        return np.array([AUTOMATIC if v is None else self.classes.index(v) for v in values], dtype=np.int64)

    def _references(self, count: int, references: References) -> NDArray[np.int64]:
        if references is None:
            return np.full((count, self.references), AUTOMATIC, dtype=np.int64)
        if isinstance(references, np.ndarray) and references.ndim == 2:
            return self._reference_array(count, references)
        values = [references] if isinstance(references, (str, int, np.integer)) else _values(references, "references")
        if values and all(v is None or not isinstance(v, (str, int, np.integer)) for v in values):
            _check_count(len(values), count, "references")
            rows = [self._reference_row(v) for v in values]
        else:
            rows = [self._reference_row(values)] * count
        return np.array(rows, dtype=np.int64).reshape(count, self.references)

    def _reference_row(self, values: Any) -> list[int]:
        """One image's references, filled up with UNUSED."""
        if values is None:
            return [AUTOMATIC] * self.references
        row = [self.classes.index(v) for v in _values(values, "references")]
        self._check_reference_count(len(row))
        return row + [UNUSED] * (self.references - len(row))

    def _reference_array(self, count: int, references: NDArray[Any]) -> NDArray[np.int64]:
        if references.dtype.kind not in "iu":
            raise InputError(f"references are an array of {references.dtype}; give integers.")
        _check_count(references.shape[0], count, "references")
        self._check_reference_count(references.shape[1])
        for index in references[(references != AUTOMATIC) & (references != UNUSED)]:
            self.classes.checked(int(index))
        result = np.full((count, self.references), UNUSED, dtype=np.int64)
        result[:, : references.shape[1]] = references
        return result

    def _check_reference_count(self, given: int) -> None:
        if given > self.references:
            raise InputError(
                f"{given} references are too many: the engine was exported with R = {self.references}; give at most "
                f"{self.references}, or export with --references {given}."
            )

    def _check_distinct(self, contrast: Contrast) -> None:
        for image, (target, row) in enumerate(zip(contrast.target.tolist(), contrast.references.tolist(), strict=True)):
            pinned = [index for index in row if index >= 0]
            for index in pinned:
                if pinned.count(index) > 1:
                    raise InputError(f"the reference {self.classes.name(index)!r} is given twice for image {image}.")
            if target in pinned:
                raise InputError(
                    f"the reference {self.classes.name(target)!r} is the target of image {image} itself; give another "
                    "class."
                )

    def _alphas(self, count: int, alpha: Alpha) -> NDArray[np.float32]:
        try:
            values = np.asarray(self.default_alpha if alpha is None else alpha, dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError(f"alpha is {alpha!r}; give a number of at least 0, or one for each image.") from None
        if values.ndim == 0:
            values = np.full(count, values)
        if values.ndim != 1:
            raise InputError(f"alpha has shape {values.shape}; give a number, or one for each image.")
        _check_count(len(values), count, "alpha")
        wrong = ~((values >= 0) & (values <= np.finfo(np.float32).max))  # written so that NaN is wrong
        if wrong.any():
            raise InputError(f"alpha is {values[wrong][0]:g}; give a finite number of at least 0.")
        return values.astype(np.float32)


def _values(values: Any, name: str) -> list[Any]:
    if isinstance(values, np.ndarray) and values.ndim > 1:
        raise InputError(f"{name} has shape {values.shape}; give one value for each image.")
    try:
        return list(values)
    except TypeError:
        raise InputError(f"{name} is {values!r}, which is neither a class nor a list of classes.") from None


def _check_count(given: int, images: int, name: str) -> None:
    if given != images:
        raise InputError(f"{name} has {given} values for {images} images; give one value, or one for each image.")
