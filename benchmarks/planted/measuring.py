"""A trained classifier exported and evaluated: where its maps lie, for every method and seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import nn

from finercam_rt import Engine
from finercam_rt.contrast import UNUSED
from finercam_rt.evaluation import evaluate
from finercam_rt.evaluation.batch import MeasuredBatch, nearest_class
from finercam_rt.evaluation.metrics.localisation import EnergyInMask
from finercam_rt.evaluation.perturbation import CLASSLESS, PerturbationOptions, perturbation_source
from finercam_rt.evaluation.seeds import parse_seed
from finercam_rt.evaluation.sources import resized
from finercam_rt.evaluation.statistics import CONFIDENCE, Bootstrap
from finercam_rt.export import export_model
from finercam_rt.manifest import ACTIVATIONS, GRADIENTS, METHODS
from finercam_rt.outputs import Drawing
from finercam_rt.tail import Tail
from planted.dataset import HELD_OUT, HeldOut
from planted.generator import CLASSES, MARKS, draw
from planted.models import INPUT
from planted.records import BASELINE, DEFAULT_SEED, SEEDS
from planted.training import normalised

Values: TypeAlias = NDArray[np.float64]
OBJECTIVES = ("weighted", "mean")
DRAWN = tuple(METHODS)
MASKED = ("scorecam", "scorecam-paper", "ablationcam", "rise", "micam", "migradcam", "metacam")
"""The methods that an engine does not draw by itself: most ask the classifier hundreds of times an image."""
SLOW = ("rise", "metacam")
"""Of these, the ones that are asked for plain maps and the default seed alone."""
PERTURBATION = PerturbationOptions(masks=400)
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


def automatic_rows(
    engines: Engines, table: Path, on_picture: Callable[[int], None] = lambda count: None
) -> list[dict[str, Any]]:
    """The energy in the masks of a table, of every method that the engines draw and every seed, by `evaluate`.

    Each picture is explained for its own class, with the references that the engine chooses.
    """
    done = 0

    def on_progress(pictures: int, total: int) -> None:
        nonlocal done
        on_picture(pictures - done)
        done = pictures

    results = evaluate(
        engines.files,
        table,
        methods=DRAWN,
        seeds=SEEDS,
        metrics=("energy",),
        target="label",
        batch_size=BATCH,
        threads=1,
        on_progress=on_progress,
    )
    found = [
        row_of(row.method, row.seed.name, results.values[:, number, 0], results.values[:, 0, 0])
        for number, row in enumerate(results.rows)
    ]
    return sorted(found, key=lambda row: (DRAWN.index(row["method"]), SEEDS.index(row["seed"])))


def named_rows(
    engines: Engines,
    held_out: HeldOut,
    methods: Sequence[str] = DRAWN,
    on_picture: Callable[[int], None] = lambda count: None,
) -> list[dict[str, Any]]:
    """The energy in the mark of Grad-CAM and `methods`, the references being the look-alikes: classes of the same body.

    Each picture is explained for its own class. One reference is the look-alike whose logit is nearest. `body` is the
    mean energy in the body around the mark.
    """
    methods = tuple(dict.fromkeys((BASELINE, *methods)))
    energies: dict[tuple[str, str], list[tuple[Values, Values]]] = {}
    with ExitStack() as stack:
        sources = [stack.enter_context(Source(*pair)) for pair in zip(engines.files, engines.tails, strict=True)]
        for start in range(0, len(held_out.labels), BATCH):
            part = slice(start, start + BATCH)
            images, labels = normalised(held_out.images[part]).numpy(), held_out.labels[part]
            references = look_alikes(sources[0].logits(images), labels)
            masks = held_out.marks[part], held_out.bodies[part]
            for text in SEEDS:
                source = next(
                    s for s in sources if parse_seed(text, s.engine.manifest).unfit(s.engine.manifest) is None
                )
                seed = parse_seed(text, source.engine.manifest)
                chosen = np.where(np.arange(references.shape[1]) < seed.references, references, UNUSED)
                asked = methods if text in ("plain", DEFAULT_SEED) else [name for name in methods if name not in SLOW]
                for method, maps in source.maps(asked, images, labels, chosen, seed.alpha):
                    pair = energy(maps, masks[0]), energy(maps, masks[1])
                    energies.setdefault((method, text), []).append(pair)
            on_picture(len(labels))
    marks, bodies = ({key: np.concatenate([p[k] for p in of]) for key, of in energies.items()} for k in (0, 1))
    plain = marks[BASELINE, "plain"]
    rows = [
        {**row_of(method, seed, values, plain), "body": float(np.nanmean(bodies[method, seed]))}
        for (method, seed), values in marks.items()
    ]
    return sorted(rows, key=lambda row: (methods.index(row["method"]), SEEDS.index(row["seed"])))


def chosen_rows(engines: Engines, held_out: HeldOut) -> list[dict[str, Any]]:
    """Grad-CAM's energy in what tells a picture from the nearest class, whichever that is, plain and contrasted.

    The truth is drawn: the pixels in which the picture of the nearest class with the same nuisance differs.
    """
    found: dict[str, list[Values]] = {"plain": [], "one:1": []}
    with Source(engines.files[0], None) as source:
        for start in range(0, len(held_out.labels), BATCH):
            part = slice(start, start + BATCH)
            images, labels = normalised(held_out.images[part]).numpy(), held_out.labels[part]
            nearest = nearest_class(source.logits(images), labels)
            numbers = range(start, start + len(labels))
            truth = np.stack([_differs(*of) for of in zip(numbers, labels.tolist(), nearest.tolist(), strict=True)])
            references = np.where(np.arange(len(MARKS) - 1) < 1, nearest[:, None], UNUSED)
            for seed, values in found.items():
                ((_, maps),) = source.maps((BASELINE,), images, labels, references, float(seed != "plain"))
                values.append(energy(maps, truth))
    joined = {seed: np.concatenate(values) for seed, values in found.items()}
    return [row_of(BASELINE, seed, values, joined["plain"]) for seed, values in joined.items()]


def _differs(number: int, label: int, other: int) -> NDArray[np.bool_]:
    """(H,W) the pixels in which a held-out picture of one class differs from that of another."""
    one, two = (draw(of, HELD_OUT + number).image for of in (label, other))
    return np.asarray((one != two).any(axis=2))


class Source:
    """An engine that is asked for the maps of many methods at once, contrasted with classes that are named."""

    def __init__(self, file: Path, tail: Path | None) -> None:
        """Load the engine, and its tail for Ablation-CAM."""
        self.engine = Engine(file, threads=1)
        self._tail = None if tail is None else Tail(tail, self.engine.manifest, threads=1)

    def __enter__(self) -> Source:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let the engine go."""
        self.engine.close()

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N,K)."""
        return np.asarray(self.engine(images).logits)

    def maps(
        self,
        methods: Sequence[str],
        images: NDArray[np.float32],
        target: NDArray[np.int64],
        references: NDArray[np.int64],
        alpha: float,
    ) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """The raw map (N,h,w) of each method; a plain one of methods that read no gradients."""
        manifest = self.engine.manifest
        found = self.engine(images, target=target, references=references, alpha=alpha)
        taps = {ACTIVATIONS: found.activations, GRADIENTS: found.gradients}
        for method in methods:
            if alpha and (METHODS.get(method) == "nothing" or method in CLASSLESS):
                continue
            if method in METHODS:
                yield method, Drawing(manifest, method).map_of(taps)
            else:
                source = perturbation_source(method, self.engine, self._tail, PERTURBATION)
                yield method, source.explain(images, target, references, alpha).saliency_map


def energy(maps: NDArray[np.float32], masks: NDArray[np.bool_]) -> Values:
    """(N,) the share of each raw map (N,h,w) that lies in its mask (N,H,W); NaN of a map that says nothing."""
    logits = np.zeros((len(maps), 1), np.float32)
    batch = MeasuredBatch(
        np.zeros((len(maps), 3, 1, 1), np.float32), logits, np.zeros(len(maps), np.int64), _none, masks=masks
    )
    return EnergyInMask().measure(batch, resized(maps, masks.shape[1:]))["energy"]


def _none(images: NDArray[np.float32]) -> NDArray[np.float32]:
    raise AssertionError("the energy asks the classifier nothing")


def row_of(method: str, seed: str, values: Values, baseline: Values) -> dict[str, Any]:
    """The figures of one method and seed, from its energies (N,) and plain Grad-CAM's."""
    (interval,) = Bootstrap(len(values), seed=0).intervals(values[:, None])
    return {
        "method": method,
        "seed": seed,
        "energy": interval._asdict(),
        "over": ratio(values, baseline),
        "no_map": int(np.isnan(values).sum()),
    }


