"""What is measured, in which order: the figures of the goals first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from comparison.cases import DEVICE_CASES, TOY_CASES

from gpu.cases import FULL, TINY, kernel_cases
from gpu.contenders import COMPILED, OWN, PEERS, PLAN, PRECISIONS
from gpu.models import ModelJob
from gpu.sharing import sharing_cases

PARTS = ("kernels", "sharing", "calls", "models")
BATCHES = (1, 8, 64, 256)
COMPILED_BATCHES = (1, 64)
"""torch.compile takes a minute or two for each."""
SECONDS = 1.5

Job = dict[str, Any]
"""part, name, process: those of one name one after the other share one; and what the part's own module reads."""


def jobs_of(parts: Sequence[str], *, rehearsal: bool) -> Iterator[Job]:
    """All of them. In a rehearsal they are small, and there is no compiler."""
    if "kernels" in parts:
        for case in kernel_cases(TINY if rehearsal else FULL):
            yield {"part": "kernels", "name": case.name, "process": "kernels"}
    if "sharing" in parts:
        for shared in sharing_cases(rehearsal=rehearsal):
            yield {"part": "sharing", "name": shared.name, "process": "sharing"}
    if "calls" in parts:
        yield {"part": "calls", "name": "calls", "process": "calls"}
    if "models" in parts:
        yield from _models(rehearsal=rehearsal)


def _models(*, rehearsal: bool) -> Iterator[Job]:
    cases, batches = (TOY_CASES, (1, 3)) if rehearsal else (DEVICE_CASES, BATCHES)
    seconds = 0.05 if rehearsal else SECONDS
    for precision in PRECISIONS:
        for case in cases:
            name = f"{case.name} {precision}"
            yield _model(name, ModelJob(case.name, precision, (*OWN, PLAN, *PEERS), batches, seconds))
    for case in cases if not rehearsal else ():
        own = (*OWN, *(peer + COMPILED for peer in PEERS))
        name = f"{case.name} fp32 compiled"
        yield _model(name, ModelJob(case.name, "fp32", own, COMPILED_BATCHES, seconds))


def _model(name: str, job: ModelJob) -> Job:
    return {"part": "models", "name": name, "process": name, **asdict(job)}
