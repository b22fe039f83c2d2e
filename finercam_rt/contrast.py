"""What is explained against what: the caller's targets, references and alphas as the graph's inputs."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from finercam_rt.arrays import to_numpy
from finercam_rt.classes import Classes, ClassSpec
from finercam_rt.errors import InputError

AUTOMATIC = -1
"""As a target: the predicted class (-k is the one with the k-th largest logit). As a reference: chosen by the graph."""
UNUSED = -2
"""As a reference: none."""

_LARGEST = float(np.finfo(np.float32).max)

Target: TypeAlias = "ClassSpec | Sequence[ClassSpec | None] | NDArray[np.integer[Any]] | None"
References: TypeAlias = (
    "ClassSpec | Sequence[ClassSpec] | Sequence[Sequence[ClassSpec] | None] | NDArray[np.integer[Any]] | None"
)
Alpha: TypeAlias = "float | Sequence[float] | NDArray[np.floating[Any]] | None"


@dataclass(frozen=True)
class Rank:
    """The class with the place-th largest logit, from 1: the predicted one."""

    place: int


@dataclass(frozen=True)
class Contrast:
    """One question: why `target`, and not `references`?

    target: a class, a Rank, or None for the predicted class. references: a class, a list of at most R, [] for none (the
    plain map), or None for the classes nearest to the target. alpha: the strength, or None for the objective's own.
    """

    target: ClassSpec | Rank | None = None
    references: ClassSpec | Sequence[ClassSpec] | None = None
    alpha: float | None = None


Contrasts: TypeAlias = "Sequence[Contrast] | Sequence[Sequence[Contrast]]"


def top_classes(
    count: int, references: ClassSpec | Sequence[ClassSpec] | None = None, alpha: float | None = None
) -> list[Contrast]:
    """Why each of the `count` classes with the largest logits."""
    return [Contrast(Rank(place), references, alpha) for place in range(1, count + 1)]


def why_not(classes: Sequence[ClassSpec], alpha: float | None = None) -> list[Contrast]:
    """Why A and not B, for each ordered pair of different `classes`, row by row: n * (n - 1) contrasts."""
    return [Contrast(a, [b], alpha) for i, a in enumerate(classes) for j, b in enumerate(classes) if i != j]


def alpha_sweep(
    alphas: Sequence[float],
    target: ClassSpec | None = None,
    references: ClassSpec | Sequence[ClassSpec] | None = None,
) -> list[Contrast]:
    """One question at several strengths; 0 is the plain map."""
    return [Contrast(target, references, alpha) for alpha in alphas]


class ContrastArrays(NamedTuple):
    """target (N,) int64, references (N,R) int64, alpha (N,) float32: the graph's inputs (DESIGN, section 3).

    For an engine of several contrasts an axis follows N on all of them.
    """

    target: NDArray[np.int64]
    references: NDArray[np.int64]
    alpha: NDArray[np.float32]

    def rows(self, rows: slice | Sequence[int]) -> ContrastArrays:
        """The contrasts of some of the images."""
        return self._each(lambda values: values[rows])

    def padded(self, contrasts: int) -> ContrastArrays:
        """With the last contrast of each image repeated until there are so many."""
        missing = contrasts - self.target.shape[1]
        if missing == 0:
            return self
        return self._each(lambda values: np.concatenate([values, np.repeat(values[:, -1:], missing, axis=1)], axis=1))

    def repeated(self, count: int, axis: int) -> ContrastArrays:
        """With a new axis, of so many equal entries."""
        return self._each(lambda values: np.repeat(np.expand_dims(values, axis), count, axis=axis))

    def _each(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> ContrastArrays:
        return ContrastArrays(change(self.target), change(self.references), change(self.alpha))


@dataclass(frozen=True)
class ContrastResolver:
    """Turns what a caller gives into ContrastArrays, for an engine with these classes, R references and P contrasts."""

    classes: Classes
    references: int
    default_alpha: float
    contrasts: int = 1

    def resolve(
        self, count: int, target: Target, references: References, alpha: Alpha, contrasts: Contrasts | None = None
    ) -> ContrastArrays:
        """The contrasts of `count` images; with P > 1 there are at most P of them along the second axis.

        Args:
            count: N, the number of images.
            target: None for the predicted class; a class for all images; or a class or None for each image.
            references: None for the R nearest classes; a class or a list of at most R for all images, [] for none
                (the plain map); a list of such lists, one an image; or an integer array (N, at most R) in which -1
                means automatic and -2 unused.
            alpha: None for the objective's default; a number for all images; or one for each image.
            contrasts: instead of the three above, at most P Contrasts for all images, or a list of such lists of one
                length, one an image. With P > 1 and neither these nor a target, the P largest classes are explained.

        Raises:
            InputError: a class that there is not, more than R references, a reference twice, one that is the target,
                alpha negative or not finite, or not one value an image; more contrasts than the engine has.
        """
        if contrasts is not None:
            if target is not None or references is not None or alpha is not None:
                raise InputError("contrasts name their own targets, references and alphas; give those or contrasts.")
            return self._several(count, contrasts)
        resolved = ContrastArrays(
            self._targets(count, target), self._references(count, references), self._alphas(count, alpha)
        )
        if references is not None and self.references:
            rows = zip(resolved.target.tolist(), resolved.references.tolist(), strict=True)
            for image, (index, row) in enumerate(rows):
                self._check_distinct(index, row, f" for image {image}" if count > 1 else "")
        if self.contrasts == 1:
            return resolved
        places = min(self.contrasts, self.classes.count) if target is None else 1
        several = resolved.repeated(places, axis=1)
        return several if target is not None else several._replace(target=several.target - np.arange(places))

    def _several(self, count: int, contrasts: Contrasts) -> ContrastArrays:
        if self.contrasts == 1:
            raise InputError(
                "the engine explains one contrast an image; give target, references and alpha, or export it with "
                "--contrasts."
            )
        questions = list(contrasts)
        if not questions:
            raise InputError("there are no contrasts; give at least one.")
        if all(isinstance(question, Contrast) for question in questions):
            return self._arrays([self._row(questions)]).rows([0] * count)
        _check_count(len(questions), count, "contrasts")
        return self._arrays([self._row(row) for row in questions])

    def _arrays(self, rows: Sequence[Sequence[_Question]]) -> ContrastArrays:
        """Of images with their contrasts."""
        lengths = {len(row) for row in rows}
        if len(lengths) > 1:
            raise InputError(
                f"the images have {min(lengths)} to {max(lengths)} contrasts; give each image as many as the others."
            )
        shape = len(rows), *lengths
        targets, references, alphas = zip(*itertools.chain(*rows), strict=True)
        return ContrastArrays(
            np.array(targets, np.int64).reshape(shape),
            np.array(references, np.int64).reshape(*shape, self.references),
            self._alphas(len(alphas), alphas).reshape(shape),
        )

    def _row(self, questions: Any) -> list[_Question]:
        """The contrasts of one image."""
        questions = _values(questions, "contrasts")
        if len(questions) > self.contrasts:
            raise InputError(
                f"{len(questions)} contrasts are too many: the engine was exported with P = {self.contrasts}; give at "
                f"most {self.contrasts}, or export with --contrasts {len(questions)}."
            )
        if not questions:
            raise InputError("an image has no contrasts; give at least one.")
        return [self._question(question) for question in questions]

    def _question(self, question: Any) -> _Question:
        if not isinstance(question, Contrast):
            raise InputError(f"{question!r} is not a Contrast; give a list of them, or one list for each image.")
        if isinstance(question.target, Rank):
            target = -self._place(question.target)
        else:
            target = AUTOMATIC if question.target is None else self.classes.index(question.target)
        given = [question.references] if _is_class(question.references) else question.references
        references = self._reference_row(given)
        if given is not None:
            self._check_distinct(target, references)
        return target, references, self.default_alpha if question.alpha is None else question.alpha

    def _place(self, rank: Rank) -> int:
        most = min(self.contrasts, self.classes.count)
        if isinstance(rank.place, bool) or not hasattr(rank.place, "__index__") or not 1 <= rank.place <= most:
            raise InputError(f"there is no rank {rank.place}: this engine ranks classes from 1 to {most}.")
        return operator.index(rank.place)

    def _targets(self, count: int, target: Target) -> NDArray[np.int64]:
        if target is None or _is_class(target):
            return np.full(count, AUTOMATIC if target is None else self.classes.index(target), dtype=np.int64)
        values = _values(target, "target")
        _check_count(len(values), count, "target")
        return np.array([AUTOMATIC if v is None else self.classes.index(v) for v in values], dtype=np.int64)

    def _references(self, count: int, references: References) -> NDArray[np.int64]:
        if references is None:
            return np.full((count, self.references), AUTOMATIC, dtype=np.int64)
        if getattr(references, "ndim", None) == 2:
            return self._reference_array(count, to_numpy(references, "references"))
        values = [references] if _is_class(references) else _values(references, "references")
        if values and all(v is None or not _is_class(v) for v in values):
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

    def _check_distinct(self, target: int, references: Sequence[int], where: str = "") -> None:
        pinned = [index for index in references if index >= 0]
        for index in pinned:
            if pinned.count(index) > 1:
                raise InputError(f"the reference {self.classes.name(index)!r} is given twice{where}.")
        if target in pinned:
            raise InputError(
                f"the reference {self.classes.name(target)!r} is the target itself{where}; give another class."
            )

    def _alphas(self, count: int, alpha: Alpha) -> NDArray[np.float32]:
        if alpha is None:
            return np.full(count, self.default_alpha, dtype=np.float32)
        try:
            values = np.asarray(alpha, dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError(f"alpha is {alpha!r}; give a number of at least 0, or one for each image.") from None
        if values.ndim == 0:
            values = np.full(count, values)
        if values.ndim != 1:
            raise InputError(f"alpha has shape {values.shape}; give a number, or one for each image.")
        _check_count(len(values), count, "alpha")
        wrong = ~((values >= 0) & (values <= _LARGEST))  # written so that NaN is wrong
        if wrong.any():
            raise InputError(f"alpha is {values[wrong][0]:g}; give a number from 0 to {_LARGEST:.2g}.")
        return values.astype(np.float32)


_Question: TypeAlias = tuple[int, list[int], float]
"""A contrast: a target, R references filled up with UNUSED, an alpha that is not checked yet."""


def _is_class(value: Any) -> TypeGuard[ClassSpec]:
    """Whether it is one class and no list of them: a scalar, of whatever library."""
    return isinstance(value, (str, int, np.integer)) or getattr(value, "ndim", None) == 0


def _values(values: Any, name: str) -> list[Any]:
    if isinstance(values, np.ndarray) and values.ndim > 1:
        raise InputError(f"{name} has shape {values.shape}; give one value for each image.")
    try:
        return list(values)
    except TypeError:
        raise InputError(f"{name} is {values!r}, which is neither a class nor a list of classes.") from None


class CountError(InputError):
    """Values for another number of images than there are."""


def _check_count(given: int, images: int, name: str) -> None:
    if given != images:
        raise CountError(f"{name} has {given} values for {images} images; give one value, or one for each image.")
