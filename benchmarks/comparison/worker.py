"""One measurement in a process of its own: `python -m comparison.worker REQUEST`; JSON in, JSON out."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comparison import timing
from comparison.cases import SEED, Case, find_cases, load
from comparison.contenders import CONTENDERS, OURS, PLAIN, Call, Contender, Setting
from comparison.engines import Build, build
from comparison.memory import high_water_mib, reset_high_water, resident_mib
from finercam_rt.errors import FinerCAMError
from finercam_rt.onnx_metadata import read_manifest

MEMORY_RUNS = 3


def build_graphs(case: Case, destination: Build, threads: int) -> dict[str, Any]:
    """Export the case's graphs; how long and how much memory it took."""
    _torch(threads)
    build(case, destination)
    return destination.record


def time_contenders(
    case: Case, graphs: Build, threads: int, batches: list[int], rounds: int, seconds: float, only: list[str] | None
) -> dict[str, Any]:
    """For each batch: verify every contender that is installed on this case, then time them interleaved.

    Returns:
        "batches": batch to its record; "left_out": contender to the reason why it was not measured.
    """
    torch = _torch(threads)
    from comparison.verification import check

    loaded = load(case)
    layer = read_manifest(graphs.engine).layers[0]
    setting = Setting(graphs.engine, graphs.forward, loaded.model, layer, threads)
    bound: dict[str, tuple[Contender, Callable[[NDArray[np.float32]], Call]]] = {}
    left_out: dict[str, str] = {}
    for contender in CONTENDERS:
        if only and contender.name not in (*only, OURS, PLAIN):
            continue
        if layer.layout not in contender.layouts:
            left_out[contender.name] = f"it does not read {layer.layout} maps"
            continue
        try:
            bound[contender.name] = contender, contender.make(setting)
        except Exception as error:
            _leave_out(contender, error, left_out)
    records = {}
    for batch in sorted(batches):
        images = _images(batch, loaded.input.size)
        calls: dict[str, Call] = {}
        verification: dict[str, Any] = {}
        for name, (contender, bind) in bound.items():
            try:
                call = bind(images)
                verification[name] = check(contender, call(), loaded.model, layer, torch.from_numpy(images))
            except Exception as error:
                _leave_out(contender, error, left_out)
            else:
                calls[name] = call
        records[str(batch)] = {"verification": verification, **_time(calls, rounds, seconds)}
    return {"layer": asdict(layer), "left_out": left_out, "batches": records}


def _leave_out(contender: Contender, error: Exception, left_out: dict[str, str]) -> None:
    """A peer may fail in any way, and the others must still be measured; without ours there is nothing to measure."""
    if contender.name in (OURS, PLAIN):
        raise error
    left_out[contender.name] = f"{type(error).__name__}: {error}".splitlines()[0]


def _time(calls: dict[str, Call], rounds: int, seconds: float) -> dict[str, Any]:
    walls = {name: min(timing.timed(call)[1] for _ in range(2)) for name, call in calls.items()}
    short = frozenset(name for name, wall in walls.items() if wall < timing.SHORT)
    plan = timing.plan_rounds(walls, (OURS, PLAIN), seconds, rounds)
    samples = timing.interleave(calls, plan, short, SEED)
    pairs = [(OURS, PLAIN), *((name, OURS) for name in calls if name not in (OURS, PLAIN))]
    return {
        "cpu_ms": {name: timing.spread([1e3 * v for v in found.cpu]) for name, found in samples.items()},
        "wall_ms": {name: timing.spread([1e3 * v for v in found.wall]) for name, found in samples.items()},
        "ratios": {
            clock: {f"{a} / {b}": timing.ratio(samples[a], samples[b], clock) for a, b in pairs}
            for clock in ("cpu", "wall")
        },
        "samples": {
            name: {
                "cpu_ms": [round(1e3 * v, 3) for v in found.cpu],
                "wall_ms": [round(1e3 * v, 3) for v in found.wall],
                "rounds": found.rounds,
            }
            for name, found in samples.items()
        },
    }


def measure_memory(case: Case, graphs: Build, threads: int, batches: list[int], contender: str) -> dict[str, Any]:
    """Resident memory of one contender alone: the peak while it loads, what it then holds, the peak of runs.

    {"left_out": reason} where it does not run on this case or is not installed.
    """
    (chosen,) = (c for c in CONTENDERS if c.name == contender)
    manifest = read_manifest(graphs.engine)
    if manifest.layers[0].layout not in chosen.layouts:
        return {"left_out": f"it does not read {manifest.layers[0].layout} maps"}
    try:
        for module in chosen.modules:
            importlib.import_module(module)
    except ImportError as error:
        return {"left_out": str(error)}
    model = None
    if chosen.needs_torch:
        _torch(threads)
        model = load(case).model
    imported = resident_mib()
    reset_high_water()
    bind = chosen.make(Setting(graphs.engine, graphs.forward, model, manifest.layers[0], threads))
    record: dict[str, Any] = {"imported_mib": imported, "load_peak_mib": high_water_mib(), "loaded_mib": resident_mib()}
    runs = {}
    for batch in sorted(batches):  # ascending: what a smaller batch leaves behind, the larger one needs too
        call = bind(_images(batch, manifest.input.size))
        reset_high_water()
        for _ in range(MEMORY_RUNS):
            call()
        runs[str(batch)] = high_water_mib()
    return {**record, "run_peak_mib": runs}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "build": build_graphs,
    "timing": time_contenders,
    "memory": measure_memory,
}


def _torch(threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    return torch


def _images(batch: int, size: tuple[int, int]) -> NDArray[np.float32]:
    return np.random.default_rng(SEED).standard_normal((batch, 3, *size), np.float32)


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
