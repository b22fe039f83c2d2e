"""What the scripts of this folder have in common: how they are called, and the files that they write."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finercam_rt.files import atomic_write

RESULTS = Path(__file__).resolve().parents[1] / "results"


def make_parser(script: str, description: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """The parser of a script of this folder, such as "run.py"; its texts are shown as they are written."""
    return argparse.ArgumentParser(
        prog=f"python benchmarks/{script}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def refuse(script: str, error: ValueError) -> int:
    """Say a user's mistake in one line; the exit code."""
    print(f"{script}: {error}", file=sys.stderr)
    return 2


def read_document(path: Path, check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """A result file that `check` finds right.

    Raises:
        ValueError: not there, not JSON, or what is wrong with it.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        check(document)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return document


def write_document(document: Mapping[str, Any], path: Path) -> None:
    """Write a result file in one step, so that a run that is stopped leaves the records it had; one record a line."""
    head = json.dumps({key: value for key, value in document.items() if key != "records"}, indent=1)
    lines = ",\n".join(json.dumps(record) for record in document["records"])
    write_text(f'{head[:-2]},\n "records": [\n{lines}\n]}}\n', path)


def write_text(text: str, path: Path) -> None:
    """Write a file in one step.

    Raises:
        ValueError: it cannot be written.
    """
    with atomic_write(path) as stream:
        stream.write(text.encode())


def environments(records: Sequence[Mapping[str, Any]], unit: str) -> str:
    """A section that says with what: one line where all records agree, else one for each."""
    lines: dict[str, int] = {}
    for record in records:
        host = record["environment"]
        versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items())
        changed = " with changes" if host["sources_changed"] else ""
        commit = (host["commit"] or "unknown")[:10]
        line = f"{host['cpu']}, {host['logical_cpus']} processors; {versions}; commit {commit}{changed}"
        lines[line] = lines.get(line, 0) + 1
    return "\n".join(["## With", "", *(f"- {count} {unit}: {line}" for line, count in lines.items())])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """As Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
