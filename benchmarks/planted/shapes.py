"""The vocabulary of the pictures: outlines as signed distances, textures, and painting with soft edges.

Lengths are in pixels, distances are negative inside. Everything is a function of pixel centres in a shape's own frame,
x along its axis and y to its left, so that any place, angle and size is drawn without resampling.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Outline: TypeAlias = Callable[[Floats, Floats], Floats]
"""(x, y) in units of the shape's radius, to the signed distance in those units."""
Texture: TypeAlias = Callable[[Floats, Floats], NDArray[np.bool_]]
"""(x, y) in units of the shape's radius, to where the second colour is."""


Window: TypeAlias = tuple[slice, slice]
"""Rows and columns of a picture."""
REACH = 1.5
"""Radii from its centre to the farthest point of any of OUTLINES."""


class Frame(NamedTuple):
    """Where a shape lies: its centre (pixels from the top left corner), its angle (radians), its radius (pixels)."""

    x: float
    y: float
    angle: float
    radius: float

    def local(self, size: int, reach: float = np.inf) -> tuple[Window, Floats, Floats]:
        """Where the points within `reach` radii lie in a picture of `size` pixels a side; their x and y, in radii."""
        width = min(reach * self.radius + 1, 2.0 * size)
        edges = [(max(0, math.floor(at - width)), max(0, min(size, math.ceil(at + width)))) for at in (self.y, self.x)]
        rows, columns = (slice(start, max(start, stop)) for start, stop in edges)
        right = (np.arange(columns.start, columns.stop) + 0.5 - self.x)[None]
        down = (np.arange(rows.start, rows.stop) + 0.5 - self.y)[:, None]
        cos, sin = np.cos(self.angle) / self.radius, np.sin(self.angle) / self.radius
        return (rows, columns), right * cos + down * sin, down * cos - right * sin

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A point of this frame, in pixels of the picture."""
        cos, sin = np.cos(self.angle) * self.radius, np.sin(self.angle) * self.radius
        return float(self.x + x * cos - y * sin), float(self.y + x * sin + y * cos)


def ellipse(x: Floats, y: Floats, half_length: float = 1.0, half_width: float = 1.0) -> Floats:
    """Exact for a disc; to first order along the edge of an ellipse."""
    inner = np.hypot(x / half_length, y / half_width)
    slope = np.hypot(x / half_length**2, y / half_width**2)
    return np.where(slope > 0, inner * (inner - 1) / np.maximum(slope, 1e-9), -min(half_length, half_width))


def capsule(x: Floats, y: Floats, start: tuple[float, float], end: tuple[float, float], radius: float) -> Floats:
    """A line with round ends."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = np.clip(((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy), 0, 1)
    return np.hypot(x - start[0] - along * dx, y - start[1] - along * dy) - radius


def polygon(x: Floats, y: Floats, corners: Sequence[tuple[float, float]]) -> Floats:
    """A convex polygon, its corners in the order in which x turns to y."""
    edges = []
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        length = float(np.hypot(bx - ax, by - ay))
        edges.append(((x - ax) * (by - ay) - (y - ay) * (bx - ax)) / length)
    return np.maximum.reduce(edges)


def square(x: Floats, y: Floats) -> Floats:
    """Of nearly the disc's area."""
    return np.maximum(np.abs(x), np.abs(y)) - 0.9


def triangle(x: Floats, y: Floats) -> Floats:
    """Equilateral, of somewhat less area than the disc."""
    return polygon(x, y, [(1.45, 0.0), (-0.725, 1.2557), (-0.725, -1.2557)])


def ring(x: Floats, y: Floats) -> Floats:
    """A disc with a hole."""
    return np.abs(np.hypot(x, y) - 0.74) - 0.34


def plain(x: Floats, y: Floats) -> NDArray[np.bool_]:
    return np.zeros(np.broadcast_shapes(x.shape, y.shape), np.bool_)


def stripes(x: Floats, y: Floats) -> NDArray[np.bool_]:
    return np.asarray(np.sin(2 * np.pi * x / 0.7) > 0.2)


def checks(x: Floats, y: Floats) -> NDArray[np.bool_]:
    return np.asarray(np.sin(np.pi * x / 0.5) * np.sin(np.pi * y / 0.5) > 0)


def dots(x: Floats, y: Floats) -> NDArray[np.bool_]:
    return np.asarray(np.hypot((x / 0.6 + 0.5) % 1 - 0.5, (y / 0.6 + 0.5) % 1 - 0.5) < 0.3)


OUTLINES: tuple[Outline, ...] = (ellipse, triangle, square, ring)
TEXTURES: tuple[Texture, ...] = (plain, stripes, checks, dots)
HUES = (0.0, 0.15, 0.58, 0.83)
"""Red, yellow, blue, magenta."""


def coverage(distance: Floats, radius: float) -> Floats:
    """The share of each pixel that a shape covers, from its distance in radii: an edge is one pixel wide."""
    return np.asarray(np.clip(0.5 - distance * radius, 0, 1))


def paint(picture: Floats, share: Floats, color: Floats | Sequence[float]) -> None:
    """Lay a colour, (3,) or (H,W,3), over a picture (H,W,3) where `share` (H,W) says."""
    picture += share[..., None] * (np.asarray(color) - picture)


def rgb(hue: float, saturation: float, value: float) -> Floats:
    """(3,) of 0 to 1."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))
