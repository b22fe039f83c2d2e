"""Whole models on the GPU: a prediction with its map by our engine, by the plain graph and by other libraries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from comparison import timing
from comparison.cases import Case, find_cases, images_of, load
from comparison.contenders import Call, Setting
from comparison.engines import FP16, FP16_FORWARD, build, build_of
from comparison.timing import Samples
from comparison.verification import check
from comparison.worker import leave_out, make_all, reason_of

from finercam_rt.onnx_metadata import read_manifest
from gpu.clock import Clock
from gpu.contenders import OWN, RATIOS, contenders_of

ROUNDS, LEAST_ROUNDS = 30, 2
QUEUED_SECONDS, QUEUED_MOST = 0.15, 40
"""Of calls that are queued one behind the other before the host waits: throughput."""
LATENCY, QUEUED = "latency", "queued"


@dataclass(frozen=True)
class ModelJob:
    """Contenders that are timed in turn in one process. seconds: of rounds for each batch and kind of time."""

    case: str
    precision: str
    contenders: tuple[str, ...]
    batches: tuple[int, ...]
    seconds: float


def export(case: Case, precision: str) -> None:
    """The graphs of a case in a precision, where they are not there yet."""
    graphs, variants = build_of(case), (FP16, FP16_FORWARD) if precision == "fp16" else ()
    if not graphs.folder.exists() or graphs.missing(variants):
        build(case, graphs, variants)


def measure(job: ModelJob, clock: Clock) -> Iterator[dict[str, Any]]:
    """A record for each batch.

    Latency: a call until the device has finished it. Queued: calls one behind the other, by the time of one; what waits
    for the device by itself, as other libraries do, gains nothing there.

    Raises:
        ValueError: ours or the plain graph fails or is wrong; the others are left out with the reason.
    """
    (case,) = find_cases([job.case])
    export(case, job.precision)
    graphs = build_of(case)
    torch.backends.cudnn.allow_tf32 = False  # nobody else has it
    torch.backends.cudnn.benchmark = True  # ONNX Runtime searches for the fastest convolutions, too
    manifest = read_manifest(graphs.graph("engine"))
    threads = torch.get_num_threads()
    setting = Setting(case, graphs, None, manifest.layers[0], threads, device=clock.device)
    table = contenders_of(job.precision)
    chosen = [table[name] for name in job.contenders]
    if any(contender.needs_torch for contender in chosen):
        model = load(case).model.to(clock.device)
        setting = replace(setting, model=model.half() if job.precision == "fp16" else model)
    made, left_out = make_all(chosen, setting, OWN)
    expected = graphs.oracle()
    for batch in job.batches:
        bound: dict[str, Call] = {}
        seconds: dict[str, float] = {}
        verification: dict[str, Any] = {}
        images = images_of(batch, manifest.input.size)
        for name, bind in made.items():
            try:
                ready = bind(images)
                answer = ready.call()
                verification[name] = check(answer, expected, table[name].map_of, table[name].tolerance)
                for _ in range(2):  # the second run of a size is captured, the third replayed
                    ready.call()
                seconds[name] = _until_done(clock, ready.call)[1]
                bound[name] = ready.call
            except Exception as error:
                leave_out(name, f"batch {batch}: {reason_of(error)}", OWN, left_out)
        rounds = timing.plan_rounds(seconds.values(), job.seconds, LEAST_ROUNDS, ROUNDS)
        latency = timing.interleave({n: partial(_until_done, clock, c) for n, c in bound.items()}, rounds, frozenset())
        counts = {name: max(1, min(QUEUED_MOST, int(QUEUED_SECONDS / seconds[name]))) for name in bound}
        cost = [counts[name] * seconds[name] for name in bound]
        rounds = timing.plan_rounds(cost, job.seconds, LEAST_ROUNDS, ROUNDS)
        queued = timing.interleave(
            {name: partial(_queued, clock, call, counts[name]) for name, call in bound.items()}, rounds, frozenset()
        )
        yield {
            "case": case.describe(),
            "precision": job.precision,
            "batch": batch,
            "left_out": dict(left_out),
            "verification": verification,
            **_figures(LATENCY, latency),
            **_figures(QUEUED, queued),
            "images_per_s": {name: batch / _median(samples) for name, samples in queued.items()},
            "state": clock.state(),
        }


def _until_done(clock: Clock, call: Callable[[], object]) -> tuple[float, float]:
    clock.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    clock.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall


def _queued(clock: Clock, call: Callable[[], object], count: int) -> tuple[float, float]:
    def calls() -> None:
        for _ in range(count):
            call()

    cpu, wall = _until_done(clock, calls)
    return cpu / count, wall / count


def _median(samples: Samples) -> float:
    return timing.spread(samples.wall)["median"]


def _figures(kind: str, samples: dict[str, Samples]) -> dict[str, Any]:
    """Milliseconds, and ratios within rounds."""
    pairs = [(over, under) for over, under in RATIOS if over in samples and under in samples]
    return {
        f"{kind}_ms": {name: timing.spread([1e3 * value for value in found.wall]) for name, found in samples.items()},
        f"{kind}_ratios": {f"{a} / {b}": timing.ratio(samples[a], samples[b], "wall") for a, b in pairs},
    }
