"""One measurement in a process of its own: `python -m comparison.worker REQUEST`; JSON in, JSON out."""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from comparison import timing
from comparison.cases import Case, find_cases, images_of, load
from comparison.catalogue import find_contender
from comparison.contenders import GROUPS, Bind, Bound, Contender, Setting
from comparison.engines import Build, build
from comparison.memory import high_water_mib, reset_high_water, resident_mib
from comparison.verification import check
from finercam_rt.errors import FinerCAMError
from finercam_rt.onnx_metadata import read_manifest

MEMORY_RUNS = 2
LEAST_ROUNDS = 2
BUSY = 1.1
"""CPU time over wall time, for each thread, above which a contender is not held to its threads."""


def build_graphs(case: Case, destination: Build, threads: int, variants: list[str]) -> dict[str, Any]:
    """Export the case's graphs; how long it took for the engine, and how much memory."""
    _torch(threads)
    build(case, destination, variants)
    return destination.record


def time_group(
    case: Case,
    graphs: Build,
    group: str,
    threads: int,
    batches: list[int],
    contenders: list[str],
    rounds: int,
    seconds: float,
    process: int,
    openvino_xai: str | None,
) -> dict[str, Any]:
    """For each batch: verify every contender that can run here, then time them interleaved.

    Returns:
        "batches": batch to its samples and verification; "left_out": contender to the reason why it was not measured.
    """
    (chosen,) = (found for found in GROUPS if found.name == group)
    table = [find_contender(name) for name in contenders]
    needs_torch = any(contender.needs_torch for contender in table)
    if needs_torch:
        _torch(threads)
    # where a session's weights lie depends on what was loaded before it
    random.Random(process).shuffle(table)
    layer = read_manifest(graphs.graph("engine")).layers[0]
    with tempfile.TemporaryDirectory() as scratch:
        model = load(case).model if needs_torch else None
        python = Path(__file__).parents[2] / openvino_xai if openvino_xai else None
        setting = Setting(case, graphs, model, layer, threads, python, Path(scratch))
        made, left_out = make_all(table, setting, chosen.anchors)
        expected, size = graphs.oracle(), read_manifest(graphs.graph("engine")).input.size
        found = {}
        for batch in sorted(batches):
            bound: dict[str, Bound] = {}
            seconds_of: dict[str, float] = {}
            verification: dict[str, Any] = {}
            for contender in table:
                if contender.name not in made or batch not in (contender.batches or (batch,)):
                    continue
                try:
                    ready = made[contender.name](images_of(batch, size))
                    began = time.perf_counter()
                    answer = ready.call()
                    seconds_of[contender.name] = time.perf_counter() - began
                    verification[contender.name] = check(answer, expected, contender.map_of, contender.tolerance)
                except Exception as error:
                    leave_out(contender.name, reason_of(error), chosen.anchors, left_out)
                else:
                    bound[contender.name] = ready
            count = timing.plan_rounds([seconds_of[name] for name in bound], seconds, LEAST_ROUNDS, rounds)
            samples, busy = _time(bound, seconds_of, count, process, threads)
            found[str(batch)] = {"samples": samples, "verification": verification, "not_held_to_threads": busy}
    return {"layer": asdict(layer), "left_out": left_out, "batches": found}


def make_all(
    table: Sequence[Contender], setting: Setting, anchors: Sequence[str]
) -> tuple[dict[str, Bind], dict[str, str]]:
    """The contenders that can run here, by name, and why the others are left out.

    Raises:
        ValueError: one of the anchors cannot run.
    """
    made: dict[str, Bind] = {}
    left_out: dict[str, str] = {}
    for contender in table:
        reason = unfit(contender, setting)
        try:
            if reason is None:
                made[contender.name] = contender.make(setting)
        except Exception as error:
            reason = reason_of(error)
        if reason is not None:
            leave_out(contender.name, reason, anchors, left_out)
    return made, left_out


def unfit(contender: Contender, setting: Setting) -> str | None:
    """Why the contender is not for this case, or None."""
    if contender.families is not None and setting.case.family not in contender.families:
        return f"it is for {' and '.join(contender.families)}"
    if setting.layer.layout not in contender.layouts:
        return f"it does not read {setting.layer.layout} maps"
    try:
        for module in contender.modules:
            importlib.import_module(module)
    except ImportError as error:
        return str(error)
    return None


def leave_out(name: str, reason: str, anchors: Sequence[str], left_out: dict[str, str]) -> None:
    """A peer may fail in any way, and the others must still be measured; without an anchor nothing can be compared."""
    if name in anchors:
        raise ValueError(f"{name}: {reason}")
    left_out[name] = reason


def reason_of(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _time(
    bound: dict[str, Bound], seconds: dict[str, float], rounds: int, process: int, threads: int
) -> tuple[dict[str, Any], list[str]]:
    """The samples, and which contenders took more CPU than so many threads can."""
    clocks = {name: ready.clock or partial(timing.timed, ready.call) for name, ready in bound.items()}
    walls = {name: clock()[1] for name, clock in clocks.items() if seconds[name] < 2 * timing.SHORT}
    short = frozenset(name for name, wall in walls.items() if wall < timing.SHORT)
    samples = timing.interleave(clocks, rounds, short, process)
    busy = [name for name, found in samples.items() if np.median(found.cpu) > BUSY * threads * np.median(found.wall)]
    return {name: asdict(found) for name, found in samples.items()}, busy


def measure_memory(
    case: Case, graphs: Build, threads: int, batches: list[int], contender: str, process: int
) -> dict[str, Any]:
    """Resident memory of one contender alone: the peak while it loads, what it then holds, the peak of runs.

    {"left_out": reason} where it does not run on this case or is not installed. `process` tells the repeats apart.
    """
    chosen = find_contender(contender)
    manifest = read_manifest(graphs.graph("engine"))
    setting = Setting(case, graphs, None, manifest.layers[0], threads)
    reason = unfit(chosen, setting)
    if reason is not None:
        return {"left_out": reason}
    if chosen.needs_torch:
        _torch(threads)
        setting = Setting(case, graphs, load(case).model, manifest.layers[0], threads)
    imported = resident_mib()
    reset_high_water()
    try:
        bind = chosen.make(setting)
    except Exception as error:
        return {"left_out": reason_of(error)}
    load_peak = high_water_mib()
    reset_high_water()
    record: dict[str, Any] = {"imported_mib": imported, "load_peak_mib": load_peak, "loaded_mib": resident_mib()}
    runs = {}
    for batch in sorted(batches):  # ascending: what a smaller batch leaves behind, the larger one needs too
        call = bind(images_of(batch, manifest.input.size)).call
        reset_high_water()
        for _ in range(MEMORY_RUNS):
            call()
        runs[str(batch)] = high_water_mib()
    return {**record, "run_peak_mib": runs}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "build": build_graphs,
    "timing": time_group,
    "memory": measure_memory,
}


def _torch(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)


def main(text: str) -> int:
    """Run {"job": ..., "case": NAME, "graphs": FOLDER, ...}; print its result, or {"error": ...}, on one line."""
    request = json.loads(text)
    job = JOBS[request.pop("job")]
    (case,) = find_cases([request.pop("case")])
    # what libraries print must not be taken for the result
    out = os.dup(1)
    os.dup2(2, 1)
    try:
        result = job(case, Build(Path(request.pop("graphs"))), **request)
    except (FinerCAMError, ValueError) as error:
        result = {"error": str(error)}
    with os.fdopen(out, "w") as stream:
        stream.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
