"""How a module's output is put into a layout: axes in another order, windows, tokens in an order of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Arrangement:
    """The output, of shape `given`, is reshaped to `split`, transposed to `axes`, reshaped to `merged` and rolled.

    kind: in words. given, split, merged: sizes of axes; the one that grows with the batch is -1. axes: as
    numpy.transpose takes them. shifts: by how many places each axis of `merged` after the first is rolled, as
    numpy.roll does. The result is in the target layer's layout, and only its order is another one.
    """

    kind: str
    given: tuple[int, ...]
    split: tuple[int, ...]
    axes: tuple[int, ...]
    merged: tuple[int, ...]
    shifts: tuple[int, ...]


def arrangement(value: Any) -> Arrangement | None:
    """Out of a manifest's JSON; None is an output that is read as it is.

    Raises:
        one of manifest.DAMAGE: it is not one.
    """
    if value is None:
        return None
    given, split, axes, merged, shifts = (
        tuple(int(number) for number in value[key]) for key in ("given", "split", "axes", "merged", "shifts")
    )
    if sorted(axes) != list(range(len(split))) or len(shifts) != len(merged) - 1:
        raise ValueError("an arrangement's axes and shifts are not those of its shapes")
    return Arrangement(str(value["kind"]), given, split, axes, merged, shifts)
