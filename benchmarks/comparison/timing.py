"""Interleaved timing of several calls, and what the samples of several processes say."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95
SHORT = 0.1
"""Seconds: a call shorter than this is preceded by one that does not count, since another contender used the caches."""
SETTLE = 0.002
"""Seconds of rest before a contender, in which the workers of the one before fall asleep."""
CLOCKS = ("cpu", "wall")


def headline(threads: int) -> str:
    """The clock of the figure that counts: CPU time at one thread, wall time at more; run.py says why."""
    return "cpu" if threads == 1 else "wall"


Clock = Callable[[], tuple[float, float]]
"""Runs a contender once; the CPU seconds of all its threads, and the wall seconds."""


@dataclass
class Samples:
    """Seconds of CPU (all threads) and of wall clock of each timed call, and the process and round that it was in."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)

    def as_json(self) -> dict[str, list[Any]]:
        """Milliseconds, to a microsecond."""
        found = asdict(self)
        milliseconds = {f"{clock}_ms": [round(1e3 * value, 3) for value in found.pop(clock)] for clock in CLOCKS}
        return {**milliseconds, **found}


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def plan_rounds(seconds: Iterable[float], budget: float, least: int, most: int) -> int:
    """How many rounds fit into the budget, where one call of each contender takes `seconds`."""
    cost = sum(value * (2 if value < SHORT else 1) + SETTLE for value in seconds)
    return max(least, min(most, int(budget / cost)))


def interleave(clocks: Mapping[str, Clock], rounds: int, short: frozenset[str], seed: int = 0) -> dict[str, Samples]:
    """Time every contender once a round, in a new random order each round."""
    samples = {name: Samples() for name in clocks}
    order = random.Random(seed)
    for index in range(rounds):
        names = list(clocks)
        order.shuffle(names)
        for name in names:
            time.sleep(SETTLE)
            if name in short:
                clocks[name]()
            cpu, wall = clocks[name]()
            samples[name].cpu.append(cpu)
            samples[name].wall.append(wall)
            samples[name].rounds.append(index)
            samples[name].processes.append(0)
    return samples


def pooled(runs: Iterable[Mapping[str, Samples]]) -> dict[str, Samples]:
    """The samples of several processes, numbered in order, of the contenders that all of them have."""
    several = list(runs)
    names = [name for name in several[0] if all(name in run for run in several)]
    together = {name: Samples() for name in names}
    for process, run in enumerate(several):
        for name, samples in together.items():
            samples.cpu += run[name].cpu
            samples.wall += run[name].wall
            samples.rounds += run[name].rounds
            samples.processes += [process] * len(run[name].rounds)
    return together


def spread(values: list[float]) -> dict[str, float]:
    """Count, minimum, median, quartiles and their distance, in the unit of `values`."""
    q1, median, q3 = (float(v) for v in np.percentile(values, (25, 50, 75)))
    return {"n": len(values), "min": float(min(values)), "median": median, "q1": q1, "q3": q3, "iqr": q3 - q1}


def ratio(numerator: Samples, denominator: Samples, clock: str = "cpu", seed: int = 0) -> dict[str, Any]:
    """How many times `denominator` the `numerator` takes: the mean over processes of the median over rounds.

    Both calls of a round meet the same weather, so the pair's ratio has less of it than either time. Within a process
    the ratio has a bias of up to a percent or two that more rounds do not average out: where each session's weights
    happen to lie in memory. So several processes are measured, `by_process` has the median of each, and the bootstrap
    behind `low` and `high` (95 %, percentile method) draws processes first and then rounds. `of_minima` is the ratio
    of the least times.

    Raises:
        ValueError: no round in common.
    """
    top, bottom = (
        dict(zip(zip(s.processes, s.rounds, strict=True), getattr(s, clock), strict=True))
        for s in (numerator, denominator)
    )
    pairs: dict[int, list[float]] = {}
    for key in sorted(top.keys() & bottom.keys()):
        pairs.setdefault(key[0], []).append(top[key] / bottom[key])
    if not pairs:
        raise ValueError("the two have no round in common")
    medians = [float(np.median(found)) for found in pairs.values()]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(_resampled([np.array(found) for found in pairs.values()], seed), (tail, 100 - tail))
    return {
        "ratio": float(np.mean(medians)),
        "low": float(low),
        "high": float(high),
        "of_minima": min(top.values()) / min(bottom.values()),
        "rounds": sum(map(len, pairs.values())),
        "by_process": medians,
    }


def _resampled(processes: list[NDArray[np.float64]], seed: int) -> NDArray[np.float64]:
    """(RESAMPLES,) means of medians: processes drawn with replacement, then rounds within each draw."""
    generator = np.random.default_rng(seed)
    count = len(processes)
    # medians of resampled rounds, for each process and each place that it may be drawn into
    medians = np.stack(
        [
            np.median(found[generator.integers(0, len(found), (RESAMPLES, count, len(found)))], axis=2)
            for found in processes
        ]
    )
    drawn = generator.integers(0, count, (RESAMPLES, count))
    rows, places = np.arange(RESAMPLES)[:, None], np.arange(count)[None]
    return np.asarray(medians[drawn, rows, places].mean(axis=1))
