"""The result file: what it holds, and whether the goal is reached."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comparison.script import read_document, write_document

SCHEMA = 1
SEEDS = ("plain", "one:1", "mean3:0.6", "mean3:1", "weighted3:1")
DEFAULT_SEED = "weighted3:1"
"""What `finercam explain` does when it is told nothing."""
BASELINE = "gradcam"
GOAL = 1.3
"""Times the energy of plain Grad-CAM in the part that differs, with the default seed."""
GOAL_MODELS = ("resnet", "vit")
NAMED, AUTOMATIC, CHOSEN, FEWER = ROWS = ("named_rows", "automatic_rows", "chosen_rows", "masked_rows")
"""The figures of a record: with the look-alikes named as references; with those that the engine chooses; in what tells
the picture from the class that the engine chooses; by the methods that mask pictures, the look-alikes named."""
AUTO = "auto"
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "identity": str,
    "key": str,
    "model": str,
    "training_seed": int,
    "asked_layer": str,
    "layer": str,
    "grid": list,
    "parameters": int,
    "accuracy": float,
    "training_seconds": float,
    "mark_share": float,
    "look_alikes": dict,
    **dict.fromkeys(ROWS, list),
    "environment": dict,
}


def check(document: dict[str, Any]) -> None:
    """Hold a document to this schema.

    Raises:
        ValueError: what is wrong.
    """
    if document.get("schema") != SCHEMA or document.get("kind") != "planted":
        raise ValueError(f"it is no result of planted_truth.py, or not of schema {SCHEMA}; measure again.")
    if not isinstance(document.get("command"), str) or not isinstance(document.get("records"), list):
        raise ValueError("it has no command or no records; measure again.")
    for index, record in enumerate(document["records"]):
        for key, kind in _FIELDS.items():
            if not isinstance(record.get(key), kind):
                raise ValueError(f"record {index}: its {key} is {record.get(key)!r}.")
        for name in ROWS:
            for row in record[name]:
                if not {"method", "seed", "energy", "over", "no_map"} <= row.keys():
                    raise ValueError(f"record {index}: a row of its {name} lacks figures.")


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


def find_row(record: Mapping[str, Any], rows: str, seed: str, method: str = BASELINE) -> dict[str, Any]:
    """The figures of one method and seed.

    Raises:
        KeyError: it was not measured.
    """
    for row in record[rows]:
        if (row["method"], row["seed"]) == (method, seed):
            return dict(row)
    raise KeyError(f"{method} {seed}")


def over_plain(record: Mapping[str, Any], rows: str = NAMED) -> dict[str, Any]:
    """What the goal is about: Grad-CAM with the default seed over plain Grad-CAM."""
    found: dict[str, Any] = find_row(record, rows, DEFAULT_SEED)["over"]
    return found


def goal_records(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records that the goal is about: at the layer that the export chooses by itself."""
    return [r for r in document["records"] if r["model"] in GOAL_MODELS and r["asked_layer"] == AUTO]


def reached(document: Mapping[str, Any], rows: str = NAMED) -> bool:
    """Whether every classifier and training seed reaches the goal."""
    records = goal_records(document)
    found = {record["model"] for record in records}
    return found == set(GOAL_MODELS) and all(over_plain(record, rows)["ratio"] >= GOAL for record in records)
