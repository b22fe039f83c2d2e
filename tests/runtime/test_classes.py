"""Classes by index and by name."""

from __future__ import annotations

import numpy as np
import pytest

from finercam_rt.classes import Classes
from finercam_rt.errors import InputError

NAMES = (
    "magpie",
    "tailed frog, bell toad",
    "House Finch",
    "crane",
    "crane",
    "Bell Ringer, toad",
    "house finch, linnet",
)


@pytest.fixture
def classes() -> Classes:
    return Classes(NAMES, len(NAMES))


def refused(classes: Classes, value: object) -> str:
    with pytest.raises(InputError) as caught:
        classes.index(value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "index"),
    [
        (0, 0),
        (np.int32(6), 6),
        ("magpie", 0),
        ("MagPie ", 0),
        ("tailed frog, bell toad", 1),
        ("bell toad", 1),
        ("Tailed Frog", 1),
        ("linnet", 6),
        ("House Finch", 2),  # exact, though "house finch" is a synonym of 6 too
        ("house finch", 2),  # a whole name without regard to case goes before a synonym
        ("toad", 5),
    ],
)
def test_found(classes, value, index):
    assert classes.index(value) == index


def test_out_of_range(classes):
    for index in (7, -1, np.int64(1000)):
        assert refused(classes, index) == f"class {index} is out of range: the model has 7 classes, 0 to 6."


def test_ambiguous(classes):
    text = refused(classes, "crane")
    assert "3 (crane)" in text
    assert "4 (crane)" in text


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("magpei", "'magpie' (0)"), ("linet", "(6)"), ("taild frog", "'tailed frog, bell toad' (1)")]
)
def test_unknown_name_gets_the_nearest(classes, wrong, nearest):
    text = refused(classes, wrong)
    assert repr(wrong) in text
    assert nearest in text


def test_far_names_are_not_listed_beside_a_near_one():
    text = refused(Classes(("Egyptian cat", "frying pan", "keypad"), 3), "Egyptan")
    assert "'Egyptian cat' (0)" in text
    assert "frying" not in text


def test_unknown_name_like_nothing(classes):
    assert "finercam inspect" in refused(classes, "xylophone quartz")


@pytest.mark.parametrize("value", [True, 1.0, None, ["magpie"], b"magpie"])
def test_neither_name_nor_index(classes, value):
    assert "neither" in refused(classes, value)


def test_engine_without_names():
    classes = Classes(None, 5)
    assert classes.index(4) == 4
    assert classes.name(4) == classes.short_name(4) == "class 4"
    assert "no class names" in refused(classes, "magpie")


def test_short_names_are_unique(classes):
    assert classes.short_name(1) == "tailed frog"
    assert classes.short_name(6) == "house finch, linnet", "its first synonym is another class's name"
