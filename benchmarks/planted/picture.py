"""Samples: pictures, where the mark is, and over them plain Grad-CAM and Grad-CAM against the look-alikes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from finercam_rt import Engine, ops
from finercam_rt.files import atomic_write
from planted.dataset import HeldOut
from planted.generator import CLASSES, MARKS
from planted.training import normalised

SAMPLES = (0, 5, 10, 3, 6, 9)
"""Of the held-out pictures, by number: one of each body and mark, and three more; picked before any map was seen."""
_EDGE, _GAP, _TITLE = 192, 6, 22
_ALPHA = 1.0


def draw_samples(engines: Sequence[tuple[str, Path]], held_out: HeldOut, file: Path) -> None:
    """A row a sample: the picture, the mark, then for each (name, engine) its two maps; written in one step."""
    titles = ["picture", "what differs"] + [
        f"{name}, {kind}" for name, _ in engines for kind in ("plain", "look-alikes")
    ]
    numbers = [number for number in SAMPLES if number < len(held_out.labels)]
    images, labels = held_out.images[numbers], held_out.labels[numbers]
    rows = [[image, _outlined(image, mark)] for image, mark in zip(images, held_out.marks[numbers], strict=True)]
    references = [[other for other in range(len(CLASSES)) if _look_alike(label, other)] for label in labels]
    for _, path in engines:
        with Engine(path) as engine:
            for alpha in (0.0, _ALPHA):
                maps = engine(normalised(images).numpy(), labels, np.array(references), alpha).saliency_map
                drawn = ops.render(np.asarray(maps), images.shape[1:3], images=images, colormap="turbo", opacity=0.6)
                for row, overlay in zip(rows, drawn.image, strict=True):
                    row.append(overlay[..., :3])
    width, height = len(titles) * (_EDGE + _GAP) - _GAP, _TITLE + len(rows) * (_EDGE + _GAP) - _GAP
    canvas = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    for column, title in enumerate(titles):
        pen.text((column * (_EDGE + _GAP), 2), title, (25, 25, 25), font)
        for row, panels in enumerate(rows):
            panel = Image.fromarray(np.ascontiguousarray(panels[column])).resize(
                (_EDGE, _EDGE), Image.Resampling.NEAREST
            )
            canvas.paste(panel, (column * (_EDGE + _GAP), _TITLE + row * (_EDGE + _GAP)))
    with atomic_write(file) as stream:
        canvas.save(stream, "PNG", optimize=True)


def _outlined(image: NDArray[np.uint8], mark: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The picture, dark but for the mark."""
    return np.where(mark[..., None], image, (image * 0.25).astype(np.uint8))


def _look_alike(label: int, other: int) -> bool:
    return other != label and other // len(MARKS) == label // len(MARKS)
