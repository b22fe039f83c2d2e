"""The pictures as a data set: arrays to train on, and a folder with masks that `finercam evaluate` reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finercam_rt.files import atomic_write
from planted.generator import CLASSES, SIZE, draw

HELD_OUT = 1_000_000
"""The first seed of pictures that nothing is trained on; those for training begin at 0."""
TABLE = "marks.csv"
"""Of a written data set: path, label and mask, which is the planted part."""


class HeldOut(NamedTuple):
    """images: (N,H,W,3) uint8. labels: (N,). marks, bodies: (N,H,W) bool, see `generator.Picture`. table: on disk."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    marks: NDArray[np.bool_]
    bodies: NDArray[np.bool_]
    table: Path


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


def write_held_out(folder: Path, count: int) -> HeldOut:
    """Draw `count` pictures that nothing is trained on, and write them as PNG files by class, with masks and a table.

    The table comes last, in one step: a folder that has it is whole.
    """
    drawn, lines = [], []
    for number in range(count):
        label = number % len(CLASSES)
        picture = draw(label, HELD_OUT + number)
        drawn.append(picture)
        name, mask = f"pictures/{CLASSES[label]}/{number}.png", f"marks/{number}.png"
        _write(Image.fromarray(picture.image), folder / name)
        _write(Image.fromarray(picture.mark.astype(np.uint8) * 255), folder / mask)
        lines.append((name, CLASSES[label], mask))
    with atomic_write(folder / TABLE) as stream, io.TextIOWrapper(stream, "utf-8", newline="") as text:
        csv.writer(text).writerows([("path", "label", "mask"), *lines])
    images, marks, bodies = (np.stack(arrays) for arrays in zip(*drawn, strict=True))
    return HeldOut(images, np.arange(count) % len(CLASSES), marks, bodies, folder / TABLE)


def _write(image: Image.Image, path: Path) -> None:
    with atomic_write(path) as stream:
        image.save(stream, "PNG")
