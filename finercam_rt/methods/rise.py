"""RISE: a pixel weighs what the classifier says, on average, of random views that show it. A black-box baseline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from finercam_rt.engine import Engine
from finercam_rt.errors import InputError
from finercam_rt.methods.classifier import DEFAULT_MEMORY, Classifier
from finercam_rt.methods.objective import objective_values
from finercam_rt.methods.protocol import Asked, Classes, Floats, Maps, OnProgress, Together
from finercam_rt.resizing import bilinear

DEFAULT_MASKS = 1000
DEFAULT_CELLS = 7
DEFAULT_SHOWN = 0.5


class Rise(Together):
    """S(p) = sum_i T(x * M_i) M_i(p) / (shown * masks), T = p_c - alpha * mean of p_d over the references.

    M_i is a grid of cells, each shown with the given probability, resized bilinearly to somewhat more than the image
    and cropped at random. All images see the same masks. The map is of the input's size, and with alpha 0 never
    negative: the ReLU of the other methods changes nothing in it. The contrast of probabilities is ours.

    Args:
        engine: any: RISE asks for logits alone.
        masks: how many; an image takes as many runs of the classifier. The paper took 4000 to 8000.
        cells: of the grid, along each side.
        shown: probability that a cell is shown.
        seed: of the masks; the same seed gives the same maps.
        memory: bytes of masked images at once; see `Classifier`.
        on_progress: called with the masked images that were run, and their number in all.

    Raises:
        InputError: no masks, no cells, a probability that is not between 0 and 1, a negative seed; see `Classifier`.

    Source: Petsiuk et al., RISE, BMVC 2018.
    """

    name = "rise"

    def __init__(
        self,
        engine: Engine,
        *,
        masks: int = DEFAULT_MASKS,
        cells: int = DEFAULT_CELLS,
        shown: float = DEFAULT_SHOWN,
        seed: int = 0,
        memory: int = DEFAULT_MEMORY,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Take the classifier and what the masks are drawn by."""
        for what, value in (("number of masks", masks), ("number of cells", cells)):
            if value < 1:
                raise InputError(f"the {what} is {value}; give at least 1.")
        if not 0 < shown < 1:
            raise InputError(f"the probability that a cell is shown is {shown}; give a number between 0 and 1.")
        if seed < 0:
            raise InputError(f"the seed is {seed}; give at least 0.")
        self._masks, self._cells, self._shown, self._seed = masks, cells, shown, seed
        self._classifier = Classifier(engine, memory)
        self._on_progress = on_progress

    def explain_each(self, images: Floats, target: Classes | None, asked: Sequence[Asked]) -> list[Maps]:
        """See MapSource.explain_each; an image takes as many runs of the classifier as there are masks.

        Raises:
            InputError: see `Engine.__call__`.
        """
        found = self._classifier.explained_each(images, target, asked)
        sums = np.zeros((len(asked), len(images), *images.shape[2:]))
        done, steps = 0, len(images) * self._masks
        for masks in self._random_masks(images.shape[2:]):
            for row, image in enumerate(images):
                logits = self._classifier.logits(image * masks[:, None])
                values = [objective_values(logits, *one.contrast(row), "softmax") for one in found]
                sums[:, row] += np.tensordot(np.stack(values), masks, 1)
                done += len(masks)
                if self._on_progress is not None:
                    self._on_progress(done, steps)
        maps = np.maximum(sums / (self._shown * self._masks), 0).astype(np.float32)
        return [one.maps(maps[place]) for place, one in enumerate(found)]

    def _random_masks(self, size: tuple[int, ...]) -> Iterator[Floats]:
        """(b,H,W) at a time. Each mask is drawn by its own number, so that the batch size changes none."""
        axes = [_Axis.of(self._cells, length) for length in size]
        for start in range(0, self._masks, self._classifier.batch_size):
            numbers = range(start, min(start + self._classifier.batch_size, self._masks))
            yield np.stack([self._mask(axes, number) for number in numbers])

    def _mask(self, axes: list[_Axis], number: int) -> Floats:
        random = np.random.default_rng([self._seed, number])
        grid = (random.random((self._cells + 1, self._cells + 1)) < self._shown).astype(np.float32)
        rows, columns = (axis.weights[(offset := random.integers(axis.cell)) : offset + axis.length] for axis in axes)
        return np.asarray(rows @ grid @ columns.T, np.float32)


class _Axis:
    """One side of the masks: cells of so many pixels, and the bilinear weights of the resized grid's pixels."""

    def __init__(self, cell: int, length: int, weights: Floats) -> None:
        self.cell, self.length, self.weights = cell, length, weights

    @classmethod
    def of(cls, cells: int, length: int) -> _Axis:
        """Of an image of `length` pixels: one cell more than fits, which the random crop takes away."""
        cell = math.ceil(length / cells)
        pixels = (cells + 1) * cell
        return cls(cell, length, bilinear(cells + 1, pixels))
