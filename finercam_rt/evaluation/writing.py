"""results.json and results.csv."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from finercam_rt.evaluation.records import image_records, summary_record, table_records
from finercam_rt.evaluation.results import Results
from finercam_rt.files import atomic_write, json_bytes

RESULTS, TABLE = "results.json", "results.csv"


def write_results(results: Results, folder: Path) -> None:
    """Write both files; each appears whole or not at all.

    Raises:
        InputError: one cannot be written.
    """
    head = json.dumps(summary_record(results), indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_write(folder / RESULTS) as stream:
        stream.write(json_bytes(head[: head.rindex("\n}")]) + b',\n "images": [\n')
        for number, record in enumerate(image_records(results)):
            line = json.dumps(record, ensure_ascii=False, allow_nan=False)
            stream.write((b",\n" if number else b"") + b"  " + json_bytes(line))
        stream.write(b"\n ]\n}\n")
    with (
        atomic_write(folder / TABLE) as stream,
        io.TextIOWrapper(stream, "utf-8", "backslashreplace", newline="") as text,
    ):
        _write_table(results, text)


def _write_table(results: Results, text: io.TextIOWrapper) -> None:
    lines = table_records(results)
    writer = csv.writer(text)
    writer.writerow(lines[0])
    for line in lines:
        writer.writerow([_cell(value) for value in line.values()])


def _cell(value: Any) -> Any:
    """Nine digits of a figure, nothing where there is none."""
    if not isinstance(value, float):
        return value
    return f"{value:.9g}" if math.isfinite(value) else ""
