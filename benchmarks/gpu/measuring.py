"""One kernel case: held to its formula, then timed beside plain torch, and beside torch.compile where it is asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

import torch
from comparison.timing import spread

from gpu.clock import Call, Clock
from gpu.work import Draw, KernelCase, Work, check_formula, check_ours

OURS, TORCH, COMPILED = "ours", "torch", "torch.compile"
SEVERAL = 3
"""Times the last cache: inputs and outputs from which on the caches do not count."""
LEAST_CALLS = 8
_MOST_SETS, _WARM_CALLS = 64, 32


def measure(case: KernelCase, clock: Clock, copied: float) -> dict[str, Any]:
    """The record of a case; `copied` is the copy bandwidth in bytes a second.

    Cold: each call of a chain has its own inputs and outputs, twice the cache in all, and the cache is overwritten
    before each repetition. Warm: the same inputs again and again, as a network leaves them behind in the cache. Queued:
    cold, but call by call, with the host's launches and allocations. A contender that fails or is wrong has an error in
    the place of its times.
    """
    works = make_works(case, clock)
    moved = works[0].moved
    found: dict[str, Any] = {OURS: _timed(clock, works, check_ours, lambda w: w.ours, capture=works[0].capture)}
    found[TORCH] = _timed(clock, works, lambda w: check_formula(w, w.formula), _plain)
    if case.compiled:
        found[COMPILED] = _compiled(clock, works)
    record = {
        "kernel": case.kernel,
        "variant": case.variant,
        "size": case.size,
        "moved_bytes": moved,
        "several_caches": moved >= SEVERAL * clock.cache_bytes,
        "copy_bytes_per_s": copied,
        "contenders": found,
        "state": clock.state(),
    }
    if "error" not in found[OURS]:
        speed = moved / (1e-6 * found[OURS]["microseconds"]["median"])
        record |= {"bytes_per_s": speed, "share_of_copy": speed / copied}
        if found[OURS]["graph"]:
            calls = [work.ours for work in islice(cycle(works), LEAST_CALLS)]
            record["queued_microseconds"] = spread(clock.chain(calls, capture=False).microseconds)
        if moved < clock.cache_bytes:
            warm = clock.chain([works[0].ours] * _WARM_CALLS, capture=works[0].capture)
            record["warm_microseconds"] = spread(warm.microseconds)
    return record


def make_works(case: KernelCase, clock: Clock) -> list[Work]:
    """Twice the last cache in sets of inputs and outputs, two at least."""
    first = case.make(Draw(clock.device, seed=0))
    sets = min(_MOST_SETS, max(2, math.ceil(2 * clock.cache_bytes / first.moved)))
    return [first, *(case.make(Draw(clock.device, seed)) for seed in range(1, sets))]


def _plain(work: Work) -> Call:
    return lambda: work.formula(*work.inputs)


def _compiled(clock: Clock, works: Sequence[Work]) -> dict[str, Any]:
    torch.compiler.reset()
    call = torch.compile(works[0].compiled or works[0].formula, dynamic=False)
    return _timed(clock, works, lambda w: check_formula(w, call), lambda w: lambda: call(*w.inputs))


def _timed(
    clock: Clock,
    works: Sequence[Work],
    check: Callable[[Work], float],
    call_of: Callable[[Work], Call],
    *,
    capture: bool = True,
) -> dict[str, Any]:
    try:
        errors = [check(work) for work in (works[0], works[-1])]
        clock.synchronize()
        calls = [call_of(work) for work in islice(cycle(works), max(len(works), LEAST_CALLS))]
        chain = clock.chain(calls, capture=capture)
    except Exception as error:  # of torch, its compiler, or ours: the others are measured all the same
        clock.synchronize()  # which fails where nothing of this process can use the GPU any more
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {"microseconds": spread(chain.microseconds), "graph": chain.graph, "relative_l2": max(errors)}
