"""The photograph, or the array, that a crop was taken from, loaded again where a picture of all of it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from finercam_rt.errors import InputError
from finercam_rt.geometry import Geometry
from finercam_rt.images import ImageSource, Photograph, load_photograph, source_name
from finercam_rt.pixels import as_photograph, channels_of, checksum, size_of


@dataclass(frozen=True, eq=False)
class Original:
    """What is kept of a photograph besides the crop: a path, a reference to the caller's array, image or bytes, or what
    an open file, a bytearray or a memoryview held; never a copy of the pixels.

    source: what it can be loaded from again. position: its number among the images, for errors. geometry: where the
    crop lies in it. orientation: the EXIF orientation in which its pixels are stored, 1 (upright) to 8. channels: of
    the engine's images. checksum: None of an array on a GPU, which is not looked at on the host.
    """

    source: ImageSource
    position: int
    geometry: Geometry
    orientation: int
    channels: int
    checksum: int | None

    def load(self) -> Image.Image:
        """The photograph, upright and RGB, as it was when it was explained; see `pixels.as_rgb` for other channels.

        Raises:
            InputError: it cannot be read any more, or has changed.
        """
        image = load_photograph(self.source, self.position, self.channels).image
        known = checksum(image) if self.checksum is not None else None
        if size_of(image) != self.geometry.size or known != self.checksum:
            raise InputError(
                f"{source_name(self.source, self.position)} has changed since it was explained; explain it again, or "
                "give copies of arrays that are written to again."
            )
        return as_photograph(image)

    def record(self) -> dict[str, Any]:
        """Its size, the crop's box and the orientation, as plain JSON values."""
        return {"size": list(self.geometry.size), "box": list(self.geometry.box), "orientation": self.orientation}


def original_of(photograph: Photograph, position: int, geometry: Geometry) -> Original:
    """What is kept of a photograph whose crop lies there."""
    image = photograph.image
    return Original(photograph.source, position, geometry, photograph.orientation, channels_of(image), checksum(image))
