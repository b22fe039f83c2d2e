"""Quotients of the symbolic batch that are whole numbers, kept as what they are.

Swin's code, and what was made after it, finds the batch as int(windows.shape[0] / (H * W / size / size)), in each block
from the one before. PyTorch's symbols keep every one of these as a truncated quotient of the last, and take minutes to
an hour to compare a dozen of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import sympy
from torch.utils._sympy import functions

_ROUNDED = (functions.TruncToInt, functions.FloorToInt, functions.CeilToInt, functions.RoundToInt)


@contextmanager
def whole_quotients() -> Iterator[None]:
    """Inside, what rounds a symbolic quotient to an integer gives it as it is, where it is one."""
    with ExitStack() as stack:
        for function in _ROUNDED:
            stack.enter_context(mock.patch.object(function, "eval", classmethod(_evaluated(function.eval))))
        yield


def _evaluated(original: Callable[[sympy.Expr], Any]) -> Callable[[Any, sympy.Expr], Any]:
    def evaluate(_function: Any, number: sympy.Expr) -> Any:
        quotient = _exact(number)
        return quotient if quotient is not None and quotient.is_integer else original(number)

    return evaluate


def _exact(number: sympy.Expr) -> sympy.Expr | None:
    """A quotient without its roundings, None of anything else."""
    if isinstance(number, functions.ToFloat):
        return number.args[0]
    if isinstance(number, (functions.FloatTrueDiv, functions.IntTrueDiv)):
        above, below = map(_exact, number.args)
        return None if above is None or below is None else above / below
    if isinstance(number, sympy.Float):
        return sympy.Integer(int(number)) if float(number).is_integer() else None
    return number if number.is_integer else None
