"""What ONNX Runtime says of its values and errors, as we say it."""

from __future__ import annotations

from typing import Any

from finercam_rt.backends.interface import Value
from finercam_rt.errors import one_line

ONLY_FATAL = 4
"""The log level of sessions: what is wrong comes as an exception too."""
_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}


def value_of(value: Any) -> Value:
    """An input or output of a session."""
    return Value(_DTYPES.get(value.type, value.type), value.shape)


def reason_of(error: Exception) -> str:
    """ONNX Runtime's message on one line, without its "[ONNXRuntimeError] : 1 : FAIL : " and its source path."""
    text = one_line(error)
    text = text.rsplit(" : ", 1)[-1] if text.startswith("[ONNXRuntimeError]") else text
    return text[:300].rstrip(". ") or type(error).__name__
