"""The statistics against values known by hand or in distribution, and the interleaving."""

from __future__ import annotations

import time

import numpy as np
import pytest
from comparison import timing
from comparison.timing import Samples


def samples(values: list[float], rounds: list[int] | None = None, processes: list[int] | None = None) -> Samples:
    numbers = rounds or list(range(len(values)))
    return Samples(list(values), [2 * v for v in values], numbers, processes or [0] * len(values))


def test_spread_of_known_values() -> None:
    assert timing.spread([5, 1, 2, 4, 3]) == {"n": 5, "min": 1, "median": 3, "q1": 2, "q3": 4, "iqr": 2}


def test_the_ratio_is_taken_within_rounds() -> None:
    # the machine slows tenfold half way; the ratio of every pair stays 1.5, that of any two medians need not
    weather = [1.0] * 4 + [10.0] * 4
    found = timing.ratio(samples([1.5 * w for w in weather]), samples(weather))
    assert found == {"ratio": 1.5, "low": 1.5, "high": 1.5, "of_minima": 1.5, "rounds": 8, "by_process": [1.5]}


def test_only_rounds_of_both_count() -> None:
    found = timing.ratio(samples([3.0, 30.0], [2, 9]), samples([100.0, 1.0, 10.0], [0, 2, 9]))
    assert found["rounds"] == 2
    assert found["ratio"] == pytest.approx(3)
    with pytest.raises(ValueError, match="no round in common"):
        timing.ratio(samples([1.0], [0]), samples([1.0], [1]))
    with pytest.raises(ValueError, match="no round in common"):
        timing.ratio(samples([1.0], [0], [0]), samples([1.0], [0], [1]))


def test_clocks_are_told_apart() -> None:
    slow = Samples([1.0, 1.0], [8.0, 8.0], [0, 1], [0, 0])
    fast = Samples([1.0, 1.0], [2.0, 2.0], [0, 1], [0, 0])
    assert timing.ratio(slow, fast, "cpu")["ratio"] == 1
    assert timing.ratio(slow, fast, "wall")["ratio"] == 4


def test_processes_weigh_the_same_whatever_their_rounds() -> None:
    runs = [{"a": samples([2.0] * 9), "b": samples([1.0] * 9)}, {"a": samples([4.0] * 3), "b": samples([1.0] * 3)}]
    found = timing.pooled(runs)
    assert found["a"].processes == [0] * 9 + [1] * 3
    result = timing.ratio(found["a"], found["b"])
    assert result["by_process"] == [2, 4]
    assert (result["ratio"], result["low"], result["high"]) == (3, 2, 4)


def test_a_contender_that_failed_in_one_process_is_left_out() -> None:
    runs = [{"a": samples([2.0]), "b": samples([1.0])}, {"a": samples([2.0])}]
    assert list(timing.pooled(runs)) == ["a"]


def test_the_interval_is_that_of_a_median() -> None:
    rng = np.random.default_rng(3)
    count, deviation = 400, 0.1
    pairs = rng.normal(1.2, deviation, count)
    found = timing.ratio(samples(list(pairs)), samples([1.0] * count))
    # the standard error of a median of normal values is 1.2533 deviation / sqrt(count)
    half = 1.96 * np.sqrt(np.pi / 2) * deviation / np.sqrt(count)
    assert found["ratio"] == pytest.approx(np.median(pairs))
    assert found["low"] < found["ratio"] < found["high"]
    assert found["high"] - found["low"] == pytest.approx(2 * half, rel=0.35)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(200):
        found = timing.ratio(samples(list(rng.normal(1.05, 0.03, 20))), samples([1.0] * 20))
        hits += found["low"] <= 1.05 <= found["high"]
    assert 0.88 <= hits / 200 <= 0.99


def test_the_interval_knows_that_processes_differ() -> None:
    rng = np.random.default_rng(5)

    def of_three_processes(bias: float) -> tuple[float, bool]:
        runs = []
        for _ in range(3):
            values = rng.normal(1.0 + rng.normal(0, bias), 0.002, 15)
            runs.append({"a": samples(list(values)), "b": samples([1.0] * 15)})
        found = timing.pooled(runs)
        result = timing.ratio(found["a"], found["b"])
        return result["high"] - result["low"], result["low"] <= 1 <= result["high"]

    biased, fair = ([of_three_processes(bias) for _ in range(60)] for bias in (0.01, 0.0))
    assert np.median([width for width, _ in biased]) > 3 * np.median([width for width, _ in fair])
    # three processes are few, so it is too narrow; one that drew rounds alone would cover one in ten
    assert np.mean([hit for _, hit in biased]) > 0.6


def test_contenders_are_interleaved_in_changing_order() -> None:
    order: list[str] = []

    def clock(name: str) -> timing.Clock:
        return lambda: (order.append(name), (1.0, 2.0))[1]

    found = timing.interleave({name: clock(name) for name in ("a", "b", "c")}, 6, frozenset(), seed=0)
    assert found["a"] == Samples([1.0] * 6, [2.0] * 6, list(range(6)), [0] * 6)
    rounds = [tuple(order[k : k + 3]) for k in range(0, 18, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len(set(rounds)) > 2


def test_a_short_call_is_preceded_by_one_that_does_not_count() -> None:
    order: list[str] = []

    def clock(name: str) -> timing.Clock:
        return lambda: (order.append(name), (float(len(order)), 0.0))[1]

    found = timing.interleave({name: clock(name) for name in ("short", "long")}, 3, frozenset({"short"}))
    assert len(found["short"].cpu) == len(found["long"].cpu) == 3
    assert (order.count("short"), order.count("long")) == (6, 3)
    assert [order[int(at) - 2 : int(at)] for at in found["short"].cpu] == [["short", "short"]] * 3


def test_cpu_time_does_not_count_waiting() -> None:
    cpu, wall = timing.timed(lambda: time.sleep(0.05))
    assert wall >= 0.05
    assert cpu < 0.02


def test_rounds_fit_the_budget() -> None:
    assert timing.plan_rounds([0.5, 2.0], budget=25, least=3, most=100) == 9
    assert timing.plan_rounds([0.01], budget=1, least=3, most=100) == 45  # each twice, and a rest
    assert timing.plan_rounds([0.5], budget=0.1, least=3, most=100) == 3
    assert timing.plan_rounds([0.5], budget=100, least=3, most=7) == 7
