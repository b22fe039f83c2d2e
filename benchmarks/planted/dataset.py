"""The pictures as a data set: arrays to train on, and a folder with masks that `finercam evaluate` reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finercam_rt.files import atomic_write
from planted.generator import CLASSES, SIZE, Picture, draw

HELD_OUT = 1_000_000
"""The first seed of pictures that nothing is trained on; those for training begin at 0."""
TABLE, BODY_TABLE = "marks.csv", "bodies.csv"
"""Of a written data set: path, label and mask; the mask is the planted part, or the body around it."""


def pictures(
    count: int, first: int = 0, on_picture: Callable[[], None] = lambda: None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(N,H,W,3) pictures with the seeds first, first + 1, ..., and their classes (N,), all equally often."""
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    labels = np.arange(count) % len(CLASSES)
    for row in range(count):
        images[row] = draw(int(labels[row]), first + row).image
        on_picture()
    return images, labels


def write_dataset(folder: Path, count: int, first: int = HELD_OUT) -> tuple[Path, Path]:
    """Write `count` pictures as PNG files by class, their masks, and two tables of them; the paths of the tables.

    The tables come last, in one step each: a folder that has them is whole.
    """
    rows: dict[str, list[tuple[str, str, str]]] = {TABLE: [], BODY_TABLE: []}
    for number in range(count):
        label = number % len(CLASSES)
        picture = draw(label, first + number)
        name = f"{first + number}.png"
        _write(Image.fromarray(picture.image), folder / "pictures" / CLASSES[label] / name)
        for table, kind, mask in _masks(picture):
            _write(Image.fromarray(mask.astype(np.uint8) * 255), folder / kind / name)
            rows[table].append((f"pictures/{CLASSES[label]}/{name}", CLASSES[label], f"{kind}/{name}"))
    for table, lines in rows.items():
        with atomic_write(folder / table) as stream, io.TextIOWrapper(stream, "utf-8", newline="") as text:
            csv.writer(text).writerows([("path", "label", "mask"), *lines])
    return folder / TABLE, folder / BODY_TABLE


def _masks(picture: Picture) -> tuple[tuple[str, str, NDArray[np.bool_]], ...]:
    return (TABLE, "marks", picture.mark), (BODY_TABLE, "bodies", picture.body)


def _write(image: Image.Image, path: Path) -> None:
    with atomic_write(path) as stream:
        image.save(stream, "PNG")
