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
from sweep.outcome import REFUSED, RIGHT, ROUNDING, TOLERANCE, WRONG

SEED = 3


def check(graph: Path, runtime: str, oracle: Oracle) -> dict[str, Any]:
    """Hold the engine to the oracle, with automatic and given contrasts, in batches of one image and of all.

    Returns:
        "status", one of right, wrong, refused; "reason" of the latter two; "map_error" and "logit_error", the largest;
        "rounding" where they are above the tolerance: how far the engine and PyTorch are from float64.
    """
    worst, rounding = Errors(0.0, 0.0), None
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
                    if max(errors) > TOLERANCE:
                        rounding = _rounding(oracle, contrast, outputs.logits, saliency_map)
                        if not _explained(rounding):
                            return {"status": WRONG, "reason": "it differs", **_figures(worst, rounding)}
    except FinerCAMError as error:
        return {"status": REFUSED, "reason": str(error).replace(f"{graph.parent}/", "")}
    return {"status": RIGHT, **_figures(worst, rounding)}


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


def _rounding(
    oracle: Oracle, contrast: Contrast, logits: NDArray[Any], saliency_map: NDArray[Any]
) -> dict[str, dict[str, float]] | None:
    """How far the engine, and PyTorch in float32, are from float64; None where the model cannot compute in it."""
    exact = oracle.in_float64()
    if exact is None:
        return None
    in_float32 = oracle.expected(contrast).saliency_map
    engine = _errors(exact, contrast, logits, saliency_map)
    return {
        "engine": engine._asdict(),
        "pytorch": _errors(exact, contrast, oracle.logits[: len(logits)], in_float32)._asdict(),
    }


def _explained(rounding: dict[str, dict[str, float]] | None) -> bool:
    """Whether rounding in float32 is why the engine differs: PyTorch's is as far from what is exact."""
    if rounding is None:
        return False
    return all(rounding["engine"][key] <= max(TOLERANCE, ROUNDING * rounding["pytorch"][key]) for key in Errors._fields)


def _figures(worst: Errors, rounding: dict[str, dict[str, float]] | None) -> dict[str, Any]:
    # null where an output is not finite or not of the right shape: JSON has no infinity
    measured = {"map_error": worst.saliency_map, "logit_error": worst.logits}
    return {**{key: value if math.isfinite(value) else None for key, value in measured.items()}, "rounding": rounding}
