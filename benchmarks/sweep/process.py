"""A process that may crash, hang or take all memory without taking the sweep with it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

OUT_OF_TIME = "it ran out of time"
_INTERVAL = 0.2
"""Seconds between two looks at its memory."""


def supervise(
    module: str,
    arguments: Sequence[str],
    on_line: Callable[[str], None],
    *,
    seconds: float,
    most_mib: float,
    stop: threading.Event,
) -> str | None:
    """Run `python -m module` on one thread; None, or why it did not end well.

    Args:
        module: found in the folder of the benchmarks.
        arguments: its arguments.
        on_line: called with each line of its standard output, from another thread, before this returns.
        seconds: of wall time, after which it is killed.
        most_mib: of resident memory, above which it is killed.
        stop: kills it when it is set.
    """
    folder = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
    variables = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+", errors="replace") as messages:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", module, *arguments],
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
        )
        assert process.stdout is not None
        reader = threading.Thread(target=_read, args=(process.stdout, on_line))
        reader.start()
        try:
            reason = _watch(process, seconds, most_mib, stop)
        finally:
            process.kill()
            process.wait()
            reader.join()
            process.stdout.close()
        if reason is not None or process.returncode == 0:
            return reason
        messages.seek(0)
        lines = [line.strip() for line in messages if line.strip()]
        return f"exit code {process.returncode}: {lines[-1][:300] if lines else 'no message'}"


def _read(stream: IO[str], on_line: Callable[[str], None]) -> None:
    for line in stream:
        on_line(line)


def _watch(process: subprocess.Popen[str], seconds: float, most_mib: float, stop: threading.Event) -> str | None:
    """Wait for its end; why it must be killed, or None."""
    ends = time.monotonic() + seconds
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        if time.monotonic() > ends:
            return f"{OUT_OF_TIME}: more than {seconds:.0f} s"
        if _resident_mib(status) > most_mib:
            return f"it took more than {most_mib:.0f} MiB of memory"
        if stop.wait(_INTERVAL):
            return "the sweep was stopped"
    return None


def _resident_mib(status: Path) -> float:
    try:
        lines = status.read_text().splitlines()
    except OSError:  # it has just ended
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), 0.0)
