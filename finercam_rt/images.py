"""Images in any form that users have them, as upright 8-bit pixels of the channels that an engine takes."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from finercam_rt import device_arrays
from finercam_rt.errors import InputError, one_line
from finercam_rt.files import system_reason
from finercam_rt.manifest import GREY, RGB
from finercam_rt.pixels import MODES, Pixels

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[np.uint8]"
"""A file's path, its bytes, an object to read them from, a PIL image, or a uint8 array (H,W), (H,W,1), (H,W,3) or
(H,W,4) with the channels in the order RGB(A); a frame of OpenCV, which is BGR, is given as frame[:, :, ::-1]. Files may
be NumPy's .npy of such an array. For an engine of C channels, C neither 1 nor 3, an array (H,W,C) or a file of one."""

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".avif", ".heic", ".heif"}
)
"""What counts as a photograph, in lower case, when a folder is searched."""
ARRAY_SUFFIXES = frozenset({".npy"})
"""What does where a folder has no photographs, for engines of other channels than theirs."""

_UPRIGHT = 1
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation, as ImageOps.exif_transpose, which also writes the EXIF anew and fails there on odd tags."""
_URL = re.compile(r"(?i)[a-z][a-z0-9+.-]+://|data:")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_LONGEST_NAME = 200
_NPY = b"\x93NUMPY"
_TWELVE_BITS = 4095


class Photograph(NamedTuple):
    """A photograph, or another image, that was loaded.

    image: upright, of the channels asked for. orientation: the EXIF orientation in which its pixels are stored, 1
    (upright) to 8. source: what it can be loaded from again.
    """

    image: Pixels
    orientation: int
    source: ImageSource


def load_image(source: ImageSource, position: int = 0, channels: int = RGB) -> Pixels:
    """The image upright, 8 bits a channel: RGB, or of one channel grey, both PIL images; else an array (H,W,C).

    EXIF orientation is applied; photographs of any mode are converted, to grey by Pillow's "L" (299 R + 587 G + 114 B,
    of 1000); an alpha channel is dropped, not composited, as timm's pipeline does; 16-bit grey is scaled by 1/257,
    where Pillow's own conversion would clip it, and refused where all is below 4096, as 12-bit data are, of which that
    would leave 16 levels; of an animation the first frame is taken. `position` names a source without a path in errors
    ("image 3"). Other channels than 1 and 3 have arrays alone.

    Raises:
        InputError: no such file, a folder, a URL, not an image, truncated, too many pixels (Pillow's MAX_IMAGE_PIXELS),
            no pixels, floating-point or 32-bit values, a tensor, or an array of another shape or dtype; a photograph
            where the channels are others.
    """
    return load_photograph(source, position, channels).image


def load_photograph(source: ImageSource, position: int = 0, channels: int = RGB) -> Photograph:
    """As `load_image`, with what is known of the original; an object to read from is rewound and read to its end."""
    name = source_name(source, position)
    if isinstance(source, (str, os.PathLike)):
        return _load_file(source, name, channels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        content = bytes(source)
        return Photograph(*_from_stream(io.BytesIO(content), name, channels), content)
    if isinstance(source, Image.Image):
        return Photograph(*_from_image(source, name, channels), source)
    if isinstance(source, np.ndarray):
        return Photograph(_from_array(source, name, channels), _UPRIGHT, source)
    if hasattr(source, "read"):
        content = _read(source, name)
        return Photograph(*_from_stream(io.BytesIO(content), name, channels), content)
    if device_arrays.device_of(source) is not None:
        array = device_arrays.to_host(source, name)
        return Photograph(_from_array(array, name, channels), _UPRIGHT, source)
    raise InputError(_other_type(source, name, channels))


def is_one_image(source: Any) -> bool:
    """Whether this is meant as one photograph rather than as several."""
    if isinstance(source, np.ndarray):
        return source.ndim != 4
    if device_arrays.device_of(source) is not None:
        return len(source.shape) != 4
    one = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
    return isinstance(source, one) or hasattr(source, "read")


def source_name(source: ImageSource, position: int) -> str:
    """How errors and records call a source: its path, or its position."""
    if not isinstance(source, (str, os.PathLike)):
        return f"image {position}"
    name = str(source) if isinstance(source, str) and _URL.match(source) else str(Path(source))
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."


def _load_file(source: str | os.PathLike[str], name: str, channels: int) -> Photograph:
    if isinstance(source, str) and _URL.match(source):
        raise InputError(f"{name} is a URL; download it and give the file, or its bytes.")
    path = Path(source)
    try:
        if path.is_dir():
            raise InputError(f"{name} is a folder; give an image file.")
        with path.open("rb") as stream:
            return Photograph(*_from_stream(stream, name, channels), source)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file.") from None
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise InputError(f"{name} cannot be read ({system_reason(error)}).") from None


def _from_stream(stream: BinaryIO, name: str, channels: int) -> tuple[Pixels, int]:
    """The pixels and the EXIF orientation of a file's content."""
    if _start(stream).startswith(_NPY):
        try:
            array = np.load(stream, allow_pickle=False)
        except Exception as error:  # NumPy raises ValueError, EOFError, MemoryError and others on bad bytes
            raise InputError(f"{name} is a damaged .npy file ({one_line(error)}).") from None
        return _from_array(array, name, channels), _UPRIGHT
    with open_image(stream, name) as image:
        return _from_image(image, name, channels)


def _from_image(image: Image.Image, name: str, channels: int) -> tuple[Pixels, int]:
    if channels not in MODES:
        raise InputError(
            f"{name} is a photograph, and the engine's images have {channels} channels; give a uint8 array "
            f"(H,W,{channels}), or a .npy file of one."
        )
    return upright(image, name, MODES[channels])


def _read(stream: Any, name: str) -> bytes:
    """All that a file-like object holds, from its beginning, as Pillow itself would read it."""
    try:
        if getattr(stream, "seekable", lambda: False)():
            stream.seek(0)
        content = stream.read()
    except Exception as error:  # whatever the object raises: OSError, ValueError for a closed file, a library's own
        raise InputError(f"{name} cannot be read ({one_line(error)}).") from None
    if not isinstance(content, bytes):
        raise InputError(f"{name} gives {type(content).__name__} when read; open it in binary mode.")
    return content


def open_image(stream: BinaryIO, name: str) -> Image.Image:
    """Pillow's image of a stream, its pixels not yet read.

    Raises:
        InputError: not an image, a damaged one, or one with too many pixels.
    """
    if _is_heif(stream):
        _register_heif(name)
    limit = Image.MAX_IMAGE_PIXELS
    try:
        image = Image.open(stream)
        if limit is not None and image.width * image.height > limit:  # of which Pillow only warns
            raise Image.DecompressionBombError
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InputError(
            f"{name} has more than {limit} pixels, which may be a decompression bomb; scale the file down first, or, "
            "in Python, raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        ) from None
    except UnidentifiedImageError:
        raise InputError(_unidentified(stream, name)) from None
    except Exception as error:  # a plugin met bytes that it did not expect
        raise InputError(f"{name} is a damaged image ({one_line(error)}).") from None
    return image


def _start(stream: BinaryIO) -> bytes:
    stream.seek(0)
    start = stream.read(16)
    stream.seek(0)
    return start


def _is_heif(stream: BinaryIO) -> bool:
    start = _start(stream)
    return start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS


def is_video(start: bytes) -> bool:
    """Whether the first 16 bytes of a file that is no image are those of MP4 and MOV, Matroska and WebM, or AVI."""
    return start[4:8] == b"ftyp" or start[:4] == b"\x1aE\xdf\xa3" or (start[:4] == b"RIFF" and start[8:12] == b"AVI ")


def _register_heif(name: str) -> None:
    """Teach Pillow HEIC, what iPhones write, where the package for it is installed."""
    try:
        import pillow_heif
    except ImportError:
        raise InputError(
            f"{name} is a HEIC image, which Pillow does not read by itself; `pip install pillow-heif`, or convert it "
            "to JPEG."
        ) from None
    pillow_heif.register_heif_opener()


def _unidentified(stream: BinaryIO, name: str) -> str:
    start = _start(stream)
    if not start:
        return f"{name} is empty: it is not an image."
    if is_video(start):
        return f"{name} is not an image but a video; give its frames: finercam_rt.frames(path), or --frames."
    return f"{name} is not an image that Pillow can read."


def _other_type(source: Any, name: str, channels: int) -> str:
    kind = type(source).__name__
    if hasattr(source, "__dlpack__"):
        return (
            f"{name} is a {type(source).__module__.partition('.')[0]} {kind}; give a uint8 NumPy array "
            f"(H,W,{channels}), such as tensor.permute(1, 2, 0).cpu().numpy(), or a normalised batch to engine(batch)."
        )
    return f"{name} is of type {kind}; give a path, bytes, a PIL image or a uint8 NumPy array (H,W,{channels})."


def _from_array(array: NDArray[np.uint8], name: str, channels: int) -> Pixels:
    if array.dtype != np.uint8:
        raise InputError(
            f"{name} is an array of {array.dtype}; give uint8 from 0 to 255, or a normalised batch to engine(batch)."
        )
    wanted = (GREY, RGB, RGB + 1) if channels in MODES else (channels,)
    if not (array.ndim == 3 and array.shape[2] in wanted) and not (array.ndim == 2 and channels in MODES):
        shapes = "(H,W), (H,W,1), (H,W,3) or (H,W,4)" if channels in MODES else f"(H,W,{channels})"
        raise InputError(f"{name} is an array of shape {array.shape}; give {shapes}, the channels last.")
    if 0 in array.shape:
        raise InputError(f"{name} has no pixels: its shape is {array.shape}.")
    if channels not in MODES:
        return array
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return upright(Image.fromarray(np.ascontiguousarray(array)), name, MODES[channels])[0]


def upright(image: Image.Image, name: str, mode: str = MODES[RGB]) -> tuple[Image.Image, int]:
    """The image, upright and of the mode "RGB" or "L", and the EXIF orientation that it had."""
    if image.width < 1 or image.height < 1:
        raise InputError(f"{name} has no pixels: its size is {image.width}x{image.height}.")
    try:
        image.load()
        orientation = _orientation(image)
        if orientation != _UPRIGHT:
            image = image.transpose(_TURNS[orientation])
        if image.mode.startswith("I"):
            return _from_deep_grey(image, name).convert(mode), orientation
        if image.mode == "F":
            raise InputError(f"{name} has floating-point pixels; convert it to 8 bits a channel.")
        return (image if image.mode == mode else image.convert(mode)), orientation
    except InputError:
        raise
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error and others on bad bytes
        raise InputError(f"{name} is truncated or damaged ({one_line(error)}).") from None


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT)
        return int(found) if found in _TURNS else _UPRIGHT
    except Exception:  # EXIF that cannot be parsed says nothing about the orientation; the pixels are fine
        return _UPRIGHT


def _from_deep_grey(image: Image.Image, name: str) -> Image.Image:
    """16-bit grey (modes I;16*, and I from older Pillows' PNG reader) scaled so that 65535 becomes 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535 or (image.mode == "I" and image.format != "PNG"):
        raise InputError(f"{name} has 32-bit pixels of unknown range; convert it to 8 bits a channel.")
    if 0 < values.max() <= _TWELVE_BITS:
        raise InputError(
            f"{name} has 16-bit pixels of at most {values.max()}, of which 8 bits would show next to nothing; scale it "
            "to 8 bits as the model's training data were."
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
