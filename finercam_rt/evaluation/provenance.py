"""What produced a result: versions, engines, data and options, without a path of this machine."""

from __future__ import annotations

import itertools
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from finercam_rt.engine import Engine
from finercam_rt.evaluation.dataset import Dataset
from finercam_rt.files import sha256_of
from finercam_rt.packages import versions_of

_PACKAGES = ("finercam-rt", "numpy", "pillow", "onnxruntime", "openvino", "scipy", "scikit-image")


def engine_names(paths: Sequence[Path]) -> list[str]:
    """What each engine is called: its file's name without suffix, with a number where two would be the same."""
    stems = Counter(path.stem for path in paths)
    names: list[str] = []
    for path in paths:
        numbered = (f"{path.stem}-{number}" for number in itertools.count(1))
        free = (name for name in numbered if name not in stems and name not in names)
        names.append(path.stem if stems[path.stem] == 1 else next(free))
    return names


def engine_record(name: str, engine: Engine) -> dict[str, Any]:
    """An engine as plain JSON values, with the SHA-256 of its file."""
    manifest = engine.manifest
    return {
        "name": name,
        "sha256": sha256_of(engine.path),
        "model": manifest.model.name,
        "weights_sha256": manifest.model.weights_sha256,
        "layers": [layer.name for layer in manifest.layers],
        "method": engine.method,
        "objective": manifest.objective,
        "references": manifest.references,
        "head": manifest.head,
        "precision": manifest.precision,
        "backend": engine.backend,
        "compute": engine.compute,
        "device": engine.device,
        "classes": engine.classes.count,
    }


def produced_by(engines: Sequence[dict[str, Any]], dataset: Dataset, options: Mapping[str, Any]) -> dict[str, Any]:
    """All that the figures depend on; an unfinished evaluation is finished only by the same."""
    return {
        "engines": list(engines),
        "data": {
            "name": dataset.name,
            "images": len(dataset.samples),
            "references_named": sum(bool(sample.references) for sample in dataset.samples),
            "sha256": dataset.sha256,
        },
        **options,
        "versions": {"python": platform.python_version(), **versions_of(_PACKAGES)},
    }


def now() -> str:
    """UTC time to the second, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
