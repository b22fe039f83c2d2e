"""Jobs in a process of their own: `python -m gpu.worker REQUEST`; JSON in, a line of JSON for each message out."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from functools import cache
from typing import Any, TextIO

import torch
from comparison.environment import describe

from finercam_rt import _core
from gpu import calls, measuring, models, sharing
from gpu.cases import FULL, TINY, kernel_cases
from gpu.clock import Clock, copy_bandwidth, open_clock, query
from gpu.models import ModelJob
from gpu.plan import Job
from gpu.sharing import sharing_cases

PACKAGES = (
    "finercam-rt",
    "torch",
    "triton",
    "timm",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
    "grad-cam",
    "torchcam",
)
_DRIVER = "driver_version,memory.total,vbios_version"


def environment(device: str) -> dict[str, Any]:
    """The machine, its versions and its GPU."""
    found: dict[str, Any] = {**describe(PACKAGES), "device": device, "torch_cuda": torch.version.cuda}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "processors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
            **query(_DRIVER),
        }
    return found


def records_of(job: Job, clock: Clock, *, rehearsal: bool) -> Iterator[dict[str, Any]]:
    """What a job has measured, one after the other."""
    if job["part"] == "kernels":
        (case,) = (case for case in kernel_cases(TINY if rehearsal else FULL) if case.name == job["name"])
        yield measuring.measure(case, clock, _copied(clock))
        if clock.device == "cuda":
            torch.cuda.empty_cache()
    elif job["part"] == "sharing":
        (shared,) = (case for case in sharing_cases(rehearsal=rehearsal) if case.name == job["name"])
        yield sharing.measure(shared, clock)
        if clock.device == "cuda":
            torch.cuda.empty_cache()
    elif job["part"] == "calls":
        yield calls.measure(clock)
    else:
        asked = {key: job[key] for key in ModelJob.__dataclass_fields__}
        asked |= {key: tuple(asked[key]) for key in ("contenders", "batches")}
        yield from models.measure(ModelJob(**asked), clock)


@cache
def _copied(clock: Clock) -> float:
    return copy_bandwidth(clock)


def run(request: dict[str, Any], out: TextIO) -> int:
    """Run {"device", "rehearsal", "deadline", "jobs"}; deadline: time.time() after which no job begins."""

    def say(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    clock = open_clock(request["device"])
    say(environment=environment(clock.device))
    for index, job in enumerate(request["jobs"]):
        if time.time() > request["deadline"]:
            break
        say(begun=index)
        lost = False
        try:
            for record in records_of(job, clock, rehearsal=request["rehearsal"]):
                say(record=record, of=index)
        except Exception as error:  # of any library: it is recorded, and the others go on
            say(error=f"{type(error).__name__}: {error}".splitlines()[0], of=index)
            lost = _is_lost(error)
        say(ended=index)
        if lost:
            return 1
    return 0


def _is_lost(error: Exception) -> bool:
    """Whether nothing of this process can use the GPU any more."""
    return getattr(error, "fatal", False) or (
        not isinstance(error, _core.CudaMemoryError) and "CUDA error" in str(error)
    )


if __name__ == "__main__":
    # what libraries print must not be taken for a message
    kept = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(kept, "w") as stream:
        sys.exit(run(json.loads(sys.stdin.read()), stream))
