"""What TensorRT says while it builds or runs."""

from __future__ import annotations

from collections import deque
from typing import Any

_KEPT = 32
"""Errors: an engine may run for weeks."""


def new_log(trt: Any) -> Any:
    """A logger of theirs that keeps what it is told; any thread may call it.

    errors: the last ones. verbose: what a build says of the kernels. reason(otherwise): the first error on one line;
    take_reason(otherwise): it, and the errors are then forgotten.
    """

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=_KEPT)
            self.verbose: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(msg)
            elif severity == trt.ILogger.VERBOSE and "LayerType: " in msg:
                self.verbose.append(msg)

        def reason(self, otherwise: str) -> str:
            return " ".join(self.errors[0].split())[:300].rstrip(".") if self.errors else otherwise

        def take_reason(self, otherwise: str) -> str:
            reason = self.reason(otherwise)
            self.errors.clear()
            return reason

    return Log()
