"""Build a TensorRT-RTX plan from an ONNX file: `python -m sweep.rtx FILE`; a line of JSON says what came of it.

No GPU is needed to build, and nothing is run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from finercam_rt.errors import BackendError
from finercam_rt.tensorrt.builder import BATCH, CLASSES, BuildOptions, UnsupportedError, build
from finercam_rt.tensorrt.library import RTX, import_flavour

BATCHES = BATCH
"""Least, usual and largest batch of the optimisation profile."""
CAPABILITY = "SM89"
RIGHT, REFUSED, MISSING = "builds", "refused", "not installed"


def build_status(path: str) -> dict[str, Any]:
    """{"status": "builds", "seconds", "bytes", "kernels"} or {"status": "refused", "operation", "reason"}, or "not
    installed"."""
    try:
        library = import_flavour(RTX)
    except BackendError as error:
        return {"status": MISSING, "reason": str(error)}
    try:
        built = build(Path(path), library, BuildOptions(BATCHES, CLASSES, (CAPABILITY,)))
    except UnsupportedError as error:
        reason = str(error).replace(f"{path}: ", "")[:300]
        return {"status": REFUSED, "operation": error.operation, "reason": reason}
    return {
        "status": RIGHT,
        "seconds": built.seconds,
        "bytes": len(built.plan),
        "kernels": len(built.kernels),
    }


if __name__ == "__main__":
    print(json.dumps(build_status(sys.argv[1])))
