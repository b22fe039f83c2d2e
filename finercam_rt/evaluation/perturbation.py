"""The methods that ask the classifier about perturbed images, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from finercam_rt.engine import Engine
from finercam_rt.manifest import Manifest
from finercam_rt.methods import MapSource, ScoreCam
from finercam_rt.methods.score import PAPER

Maker = Callable[[Engine, int | None], MapSource]

_OF_ACTIVATIONS: Mapping[str, Maker] = {
    "scorecam": lambda engine, channels: ScoreCam(engine, objective=engine.manifest.objective, channels=channels),
    "scorecam-paper": lambda engine, channels: ScoreCam(
        engine, form=PAPER, objective=engine.manifest.objective, channels=channels
    ),
}
"""They read the activations, so they need an engine of head "taps"."""
PERTURBATION = tuple(_OF_ACTIVATIONS)
"""Taken only where they are named: an image takes them as many runs of the classifier as there are channels."""


def perturbation_methods_of(manifest: Manifest) -> tuple[str, ...]:
    """The names that an engine can serve."""
    return () if manifest.taps is None else tuple(_OF_ACTIVATIONS)


def perturbation_source(name: str, engine: Engine, channels: int | None) -> MapSource:
    """The method of this name; `channels` is how many of an image's channels it takes, None all."""
    return _OF_ACTIVATIONS[name](engine, channels)
