"""A table of photographs: path, label, references, boxes, masks, as CSV."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import NamedTuple

from finercam_rt.errors import InputError
from finercam_rt.files import system_reason
from finercam_rt.ops import Box

_EDGES = ("x0", "y0", "x1", "y1")
_PATH, _REFERENCES, _BOXES, _MASK = "path", "references", "boxes", "mask"
_DELIMITERS = ",;\t"


class TableRow(NamedTuple):
    """One photograph: its path as written and where that is, its label and references as written, and the object."""

    name: str
    path: Path
    label: str | None
    references: tuple[str, ...]
    boxes: tuple[Box, ...]
    mask: Path | None


def read_table(file: Path, label_column: str | None) -> list[TableRow]:
    """The rows of a CSV file with a header, one a photograph.

    Columns, separated by commas, semicolons or tabs, in any case: path, absolute or relative to the file's folder;
    `label_column` (None: none is read); optionally references, the classes that the label is contrasted with, as
    "one; another"; x0, y0, x1, y1, a box in pixels of the original, left top right bottom, or boxes, several as
    "x0 y0 x1 y1; x0 y0 x1 y1"; or mask, an image of the photograph's size, not black where the object is. Rows of one
    path are one photograph with all their boxes. Photographs are named by their path as written, absolute ones from the
    folder that they have in common.

    Raises:
        InputError: not a CSV file with these columns, no rows, a box that is none, two labels, lists of references or
            masks for one path.
    """
    wanted = None if label_column is None else _folded(label_column)
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            header = stream.readline()
            stream.seek(0)
            delimiter = max(_DELIMITERS, key=header.count)
            reader = csv.DictReader(stream, delimiter=delimiter)
            columns = reader.fieldnames or []
            reader.fieldnames = [_folded(name) for name in columns]
            missing = [name for name in (_PATH, wanted) if name is not None and name not in reader.fieldnames]
            if missing:
                raise InputError(
                    f"{file} has no column {missing[0]!r}; it has {', '.join(columns) or 'none'}"
                    + ("." if missing[0] == _PATH else ": name the label's with --label-column, or give --unlabelled.")
                )
            rows: dict[str, TableRow] = {}
            for row in reader:
                one = _row(file, reader.line_num, row, wanted)
                known = rows.get(one.name)
                rows[one.name] = one if known is None else _joined(file, reader.line_num, known, one)
    except UnicodeDecodeError:
        raise InputError(f"{file} is not text in UTF-8; give a folder of images, or a table saved as such.") from None
    except (OSError, csv.Error) as error:
        raise InputError(f"{file} cannot be read as CSV ({system_reason(error)}).") from None
    if not rows:
        raise InputError(f"{file} has no rows.")
    edges = [edge for one in rows.values() for box in one.boxes for edge in box]
    if edges and min(edges) >= 0 and max(edges) <= 1:
        raise InputError(f"{file} has boxes between 0 and 1, shares of the photographs; give their pixels.")
    return _named(list(rows.values()))


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
    name = os.path.normpath(name)
    references = tuple(text.strip() for text in (row.get(_REFERENCES) or "").split(";") if text.strip())
    return TableRow(name, file.parent / name, label, references, boxes, file.parent / mask if mask else None)


def _named(rows: list[TableRow]) -> list[TableRow]:
    """Absolute paths named from the folder that they share: a report is passed on."""
    absolute = [os.path.dirname(row.name) for row in rows if os.path.isabs(row.name)]
    if not absolute:
        return rows
    common = os.path.commonpath(absolute)
    return [row._replace(name=os.path.relpath(row.name, common)) if os.path.isabs(row.name) else row for row in rows]


def _folded(name: str | None) -> str:
    return (name or "").strip().casefold()


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
    if other.references and known.references and set(known.references) != set(other.references):
        raise InputError(f"{file}, line {number}: {known.name} has other references above; give one list of them.")
    if known.mask is not None and other.mask is not None and known.mask != other.mask:
        raise InputError(f"{file}, line {number}: {known.name} has a second mask; give one.")
    return known._replace(
        references=known.references or other.references,
        boxes=known.boxes + other.boxes,
        mask=known.mask or other.mask,
    )
