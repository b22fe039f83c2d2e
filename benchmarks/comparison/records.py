"""The result file: what it holds, checked when it is written and when it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comparison.contenders import OURS, PLAIN
from comparison.script import read_document, write_document
from comparison.timing import CLOCKS

SCHEMA = 2
KINDS = ("build", "timing", "memory", "failure")
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "build": {"export_s": float, "engine_bytes": int, "forward_bytes": int, "export_peak_mib": float},
    "timing": {
        "group": str,
        "batch": int,
        "threads": int,
        "cpu_ms": dict,
        "wall_ms": dict,
        "ratios": dict,
        "samples": dict,
    },
    "memory": {"contender": str, "threads": int, "load_peak_mib": float, "run_peak_mib": dict},
    "failure": {"job": str, "error": str},
}
_ENVIRONMENT = ("utc", "cpu", "logical_cpus", "memory_gib", "system", "versions", "commit", "sources_changed")


def check(document: dict[str, Any]) -> None:
    """Hold a document to this schema.

    Raises:
        ValueError: what is wrong.
    """
    if document.get("schema") != SCHEMA:
        raise ValueError(f"its schema is {document.get('schema')}, and this is {SCHEMA}; measure again.")
    if not isinstance(document.get("command"), str) or not isinstance(document.get("records"), list):
        raise ValueError("it has no command or no records; measure again.")
    for index, record in enumerate(document["records"]):
        _check_record(record, f"record {index}")


def _check_record(record: dict[str, Any], where: str) -> None:
    kind = record.get("kind")
    if kind not in KINDS:
        raise ValueError(f"{where}: its kind is {kind!r}, not one of {', '.join(KINDS)}.")
    if not isinstance(record.get("case"), dict) or "name" not in record["case"]:
        raise ValueError(f"{where}: it names no case.")
    if not isinstance(record.get("asked"), dict):
        raise ValueError(f"{where}: it does not say what was asked.")
    missing = [key for key in _ENVIRONMENT if key not in record.get("environment", {})]
    if missing:
        raise ValueError(f"{where}: its environment lacks {', '.join(missing)}.")
    for key, kind_of in _FIELDS[kind].items():
        if not isinstance(record.get(key), kind_of):
            raise ValueError(f"{where} ({kind}): its {key} is {record.get(key)!r}.")
    if kind == "timing":
        for clock in CLOCKS:
            if OURS not in record[f"{clock}_ms"] or not isinstance(record["ratios"].get(clock), dict):
                raise ValueError(f"{where}: it has no times of {OURS}, or no ratios ({clock}).")
            if record["group"] == "engine" and f"{OURS} / {PLAIN}" not in record["ratios"][clock]:
                raise ValueError(f"{where}: it has no ratio of {OURS} to {PLAIN} ({clock}).")
        for name, samples in record["samples"].items():
            lengths = {len(samples[key]) for key in ("cpu_ms", "wall_ms", "rounds", "processes")}
            if len(lengths) != 1 or 0 in lengths:
                raise ValueError(f"{where}: the samples of {name} do not fit together.")


def read(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        ValueError: not there, not JSON, or not of this schema.
    """
    return read_document(path, check)


def write(document: dict[str, Any], path: Path) -> None:
    """Write it, if it has this schema."""
    check(document)
    write_document(document, path)
