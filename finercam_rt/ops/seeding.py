"""The seed of the logits, for a network whose head runs outside the compiled graph."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from finercam_rt import _core
from finercam_rt.errors import InputError
from finercam_rt.kernel_arrays import (
    Array,
    allocate,
    check_same_device,
    describe,
    finish,
    listed,
    output,
    stream_of,
    to_caller,
    workers_for,
)

_OBJECTIVES = {"weighted": _core.Objective.WEIGHTED, "mean": _core.Objective.MEAN}
MAX_REFERENCES = 64
"""Of a contrast that `seed` takes."""


class Seed(NamedTuple):
    """The seed of each image, or with an axis P behind N of each of its contrasts.

    target_class: (N,) int64, the class explained. reference_classes: (N,R) int64, -2 where a reference takes no part.
    classes, values: (N,1+R) int64 and float32, the seed's value at each of these classes, the target's first; a
    reference that takes no part has class 0 and value 0. dense: (N,K) float32, the same with zeros elsewhere, or None.
    """

    target_class: Any
    reference_classes: Any
    classes: Any
    values: Any
    dense: Any = None


def seed(
    logits: Any,
    target: Any,
    references: Any,
    alpha: Any,
    *,
    objective: str = "weighted",
    dense: bool = False,
    out: Seed | None = None,
    threads: int | None = None,
    stream: int | None = None,
) -> Seed:
    """v = d/dy of T = y_c - alpha * (weighted) mean of y_i over the references i: what a VJP of the logits y is fed.

    v_c = 1; of "weighted" v_i = -alpha q_i (1 + y_i - sum q y), q the softmax over the references alone; of "mean"
    v_i = -alpha / (references used). A reference that is the target, or repeats an earlier one, takes no part.

    Args:
        logits: y, (N,K) float32.
        target: (N,) int64, a class, or -1 for the predicted one. Of P contrasts an image (N,P), where -k is the class
            with the k-th largest logit, k <= P.
        references: (N,R) or (N,P,R) int64, R from 1 to 64: a class, -1 for the nearest logit that is not taken, -2 for
            none.
        alpha: (N,) or (N,P) float32, >= 0.
        objective: "weighted" or "mean".
        dense: whether the seed is written as (N,K) as well.
        out: a Seed of arrays to write to, C-contiguous, on the same device; is returned.
        threads: of the CPU; by default as many physical cores as the work repays.
        stream: of a CUDA device; see the module.

    All arrays are C-contiguous and on one device. Of equal logits the lower class comes first; NaN counts as the
    largest. A class that is not below K makes its contrast's values NaN: on a device nobody can look first.

    Raises:
        InputError: a shape, dtype, device or option that cannot be used.

    Source: Finer-CAM (CVPR 2025); DESIGN, section 2. export/contrast.py is the same in the graph.
    """
    if objective not in _OBJECTIVES:
        raise InputError(f"the objective is {objective!r}; use one of {listed(_OBJECTIVES)}.")
    y = _plain(describe(logits, "logits", ("float32",), ("N", "K")))
    found = None if target is None else _core.describe(target)
    several = found is not None and len(found[0]) == 2
    axes = ("N", "P") if several else ("N",)
    of_target = _plain(describe(target, "targets", ("int64",), axes))
    of_alpha = _plain(describe(alpha, "alphas", ("float32",), axes))
    of_references = _plain(describe(references, "references", ("int64",), (*axes, "R")))
    rows = of_target.shape
    if rows[0] != y.shape[0] or of_alpha.shape != rows or of_references.shape[:-1] != rows:
        raise InputError(
            f"the targets are {rows}, the references {of_references.shape} and the alphas {of_alpha.shape} for logits "
            f"of {y.shape}; give one value, or one row of references, for each image or contrast."
        )
    for array in (of_target, of_references, of_alpha):
        check_same_device(array, y)
    count = of_references.shape[-1]
    if count > MAX_REFERENCES:
        raise InputError(f"{count} references are too many; give at most {MAX_REFERENCES}.")

    shapes = {
        "target_class": ("int64", rows),
        "reference_classes": ("int64", (*rows, count)),
        "classes": ("int64", (*rows, 1 + count)),
        "values": ("float32", (*rows, 1 + count)),
        "dense": ("float32", (*rows, y.shape[1])),
    }
    if out is None:
        result = Seed(*(None if n == "dense" and not dense else allocate(t, s, y) for n, (t, s) in shapes.items()))
    else:
        dense = out.dense is not None
        for name, (dtype, shape) in shapes.items():
            if name != "dense" or dense:
                output(getattr(out, name), f"out.{name}", dtype, shape, y)
        result = out
    given = logits, target, references, alpha
    pointer = stream_of(stream, y, *given)
    _core.seed(
        *given,
        *result,
        objective=_OBJECTIVES[objective],
        threads=workers_for(threads, 4 * int(np.prod(rows)) * y.shape[1] * (1 + count)),
        stream=pointer,
    )
    finish(pointer, y, *given)
    return result if out is not None else Seed(*(None if v is None else to_caller(v, logits, pointer) for v in result))


def _plain(array: Array) -> Array:
    """The array, refused where it is not C-contiguous."""
    if not array.plain:
        raise InputError(f"the {array.name} are not C-contiguous; copy them first.")
    return array
