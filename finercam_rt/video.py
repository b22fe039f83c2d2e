"""The frames of animations and videos, one at a time, for `Engine.explain_batches`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from finercam_rt.errors import InputError, one_line
from finercam_rt.files import system_reason
from finercam_rt.images import open_image, upright

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"})
"""What counts as a video, in lower case, when a folder is searched for frames."""

_TURNS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
"""By quarter turns counterclockwise, as PyAV counts them."""


def frames(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """The frames of a file in their order, as images of their own: upright RGB, 8 bits a channel.

    Animated GIF, WebP, PNG and AVIF and the pages of TIFF come from Pillow, of which a still image is one frame; videos
    come from PyAV (`pip install "finercam-rt[video]"`), turned as their display matrix says. The file is closed when
    the iterator ends or is closed. Take every tenth with itertools.islice(frames(path), 0, None, 10).

    Raises:
        InputError: no such file, or neither; and, after the frames before it, a frame that is damaged. PyAV is missing.
    """
    file = Path(path)
    try:
        if file.is_dir():
            raise InputError(f"{file} is a folder; give a file.")
        with file.open("rb") as stream:
            if _is_image(stream):
                yield from _animation(stream, str(file))
                return
    except InputError:
        raise
    except (OSError, ValueError) as error:  # the latter of a name with a NUL
        raise InputError(f"{file} cannot be read ({system_reason(error)}).") from None
    yield from _video(file)


def _is_image(stream: Any) -> bool:
    try:
        with Image.open(stream) as image:
            # Pillow knows the first bytes of MPEG, and nothing else of it
            return image.format != "MPEG"
    except UnidentifiedImageError:
        return False
    except Exception:  # an image, and something is the matter with it: open_image says what
        return True


def _animation(stream: Any, name: str) -> Iterator[Image.Image]:
    with open_image(stream, name) as image:
        for index in itertools.count():
            try:
                image.seek(index)
            except EOFError:
                return
            except Exception as error:  # Pillow's plugins raise many kinds on bad bytes
                raise InputError(f"{name}: frame {index} is damaged ({one_line(error)}).") from None
            frame = upright(image, f"{name}: frame {index}")[0]
            yield frame.copy() if frame is image else frame


def _video(file: Path) -> Iterator[Image.Image]:
    try:
        import av
    except ModuleNotFoundError:
        raise InputError(
            f'{file} is not an image that Pillow can read; if it is a video, `pip install "finercam-rt[video]"`.'
        ) from None
    except ImportError as error:
        raise InputError(
            f"{file} is not an image that Pillow can read, and PyAV, which reads videos, does not load "
            f'({one_line(error)}); install it anew with `pip install "finercam-rt[video]"`.'
        ) from None
    index = 0
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise InputError(f"{file} has no pictures in it; give a video.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            frame: Any  # whose methods are typed in part
            for frame in container.decode(stream):
                image = frame.to_image()
                turn = _TURNS[round(frame.rotation / 90) % 4]
                yield image if turn is None else image.transpose(turn)
                index += 1
    except av.error.FFmpegError as error:
        if index == 0:
            raise InputError(
                f"{file} is neither an image nor a video that can be read ({one_line(system_reason(error))})."
            ) from None
        raise InputError(f"{file}: frame {index} is damaged ({one_line(system_reason(error))}).") from None
    if index == 0:
        raise InputError(f"{file} has no frames.")
