"""Photographs taken from an iterator, one batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from finercam_rt.errors import InputError
from finercam_rt.images import ImageSource, is_one_image, source_name
from finercam_rt.original import Original


class LoadedBatch(NamedTuple):
    """Photographs that were taken together: those that could be loaded, a row each, and why the others could not.

    positions, names, originals, views (n,H,W,C) uint8: of the rows. failures: position to error. taken: how many there
    were; fewer than asked for at the end, which may be one that the source reported as a failure.
    """

    positions: list[int]
    names: list[str]
    originals: list[Original]
    views: NDArray[np.uint8]
    failures: dict[int, InputError]
    taken: int


class Inputs(Protocol):
    """Where photographs become the graph's inputs."""

    def put(self, source: ImageSource, position: int, row: int, view: NDArray[np.uint8], name: str) -> Original:
        """Read a photograph, for a row of the next run; the crop is in `view` (H,W,C) uint8 when that has ended.

        Raises:
            InputError: it cannot be read, or not be resized for the model.
        """


def as_stream(images: Any) -> Iterator[ImageSource] | None:
    """An iterator over images of which it is not known how many there are; None for a list of them, or for one."""
    # Pillow's ImageSequence.Iterator can be indexed too, and gives one image again and again, at another frame.
    indexed = hasattr(images, "__getitem__") and not hasattr(images, "__next__")
    if is_one_image(images) or indexed or not hasattr(images, "__iter__"):
        return None
    iterator: Iterator[ImageSource] = iter(images)
    return iterator


def as_list(images: Any) -> list[ImageSource]:
    """The images of a sequence, or the one that is given.

    Raises:
        InputError: no images, or something else.
    """
    if is_one_image(images):
        return [images]
    try:
        sources = list(images)
    except TypeError:
        raise InputError(
            f"images is of type {type(images).__name__}; give a list of files, images or arrays."
        ) from None
    if not sources:
        raise InputError("there are no images to explain; give at least one.")
    return sources


def load_batch(
    sources: Iterator[ImageSource],
    start: int,
    count: int,
    inputs: Inputs,
    view_shape: tuple[int, int, int],
    skip_errors: bool,
) -> LoadedBatch:
    """Take `count` photographs, of which the first has the position `start`, and give them to `inputs`.

    view_shape: (H,W,C). Each is loaded before the next is taken, since an iterator may give the same array or image
    again with other pixels.

    Raises:
        InputError: one could not be loaded, unless skip_errors.
    """
    views = np.empty((count, *view_shape), np.uint8)
    positions: list[int] = []
    names: list[str] = []
    originals: list[Original] = []
    failures: dict[int, InputError] = {}
    taken = 0
    for position in range(start, start + count):
        row = len(positions)
        try:
            source = next(sources)
        except StopIteration:
            break
        except InputError as error:  # the source itself, which gives nothing more after an error
            if not skip_errors:
                raise
            failures[position] = error
            break
        try:
            name = source_name(source, position)
            original = inputs.put(source, position, row, views[row], name)
        except InputError as error:
            if not skip_errors:
                raise
            failures[position] = error
        else:
            positions.append(position)
            names.append(name)
            originals.append(original)
        taken += 1
    return LoadedBatch(positions, names, originals, views[: len(positions)], failures, taken)


def images_a_run(wanted: int | None, default: int, fixed: int | None, limits: tuple[int, int] | None) -> int:
    """How many images a run takes: those that are wanted, or the default; see Backend.fixed_batch and batch_range.

    Raises:
        InputError: fewer than one, or another number than the engine takes.
    """
    if wanted is None:
        return fixed or (default if limits is None else min(default, limits[1]))
    if wanted < 1:
        raise InputError(f"the batch size is {wanted}; give at least 1.")
    if fixed is not None and wanted != fixed:
        raise InputError(f"the batch size is {wanted}; the engine was exported for exactly {fixed}.")
    return wanted


def checked_batch(images: NDArray[Any], shape: tuple[int, int, int], fixed: int | None) -> NDArray[np.float32]:
    """A preprocessed batch as an engine of images of this shape takes it, contiguous.

    Args:
        images: what was given.
        shape: (C,H,W).
        fixed: how many images the engine takes, None for any number.

    Raises:
        InputError: a wrong shape or dtype, or no images.
    """
    check_batch(images.shape, str(images.dtype), shape, fixed)
    return np.ascontiguousarray(images)


def check_batch(found: tuple[int, ...], dtype: str, shape: tuple[int, int, int], fixed: int | None) -> None:
    """Refuse the shape or the dtype of a preprocessed batch, see `checked_batch`."""
    if len(found) != 4 or found[1:] != shape:
        raise InputError(f"the batch has the shape {found}; expected (N,{shape[0]},{shape[1]},{shape[2]}).")
    if dtype != "float32":
        raise InputError(f"the batch is {dtype}; expected float32, normalised as the manifest says.")
    if found[0] == 0:
        raise InputError("the batch is empty; give at least one image.")
    if fixed is not None and found[0] != fixed:
        raise InputError(f"the batch has {found[0]} images; the engine was exported for exactly {fixed}.")
