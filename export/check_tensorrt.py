"""The last gate, where it is asked for: TensorRT takes the graph, and what it makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finercam_rt.errors import ExportError
from finercam_rt.tensorrt.builder import BATCH, CLASSES, BuildOptions, UnsupportedError, build
from finercam_rt.tensorrt.kernels import behind
from finercam_rt.tensorrt.library import Library, targets

CHECKS = ("tensorrt",)


def check_tensorrt(graph: Path, library: Library) -> dict[str, Any]:
    """Build the file as `finercam build` would, and throw the plan away.

    Returns:
        runtime, capabilities, plan_bytes, seconds, and how many kernels the plan launches, in all and behind the
        logits (None where the library does not say).

    Raises:
        ExportError: an operation that the library does not have, or a graph that it cannot build.
    """
    options = BuildOptions(batch=BATCH, classes=CLASSES, capabilities=targets(library, ()))
    try:
        built = build(graph, library, options)
    except UnsupportedError as error:
        reason = str(error).replace(f"{graph}: ", "").rstrip(".")
        raise ExportError(f"{reason}; nothing was written.") from None
    return {
        "runtime": f"{library.flavour} {library.version}",
        "capabilities": list(options.capabilities),
        "plan_bytes": len(built.plan),
        "seconds": round(built.seconds, 2),
        "kernels": len(built.kernels) or None,
        "kernels_behind_logits": len(behind(built.kernels, "logits")) if built.kernels else None,
    }
