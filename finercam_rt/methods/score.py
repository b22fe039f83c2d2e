"""Score-CAM and Finer-Score-CAM: a channel weighs what the classifier says of the image seen through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from finercam_rt import ops
from finercam_rt.engine import Engine
from finercam_rt.errors import InputError
from finercam_rt.methods.channels import largest_variance
from finercam_rt.methods.classifier import DEFAULT_MEMORY, Classifier
from finercam_rt.methods.objective import Objective, Values, objective_values, softmax
from finercam_rt.methods.protocol import Asked, Classes, Floats, Maps, OnProgress, Together

LIBRARY, PAPER = "library", "paper"
FORMS = (LIBRARY, PAPER)


class ScoreCam(Together):
    """ReLU(sum_k w_k A_k), with w_k from T(x * U_k): U_k is A_k resized to the image and min-max normalised.

    Form "library" (pytorch-grad-cam): w = softmax over the channels of T, corner pixels on corner cells. Form "paper":
    w_k = T(x * U_k) - y_c(x_b) without a softmax, x_b the image of zeros, half-pixel centres; T is the mean over the
    references (Finer-CAM, eq. 9 for one, eq. 8 for several). Either is Score-CAM where alpha is 0.

    The library's weights q of the references are computed anew for each masked image, as its FinerWeightedTarget does.
    Channels that are the same everywhere mask to zeros, which the classifier is asked about once.

    Args:
        engine: of head "taps".
        form: "library" or "paper".
        objective: what T is, see `objective_values`; None is the engine's, and "mean" in form "paper".
        channels: only so many of an image's channels, those whose activations vary most; None is all.
        memory: bytes of masked images at once; see `Classifier`.
        on_progress: called with the masked images that were run, and their number in all.

    Raises:
        InputError: another form; see `Classifier`.

    Source: Wang et al., Score-CAM, CVPR Workshops 2020; Zhang et al., Finer-CAM, CVPR 2025.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        form: str = LIBRARY,
        objective: str | None = None,
        channels: int | None = None,
        memory: int = DEFAULT_MEMORY,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Take the classifier and the form."""
        if form not in FORMS:
            raise InputError(f"there is no form {form!r} of Score-CAM; use one of {', '.join(FORMS)}.")
        self.name = "scorecam" if form == LIBRARY else "scorecam-paper"
        self._form = form
        self._objective = objective or (engine.manifest.objective if form == LIBRARY else "mean")
        self._channels = channels
        self._classifier = Classifier(engine, memory)
        self._on_progress = on_progress

    def explain_each(self, images: Floats, target: Classes | None, asked: Sequence[Asked]) -> list[Maps]:
        """See MapSource.explain_each; an image takes as many runs of the classifier as there are channels.

        Raises:
            InputError: an engine without activations; see `Engine.__call__` for the others.
        """
        found = self._classifier.explained_each(images, target, asked, activations=True)
        features = self._classifier.feature_maps(found[0].activations)
        chosen = largest_variance(features, self._channels)
        maps = np.empty((len(asked), len(images), *features.shape[2:]), np.float32)
        for row, kept in enumerate(chosen):
            activations = np.ascontiguousarray(features[row, kept])
            contrasts = self._classifier.contrasts(found, asked, row, self._objective)
            done = row * len(kept), len(images) * len(kept)
            for place, scores in enumerate(self._scores(images[row], activations, contrasts, done)):
                weights = softmax(scores) if self._form == LIBRARY else scores - self._baseline(contrasts[place])
                maps[place, row] = np.maximum(np.tensordot(weights, activations.astype(np.float64), 1), 0)
        return [one.maps(maps[place]) for place, one in enumerate(found)]

    def _scores(
        self, image: Floats, activations: Floats, contrasts: Sequence[Objective], done: tuple[int, int]
    ) -> Values:
        """(contrasts,k) T of the image masked by each channel (k,h,w)."""
        flat = activations.reshape(len(activations), -1)
        varies = np.flatnonzero(~(flat.min(axis=1) == flat.max(axis=1)))  # written so that NaN varies
        scores = np.empty((len(contrasts), len(activations)))
        scores[:] = [objective_values(self._zeros, *contrast) for contrast in contrasts]
        count = len(activations) - len(varies)
        for part, logits in self._masked(image, activations, varies):
            scores[:, part] = [objective_values(logits, *contrast) for contrast in contrasts]
            count += len(part)
            if self._on_progress is not None:
                self._on_progress(done[0] + count, done[1])
        return scores

    @cached_property
    def _zeros(self) -> Floats:
        """(1,K) the logits of the image of zeros."""
        return self._classifier.logits(np.zeros((1, *self._classifier.engine.manifest.input.shape), np.float32))

    def _baseline(self, contrast: Objective) -> float:
        """y_c of the image of zeros."""
        target, references, _, objective = contrast
        return float(objective_values(self._zeros, target, references, 0.0, objective)[0])

    def _masked(
        self, image: Floats, activations: Floats, channels: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        """Some of the channels at a time, and the logits of the image masked by each."""
        size = self._classifier.batch_size
        copies = np.empty((1, min(size, max(len(channels), 1)), *image.shape), np.float32)
        for start in range(0, len(channels), size):
            part = channels[start : start + size]
            there = copies[:, : len(part)]
            ops.mask(image[None], activations[part][None], align_corners=self._form == LIBRARY, out=there)
            yield part, self._classifier.logits(there[0])
