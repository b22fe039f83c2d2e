"""What a call of an engine costs the host, and whether it allocates or waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from comparison.cases import find_cases, images_of
from comparison.engines import ENGINE, build_of
from comparison.graphs import images_on
from comparison.timing import spread

from finercam_rt import Engine
from finercam_rt.onnx_metadata import read_manifest
from gpu.clock import Clock
from gpu.models import export
from gpu.sessions import BoundSession

CASE = "toy_cnn"
"""Small, so that the host is what a call takes."""
_BURST = 4
"""Calls that our engine queues before it waits for the first of them."""
_BURSTS, _WARM_CALLS, _STEADY_CALLS = 300, 20, 500
_BUSY_CYCLES = 100_000_000
"""Of the GPU's clock, some 50 ms: a call that waits for the device takes longer than that."""


def measure(clock: Clock) -> dict[str, Any]:
    """The record, of one image.

    call_us: of the host, to queue engine(batch). runtime_us: to queue a run of the same graph in the runtime alone,
    with everything bound. allocated_bytes: by how much free memory of the device has shrunk after many calls.
    busy_call_ms: how long a call took while the device was kept busy for busy_ms; None without a GPU.
    """
    (case,) = find_cases([CASE])
    export(case, "fp32")
    path = build_of(case).graph(ENGINE)
    manifest = read_manifest(path)
    images = images_on(clock.device, images_of(1, manifest.input.size))
    engine = Engine(path, backend="onnxruntime", device=clock.device)
    session = BoundSession(path, clock.device)
    device = {"device": clock.device}
    run, _ = session.bind(
        {
            "images": images,
            "target": torch.full((1,), -1, **device),  # type: ignore[call-overload]
            "references": torch.full((1, manifest.references), -1, **device),  # type: ignore[call-overload]
            "alpha": torch.ones(1, **device),  # type: ignore[call-overload]
        }
    )
    call = lambda: engine(images)  # noqa: E731
    stream = torch.cuda.stream(torch.cuda.Stream()) if clock.device == "cuda" else torch.no_grad()
    with stream:
        record: dict[str, Any] = {
            "case": case.describe(),
            "call_us": _queueing(clock, call),
            "runtime_us": _queueing(clock, run),
            "runtime_graph": session.graphs,
        }
        record |= _steady(clock, call)
        record |= _while_busy(clock, call)
    overhead = record["call_us"]["median"] - record["runtime_us"]["median"]
    return {**record, "python_us": overhead, "state": clock.state()}


def _queueing(clock: Clock, call: Callable[[], object]) -> dict[str, float]:
    """Microseconds of the host for a call, in bursts after which the device is waited for."""
    for _ in range(_WARM_CALLS):
        call()
    found = []
    for _ in range(_BURSTS if clock.device == "cuda" else 3):
        clock.synchronize()
        began = time.perf_counter()
        for _ in range(_BURST):
            call()
        found.append(1e6 * (time.perf_counter() - began) / _BURST)
    return spread(found)


def _steady(clock: Clock, call: Callable[[], object]) -> dict[str, Any]:
    """Memory of the device before and after many calls, and how often torch's pool asked the device for more."""
    if clock.device != "cuda":
        for _ in range(3):
            call()
        return {"allocated_bytes": None, "device_allocations": None}

    def state() -> tuple[int, int]:
        clock.synchronize()
        return torch.cuda.mem_get_info()[0], torch.cuda.memory_stats().get("num_device_alloc", 0)

    before = state()
    for _ in range(_STEADY_CALLS):
        call()
    after = state()
    return {"allocated_bytes": before[0] - after[0], "device_allocations": after[1] - before[1]}


def _while_busy(clock: Clock, call: Callable[[], object]) -> dict[str, Any]:
    if clock.device != "cuda":
        return {"busy_ms": None, "busy_call_ms": None}
    took, busy = [], []
    for _ in range(3):
        clock.synchronize()
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        torch.cuda._sleep(_BUSY_CYCLES)
        after.record()
        began = time.perf_counter()
        call()
        took.append(1e3 * (time.perf_counter() - began))
        clock.synchronize()
        busy.append(before.elapsed_time(after))
    return {"busy_ms": float(np.median(busy)), "busy_call_ms": float(np.median(took))}
