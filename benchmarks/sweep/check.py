"""An engine in a runtime against the oracle."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finercam_rt import Engine, top_classes
from finercam_rt.contrast import Contrast as Asked
from finercam_rt.errors import FinerCAMError
from finercam_rt.manifest import Manifest
from finercam_rt.outputs import Outputs
from sweep.oracle import Contrast, Errors, Oracle, choice_error, logit_error, map_error
from sweep.outcome import REFUSED, RIGHT, ROUNDED_AGAIN, ROUNDING, TOLERANCE, WRONG

SEED = 3


def check(graph: Path, runtime: str, oracle: Oracle) -> dict[str, Any]:
    """Hold the engine to the oracle, with automatic and given contrasts, in batches of one image and of all.

    Returns:
        "status", one of right, wrong, refused; "reason" of the latter two; "map_error" and "logit_error", the largest;
        "rounding" where they are above the tolerance: how far the engine is from float64, and how far rounding moves
        PyTorch's own, at most of all questions so far.
    """
    worst, rounding = Errors(0.0, 0.0), _Rounding(oracle)
    try:
        with Engine(graph, backend=runtime, device="cpu", threads=1) as engine:
            for count, arguments, automatic in _questions(engine.manifest, len(oracle.images)):
                outputs = engine(oracle.images[:count].numpy(), **arguments)
                for rank, (contrast, saliency_map) in enumerate(_each(outputs)):
                    choice = choice_error(oracle.logits[:count], contrast, rank) if automatic else 0.0
                    if choice > 2 * TOLERANCE:
                        return {"status": WRONG, "reason": f"it chooses other classes, {choice:.1e} from the best"}
                    errors = _errors(oracle, contrast, outputs.logits, saliency_map)
                    worst = Errors(*map(max, worst, errors))
                    if max(errors) > TOLERANCE and not rounding.explains(contrast, outputs.logits, saliency_map):
                        return {"status": WRONG, "reason": "it differs", **_figures(worst, rounding.measured)}
    except FinerCAMError as error:
        return {"status": REFUSED, "reason": str(error).replace(f"{graph.parent}/", "")}
    return {"status": RIGHT, **_figures(worst, rounding.measured)}


class _Rounding:
    """Whether float32 accounts for a difference: PyTorch's own map of a model is moved about as far by it.

    By how much is measured on PyTorch's float32 against its float64 and, where that is not enough, with weights and
    images that are rounded to float32 once more; of all that was asked so far, since that of one image may be small.
    """

    def __init__(self, oracle: Oracle) -> None:
        self.measured: dict[str, dict[str, float]] | None = None
        self._oracle, self._pytorch = oracle, Errors(0.0, 0.0)
        self._exact: Oracle | None = None

    def explains(self, contrast: Contrast, logits: NDArray[Any], saliency_map: NDArray[Any]) -> bool:
        """Not where the model cannot compute in float64."""
        self._exact = exact = self._exact or self._oracle.in_float64()
        if exact is None:
            return False
        engine = _errors(exact, contrast, logits, saliency_map)
        self._add(self._oracle, exact, contrast)
        for seed in range(ROUNDED_AGAIN):
            if self._allows(engine):
                break
            self._add(self._oracle.rounded_again(seed), exact, contrast)  # not kept: it holds the activations
        self.measured = {"engine": engine._asdict(), "pytorch": self._pytorch._asdict()}
        return self._allows(engine)

    def _add(self, oracle: Oracle, exact: Oracle, contrast: Contrast) -> None:
        logits = oracle.logits[: len(contrast.target)]
        found = _errors(exact, contrast, logits, oracle.expected(contrast).saliency_map)
        self._pytorch = Errors(*map(max, self._pytorch, found))

    def _allows(self, engine: Errors) -> bool:
        return all(e <= max(TOLERANCE, ROUNDING * own) for e, own in zip(engine, self._pytorch, strict=True))


def _questions(manifest: Manifest, count: int) -> Iterator[tuple[int, dict[str, Any], bool]]:
    """(images, arguments of the engine, whether it chooses the classes); the classes given are seeded draws."""
    several, classes = manifest.contrasts, manifest.num_classes
    draw = np.random.default_rng(SEED)
    given = [[draw.permutation(classes)[: manifest.references + 1] for _ in range(several)] for _ in range(count)]
    if several == 1:
        yield 1, {}, True
        yield count, {"alpha": np.linspace(0.3, 2, count, dtype=np.float32)}, True
        yield count, {"alpha": 0.0}, True
        target = [int(row[0][0]) for row in given]
        yield count, {"target": target, "references": [row[0][1:].tolist() for row in given], "alpha": 1.0}, False
    else:
        yield 1, {"contrasts": top_classes(several)}, True
        yield count, {"contrasts": top_classes(several, alpha=0.5)}, True
        rows = [[Asked(int(c[0]), c[1:].tolist(), 1.0) for c in row] for row in given]
        yield count, {"contrasts": rows}, False


def _each(outputs: Outputs) -> Iterator[tuple[Contrast, NDArray[Any]]]:
    """Each contrast of the run, with its maps (N,h,w)."""
    if outputs.target.ndim == 1:
        yield Contrast(outputs.target, outputs.references, outputs.alpha), outputs.saliency_map
        return
    for p in range(outputs.target.shape[1]):
        parts = (value[:, p] for value in (outputs.target, outputs.references, outputs.alpha))
        yield Contrast(*parts), outputs.saliency_map[:, p]


def _errors(oracle: Oracle, contrast: Contrast, logits: NDArray[Any], saliency_map: NDArray[Any]) -> Errors:
    right = oracle.logits[: len(logits)]
    return Errors(map_error(saliency_map, oracle.expected(contrast)), logit_error(logits, right))


def _figures(worst: Errors, rounding: dict[str, dict[str, float]] | None) -> dict[str, Any]:
    # null where an output is not finite or not of the right shape: JSON has no infinity
    measured = {"map_error": worst.saliency_map, "logit_error": worst.logits}
    return {**{key: value if math.isfinite(value) else None for key, value in measured.items()}, "rounding": rounding}
