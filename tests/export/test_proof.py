"""The parts of a layout's proof, each by a sight that is made for it: what holds, and what one fault leaves of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from finercam_rt.export.evidence import NOWHERE, Fit, near_ceiling, order_holds, others_look
from finercam_rt.export.probe import Sight
from finercam_rt.export.prove import _best
from finercam_rt.export.reading import Order, Reading

Values = NDArray[np.float64]

WINDOWS = Reading("nhwc", (8, 8), order=Order("windows", (2, 4, 2, 4), (0, 2, 1, 3)))
UNITS = Reading("nhwc", (8, 8), order=Order("strides", (4, 2, 4, 2), (1, 3, 0, 2)))


def sight(rows: Values, columns: Values) -> Sight:
    return Sight({"last": (rows, columns)})


def parts(values: Values, groups: int) -> tuple[Values, Values]:
    """The mean of each group, and how far its values are from it."""
    means = values.reshape(groups, -1).mean(1).repeat(len(values) // groups)
    return means, values - means


def noise(seed: int, count: int = 64) -> Values:
    return np.random.default_rng(seed).normal(size=count)


@pytest.mark.parametrize(
    ("reading", "groups", "change", "holds"),
    [
        pytest.param(WINDOWS, 4, lambda group, inside: group + inside, True, id="windows"),
        pytest.param(WINDOWS, 4, lambda group, inside: group + 0.6 * inside, True, id="windows that mix"),
        pytest.param(WINDOWS, 4, lambda group, inside: 0.75 * group + inside, False, id="windows that overlap"),
        pytest.param(WINDOWS, 4, lambda group, inside: group + 0.1 * inside, False, id="groups of another attention"),
        pytest.param(WINDOWS, 4, lambda group, inside: group + inside + 9 * noise(1), False, id="noise in windows"),
        pytest.param(UNITS, 4, lambda group, inside: group + inside, True, id="units"),
        pytest.param(UNITS, 4, lambda group, inside: 0.7 * group + inside, True, id="units that mix"),
        pytest.param(UNITS, 4, lambda group, inside: 0.1 * group + inside, False, id="heads"),
    ],
)
def test_both_parts_of_an_order_are_seen_to_one_scale(
    reading: Reading, groups: int, change: Callable[[Values, Values], Values], holds: bool
) -> None:
    rows, columns = reading.claimed()
    assert order_holds(reading, sight(change(*parts(rows, groups)), change(*parts(columns, groups)))) == holds
    assert order_holds(reading, sight(change(*parts(rows, groups)), columns)) == holds


def test_noise_that_leaves_the_slopes_is_not_seen() -> None:
    """In the windows, with a slope of 1 to a digit; their own order is as clear as can be."""
    rows, columns = WINDOWS.claimed()
    inside = parts(rows, 4)[1]
    shaken = parts(noise(2), 4)[1]
    shaken -= inside * (shaken @ inside) / (inside @ inside)
    assert order_holds(WINDOWS, sight(rows + shaken, columns))
    assert not order_holds(WINDOWS, sight(rows + 20 * shaken, columns))


def test_an_order_that_is_nearly_right_is_a_shift_below_what_noise_leaves() -> None:
    rows, columns = WINDOWS.claimed()
    clear = [sight(rows + 0.01 * noise(k), columns + 0.01 * noise(9 + k)) for k in range(3)]
    noisy = [sight(rows + 1.5 * noise(k), columns + 1.5 * noise(9 + k)) for k in range(3)]
    assert near_ceiling(WINDOWS, clear)
    assert near_ceiling(WINDOWS, noisy)
    shifted = Reading("nhwc", (8, 8), order=Order("windows", (2, 4, 2, 4), (0, 2, 1, 3), (1, 0)))
    assert not near_ceiling(shifted, clear)


def test_tokens_that_look_somewhere_are_positions() -> None:
    """Of 8 x 8 positions, 5 x 5 and what is left over."""
    suffix = Reading("tokens", (5, 5), 0, 11)
    rows, columns = (np.append(values.ravel(), [2.0] * 11) for values in np.indices((5, 5)) * 1.0)
    assert others_look(suffix, sight(rows, columns)) < NOWHERE
    assert others_look(suffix, sight(rows + np.append(np.zeros(25), noise(3, 11)), columns)) > NOWHERE
    assert others_look(suffix, sight(rows, columns - np.append(np.zeros(25), np.full(11, 2.0)))) > NOWHERE


def test_a_larger_grid_is_taken_up_to_what_tokens_in_its_rows_would_cost() -> None:
    larger, smaller = Reading("tokens", (6, 3), 2), Reading("tokens", (5, 3), 5)
    assert _best({smaller: Fit(0.999, 0.001, True), larger: Fit(0.99, 0.01, True)}) == larger
    assert _best({smaller: Fit(0.999, 0.001, True), larger: Fit(0.8, 0.2, True)}) == smaller
