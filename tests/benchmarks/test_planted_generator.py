"""The planted truth: what is drawn, and that look-alikes differ in the mark and nowhere else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from planted.bodies import BODIES
from planted.generator import CLASSES, MARKS, SIZE, draw
from planted.shapes import OUTLINES, REACH, Frame, coverage

SEEDS = range(12)


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    first, again, other = draw(5, 3), draw(5, 3), draw(5, 4)
    for one, two in zip(first, again, strict=True):
        assert (one == two).all()
    assert (first.image != other.image).mean() > 0.9
    assert first.image.shape == (SIZE, SIZE, 3)
    assert first.image.dtype == np.uint8
    assert len(set(CLASSES)) == len(CLASSES) == len(BODIES) * len(MARKS) == 12


@pytest.mark.parametrize("seed", SEEDS)
def test_look_alikes_differ_in_their_marks_alone(seed: int) -> None:
    for body in range(len(BODIES)):
        pictures = [draw(body * len(MARKS) + mark, seed) for mark in range(len(MARKS))]
        for one, other in itertools.combinations(pictures, 2):
            differs = (one.image != other.image).any(axis=2)
            union = one.mark | other.mark
            assert not (differs & ~union).any()
            assert differs[union].mean() > 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_other_bodies_differ_outside_of_the_mark_alone(seed: int) -> None:
    """So that the body is a question of its own, with the same mark at the same place."""
    pictures = [draw(body * len(MARKS) + 1, seed) for body in range(len(BODIES))]
    for one, other in itertools.combinations(pictures, 2):
        differs = (one.image != other.image).any(axis=2)
        assert (one.mark == other.mark).all()
        assert not differs[_within(one.mark)].any()
        assert differs[one.body | other.body].mean() > 0.4
        assert not (differs & ~(one.body | other.body | one.mark)).any()


def _within(mark: np.ndarray) -> np.ndarray:
    """The mark without its edge, through which the body shows."""
    padded = np.pad(mark, 1)
    shifts = [padded[1 + dy : 1 + dy + SIZE, 1 + dx : 1 + dx + SIZE] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return np.asarray(np.logical_and.reduce(shifts))


def test_marks_and_bodies_have_their_sizes_and_lie_in_the_picture() -> None:
    for label, seed in itertools.product(range(len(CLASSES)), SEEDS):
        picture = draw(label, seed)
        assert 0.02 < picture.mark.mean() < 0.04
        assert 0.08 < picture.body.mean() < 0.3
        assert not (picture.mark & picture.body).any()
        border = picture.mark.copy()
        border[1:-1, 1:-1] = False
        assert not border.any()
        # a mark is one piece that its body surrounds
        rows, columns = np.nonzero(picture.mark)
        top, left = max(0, rows.min() - 3), max(0, columns.min() - 3)
        around = np.zeros_like(picture.body)
        around[top : rows.max() + 4, left : columns.max() + 4] = True
        assert picture.body[around & ~picture.mark].mean() > 0.2


def test_the_nuisance_knows_nothing_of_the_class() -> None:
    """The mark of a class lies where those of all others do, and pictures of all classes are equally bright."""
    centres = np.array(
        [[np.argwhere(draw(label, seed).mark).mean(axis=0) for label in range(len(CLASSES))] for seed in SEEDS]
    )
    assert np.abs(centres - centres[:, :1]).max() < 3
    assert centres.std(axis=0).min() > 5


@pytest.mark.parametrize("outline", OUTLINES)
def test_outlines_end_within_their_reach_and_cover_what_they_say(outline: object) -> None:
    frame = Frame(20.3, 31.6, 0.7, 8.0)
    (rows, columns), x, y = frame.local(64, REACH)
    share = np.zeros((64, 64))
    share[rows, columns] = coverage(outline(x, y), frame.radius)  # type: ignore[operator]
    _, x, y = frame.local(64)
    assert (share == coverage(outline(x, y), frame.radius)).all()  # type: ignore[operator]
    assert share.sum() / 8.0**2 == pytest.approx(3.0, abs=0.35)
    # a corner on the edge of the picture is cut off, not moved
    (rows, columns), x, y = Frame(2, 62, 0.1, 8.0).local(64, REACH)
    assert (rows, columns) == (slice(49, 64), slice(0, 15))
