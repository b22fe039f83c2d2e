"""A table of photographs: path, label, boxes, masks, as CSV."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from finercam_rt.errors import InputError
from finercam_rt.ops import Box

_EDGES = ("x0", "y0", "x1", "y1")
_PATH, _BOXES, _MASK = "path", "boxes", "mask"


class TableRow(NamedTuple):
    """One photograph: its path as written and where that is, its label as written, what is known of the object."""

    name: str
    path: Path
    label: str | None
    boxes: tuple[Box, ...]
    mask: Path | None


def read_table(file: Path, label_column: str | None) -> list[TableRow]:
    """The rows of a CSV file with a header, one a photograph.

    Columns: path, relative to the file's folder; `label_column` (None: none is read); optionally x0, y0, x1, y1, a box
    in pixels of the original, left top right bottom, or boxes, several as "x0 y0 x1 y1; x0 y0 x1 y1"; or mask, an
    image of the photograph's size, not black where the object is. Rows of one path are one photograph with all their
    boxes.

    Raises:
        InputError: not a CSV file with these columns, no rows, a box that is none, two labels for one path.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or []
            needed = [_PATH, *([] if label_column is None else [label_column])]
            missing = [name for name in needed if name not in columns]
            if missing:
                raise InputError(
                    f"{file} has no column {missing[0]!r}; it has {', '.join(columns) or 'none'}"
                    + ("." if missing[0] == _PATH else ": name the label's with --label-column, or give --unlabelled.")
                )
            rows: dict[str, TableRow] = {}
            for number, row in enumerate(reader, 2):
                one = _row(file, number, row, label_column)
                known = rows.get(one.name)
                rows[one.name] = one if known is None else _joined(file, number, known, one)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} cannot be read as CSV ({error}).") from None
    if not rows:
        raise InputError(f"{file} has no rows.")
    return list(rows.values())


def _row(file: Path, number: int, row: dict[str, str | None], label_column: str | None) -> TableRow:
    name = (row[_PATH] or "").strip()
    if not name:
        raise InputError(f"{file}, line {number}: there is no path.")
    label = None if label_column is None else (row[label_column] or "").strip()
    edges = [(row.get(edge) or "").strip() for edge in _EDGES]
    texts = [" ".join(edges)] if any(edges) else []
    texts += [text for text in (row.get(_BOXES) or "").split(";") if text.strip()]
    boxes = tuple(_box(file, number, text) for text in texts)
    mask = (row.get(_MASK) or "").strip()
    return TableRow(name, file.parent / name, label, boxes, file.parent / mask if mask else None)


def _box(file: Path, number: int, text: str) -> Box:
    try:
        left, top, right, bottom = (float(edge) for edge in text.replace(",", " ").split())
    except ValueError:
        left = right = float("nan")
        top = bottom = left
    # written so that NaN is wrong
    if not (left < right < float("inf") and top < bottom < float("inf") and min(left, top) > -float("inf")):
        raise InputError(
            f"{file}, line {number}: {text.strip()!r} is no box; give x0 y0 x1 y1 in pixels, x0 < x1 and y0 < y1."
        )
    return left, top, right, bottom


def _joined(file: Path, number: int, known: TableRow, other: TableRow) -> TableRow:
    """One photograph of two rows."""
    if known.label != other.label:
        raise InputError(
            f"{file}, line {number}: {known.name} is {other.label!r} here and {known.label!r} above; give one label."
        )
    if known.mask is not None and other.mask is not None and known.mask != other.mask:
        raise InputError(f"{file}, line {number}: {known.name} has a second mask; give one.")
    return known._replace(boxes=known.boxes + other.boxes, mask=known.mask or other.mask)
