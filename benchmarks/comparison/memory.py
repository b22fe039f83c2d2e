"""Resident memory of this process: its peak, and its peak since a moment."""

from __future__ import annotations

import ctypes
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""What proc(5) says to write to clear_refs."""


def high_water_mib() -> float:
    """Peak resident set in MiB since the start or the last reset.

    From procfs and not getrusage: ru_maxrss of a child begins at what its parent had when it was started.
    """
    return _field("VmHWM")


def resident_mib() -> float:
    """Resident set now, MiB."""
    return _field("VmRSS")


def reset_high_water() -> None:
    """Begin a new peak at what is in use now.

    What was freed is given back to the system first. After loading, glibc keeps up to half of what a model's file took
    (200 of 640 MiB for ViT-B/16), more in some processes than in others, and that would be taken for the model's.
    """
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text(_RESET_PEAK)


def _field(name: str) -> float:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"{_STATUS} has no {name}")
