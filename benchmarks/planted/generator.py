"""Pictures of twelve classes, three bodies by four marks: look-alikes share the body and differ in the mark alone.

A class is what its body and its mark are; neither alone says it. Everything else (place, angle, size, colours, light,
background, clutter, where on the body the mark sits) is drawn from one distribution for all classes, by the picture's
seed and before the class is looked at: two pictures of one seed differ in nothing but what their classes differ in.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planted.bodies import BODIES
from planted.shapes import HUES, OUTLINES, REACH, TEXTURES, Floats, Frame, capsule, coverage, paint, rgb

SIZE = 96
"""Pixels along each side."""


class Mark(NamedTuple):
    """The planted part of a class: the places of its outline, texture and hue in the vocabulary."""

    name: str
    outline: int
    texture: int
    hue: int


MARKS = (Mark("disc", 0, 0, 0), Mark("triangle", 1, 1, 1), Mark("square", 2, 2, 2), Mark("ring", 3, 3, 3))
CLASSES = tuple(f"{body.name} with {mark.name}" for body in BODIES for mark in MARKS)
"""Class k has body k // 4 and mark k % 4."""


class Picture(NamedTuple):
    """image: (H,W,3) uint8. mark, body: (H,W) bool, the pixels that the mark changes, and those of the body outside."""

    image: NDArray[np.uint8]
    mark: NDArray[np.bool_]
    body: NDArray[np.bool_]


class _Blob(NamedTuple):
    """A shape of the background."""

    frame: Frame
    outline: int
    texture: int
    first: Floats
    second: Floats


class _Twig(NamedTuple):
    start: tuple[float, float]
    end: tuple[float, float]
    radius: float
    color: Floats


class _Nuisance(NamedTuple):
    """All that is drawn by chance, the same for every class."""

    ground: tuple[Floats, Floats, float]
    shadows: list[tuple[Frame, float, Floats]]
    twigs: list[_Twig]
    clutter: list[_Blob]
    body: Frame
    coat: tuple[Floats, Floats, Floats]
    mark: Frame
    mark_shift: tuple[float, float, float]
    light: tuple[float, float]
    noise: Floats


def draw(label: int, seed: int) -> Picture:
    """The picture of class `label`, 0 to 11, with the nuisance of `seed`."""
    chance = _nuisance(np.random.default_rng(seed))
    kind, mark = BODIES[label // len(MARKS)], MARKS[label % len(MARKS)]
    picture = _background(chance)

    _, x, y = chance.body.local(SIZE)
    radius = chance.body.radius
    coat, pattern, limbs = chance.coat
    trunk = coverage(kind.outline(x, y), radius)
    under = coverage(kind.limbs(x, y), radius)
    paint(picture, under, limbs)
    paint(picture, trunk, np.where(kind.pattern(x, y)[..., None], pattern, coat))

    window, x, y = chance.mark.local(SIZE, REACH)
    cover = coverage(OUTLINES[mark.outline](x, y), chance.mark.radius)
    turn, saturation, value = chance.mark_shift
    first, second = _inks(HUES[mark.hue] + turn, saturation, value)
    paint(picture[window], cover, np.where(TEXTURES[mark.texture](x, y)[..., None], second, first))

    inside = np.zeros((SIZE, SIZE), np.bool_)
    inside[window] = cover > 0
    return Picture(_exposed(picture, chance), inside, (np.maximum(trunk, under) > 0) & ~inside)


def _inks(hue: float, saturation: float, value: float) -> tuple[Floats, Floats]:
    """A mark's colour, and the dark one of its texture."""
    return rgb(hue, saturation, value), rgb(hue, saturation, 0.3 * value)


def _nuisance(rng: np.random.Generator) -> _Nuisance:
    """Draw everything, in one order and number whatever the class."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def frame(low: float, high: float) -> Frame:
        return Frame(between(0, SIZE), between(0, SIZE), between(-math.pi, math.pi), between(low, high))

    def muted(low: float, high: float) -> Floats:
        return rgb(between(0, 1), between(0.1, 0.4), between(low, high))

    ground = (muted(0.3, 0.8), muted(0.3, 0.8), between(-math.pi, math.pi))
    shadows = [(frame(10, 30), between(0.4, 1.0), muted(0.2, 0.9)) for _ in range(4)]
    twigs = []
    for _ in range(3):
        first, second = frame(1, 2), frame(1, 2)
        twigs.append(_Twig((first.x, first.y), (second.x, second.y), between(0.5, 2.0), muted(0.1, 0.6)))
    clutter = []
    for _ in range(int(rng.integers(3, 7))):
        inks = _inks(HUES[int(rng.integers(len(HUES)))] + between(-0.03, 0.03), between(0.75, 1), between(0.7, 1))
        outline, texture = int(rng.integers(len(OUTLINES))), int(rng.integers(len(TEXTURES)))
        clutter.append(_Blob(frame(5, 9), outline, texture, *inks))

    heading = between(-math.pi / 4, math.pi / 4) + (math.pi if rng.random() < 0.5 else 0.0)
    body = Frame(SIZE / 2 + between(-14, 14), SIZE / 2 + between(-14, 14), heading, between(26, 33))
    hue = between(0, 1)
    coat = (rgb(hue, between(0.1, 0.4), between(0.5, 0.85)), rgb(hue, 0.4, between(0.2, 0.4)), rgb(hue, 0.3, 0.25))
    mark = Frame(*body.at(between(-0.5, 0.5), between(-0.12, 0.12)), between(-math.pi, math.pi), between(8, 10))
    shift = (between(-0.03, 0.03), between(0.75, 1), between(0.7, 1))
    light = (between(-math.pi, math.pi), between(0, 0.15))
    return _Nuisance(
        ground, shadows, twigs, clutter, body, coat, mark, shift, light, rng.normal(0, 0.025, (SIZE, SIZE, 3))
    )


def _background(chance: _Nuisance) -> Floats:
    """A blend of two colours, soft patches, twigs, and shapes of the marks' own vocabulary, freely combined."""
    first, second, angle = chance.ground
    picture = first + (second - first) * (0.5 + 0.5 * _slope(angle))[..., None]
    for frame, flatness, color in chance.shadows:
        window, x, y = frame.local(SIZE, 1.2)
        paint(picture[window], np.clip(1.2 - np.hypot(x, y / flatness), 0, 1), color)
    _, x, y = Frame(0, 0, 0, 1).local(SIZE)
    for twig in chance.twigs:
        paint(picture, coverage(capsule(x, y, twig.start, twig.end, twig.radius), 1), twig.color)
    for blob in chance.clutter:
        window, x, y = blob.frame.local(SIZE, REACH)
        colors = np.where(TEXTURES[blob.texture](x, y)[..., None], blob.second, blob.first)
        paint(picture[window], coverage(OUTLINES[blob.outline](x, y), blob.frame.radius), colors)
    return picture


def _slope(angle: float) -> Floats:
    """(H,W) from -1 to 1 across the picture."""
    centres = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
    return np.asarray((centres[None] * math.cos(angle) + centres[:, None] * math.sin(angle)) / math.sqrt(2))


def _exposed(picture: Floats, chance: _Nuisance) -> NDArray[np.uint8]:
    """Uneven light, noise, eight bits: pixel by pixel, so that nothing leaks out of the mark."""
    angle, strength = chance.light
    exposed = picture * (1 + strength * _slope(angle))[..., None] + chance.noise
    return np.asarray(np.round(np.clip(exposed, 0, 1) * 255), np.uint8)
