"""Where and with what something was measured."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finercam_rt.cli.bench import environment

_BENCHMARKS = Path(__file__).resolve().parents[1]


def describe(packages: Sequence[str]) -> dict[str, Any]:
    """Machine, versions, commit, whether sources differ from it, and how busy the machine is.

    Where there is no repository or no git, as beside a copy of its files on another machine, the commit is what
    FINERCAM_COMMIT says, and whether sources differ from it is None.
    """

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        try:
            return subprocess.run(command, cwd=_BENCHMARKS, capture_output=True, text=True, check=False).stdout.strip()
        except OSError:  # not installed
            return ""

    changed = git("status", "--porcelain", "--", "../finercam_rt", "../export", "../csrc", ".", ":!results")
    commit = git("rev-parse", "HEAD")
    return {
        **environment(packages),
        "commit": commit or os.environ.get("FINERCAM_COMMIT"),
        "sources_changed": bool(changed) if commit else None,
        "load_average": round(os.getloadavg()[0], 2),
    }