def ratio(values: Values, baseline: Values) -> dict[str, float | int]:
    """mean of `values` / mean of `baseline` (N,), paired, with its percentile bootstrap interval; NaN takes no part.

    All are NaN where no image has both.
    """
    both = np.isfinite(values) & np.isfinite(baseline)
    if not both.any():
        return {"ratio": math.nan, "low": math.nan, "high": math.nan, "images": 0}
    pairs = np.stack([values[both], baseline[both]], axis=1)
    drawn = Bootstrap(len(pairs), seed=0).means(pairs)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [tail, 100 - tail])
    means = pairs.mean(axis=0)
    return {"ratio": float(means[0] / means[1]), "low": float(low), "high": float(high), "images": int(both.sum())}


def look_alikes(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,3) the other classes of each label's body, those with the nearest logits first."""
    nearest = _by_distance(logits, labels)
    same = nearest // len(MARKS) == (labels // len(MARKS))[:, None]
    return nearest[same].reshape(len(labels), len(MARKS) - 1)


def logits_of(engines: Engines, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N,K) of images (N,H,W,3)."""
    with Source(engines.files[0], None) as source:
        parts = [source.logits(normalised(images[at : at + BATCH]).numpy()) for at in range(0, len(images), BATCH)]
    return np.concatenate(parts)


def automatic_look_alikes(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """How often the references that an engine chooses are look-alikes: the nearest class, and all three."""
    nearest = _by_distance(logits, labels)[:, : len(MARKS) - 1]
    same = nearest // len(MARKS) == (labels // len(MARKS))[:, None]
    return {"nearest": float(same[:, 0].mean()), "all": float(same.all(axis=1).mean())}


def _by_distance(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,K-1) the other classes by the distance of their logits from the label's, ties to the lower index."""
    each = np.arange(len(labels))
    distance = np.abs(logits - logits[each, labels][:, None])
    distance[each, labels] = np.inf
    return np.argsort(distance, axis=1, kind="stable")[:, :-1]
