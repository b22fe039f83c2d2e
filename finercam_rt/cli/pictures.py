"""The files that `finercam explain` writes for one image."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from finercam_rt.errors import InputError
from finercam_rt.explanation import Explanation
from finercam_rt.figure import figure
from finercam_rt.files import atomic_write
from finercam_rt.geometry import CROP
from finercam_rt.pixels import as_rgb

_SUFFIXES = {"overlay": ".overlay.png", "heatmap": ".heatmap.png", "saliency_map": ".npy"}
_PNG_LEVEL = 1
"""zlib's fastest: a third of the time of the default, for files a tenth larger."""
_LONGEST_NAME = 255
_SHEET_ZOOM = 2
"""Pixels of a sheet's panel at most for each of the model's input: an original of a camera would make it huge."""
_SEVERAL = re.compile(
    r"(.+?)(?:\.contrasts\.png|(?:\.contrast-\d+(?:\.layer-.+)?|\.layer-.+)(?:\.overlay\.png|\.heatmap\.png|\.npy))"
)
"""The name of an image, and what is added to it for its contrasts and layers."""


class NotDrawnError(Exception):
    """One image cannot be drawn, in a sentence; the others can."""


class Style(NamedTuple):
    """How maps are drawn; see `Explanation.overlay`."""

    colormap: str
    opacity: float
    coordinates: str
    value_range: tuple[float, float] | None


class Earlier:
    """What earlier runs wrote of contrasts and layers: another question may have fewer, and would leave the others."""

    def __init__(self, folder: Path) -> None:
        """In a folder and those below it, each of which is looked through once."""
        self._folder = folder
        self._known: dict[Path, dict[str, list[Path]]] = {}

    def remove(self, stem: str) -> None:
        """Delete those of one image, which is written anew."""
        name = self._folder / stem
        for path in self._of(name.parent).pop(name.name, ()):
            path.unlink(missing_ok=True)

    def _of(self, folder: Path) -> dict[str, list[Path]]:
        known = self._known.get(folder)
        if known is None:
            known = self._known[folder] = {}
            for path in folder.iterdir() if folder.is_dir() else ():
                if found := _SEVERAL.fullmatch(path.name):
                    known.setdefault(found[1], []).append(path)
        return known


def load_original(explanation: Explanation, row: int, style: Style) -> Image.Image | None:
    """The photograph that the pictures of one image show, for all of them at once; None where they show the crop.

    Raises:
        NotDrawnError: it is gone, or has changed.
    """
    if style.coordinates == CROP:
        return None
    assert explanation.originals is not None
    try:
        return explanation.originals[row].load()
    except InputError as error:
        raise NotDrawnError(str(error)) from None


def write_pictures(
    folder: Path, stem: str, explanation: Explanation, row: int, style: Style, original: Image.Image | None
) -> dict[str, Any]:
    """Write the pictures and the map of one image and contrast; their paths within the folder.

    Raises:
        NotDrawnError: the original is too large, or its name too long; nothing of it was written.
        InputError: a file cannot be written.
    """
    paths: dict[str, Any] = {key: f"{stem}{suffix}" for key, suffix in _SUFFIXES.items()}
    for path in paths.values():
        _check_name(path)
    colormap, opacity, coordinates, value_range = style
    try:
        overlay = explanation.overlay(row, colormap, opacity, None, coordinates, value_range, original)
        heatmap = explanation.heatmap(row, colormap, None, coordinates, value_range)
    except InputError as error:
        raise NotDrawnError(str(error)) from None
    _write_png(folder / paths["overlay"], overlay)
    _write_png(folder / paths["heatmap"], heatmap)
    in_crop = coordinates == CROP
    with atomic_write(folder / paths["saliency_map"]) as stream:
        np.save(stream, explanation.saliency_map[row] if in_crop else explanation.saliency_at(row, coordinates))
    if explanation.layer_maps:
        paths["layers"] = {
            layer: write_pictures(folder, f"{stem}.layer-{layer}", explanation.layer(layer), row, style, original)
            for layer in explanation.layer_maps
        }
    return paths


def write_sheet(
    folder: Path,
    stem: str,
    explanation: Explanation,
    row: int,
    record: dict[str, Any],
    style: Style,
    original: Image.Image | None,
) -> str:
    """Write all contrasts of one image side by side; the picture's path within the folder."""
    classes = explanation.classes
    maps, legend = [], []
    for p, part in enumerate(record["contrasts"]):
        target = classes.short_name(part["target"]["index"])
        raw = explanation.saliency_map[row, p]
        # for the sake of the logits, too, which the map does not show
        shown = np.full_like(raw, np.nan) if explanation.status[row][p] == "non_finite" else raw
        maps.append((f"{p + 1}: {target}", shown))
        against = ", ".join(classes.short_name(item["index"]) for item in part["references"]) or "nothing"
        legend.append(f"{p + 1}: why {target}, against {against}, alpha {part['alpha']:g}")
    assert explanation.images is not None
    photograph, box = as_rgb(explanation.images[row]), None
    if original is not None:
        shrink = min(1.0, _SHEET_ZOOM * max(explanation.size) / max(original.size))
        width, height = (max(1, round(edge * shrink)) for edge in original.size)
        photograph = np.asarray(original.resize((width, height), Image.Resampling.BICUBIC))
        box = explanation.geometry(row).resized((height, width)).box
    path = f"{stem}.contrasts.png"
    _check_name(path)
    sheet = figure(photograph, maps, legend, style.colormap, style.opacity, box, style.value_range)
    _write_png(folder / path, sheet)
    return path


def _check_name(path: str) -> None:
    name = Path(path).name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        raise NotDrawnError(f"{name} would be longer than the {_LONGEST_NAME} bytes that file systems take; rename it.")


def _write_png(path: Path, image: Image.Image) -> None:
    with atomic_write(path) as stream:
        image.save(stream, format="PNG", compress_level=_PNG_LEVEL)
