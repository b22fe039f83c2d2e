"""Batches of one size, which graphs of a fixed batch ask for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def padded(values: NDArray[Any], count: int) -> NDArray[Any]:
    """(N,...) -> (count,...): `values`, or where there are fewer the last row of them repeated behind."""
    return values if len(values) == count else np.concatenate([values, np.repeat(values[-1:], count - len(values), 0)])
