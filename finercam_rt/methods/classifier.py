"""The engine as the methods see it: logits of any number of perturbed images, and one layer's activations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from finercam_rt.contrast import Contrast
from finercam_rt.engine import Engine
from finercam_rt.errors import InputError
from finercam_rt.methods.objective import Objective
from finercam_rt.methods.protocol import Asked, Classes, Floats, Maps
from finercam_rt.outputs import joined
from finercam_rt.padding import padded

DEFAULT_MEMORY = 5 << 19
"""Bytes of perturbed images that exist at once: four of 224 x 224. A CPU's caches hold what a network of the mobile
kind makes of so many and not of more: 16 at once take 20 % longer an image."""


class ClassifierAnswer(NamedTuple):
    """What the engine says of the images themselves, a row each.

    logits (N,K), the engine's own raw map (N,h,w), target (N,), references (N,R) as used; activations
    in the layer's layout, and channel_weights (N,C), the means of the gradients over the positions, None where they
    were not asked for; carried, what a tail needs beside the activations; alpha, as asked.
    """

    logits: Floats
    saliency_map: Floats
    target: Classes
    references: Classes
    activations: Any
    channel_weights: Floats | None
    carried: tuple[Floats, ...]
    alpha: float

    def contrast(self, row: int) -> tuple[int, Classes, float]:
        """One image's target, references and alpha, as `objective_values` takes them."""
        return int(self.target[row]), self.references[row], self.alpha

    def maps(self, saliency_map: Floats) -> Maps:
        """The answer of a method that drew this map of the same images and contrast."""
        return Maps(saliency_map, self.target, self.references, self.logits)


class Classifier:
    """An engine that is asked about perturbed images.

    Args:
        engine: of any head; one of head "taps" gives activations.
        memory: bytes of perturbed images that may exist at once, from which the batch size follows; at least one image
            is always run. The runtime's own memory comes on top of it.

    Raises:
        InputError: memory below 1.
    """

    def __init__(self, engine: Engine, memory: int = DEFAULT_MEMORY) -> None:
        """Choose the batch size."""
        if memory < 1:
            raise InputError(f"the memory is {memory} bytes; give at least 1.")
        self.engine = engine
        self.batch_size = engine.fixed_batch or max(1, memory // (math.prod(engine.manifest.input.shape) * 4))

    def logits(self, images: Floats) -> Floats:
        """(M,K) of (M,C,H,W)."""
        return np.concatenate([self.engine.logits(run)[:count] for run, count in self.runs(images)])

    def explained_each(
        self,
        images: Floats,
        target: Classes | None,
        asked: Sequence[Asked],
        *,
        activations: bool = False,
        gradients: bool = False,
    ) -> list[ClassifierAnswer]:
        """`explained` for several contrasts; activations in the first alone, since they are the same for all.

        Raises:
            InputError: see `explained`.
        """
        return [
            self.explained(
                images,
                target,
                contrast.references,
                contrast.alpha,
                activations=activations and place == 0,
                gradients=gradients,
            )
            for place, contrast in enumerate(asked)
        ]

    @staticmethod
    def contrasts(
        found: Sequence[ClassifierAnswer], asked: Sequence[Asked], row: int, objective: str
    ) -> list[Objective]:
        """One image's contrasts as `objective_values` takes them; `objective` is that of those which name none."""
        return [
            (*one.contrast(row), contrast.objective or objective) for one, contrast in zip(found, asked, strict=True)
        ]

    def explained(
        self,
        images: Floats,
        target: Classes | None,
        references: Classes | None,
        alpha: float,
        *,
        activations: bool = False,
        gradients: bool = False,
    ) -> ClassifierAnswer:
        """Logits, resolved classes, and activations and pooled gradients where they are wanted.

        Raises:
            InputError: the engine does not give its activations; see `Engine.__call__` for the others.
        """
        if (activations or gradients) and self.engine.manifest.taps is None:
            raise InputError(
                f"{self.engine.path} does not give the activations of its layer, which this method reads; export it "
                "with --head taps."
            )
        images = np.ascontiguousarray(images)
        parts = []
        for start, (run, count) in zip(range(0, len(images), self.batch_size), self.runs(images), strict=True):
            rows = slice(start, start + count)
            part = self._run(run, _rows(target, rows, len(run)), _rows(references, rows, len(run)), alpha)
            parts.append(
                ClassifierAnswer(
                    part.logits[:count],
                    part.saliency_map[:count],
                    part.target[:count],
                    part.references[:count],
                    part.activations[:count] if activations else None,
                    self._pooled(part)[:count] if gradients else None,
                    tuple(values[:count] for values in part.carried) if activations else (),
                    alpha,
                )
            )
        if len(parts) == 1:
            return parts[0]
        columns = zip(*(part[:-1] for part in parts), strict=True)
        return ClassifierAnswer._make([*(joined(values) for values in columns), alpha])

    def _run(self, images: Floats, target: Classes | None, references: Classes | None, alpha: float) -> Any:
        """The engine's outputs, without the axis of contrasts."""
        if self.engine.manifest.contrasts == 1:
            return self.engine(images, target=target, references=references, alpha=alpha)
        asked = [
            [
                Contrast(
                    None if target is None else int(target[row]),
                    _given(None if references is None else references[row]),
                    alpha,
                )
            ]
            for row in range(len(images))
        ]
        outputs = self.engine(images, contrasts=asked)
        shared = {"logits", "activations", "carried", "layer_maps"}
        return outputs._replace(
            **{
                name: values[:, 0]
                for name, values in outputs._asdict().items()
                if name not in shared and values is not None
            }
        )

    def feature_maps(self, activations: Floats) -> Floats:
        """(N,C,h,w), in any strides, of activations or gradients in the layer's layout."""
        (layer,) = self.engine.manifest.layers
        if layer.layout == "tokens":
            tokens = activations[:, layer.prefix_tokens :]
            return tokens.swapaxes(1, 2).reshape(len(tokens), tokens.shape[2], *layer.grid)
        return activations if layer.layout == "nchw" else activations.transpose(0, 3, 1, 2)

    def _pooled(self, outputs: Any) -> Floats:
        """(N,C), the means of the gradients over the positions."""
        if outputs.gradients is None:
            weights: Floats = outputs.channel_weights
            return weights
        return np.asarray(self.feature_maps(outputs.gradients).mean(axis=(2, 3)), np.float32)

    def runs(self, images: Floats) -> Iterator[tuple[Floats, int]]:
        """The images in runs of the batch size, or of the size that the engine takes, and how many of each count."""
        size = self.batch_size
        for start in range(0, len(images), size):
            part = images[start : start + size]
            yield part if self.engine.fixed_batch is None else padded(part, size), len(part)


def _rows(values: Any, rows: slice, count: int) -> Any:
    """Some rows, the last repeated up to `count` of them."""
    return None if values is None else padded(np.asarray(values)[rows], count)


def _given(references: Classes | None) -> list[int] | None:
    """One image's references as a Contrast takes them: None where any is automatic."""
    if references is None or (references == -1).any():
        return None
    return [int(index) for index in references if index >= 0]
