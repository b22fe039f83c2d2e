"""The three bodies: outlines and patterns that differ grossly, in a frame whose radius is half the body's length."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planted.shapes import Floats, Outline, Texture, capsule, ellipse, polygon


class Body(NamedTuple):
    """name: for people. outline: of the trunk. limbs: what is drawn under it, darker. pattern: of the trunk alone."""

    name: str
    outline: Outline
    limbs: Outline
    pattern: Texture


def _union(*distances: Floats) -> Floats:
    return np.minimum.reduce(distances)


def _beetle(x: Floats, y: Floats) -> Floats:
    return _union(ellipse(x + 0.1, y, 0.9, 0.66), ellipse(x - 0.82, y, 0.26, 0.3))


def _legs(x: Floats, y: Floats) -> Floats:
    return _union(
        *(
            capsule(x, y, (at, 0.0), (at + lean, side * 1.0), 0.05)
            for at, lean in ((0.5, 0.3), (0.0, 0.0), (-0.5, -0.3))
            for side in (-1, 1)
        )
    )


def _spots(x: Floats, y: Floats) -> NDArray[np.bool_]:
    return np.asarray(np.hypot((x / 0.4) % 1 - 0.5, (y / 0.4) % 1 - 0.5) < 0.3)


def _fish(x: Floats, y: Floats) -> Floats:
    return ellipse(x - 0.1, y, 0.9, 0.42)


def _fins(x: Floats, y: Floats) -> Floats:
    tail = polygon(x, y, [(-0.6, 0.0), (-1.15, 0.45), (-1.15, -0.45)])
    back = polygon(x, y, [(0.45, -0.3), (-0.35, -0.3), (-0.25, -0.75)])
    return _union(tail, back)


def _bands(x: Floats, y: Floats) -> NDArray[np.bool_]:
    return np.asarray(np.sin(2 * np.pi * x / 0.36) > 0.3)


def _moth(x: Floats, y: Floats) -> Floats:
    wings = [polygon(x, side * y, [(0.75, 0.95), (-0.65, 0.75), (-0.45, 0.0), (0.45, 0.0)]) for side in (-1, 1)]
    return _union(*wings)


def _thorax(x: Floats, y: Floats) -> Floats:
    feelers = [capsule(x, y, (0.5, 0.0), (1.0, side * 0.35), 0.04) for side in (-1, 1)]
    return _union(capsule(x, y, (-0.8, 0.0), (0.6, 0.0), 0.13), *feelers)


def _rays(x: Floats, y: Floats) -> NDArray[np.bool_]:
    return np.asarray(np.sin(2 * np.pi * np.abs(y) / 0.36) > 0.3)


BODIES: tuple[Body, ...] = (
    Body("beetle", _beetle, _legs, _spots),
    Body("fish", _fish, _fins, _bands),
    Body("moth", _moth, _thorax, _rays),
)
