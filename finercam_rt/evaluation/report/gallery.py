"""The images on which the choice matters most, with the maps of every row."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finercam_rt import ops
from finercam_rt.evaluation.dataset import Dataset
from finercam_rt.evaluation.measuring import load_photographs
from finercam_rt.evaluation.results import Results
from finercam_rt.evaluation.sources import EngineRows
from finercam_rt.pixels import as_rgb
from finercam_rt.preprocess import Preprocessor

_EACH = 4
"""Images at the best and at the worst end."""
_SIDE, _QUALITY = 192, 82
"""Pixels of a picture's longer side, and JPEG's quality."""


class Picture(NamedTuple):
    """A data URI, its title, a line below it, and what it shows for those who do not see it."""

    uri: str
    title: str
    note: str
    alt: str
    mark: str


class Example(NamedTuple):
    """One image: its name, what the engine says, the photograph and its maps."""

    name: str
    said: str
    pictures: list[Picture]


class Group(NamedTuple):
    """Some images and what they have in common."""

    title: str
    note: str
    examples: list[Example]


def gallery(results: Results, dataset: Dataset, engines: Sequence[EngineRows]) -> list[Group]:
    """The images where the recommended row gains most over the baseline, and where it loses most.

    Where it is the baseline, those where its own figure is best and worst.
    """
    chosen = results.recommendation
    if chosen is None:
        return []
    column = results.columns.index(chosen.column)
    sign = results.better(chosen.column)
    values = sign * results.values[:, :, column]
    alone = chosen.row == 0
    gains = values[:, 0] if alone else values[:, chosen.row] - values[:, 0]
    usable = np.flatnonzero(np.isfinite(gains))
    order = usable[np.argsort(-gains[usable], kind="stable")]
    each = min(_EACH, len(order) // 2) or len(order)
    best, worst = order[:each], order[each:][::-1][:each]
    row = results.rows[chosen.row].name
    what = chosen.column if alone else f"the gain in {chosen.column} over {results.rows[0].name}"
    groups = [
        Group(f"{end} images", f"Where {what} is {size} for {row}.", _examples(results, dataset, engines, of, column))
        for end, size, of in (("Best", "largest", best), ("Worst", "smallest", worst))
    ]
    return [group for group in groups if group.examples]


def _examples(
    results: Results, dataset: Dataset, engines: Sequence[EngineRows], places: NDArray[np.intp], column: int
) -> list[Example]:
    samples = [dataset.samples[place] for place in places.tolist()]
    pictures: list[list[Picture | None]] = [[None] * len(results.rows) for _ in samples]
    photographs: list[Picture | None] = [None] * len(samples)
    for number, engine in enumerate(engines):
        found = load_photographs(samples, Preprocessor(engine.engine.manifest.input))
        shown = np.ascontiguousarray(as_rgb(found.views))
        readable = found.places.tolist()
        if not readable:
            continue
        target = results.target[places[found.places], number]
        references = [samples[at].references for at in readable]
        logits = engine.classifier.logits(found.inputs)
        for maps in engine.maps(found.inputs, target, logits, references=references):
            m = results.rows.index(maps.row)
            drawn = ops.render(maps.saliency_map, shown.shape[1:3], images=shown, colormap="turbo")
            for k, at in enumerate(readable):
                value = results.values[places[at], m, column]
                status = ops.Status(int(results.status[places[at], m])).label
                note = f"{results.columns[column]} {value:.4f}" if math.isfinite(value) else status
                explained = int(results.target[places[at], number])
                if explained != results.target[places[at], 0]:  # this engine predicts another class
                    note += f", of {engine.engine.classes.short_name(explained)}"
                mark = "chosen" if _is_chosen(results, m) else "baseline" if m == 0 else ""
                alt = f"Map of {maps.row.name} over {samples[at].name}: {note}"
                pictures[at][m] = Picture(_uri(drawn.image[k][:, :, :3]), maps.row.name, note, alt, mark)
        for k, at in enumerate(readable):
            if photographs[at] is None:
                mask = None if found.masks is None else found.masks[k]
                picture = _uri(shown[k] if mask is None else _outlined(shown[k], mask))
                note = "" if mask is None or not mask.any() else "the object outlined"
                photographs[at] = Picture(picture, "photograph", note, f"Photograph {samples[at].name}", "")
    return [
        Example(sample.name, _said(results, engines, place), [p for p in (photographs[k], *pictures[k]) if p])
        for k, (sample, place) in enumerate(zip(samples, places.tolist(), strict=True))
    ]


def _is_chosen(results: Results, row: int) -> bool:
    return results.recommendation is not None and results.recommendation.row == row


def _said(results: Results, engines: Sequence[EngineRows], place: int) -> str:
    """What was explained, by the first engine, and whether it is right where that is known."""
    classes, target = engines[0].engine.classes, int(results.target[place, 0])
    text = f"{classes.short_name(target)} {100 * results.confidence[place, 0]:.1f} %"
    label = int(results.labels[place])
    if label < 0 or label == target:
        return text
    return f"{text}; it is {classes.short_name(label)}"


def _outlined(view: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The photograph with the edge of the object's mask drawn, a white line in a black one."""
    image = view.copy()
    for width, colour in ((3, 0), (1, 255)):
        inner = mask
        for _ in range(width):
            padded = np.pad(inner, 1)
            inner = inner & padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
        image[mask & ~inner] = colour
    return image


def _uri(pixels: NDArray[Any]) -> str:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
