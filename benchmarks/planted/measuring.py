"""A trained classifier exported and evaluated: where its maps lie, for every method and seed."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from finercam_rt.evaluation import Results, evaluate
from finercam_rt.evaluation.statistics import CONFIDENCE, Bootstrap
from finercam_rt.export import export_model
from finercam_rt.manifest import METHODS
from planted.generator import CLASSES, MARKS
from planted.models import INPUT
from planted.records import BASELINE, SEEDS
from planted.training import normalised

OBJECTIVES = ("weighted", "mean")
DRAWN = tuple(METHODS)
MASKED = ("scorecam", "scorecam-paper", "ablationcam", "rise", "micam", "migradcam", "metacam")
"""The methods that an engine does not draw by itself: most ask the classifier hundreds of times an image."""
RISE_MASKS = 400
BATCH = 24


class Engines(NamedTuple):
    """One classifier exported with each of OBJECTIVES, and the tails that Ablation-CAM runs."""

    files: list[Path]
    tails: list[Path]
    layer: str
    grid: tuple[int, int]


def export(model: nn.Module, name: str, layer: str, folder: Path, images: NDArray[np.uint8]) -> Engines:
    """Export a trained model with everything that the methods ask for; verified on some of images (N,H,W,3)."""
    files, tails, manifest = [], [], None
    for objective in OBJECTIVES:
        files.append(folder / f"{objective}.onnx")
        tails.append(folder / f"{objective}.tail.onnx")
        manifest = export_model(
            model,
            files[-1],
            target_layer=layer,
            input=INPUT,
            classes=CLASSES,
            objective=objective,
            references=len(MARKS) - 1,
            head="taps",
            gradients=True,
            tail=tails[-1],
            images=normalised(images[:5]),
            name=name,
        )
    assert manifest is not None
    return Engines(files, tails, manifest.layers[0].name, manifest.layers[0].grid)


def rows(
    engines: Engines,
    table: Path,
    methods: Sequence[str] = DRAWN,
    limit: int | None = None,
    on_picture: Callable[[int], None] = lambda count: None,
) -> list[dict[str, Any]]:
    """The energy in the masks of a table, of Grad-CAM and `methods`, with every seed.

    Each picture is explained for its own class. `over` is the ratio of mean energies to plain Grad-CAM's, over the
    pictures for which both are defined.
    """
    done = 0

    def on_progress(pictures: int, total: int) -> None:
        nonlocal done
        on_picture(pictures - done)
        done = pictures

    results = evaluate(
        engines.files,
        table,
        methods=(BASELINE, *(name for name in methods if name != BASELINE)),
        seeds=SEEDS,
        metrics=("energy", "pointing_game"),
        target="label",
        limit=limit,
        masks=RISE_MASKS,
        tails=engines.tails,
        batch_size=BATCH,
        threads=1,
        on_progress=on_progress,
    )
    order = {name: place for place, name in enumerate(SEEDS)}
    found = [_row(results, number) for number in range(len(results.rows))]
    named = list(dict.fromkeys(row["method"] for row in found))
    return sorted(found, key=lambda row: (named.index(row["method"]), order[row["seed"]]))


def _row(results: Results, number: int) -> dict[str, Any]:
    row = results.rows[number]
    energy, pointing = (results.summary[number][column] for column in ("energy", "pointing_game"))
    return {
        "method": row.method,
        "seed": row.seed.name,
        "energy": energy._asdict(),
        "pointing_game": pointing._asdict(),
        "over": ratio(results.values[:, number, 0], results.values[:, 0, 0]),
        "no_map": sum(count for status, count in results.statuses(number).items() if status != "ok"),
        "ms": round(1e3 * float(results.seconds[number]), 3),
    }


def ratio(energy: NDArray[np.float64], baseline: NDArray[np.float64]) -> dict[str, float | int]:
    """mean of `energy` / mean of `baseline` (N,), paired, with its percentile bootstrap interval; NaN takes no part."""
    both = np.isfinite(energy) & np.isfinite(baseline)
    pairs = np.stack([energy[both], baseline[both]], axis=1)
    drawn = Bootstrap(len(pairs), seed=0).means(pairs)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [tail, 100 - tail])
    means = pairs.mean(axis=0)
    return {"ratio": float(means[0] / means[1]), "low": float(low), "high": float(high), "images": int(both.sum())}


@torch.inference_mode()
def look_alikes(model: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> dict[str, float]:
    """How often the references that an engine chooses for a picture's own class wear its body: the nearest, all three.

    Those are the classes whose logits are nearest to the class's own.
    """
    logits = np.concatenate(
        [model(normalised(images[start : start + BATCH])).numpy() for start in range(0, len(images), BATCH)]
    )
    each = np.arange(len(labels))
    distance = np.abs(logits - logits[each, labels][:, None])
    distance[each, labels] = np.inf
    nearest = np.argsort(distance, axis=1, kind="stable")[:, : len(MARKS) - 1]
    same = nearest // len(MARKS) == (labels // len(MARKS))[:, None]
    return {"nearest": float(same[:, 0].mean()), "all": float(same.all(axis=1).mean())}


def mask_share(table: Path) -> float:
    """The mean share of the pictures that the masks of a table cover: the energy of a map that is flat."""
    with table.open(newline="", encoding="utf-8") as stream:
        masks = [table.parent / row["mask"] for row in csv.DictReader(stream)]
    return float(np.mean([np.asarray(Image.open(mask)).astype(bool).mean() for mask in masks]))
