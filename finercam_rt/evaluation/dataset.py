"""What is evaluated: photographs with their classes, boxes and masks, out of a folder or a table."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from finercam_rt.classes import Classes
from finercam_rt.errors import InputError
from finercam_rt.evaluation.labels import LabelFinder
from finercam_rt.evaluation.table import TableRow, read_table
from finercam_rt.files import files_below, kind_of, system_reason
from finercam_rt.images import ARRAY_SUFFIXES, IMAGE_SUFFIXES
from finercam_rt.ops import Box

UNKNOWN_CLASS, NO_REFERENCE, UNREADABLE = "unknown class", "no reference", "unreadable"
"""Why an image was left out."""


@dataclass(frozen=True)
class Sample:
    """One photograph.

    name: its path within the data, for people and files. label: the index of its class, or None. references: the
    indices of the classes that the label is contrasted with, the label not among them; none where the engine chooses
    among all. boxes, mask: where the object is, in pixels of the upright photograph, see `annotations.object_mask`.
    """

    name: str
    path: Path
    label: int | None = None
    references: tuple[int, ...] = ()
    boxes: tuple[Box, ...] = ()
    mask: Path | None = None

    @property
    def annotated(self) -> bool:
        """Whether it says where the object is."""
        return bool(self.boxes) or self.mask is not None


@dataclass(frozen=True)
class LeftOut:
    """An image that is not evaluated; kind is UNKNOWN_CLASS, NO_REFERENCE or UNREADABLE, reason a sentence."""

    name: str
    kind: str
    reason: str

    @property
    def sentence(self) -> str:
        """The name and the reason, the name once."""
        return self.reason if self.reason.startswith(self.name) else f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class Dataset:
    """The samples in order, and what was left out before any was read."""

    name: str
    samples: tuple[Sample, ...]
    left_out: tuple[LeftOut, ...] = field(default=())

    @property
    def sha256(self) -> str:
        """Of names, sizes and times of the files, classes and annotations: another one is another question."""
        digest = hashlib.sha256()
        for sample in self.samples:
            about: list[Any] = [sample.name, sample.label, sample.references, sample.boxes, _stamp(sample.path)]
            about += [None if sample.mask is None else [str(sample.mask.name), _stamp(sample.mask)]]
            digest.update(json.dumps(about).encode())
        return digest.hexdigest()


def read_dataset(
    data: str | os.PathLike[str],
    classes: Classes,
    *,
    labels: Mapping[str, str] | None = None,
    label_column: str = "label",
    unlabelled: bool = False,
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Read which photographs there are; none is opened.

    Args:
        data: a folder whose sub-folders are named by class; a folder of images without classes; or a .csv file, see
            `table.read_table`.
        classes: the engine's.
        labels: label (folder name) to class name or index, where `LabelFinder` would not find it.
        label_column: of the table.
        unlabelled: take no folder or column for a class.
        limit: at most so many images, drawn at random with `seed`, in the order of the data.
        seed: of that draw.

    Raises:
        InputError: no such file or folder, no image, a table without paths or with wrong numbers, no known class.
    """
    root = Path(data)
    if limit is not None and limit < 1:
        raise InputError(f"the limit is {limit}; give at least 1 image.")
    kind = kind_of(root)
    if kind == "folder":
        found = _folder(root, unlabelled)
    elif kind == "file":
        found = [
            _Found(None if unlabelled else row.label, row.references, _sample(row))
            for row in read_table(root, None if unlabelled else label_column)
        ]
    else:
        raise InputError(f"{root}: no such file or folder; give a folder of images by class, or a .csv file.")
    if limit is not None and limit < len(found):
        chosen = np.sort(np.random.default_rng(seed).choice(len(found), limit, replace=False))
        found = [found[int(index)] for index in chosen]
    return _labelled(root, found, LabelFinder(classes, labels))


def read_label_mapping(path: Path) -> dict[str, str]:
    """Label to class, out of a JSON object or of lines "label,class".

    Raises:
        InputError: no such file, or neither.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({system_reason(error)}).") from None
    try:
        mapping = json.loads(text)
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()]
        pairs = [line.partition(",") for line in lines]
        if not pairs or not all(comma and value.strip() for _, comma, value in pairs):
            raise InputError(f'{path}: give a JSON object {{"label": "class"}}, or lines of label,class.') from None
        return {key.strip(): value.strip() for key, _, value in pairs}
    if not isinstance(mapping, dict) or not all(isinstance(value, (str, int)) for value in mapping.values()):
        raise InputError(f'{path}: give a JSON object {{"label": "class"}}, or lines of label,class.')
    return {key: str(value) for key, value in mapping.items()}


class _Found(NamedTuple):
    """A photograph with its label and its references as they are written."""

    label: str | None
    references: tuple[str, ...]
    sample: Sample


def _sample(row: TableRow) -> Sample:
    return Sample(row.name, row.path, boxes=row.boxes, mask=row.mask)


def _folder(root: Path, unlabelled: bool) -> list[_Found]:
    every = sorted(files_below(root))
    files = [file for file in every if file.suffix.lower() in IMAGE_SUFFIXES]
    files = files or [file for file in every if file.suffix.lower() in ARRAY_SUFFIXES]
    if not files:
        raise InputError(f"{root}: there is no image in this folder.")
    names = [file.relative_to(root) for file in files]
    by_class = not unlabelled and any(len(name.parts) > 1 for name in names)
    loose = [name for name in names if len(name.parts) == 1]
    if by_class and loose:
        raise InputError(
            f"{root} has images beside its class folders, such as {loose[0]}; move them, or give --unlabelled to take "
            "no folder for a class."
        )
    return [
        _Found(name.parts[0] if by_class else None, (), Sample(name.as_posix(), file))
        for name, file in zip(names, files, strict=True)
    ]


def _labelled(root: Path, found: list[_Found], finder: LabelFinder) -> Dataset:
    samples, left_out = [], []
    for label, named, sample in found:
        try:
            if label == "":
                raise InputError("it has no label.")
            index = None if label is None else finder.index(label)
            references = tuple(dict.fromkeys(finder.index(text) for text in named))
        except InputError as error:
            left_out.append(LeftOut(sample.name, UNKNOWN_CLASS, str(error)))
            continue
        others = tuple(reference for reference in references if reference != index)
        if references and not others:
            left_out.append(LeftOut(sample.name, NO_REFERENCE, "its only reference is its own class."))
        else:
            samples.append(replace(sample, label=index, references=others))
    if not samples:
        deeper = Path(left_out[0].name).parts
        nested = kind_of(root) == "folder" and len(deeper) > 2
        where = f"{root / deeper[0]} if its folders are the classes, " if nested else ""
        raise InputError(
            f"none of the labels of {root} is a class of the engine ({left_out[0].reason.rstrip('.')}); give {where}"
            "--labels FILE that says which is which, or --unlabelled to evaluate without them."
        )
    return Dataset(root.name, tuple(samples), tuple(left_out))


def _stamp(path: Path) -> list[int] | None:
    try:
        stat = path.stat()
    except (OSError, ValueError):  # ValueError: a null character in the path
        return None
    return [stat.st_size, stat.st_mtime_ns]
