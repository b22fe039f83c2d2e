"""preprocessor_config.json: how transformers prepares photographs, said in an InputSpec and proven on images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finercam_rt.errors import ExportError
from finercam_rt.export.channels import configured_channels, configured_size, counted
from finercam_rt.export.models.request import ModelRequest, crop_share
from finercam_rt.export.quiet import quiet
from finercam_rt.export.refusal import first_line
from finercam_rt.manifest import IMAGENET_INPUT, RGB, InputSpec
from finercam_rt.pixels import as_pixels, resized
from finercam_rt.preprocess import Preprocessor

_INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers."""
_CONVNEXT_SQUASHES_FROM = 384
_PHOTOGRAPHS = ((301, 200), (200, 333), (97, 161), (640, 479))
"""Width and height of the images of the proof: odd edges, both orientations, smaller than the model's input."""
_TOLERANCE = 1e-4


def input_of_processor(transformers: Any, folder: Path, config: Any, request: ModelRequest) -> InputSpec:
    """The InputSpec whose pixels are those of the folder's image processor (its PIL form), at the size asked for.

    Raises:
        ExportError: there is no image processor, or it does something that an InputSpec cannot say.
    """
    files = ("preprocessor_config.json", "processor_config.json")
    if not any((folder / name).is_file() for name in files):
        if not request.random_weights:
            raise ExportError(
                f"{folder} has no preprocessor_config.json, which says how photographs are prepared; write it there "
                "with the image processor's save_pretrained."
            )
        return replace(IMAGENET_INPUT, size=request.input_size or configured_size(config) or IMAGENET_INPUT.size)
    try:
        with quiet():
            processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    except Exception as error:
        raise ExportError(
            f"{folder}: its image processor cannot be loaded ({first_line(error)}); save it again."
        ) from error
    channels = configured_channels(config) or RGB
    try:
        found = next((spec for spec in _candidates(processor, channels) if _equal(processor, spec)), None)
    except Exception as error:
        raise ExportError(
            f"{folder}: its {type(processor).__name__} does not run on an image of {counted(channels)} "
            f"({first_line(error)}); save it again."
        ) from error
    if found is not None:
        return found if request.input_size is None else replace(found, size=request.input_size)
    raise ExportError(
        f"{folder}: what its {type(processor).__name__} does to photographs cannot be expressed (a resize and a crop "
        "to one size, then mean and std per channel); change preprocessor_config.json, or give py: with --input-size, "
        "--mean and --std."
    )


def _candidates(processor: Any, channels: int) -> Iterator[InputSpec]:
    """What the attributes of a processor may mean; which of them it means, the images say."""
    if not getattr(processor, "do_resize", False):
        return
    size, crop = _edges(processor, "size"), _edges(processor, "crop_size")
    cropped = bool(getattr(processor, "do_center_crop", False))
    share = getattr(processor, "crop_pct", None)
    mean, std = _levels(processor, channels)
    resample = int(getattr(processor, "resample", 2) or 0)
    base = InputSpec((1, 1), mean, std, _INTERPOLATIONS.get(resample, "bilinear"), 1.0, "squash")
    shortest, square = size.get("shortest_edge"), (size.get("height"), size.get("width"))
    output = (crop.get("height"), crop.get("width")) if cropped else square
    if shortest is not None and share is not None:
        edge = int(shortest)
        if edge >= _CONVNEXT_SQUASHES_FROM:
            yield replace(base, size=(edge, edge))
        whole = int(edge / share)
        yield replace(base, size=(edge, edge), crop_pct=crop_share(edge, whole), crop_mode="center_floor")
    if shortest is not None and output[0] and output[0] == output[1]:
        edge = int(output[0])
        for whole in (int(shortest), int(256 / 224 * shortest)):  # LeViT enlarges by that
            yield replace(base, size=(edge, edge), crop_pct=crop_share(edge, whole), crop_mode="center_floor")
    if square[0] and square[1] and output[0] and output[1]:
        height, width = int(output[0]), int(output[1])
        if height * int(square[1]) == width * int(square[0]):
            yield replace(base, size=(height, width), crop_pct=crop_share(height, int(square[0])))


def _edges(processor: Any, name: str) -> dict[str, int]:
    """`size` and `crop_size` as a dictionary without empty entries."""
    value = getattr(processor, name, None)
    if value is None:
        return {}
    return {key: edge for key, edge in dict(value).items() if edge is not None}


def _levels(processor: Any, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel for values in [0, 1], whatever the processor calls its scale and offset.

    Where it divides by 255 and then normalises once they are its own; otherwise what black and white become says them.
    """
    plain = (
        getattr(processor, "do_rescale", False)
        and getattr(processor, "do_normalize", False)
        and abs(getattr(processor, "rescale_factor", 0) * 255 - 1) < 1e-6
        and not getattr(processor, "rescale_offset", False)
        and not getattr(processor, "include_top", False)
    )
    if plain:
        levels = (np.broadcast_to(getattr(processor, f"image_{name}"), channels) for name in ("mean", "std"))
        mean, std = ([float(v) for v in values] for values in levels)
    else:
        black, white = (
            _pixels(processor, np.full((64, 64, channels), v, np.uint8)).mean(axis=(1, 2), dtype=np.float64)
            for v in (0, 255)
        )
        std = [float(1 / v) if v else 1.0 for v in white - black]
        mean = [float(-v * s) for v, s in zip(black, std, strict=True)]
    return tuple(mean), tuple(std)


def _equal(processor: Any, spec: InputSpec) -> bool:
    """Whether both make the same pixels of images of several sizes."""
    preprocess = Preprocessor(spec)
    rng = np.random.default_rng(0)
    for width, height in _PHOTOGRAPHS:
        coarse = rng.integers(0, 256, (9, 7, spec.channels), dtype=np.uint8)
        fine = rng.integers(-20, 21, (height, width, spec.channels))
        smooth = resized(as_pixels(coarse), (height, width), Image.Resampling.BICUBIC).astype(np.int64)
        photograph = (smooth + fine).clip(0, 255).astype(np.uint8)
        wanted = _pixels(processor, photograph)
        got, view = np.empty(spec.shape, np.float32), np.empty(spec.view_shape, np.uint8)
        preprocess(as_pixels(photograph), got, view, "the image")
        if wanted.shape != got.shape or np.abs(wanted - got).max() > _TOLERANCE / min(spec.std):
            return False
    return True


def _pixels(processor: Any, levels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the processor makes of an image (height,width,C), (C,H,W)."""
    image = as_pixels(levels)
    described = {} if isinstance(image, Image.Image) else {"input_data_format": "channels_last"}
    with quiet():
        made = processor(images=image, return_tensors="pt", **described)["pixel_values"][0]
    return np.asarray(made, dtype=np.float32)
