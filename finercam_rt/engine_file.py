"""The manifest of an engine, in whatever kind of file it is."""

from __future__ import annotations

import os
from pathlib import Path

from finercam_rt import onnx_metadata
from finercam_rt.manifest import Manifest
from finercam_rt.tensorrt.plan import SUFFIX, read_plan_info


def is_plan(path: str | os.PathLike[str]) -> bool:
    """Whether it is named as a TensorRT plan."""
    return Path(path).suffix == SUFFIX


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """That of an ONNX file, or of the sidecar of a TensorRT plan, checked; the graph is not loaded.

    Raises:
        EngineError: what `onnx_metadata.read_manifest` or `plan.read_plan_info` refuses.
    """
    return read_plan_info(Path(path)).manifest if is_plan(path) else onnx_metadata.read_manifest(path)
