"""Photographs in any form that users have them, as upright 8-bit RGB."""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from finercam_rt.errors import InputError

ImageSource: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[np.uint8]"
"""A file, a PIL image, or a uint8 array (H,W), (H,W,1), (H,W,3) or (H,W,4) with the channels in the order RGB(A)."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
"""What counts as an image, in lower case, when a folder is searched."""

# catch_warnings swaps a process-wide list; the lock keeps two of our threads from restoring it in the wrong order.
_WARNINGS_LOCK = threading.Lock()
_UPRIGHT = 1


def load_image(source: ImageSource, position: int = 0) -> Image.Image:
    """The photograph as an upright RGB image, 8 bits a channel.

    EXIF orientation is applied; grey, palette and CMYK images are converted; an alpha channel is dropped, not
    composited, as timm's pipeline does; 16-bit grey is scaled by 1/257, where Pillow's own conversion would clip it;
    of an animation the first frame is taken. `position` names a source without a path in errors ("image 3").

    Raises:
        InputError: no such file, a folder, not an image, truncated, too many pixels (Pillow's MAX_IMAGE_PIXELS), no
            pixels, floating-point or 32-bit values, or an array of another shape or dtype.
    """
    if isinstance(source, (str, os.PathLike)):
        return _load_file(Path(source))
    name = f"image {position}"
    if isinstance(source, Image.Image):
        return _to_rgb(source, name)
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    raise InputError(
        f"{name} is of type {type(source).__name__}; give a path, a PIL image or a uint8 NumPy array (H,W,3)."
    )


def source_name(source: ImageSource, position: int) -> str:
    """How errors and records call a source: its path, or its position."""
    return str(Path(source)) if isinstance(source, (str, os.PathLike)) else f"image {position}"


def _load_file(path: Path) -> Image.Image:
    if path.is_dir():
        raise InputError(f"{path} is a folder; give an image file.")
    try:
        with path.open("rb") as stream, _open(stream, path) as image:
            return _to_rgb(image, str(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}).") from None


def _open(stream: object, path: Path) -> Image.Image:
    try:
        with _WARNINGS_LOCK, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(stream)  # type: ignore[arg-type]
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InputError(
            f"{path} has more than {Image.MAX_IMAGE_PIXELS} pixels, which may be a decompression bomb; scale it down, "
            "or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        ) from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is not an image that Pillow can read.") from None
    except Exception as error:  # a plugin met bytes that it did not expect
        raise InputError(f"{path} is a damaged image ({_reason(error)}).") from None


def _from_array(array: NDArray[np.uint8], name: str) -> Image.Image:
    if array.dtype != np.uint8:
        raise InputError(
            f"{name} is an array of {array.dtype}; give uint8 from 0 to 255, or a normalised batch to engine(batch)."
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InputError(
            f"{name} is an array of shape {array.shape}; give (H,W), (H,W,1), (H,W,3) or (H,W,4), the channels last."
        )
    if 0 in array.shape:
        raise InputError(f"{name} has no pixels: its shape is {array.shape}.")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)), name)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.width < 1 or image.height < 1:
        raise InputError(f"{name} has no pixels: its size is {image.width}x{image.height}.")
    try:
        image.load()
        if _orientation(image) != _UPRIGHT:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            return _from_deep_grey(image, name)
        if image.mode == "F":
            raise InputError(f"{name} has floating-point pixels; convert it to 8 bits a channel.")
        return image if image.mode == "RGB" else image.convert("RGB")
    except InputError:
        raise
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error and others on bad bytes
        raise InputError(f"{name} is truncated or damaged ({_reason(error)}).") from None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT))
    except Exception:  # EXIF that cannot be parsed says nothing about the orientation; the pixels are fine
        return _UPRIGHT


def _from_deep_grey(image: Image.Image, name: str) -> Image.Image:
    """16-bit grey (modes I;16*, and I from older Pillows' PNG reader) scaled so that 65535 becomes 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535 or (image.mode == "I" and image.format != "PNG"):
        raise InputError(f"{name} has 32-bit pixels of unknown range; convert it to 8 bits a channel.")
    grey = ((values + 128) // 257).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
