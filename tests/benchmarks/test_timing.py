"""The statistics against values known by hand or in distribution, and the interleaving."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from comparison import timing
from comparison.timing import Samples


def samples(values: list[float], rounds: list[int] | None = None) -> Samples:
    return Samples(cpu=values, wall=[2 * v for v in values], rounds=rounds or list(range(len(values))))


def test_spread_of_known_values() -> None:
    assert timing.spread([5, 1, 2, 4, 3]) == {"n": 5, "min": 1, "median": 3, "q1": 2, "q3": 4, "iqr": 2}


def test_the_ratio_is_taken_within_rounds() -> None:
    # the machine slows tenfold half way; the ratio of every pair stays 1.5, that of any two medians need not
    weather = [1.0] * 4 + [10.0] * 4
    found = timing.ratio(samples([1.5 * w for w in weather]), samples(weather))
    assert found == {"ratio": 1.5, "low": 1.5, "high": 1.5, "of_minima": 1.5, "rounds": 8}


def test_only_rounds_of_both_count() -> None:
    found = timing.ratio(samples([3.0, 30.0], [2, 9]), samples([100.0, 1.0, 10.0], [0, 2, 9]))
    assert found["rounds"] == 2
    assert found["ratio"] == pytest.approx(3)
    with pytest.raises(ValueError, match="no round in common"):
        timing.ratio(samples([1.0], [0]), samples([1.0], [1]))


def test_clocks_are_told_apart() -> None:
    slow = Samples(cpu=[1.0, 1.0], wall=[8.0, 8.0], rounds=[0, 1])
    fast = Samples(cpu=[1.0, 1.0], wall=[2.0, 2.0], rounds=[0, 1])
    assert timing.ratio(slow, fast, "cpu")["ratio"] == 1
    assert timing.ratio(slow, fast, "wall")["ratio"] == 4


def test_the_interval_is_that_of_a_median() -> None:
    rng = np.random.default_rng(3)
    count, deviation = 400, 0.1
    pairs = rng.normal(1.2, deviation, count)
    found = timing.ratio(samples(list(pairs)), samples([1.0] * count))
    # the standard error of a median of normal values is 1.2533 deviation / sqrt(count)
    half = 1.96 * math.sqrt(math.pi / 2) * deviation / math.sqrt(count)
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


def test_contenders_are_interleaved_and_spread_over_the_rounds() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in ("a", "b", "peer")}
    found = timing.interleave(calls, {"a": 6, "b": 6, "peer": 2}, frozenset(), seed=0)
    assert found["a"].rounds == found["b"].rounds == list(range(6))
    assert found["peer"].rounds == [0, 3]
    assert len(order) == 14
    assert [sorted(order[k : k + 2]) for k in (3, 5)] == [["a", "b"]] * 2  # after round 0 with the peer
    assert len({tuple(order[k : k + 2]) for k in (3, 5, 10, 12)}) == 2  # in both orders


def test_a_short_call_is_preceded_by_one_that_does_not_count() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in ("short", "long")}
    found = timing.interleave(calls, {"short": 3, "long": 3}, frozenset({"short"}))
    assert len(found["short"].cpu) == len(found["long"].cpu) == 3
    assert (order.count("short"), order.count("long")) == (6, 3)


def test_cpu_time_does_not_count_waiting() -> None:
    cpu, wall = timing.timed(lambda: time.sleep(0.05))
    assert wall >= 0.05
    assert cpu < 0.02


def test_rounds_fit_the_budget() -> None:
    seconds = {"ours": 0.2, "plain": 0.2, "slow": 2.0, "quick": 0.01}
    plan = timing.plan_rounds(seconds, ("ours", "plain"), budget=20, limit=25)
    assert plan == {"ours": 25, "plain": 25, "slow": 3, "quick": 3}  # 12 s for the first two, 8 s for 2.02 s a round
    small = timing.plan_rounds(seconds, ("ours", "plain"), budget=0.1, limit=25)
    assert small == {"ours": 5, "plain": 5, "slow": 3, "quick": 3}
    assert set(timing.plan_rounds(seconds, ("ours", "plain"), budget=0.1, limit=2).values()) == {2}
