"""The result file of a part: what it holds, checked when it is written and when it is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from comparison.script import read_document, write_document

from gpu import goals

SCHEMA = 1
FAILURE = "failure"
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "kernels": {"kernel": str, "variant": str, "size": str, "moved_bytes": int, "contenders": dict},
    "sharing": {"variant": str, "size": str, "moved_bytes": int, "forms": dict},
    "calls": {"call_us": dict, "runtime_us": dict, "python_us": float},
    "models": {"precision": str, "batch": int, "latency_ms": dict, "queued_ms": dict, "left_out": dict},
    FAILURE: {"error": str},
}


def path_of(folder: Path, gpu: str, part: str) -> Path:
    """Such as h200-kernels.json for "NVIDIA H200"."""
    words = re.sub(r"[^a-z0-9]+", "-", re.sub(r"nvidia|geforce|tesla", "", gpu.lower())).strip("-")
    return folder / f"{words or 'gpu'}-{part}.json"


def new(part: str, gpu: str, *, rehearsal: bool) -> dict[str, Any]:
    """Without records."""
    about = {"schema": SCHEMA, "part": part, "gpu": gpu, "rehearsal": rehearsal}
    return {**about, "commands": [], "goals": [], "environments": [], "records": []}


def check(document: dict[str, Any]) -> None:
    """Hold a document to this schema.

    Raises:
        ValueError: what is wrong.
    """
    if document.get("schema") != SCHEMA:
        raise ValueError(f"its schema is {document.get('schema')}, and this is {SCHEMA}; measure again.")
    for key in ("commands", "goals", "environments", "records"):
        if not isinstance(document.get(key), list):
            raise ValueError(f"it has no {key}; measure again.")
    for index, record in enumerate(document["records"]):
        fields = _FIELDS.get(record.get("kind"))
        if fields is None or not isinstance(record.get("name"), str):
            raise ValueError(f"record {index}: its kind is {record.get('kind')!r}, or it has no name.")
        if record.get("environment") not in range(len(document["environments"])):
            raise ValueError(f"record {index}: its environment is not there.")
        for key, kind in fields.items():
            if not isinstance(record.get(key), kind):
                raise ValueError(f"record {index} ({record['kind']}): its {key} is {record.get(key)!r}.")


def read(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        ValueError: not there, not JSON, or not of this schema.
    """
    return read_document(path, check)


def write(document: dict[str, Any], path: Path) -> None:
    """With the goals of its records, which a rehearsal has not, in one step."""
    rows = [] if document["rehearsal"] else goals.rows(document["part"], document["records"])
    document["goals"] = [row._asdict() for row in rows]
    check(document)
    write_document(document, path)
