"""The methods that ask the classifier about perturbed images, or look at activations alone, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from finercam_rt.engine import Engine
from finercam_rt.evaluation.batch import Floats, MeasuredBatch, Values
from finercam_rt.evaluation.metrics import MetricOptions
from finercam_rt.evaluation.metrics.road import Road
from finercam_rt.manifest import Manifest
from finercam_rt.methods import AblationCam, EngineSource, MapSource, MetaCam, MiCam, MiGrad, Rise, ScoreCam
from finercam_rt.methods.classifier import Classifier
from finercam_rt.methods.protocol import OnProgress
from finercam_rt.methods.rise import DEFAULT_MASKS
from finercam_rt.methods.score import PAPER
from finercam_rt.tail import Tail


class PerturbationOptions(NamedTuple):
    """channels: how many of an image's channels scorecam and ablationcam take, None all. masks, seed: of rise."""

    channels: int | None = None
    masks: int = DEFAULT_MASKS
    seed: int = 0


Maker = Callable[[Engine, Tail | None, PerturbationOptions, OnProgress | None], MapSource]

ABLATION, CLASSLESS = "ablationcam", ("micam",)
OF_LOGITS = ("scorecam", "scorecam-paper", ABLATION)
"""They compute the objective of the seed themselves, so they do not need an engine of that objective."""
_BLACK_BOX: Mapping[str, Maker] = {
    "rise": lambda engine, tail, options, step: Rise(engine, masks=options.masks, seed=options.seed, on_progress=step),
}
_OF_ACTIVATIONS: Mapping[str, Maker] = {
    "scorecam": lambda engine, tail, options, step: ScoreCam(
        engine, objective=engine.manifest.objective, channels=options.channels, on_progress=step
    ),
    "scorecam-paper": lambda engine, tail, options, step: ScoreCam(
        engine, form=PAPER, objective=engine.manifest.objective, channels=options.channels, on_progress=step
    ),
    ABLATION: lambda engine, tail, options, step: AblationCam(
        engine, tail, channels=options.channels, on_progress=step
    ),
    "micam": lambda engine, tail, options, step: MiCam(engine),
    "migradcam": lambda engine, tail, options, step: MiGrad(engine),
    "metacam": lambda engine, tail, options, step: _metacam(engine, options.seed, step),
}
"""They read the activations, so they need an engine of head "taps"; ablationcam needs its tail too."""
_MAKERS = {**_BLACK_BOX, **_OF_ACTIVATIONS}
PERTURBATION = tuple(_MAKERS)
"""Taken only where they are named: most run the classifier hundreds of times an image."""


def perturbation_methods_of(manifest: Manifest, tail: bool) -> tuple[str, ...]:
    """The names that an engine can serve, with a tail or without."""
    return tuple(
        name
        for name in PERTURBATION
        if name in _BLACK_BOX or (manifest.taps is not None and (tail or name != ABLATION))
    )


def perturbation_source(
    name: str,
    engine: Engine,
    tail: Tail | None,
    options: PerturbationOptions,
    on_progress: OnProgress | None = None,
) -> MapSource:
    """The method of this name."""
    return _MAKERS[name](engine, tail, options, on_progress)


def _metacam(engine: Engine, seed: int, on_progress: OnProgress | None) -> MetaCam:
    """The consensus of all methods that the engine draws, but for those that are another smoothed, judged by ROAD."""
    assert engine.manifest.taps is not None
    names = [name for name in engine.manifest.taps.methods if not name.endswith("-eigen")]
    road, classifier = Road(("road",), MetricOptions(seed=seed)), Classifier(engine)

    def score(images: Floats, target: NDArray[np.int64], maps: Floats) -> Values:
        # one noise for all images, so that a map does not depend on its image's place in the batch
        places = np.zeros(len(images), np.int64)
        batch = MeasuredBatch(images, classifier.logits(images), target, classifier.logits, indices=places)
        return road.measure(batch, maps)["road"]

    return MetaCam([EngineSource(engine, name) for name in names], score, on_progress=on_progress)
