"""Build a TensorRT-RTX engine from an ONNX file: `python -m sweep.rtx FILE`; a line of JSON says what came of it.

No GPU is needed to build, and nothing is run.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

BATCHES = (1, 4, 16)
"""Least, usual and largest batch of the optimisation profile."""
CAPABILITY = "SM89"
RIGHT, REFUSED, MISSING = "builds", "refused", "not installed"


def build(path: str) -> dict[str, Any]:
    """{"status": "builds", "seconds", "bytes"} or {"status": "refused", "operation", "reason"}, or "not installed"."""
    try:
        import tensorrt_rtx_bindings as rtx
        import tensorrt_rtx_libs  # noqa: F401  the shared libraries, which the bindings look for
    except ImportError as error:
        return {"status": MISSING, "reason": str(error)}

    class Logger(rtx.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            rtx.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (rtx.ILogger.ERROR, rtx.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    logger = Logger()
    began = time.perf_counter()
    builder = rtx.Builder(logger)
    network = builder.create_network(0)
    parser = rtx.OnnxParser(network, logger)
    if not parser.parse_from_file(path):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        operations = sorted({error.node_operator() for error in found})
        return {
            "status": REFUSED,
            "operation": ", ".join(operations),
            "reason": " ".join(found[0].desc().split())[:300],
        }
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(rtx.ComputeCapability, CAPABILITY), 0)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        value = network.get_input(index)
        shape = tuple(value.shape)
        profile.set_shape(value.name, *(tuple(batch if size < 0 else size for size in shape) for batch in BATCHES))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - began
    if plan is None:
        reason = " ".join((logger.errors or ["no message"])[0].split())[:300]
        return {"status": REFUSED, "operation": "", "reason": reason, "seconds": seconds}
    return {"status": RIGHT, "seconds": seconds, "bytes": plan.nbytes}


if __name__ == "__main__":
    print(json.dumps(build(sys.argv[1])))
