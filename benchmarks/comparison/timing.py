"""Interleaved timing of several calls, and what the samples say."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
SHORT = 0.1
"""Seconds: a call shorter than this is preceded by one that does not count, since another contender used the caches."""


@dataclass
class Samples:
    """Seconds of CPU (all threads) and of wall clock of each timed call, and the round that each was in."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def plan_rounds(
    seconds: Mapping[str, float], first: Sequence[str], budget: float, limit: int, least: int = 5, least_peer: int = 3
) -> dict[str, int]:
    """How many rounds each contender takes part in, from the seconds that one call of each takes.

    The contenders in `first` share 60 % of the budget, the others the rest; nobody has more rounds than `limit`.
    """
    cost = {name: value * (2 if value < SHORT else 1) for name, value in seconds.items()}
    groups = ([n for n in seconds if n in first], 0.6, least), ([n for n in seconds if n not in first], 0.4, least_peer)
    rounds = {}
    for names, share, minimum in groups:
        total = sum(cost[name] for name in names)
        for name in names:
            rounds[name] = max(min(minimum, limit), min(limit, int(share * budget / total)))
    return rounds


def interleave(
    calls: Mapping[str, Callable[[], object]],
    rounds: Mapping[str, int],
    short: frozenset[str],
    seed: int = 0,
) -> dict[str, Samples]:
    """Time every call once a round, in a new random order each round; one with fewer rounds is spread over all."""
    total = max(rounds.values())
    takes_part = {name: {k * total // count for k in range(count)} for name, count in rounds.items()}
    samples = {name: Samples() for name in calls}
    order = random.Random(seed)
    for index in range(total):
        names = [name for name in calls if index in takes_part[name]]
        order.shuffle(names)
        for name in names:
            if name in short:
                calls[name]()
            cpu, wall = timed(calls[name])
            samples[name].cpu.append(cpu)
            samples[name].wall.append(wall)
            samples[name].rounds.append(index)
    return samples


def spread(values: Sequence[float]) -> dict[str, float]:
    """Count, minimum, median, quartiles and their distance, in the unit of `values`."""
    q1, median, q3 = (float(v) for v in np.percentile(values, (25, 50, 75)))
    return {"n": len(values), "min": float(min(values)), "median": median, "q1": q1, "q3": q3, "iqr": q3 - q1}


def ratio(numerator: Samples, denominator: Samples, clock: str = "cpu", seed: int = 0) -> dict[str, Any]:
    """How many times `denominator` the `numerator` takes: the median of the ratios within rounds.

    Both calls of a round meet the same weather, so the pair's ratio has less of it than either time. `low` and `high`
    bound 95 % of the medians of resampled rounds (bootstrap, percentile method); `of_minima` is the ratio of the
    least times.
    """
    top = dict(zip(numerator.rounds, getattr(numerator, clock), strict=True))
    bottom = dict(zip(denominator.rounds, getattr(denominator, clock), strict=True))
    pairs = np.array([top[index] / bottom[index] for index in sorted(top.keys() & bottom.keys())])
    if not len(pairs):
        raise ValueError("the two have no round in common")
    drawn = np.random.default_rng(seed).integers(0, len(pairs), (RESAMPLES, len(pairs)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.median(pairs[drawn], axis=1), (tail, 100 - tail))
    return {
        "ratio": float(np.median(pairs)),
        "low": float(low),
        "high": float(high),
        "of_minima": min(top.values()) / min(bottom.values()),
        "rounds": len(pairs),
    }
