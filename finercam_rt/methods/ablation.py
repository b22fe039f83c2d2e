"""Ablation-CAM: a channel weighs what the classifier loses without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from finercam_rt.engine import Engine
from finercam_rt.errors import InputError
from finercam_rt.methods.channels import largest_variance
from finercam_rt.methods.classifier import DEFAULT_MEMORY, Classifier
from finercam_rt.methods.objective import objective_values
from finercam_rt.methods.protocol import Asked, Classes, Floats, Maps, OnProgress, Together
from finercam_rt.tail import Tail


class AblationCam(Together):
    """ReLU(sum_k w_k A_k), w_k = (T - T_k) / |T|: T_k is the contrast's value with channel k of the layer set to 0.

    Only the tail is run for a channel. T is the target's logit where alpha is 0; the paper divides by T itself, which
    turns the map round where it is negative, so the absolute value is ours. pytorch-grad-cam sets channels of a layer
    without ReLU to the least activation less 1e7, and keeps them so for the rest of its batch; this does neither.

    Args:
        engine: of head "taps", exported with the tail.
        tail: the engine's tail file, loaded.
        objective: what T is, see `objective_values`; None is the engine's.
        channels: only so many of an image's channels, those whose activations vary most; None is all.
        memory: bytes of ablated activations, and of images, at once.
        on_progress: called with the channels that were ablated, and their number in all.

    Raises:
        InputError: no tail; see `Classifier`.

    Source: Desai and Ramaswamy, Ablation-CAM, WACV 2020.
    """

    name = "ablationcam"

    def __init__(
        self,
        engine: Engine,
        tail: Tail | None,
        *,
        objective: str | None = None,
        channels: int | None = None,
        memory: int = DEFAULT_MEMORY,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Take the classifier and its tail."""
        if tail is None:
            raise InputError(
                "Ablation-CAM runs what is behind the layer once for each channel; export the engine with --head taps "
                "--tail FILE, and give that file as well."
            )
        self._classifier, self._tail = Classifier(engine, memory), tail
        self._objective = objective or engine.manifest.objective
        self._channels, self._memory = channels, memory
        self._on_progress = on_progress

    def explain_each(self, images: Floats, target: Classes | None, asked: Sequence[Asked]) -> list[Maps]:
        """See MapSource.explain_each; an image takes as many runs of the tail as there are channels.

        Raises:
            InputError: an engine without activations; see `Engine.__call__` for the others.
        """
        found = self._classifier.explained_each(images, target, asked, activations=True)
        first = found[0]
        features = self._classifier.feature_maps(first.activations)
        chosen = largest_variance(features, self._channels)
        maps = np.empty((len(asked), len(images), *features.shape[2:]), np.float32)
        for row, kept in enumerate(chosen):
            contrasts = self._classifier.contrasts(found, asked, row, self._objective)
            carried = [values[row] for values in first.carried]
            whole = self._tail.logits(*_repeated(first.activations[row], carried, 1))
            values = np.empty((len(asked), len(kept)))
            for part, logits in self._ablated(first.activations[row], carried, kept):
                values[:, part] = [objective_values(logits, *contrast) for contrast in contrasts]
                if self._on_progress is not None:
                    self._on_progress(row * len(kept) + part.stop, len(images) * len(kept))
            activations = features[row, kept].astype(np.float64)
            for place, contrast in enumerate(contrasts):
                before = objective_values(whole, *contrast)
                with np.errstate(
                    divide="ignore", invalid="ignore"
                ):  # T of 0 gives a map that is not finite, and says so
                    weights = (before - values[place]) / np.abs(before)
                    maps[place, row] = np.maximum(np.tensordot(weights, activations, 1), 0)
        return [one.maps(maps[place]) for place, one in enumerate(found)]

    def _ablated(
        self, activations: Floats, carried: list[Floats], channels: NDArray[np.int64]
    ) -> Iterator[tuple[slice, Floats]]:
        """Places in `channels`, and the logits (b,K) of one image's activations without each of those."""
        size = max(1, self._memory // sum(values.nbytes for values in (activations, *carried)))
        (layer,) = self._classifier.engine.manifest.layers
        copies, others = _repeated(activations, carried, min(size, len(channels)))
        by_channel = copies if layer.layout == "nchw" else np.moveaxis(copies, -1, 1)
        for start in range(0, len(channels), size):
            part = channels[start : start + size]
            rows = np.arange(len(part))
            kept = by_channel[rows, part].copy()
            by_channel[rows, part] = 0
            yield (
                slice(start, start + len(part)),
                self._tail.logits(copies[: len(part)], [values[: len(part)] for values in others]),
            )
            by_channel[rows, part] = kept


def _repeated(activations: Floats, carried: list[Floats], count: int) -> tuple[Floats, list[Floats]]:
    """A row of each for every copy; the carried ones, which nothing changes, in one place."""
    copies = np.repeat(activations[None], count, axis=0)
    return copies, [np.broadcast_to(values, (count, *values.shape)) for values in carried]
