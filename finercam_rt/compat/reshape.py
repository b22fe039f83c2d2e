"""What a caller's reshape_transform does: the layout that it reads, from where it takes each element."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from finercam_rt.errors import InputError, one_line
from finercam_rt.export.outputs import feature_map
from finercam_rt.export.reading import (
    ImageShape,
    Reading,
    arrangement_of,
    image_shape,
    map_readings,
    ordered_readings,
    token_readings,
)
from finercam_rt.manifest import LayerInfo

ReshapeTransform = Callable[[torch.Tensor], torch.Tensor]


def in_words(layer: LayerInfo) -> str:
    """How a layer's output is read, for an error."""
    kind = {"nchw": "(N,C,h,w)", "nhwc": "(N,h,w,C)"}.get(layer.layout, f"tokens after {layer.prefix_tokens} others")
    kind += f" with a grid of {layer.grid[0]}x{layer.grid[1]}"
    return kind if layer.arrangement is None else f"{kind} ({layer.arrangement.kind})"


def read_reshape(transform: ReshapeTransform, shape: torch.Size, name: str, images: int) -> LayerInfo:
    """The layout that `transform` reads in an output of `shape`, to (N,C,h,w).

    It is called once, on a tensor that holds its own indices; nothing but a reading that the export knows is accepted:
    (N,C,h,w), (N,h,w,C), tokens among others with the batch in the first or second axis, windows; row by row.

    Args:
        transform: the caller's function.
        shape: of the layer's output, with at least two images.
        name: of the layer.
        images: how many they are.

    Raises:
        InputError: it fails on that shape, or does anything else.
    """
    index = torch.arange(shape.numel(), dtype=torch.float64).reshape(shape)
    about = f"reshape_transform, on the output of layer {name!r} of shape {tuple(shape)},"
    try:
        found = transform(index.clone())
    except Exception as error:
        raise InputError(f"{about} fails ({one_line(error)}); make it fit that shape, or leave it out.") from error
    if not isinstance(found, torch.Tensor) or found.ndim != 4 or len(found) != images:
        given = f"shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise InputError(f"{about} gives {given} and not (N,C,h,w); correct it, or leave it out.")
    grid = (int(found.shape[2]), int(found.shape[3]))
    found = found.detach()
    by_image = image_shape(shape, images)
    plain = () if by_image is None else _plain(by_image, grid)
    for layer, expected in _applied(plain, index, name, images):
        if torch.equal(found, expected):
            return layer
        if torch.equal(found, expected.reshape(*expected.shape[:2], grid[1], grid[0]).transpose(2, 3)):
            raise InputError(
                f"{about} puts rows where columns are: it reads the positions down instead of across, which turns the "
                "map over its diagonal; correct it, or leave it out."
            )
    ordered = () if by_image is None else ordered_readings(by_image, grid)
    for layer, expected in _applied(ordered, index, name, images):
        if torch.equal(found, expected):
            return layer
    raise InputError(
        f"{about} does more than to drop other tokens and to put the positions as (N,C,h,w), row by row; correct it, "
        "or leave it out."
    )


def _plain(shape: ImageShape, grid: tuple[int, int]) -> Iterator[Reading]:
    """The readings of an output with this grid that are in no order of their own."""
    found: Iterable[Reading] = ()
    if not shape.folded and len(shape.sizes) == 4:
        found = map_readings(shape.sizes)
    elif not shape.folded:
        _, tokens, last = shape.sizes
        cells = grid[0] * grid[1]
        counts = [(count, first) for count, first in ((tokens, False), (last, True)) if cells <= count]
        found = (one for count, first in counts for one in token_readings(count, grid, channels_first=first))
    return (one for one in found if one.grid == grid and one.supported and not one.columns)


def _applied(
    readings: Iterable[Reading], index: torch.Tensor, name: str, images: int
) -> Iterator[tuple[LayerInfo, torch.Tensor]]:
    """The layer by each reading, and what it makes of the output's indices, as (N,C,h,w)."""
    for one in readings:
        layout, prefix_tokens, arrangement = arrangement_of(one, index.shape, images)
        layer = LayerInfo(name, layout, one.grid, prefix_tokens, arrangement)
        values = feature_map(index, layer)
        if layout == "tokens":
            values = values[:, prefix_tokens:].reshape(len(values), *one.grid, -1)
        yield layer, values if layout == "nchw" else values.movedim(-1, 1)
