"""The parent of the workers: one at a time, begun again behind a job that has ended it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from threading import Timer
from typing import IO, Any, NamedTuple

from gpu.plan import Job

GRACE = 20.0
"""Seconds behind the deadline after which a worker is ended in the middle of its job."""
_MOST_DEATHS = 3
"""Workers in a row that may end before their first job."""
_FOLDER = Path(__file__).resolve().parents[1]


class Message(NamedTuple):
    """Of a job: a record, or an error. environment: the worker's, alone, before all of its jobs."""

    job: Job | None = None
    record: dict[str, Any] | None = None
    error: str | None = None
    environment: dict[str, Any] | None = None
    ended: bool = False


def run(jobs: Sequence[Job], device: str, deadline: float, *, rehearsal: bool) -> Iterator[Message]:
    """Run them in order, each name of a process in its own; those that the deadline leaves out give no message.

    Raises:
        ValueError: no worker starts.
    """
    deaths = 0
    for _, group in groupby(jobs, lambda job: job["process"]):
        left = list(group)
        while left and time.time() < deadline:
            begun, finished, reason = -1, -1, ""
            request = {"device": device, "rehearsal": rehearsal, "deadline": deadline, "jobs": left}
            with tempfile.TemporaryFile("w+") as errors:
                worker = _start(request, errors)
                timer = Timer(max(0.0, deadline + GRACE - time.time()), worker.kill)
                timer.start()
                assert worker.stdout is not None
                for line in worker.stdout:
                    said = json.loads(line)
                    if "environment" in said:
                        deaths = 0
                        yield Message(environment=said["environment"])
                    elif "begun" in said:
                        begun = said["begun"]
                    elif "ended" in said:
                        finished = said["ended"]
                        yield Message(left[finished], ended=True)
                    else:
                        yield Message(left[said["of"]], said.get("record"), said.get("error"))
                code = worker.wait()
                timer.cancel()
                errors.seek(0)
                reason = (errors.read().strip().splitlines() or ["no message"])[-1]
            if code == 0:
                break
            if begun < 0:
                deaths += 1
                if deaths == _MOST_DEATHS:
                    raise ValueError(f"no worker starts ({reason}); run python -m gpu.worker in benchmarks to see why.")
            elif begun != finished:
                late = time.time() >= deadline
                what = f"ended after {GRACE:g} s more than there were" if late else f"exit code {code}: {reason}"
                yield Message(left[begun], error=f"its process ended: {what}")
                yield Message(left[begun], ended=True)
            left = left[begun + 1 :]


def _start(request: dict[str, Any], errors: IO[str]) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, (str(_FOLDER), os.environ.get("PYTHONPATH"))))
    variables = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    worker = subprocess.Popen(
        [sys.executable, "-m", "gpu.worker"],
        cwd=_FOLDER,  # of a package that is installed, not of its sources in the folder above
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(request))
    worker.stdin.close()
    return worker
