"""Progress of long work: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_INTERVAL = 2.0
"""Seconds between plain lines at least: short work needs none, and a log file not many."""


class Progress:
    """Counts the steps done and prints lines without tearing the bar."""

    def __init__(self, total: int | None, unit: str, label: str, stream: TextIO, interval: float = _INTERVAL) -> None:
        """Start at 0 of `total`, None where it is not known; `stream` takes the progress, stdout the results."""
        self._total, self._unit, self._label, self._stream = total, unit, label, stream
        self._done, self._interval, self._last_line = 0, interval, time.monotonic()
        self._begun = False
        self._bar = None
        if total != 1 and stream.isatty():
            from tqdm import tqdm  # only where there is a bar to draw

            self._bar = tqdm(total=total, unit=f" {unit}", desc=label, file=stream, leave=False, dynamic_ncols=True)

    def advance(self, steps: int = 1) -> None:
        """Count `steps` more as done."""
        self._done += steps
        if self._bar is not None:
            self._bar.update(steps)
        elif self._total != 1 and time.monotonic() - self._last_line >= self._interval:
            self._last_line = time.monotonic()
            print(f"{self._label}: {self._done} {self._of()}{self._unit}", file=self._stream, flush=True)

    def detail(self, text: str) -> None:
        """Say what is done within a step that takes long."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif time.monotonic() - self._last_line >= self._interval:
            self._last_line = time.monotonic()
            print(f"{self._label}: {self._done} {self._of()}{self._unit}, {text}", file=self._stream, flush=True)

    def _of(self) -> str:
        return "" if self._total is None else f"of {self._total} "

    def begin(self, step: str) -> None:
        """Count the step before as done, if there was one, and name the one that begins: for steps of many kinds."""
        if self._bar is not None:
            self._bar.update(int(self._begun))
            self._bar.set_description(f"{self._label}: {step}")
        else:
            print(f"{self._label}: {step}", file=self._stream, flush=True)
        self._begun = True

    def write(self, line: str, file: TextIO | None = None) -> None:
        """Print a line to `file` (stdout by default), above the bar where there is one."""
        file = file or sys.stdout
        if self._bar is not None and file.isatty():
            self._bar.write(line, file=file)
        else:
            print(line, file=file)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def progress(total: int | None, unit: str, label: str) -> Iterator[Progress]:
    """Progress over `total` steps (None: unknown), to stderr: `with progress(235, "images", "explaining") as bar`."""
    bar = Progress(total, unit, label, sys.stderr)
    try:
        yield bar
    finally:
        bar.close()
