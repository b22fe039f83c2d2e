"""PyTorch's exporter makes its table of ONNX functions anew for each program, 0.6 s of CPU; here it is made once."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def one_registry() -> Iterator[None]:
    """Until the block ends the exporter gets copies of one table, which it may add to."""
    registry, own = _class(), _own()
    registry.from_torchlib = staticmethod(_copied)
    try:
        yield
    finally:
        registry.from_torchlib = own


def _class() -> Any:
    # late: it imports onnxscript
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    return ONNXRegistry


@functools.cache
def _own() -> Any:
    """What makes the table, as PyTorch has it."""
    return vars(_class())["from_torchlib"]


@functools.cache
def _made(*version: int, **named: int) -> Any:
    return _own().__get__(None, _class())(*version, **named)


def _copied(*version: int, **named: int) -> Any:
    known = _made(*version, **named)
    found = copy.copy(known)
    found.functions = {target: list(functions) for target, functions in known.functions.items()}
    return found
