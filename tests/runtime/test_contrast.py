"""Targets, references and alpha, in every form a caller may give them."""

from __future__ import annotations

import numpy as np
import pytest

from finercam_rt.classes import Classes
from finercam_rt.contrast import Contrast, ContrastResolver, Rank, alpha_sweep, top_classes, why_not
from finercam_rt.errors import InputError

RESOLVER = ContrastResolver(Classes(("a", "b", "c", "d", "e"), 5), references=3, default_alpha=0.6)


def resolve(count=2, target=None, references=None, alpha=None):
    return RESOLVER.resolve(count, target, references, alpha)


def refused(**arguments) -> str:
    with pytest.raises(InputError) as caught:
        resolve(**arguments)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_defaults():
    contrast = resolve()
    assert contrast.target.tolist() == [-1, -1]
    assert contrast.references.tolist() == [[-1] * 3] * 2
    assert contrast.alpha.tolist() == [np.float32(0.6)] * 2
    assert [field.dtype for field in contrast] == [np.int64, np.int64, np.float32]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (2, [2, 2]),
        ("c", [2, 2]),
        (["c", None], [2, -1]),
        ((0, 4), [0, 4]),
        (np.array([1, 0]), [1, 0]),
        ([None] * 2, [-1, -1]),
    ],
)
def test_targets(given, expected):
    assert resolve(target=given).target.tolist() == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("b", [[1, -2, -2]] * 2),
        (4, [[4, -2, -2]] * 2),
        ([], [[-2, -2, -2]] * 2),
        (["b", 4], [[1, 4, -2]] * 2),
        ((0, 1, 2), [[0, 1, 2]] * 2),
        ([["a"], ["b", "c"]], [[0, -2, -2], [1, 2, -2]]),
        ([[], None], [[-2, -2, -2], [-1, -1, -1]]),
        ([None, None], [[-1, -1, -1]] * 2),
        (np.array([3, 1]), [[3, 1, -2]] * 2),
        (np.array([[0, -1, -2], [3, -2, 1]]), [[0, -1, -2], [3, -2, 1]]),
        (np.array([[0], [-1]]), [[0, -2, -2], [-1, -2, -2]]),
        (np.zeros((2, 0), int), [[-2, -2, -2]] * 2),
    ],
)
def test_references(given, expected):
    assert resolve(references=given).references.tolist() == expected


@pytest.mark.parametrize(
    ("given", "expected"), [(0, [0, 0]), (2.5, [2.5, 2.5]), ([0, 1], [0, 1]), (np.array([1, 3]), [1, 3])]
)
def test_alphas(given, expected):
    assert resolve(alpha=given).alpha.tolist() == expected


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"target": 5}, "class 5 is out of range"),
        ({"target": -1}, "class -1 is out of range"),
        ({"target": "zebra"}, "no class 'zebra'"),
        ({"target": [1]}, "target has 1 values for 2 images"),
        ({"target": [1, 2, 3]}, "target has 3 values for 2 images"),
        ({"target": np.array([[1, 2]])}, "shape (1, 2)"),
        ({"target": [1.5, 2]}, "neither"),
        ({"target": 1.5}, "neither"),
        ({"target": True}, "neither"),
        ({"references": [0, 1, 2, 3]}, "R = 3"),
        ({"references": [[0, 1, 2, 3], []]}, "R = 3"),
        ({"references": np.zeros((2, 4), int)}, "R = 3"),
        ({"references": [5]}, "out of range"),
        ({"references": [-1]}, "out of range"),
        ({"references": np.array([[0, -3], [0, 1]])}, "out of range"),
        ({"references": np.array([[0, 9], [0, 1]])}, "out of range"),
        ({"references": np.array([[0.0], [1.0]])}, "give integers"),
        ({"references": [["a"]]}, "references has 1 values for 2 images"),
        ({"references": np.array([[0]])}, "references has 1 values for 2 images"),
        ({"references": ["a", ["b"]]}, "neither"),
        ({"references": 2.5}, "neither"),
        ({"references": ["b", "c", 1]}, "given twice for image 0"),
        ({"references": [["a"], ["b", "b"]]}, "given twice for image 1"),
        ({"target": "b", "references": [0, 1]}, "is the target itself for image 0"),
        ({"target": [None, 2], "references": [[2], ["c"]]}, "is the target itself for image 1"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"alpha": float("inf")}, "alpha is inf"),
        ({"alpha": 1e39}, "alpha is 1e+39"),
        ({"alpha": [1, -2]}, "alpha is -2"),
        ({"alpha": [1, 2, 3]}, "alpha has 3 values for 2 images"),
        ({"alpha": [[1, 2]]}, "shape (1, 2)"),
        ({"alpha": "much"}, "'much'"),
    ],
)
def test_refused(arguments, says):
    assert says in refused(**arguments)


def test_an_engine_without_references():
    resolver = ContrastResolver(Classes(None, 1), references=0, default_alpha=1.0)
    for references in (None, [], [[], []]):
        assert resolver.resolve(2, None, references, None).references.shape == (2, 0)
    with pytest.raises(InputError, match="R = 0"):
        resolver.resolve(2, None, [0], None)


SEVERAL = ContrastResolver(RESOLVER.classes, references=3, default_alpha=1.0, contrasts=4)


def test_the_top_classes_are_what_is_not_given():
    got = SEVERAL.resolve(2, None, None, None)
    assert got.target.tolist() == [[-1, -2, -3, -4]] * 2
    assert (got.references == -1).all()
    assert got.references.shape == (2, 4, 3)
    assert (got.alpha == 1).all()
    few = ContrastResolver(Classes(None, 3), 2, 1.0, contrasts=5).resolve(1, None, None, 0.5)
    assert few.target.tolist() == [[-1, -2, -3]]
    assert few.alpha.tolist() == [[0.5] * 3]


def test_a_target_asks_for_one_contrast():
    got = SEVERAL.resolve(2, ["a", 3], ["b"], [0.5, 2])
    assert got.target.tolist() == [[0], [3]]
    assert got.references.tolist() == [[[1, -2, -2]]] * 2
    assert got.alpha.tolist() == [[0.5], [2]]
    assert got.padded(4).target.tolist() == [[0] * 4, [3] * 4]


def test_contrasts_for_all_images_and_for_each():
    one = [Contrast("a", ["b"], 0.5), Contrast(None, [], 2), Contrast(Rank(3))]
    got = SEVERAL.resolve(2, None, None, None, one)
    assert got.target.tolist() == [[0, -1, -3]] * 2
    assert got.references.tolist() == [[[1, -2, -2], [-2, -2, -2], [-1, -1, -1]]] * 2
    assert got.alpha.tolist() == [[0.5, 2, 1]] * 2
    each = SEVERAL.resolve(2, None, None, None, [why_not(["a", "b"]), alpha_sweep([0, 1], "c")])
    assert each.target.tolist() == [[0, 1], [2, 2]]
    assert each.references.tolist() == [[[1, -2, -2], [0, -2, -2]], [[-1] * 3] * 2]
    assert each.alpha.tolist() == [[1, 1], [0, 1]]
    assert [c.target for c in top_classes(2)] == [Rank(1), Rank(2)]


@pytest.mark.parametrize(
    ("resolver", "arguments", "says"),
    [
        (SEVERAL, {"contrasts": [Contrast()], "target": "a"}, "give those or contrasts"),
        (SEVERAL, {"contrasts": []}, "there are no contrasts"),
        (SEVERAL, {"contrasts": [[], []]}, "an image has no contrasts"),
        (SEVERAL, {"contrasts": top_classes(5)}, "5 contrasts are too many: the engine was exported with P = 4"),
        (SEVERAL, {"contrasts": [Contrast(Rank(5))]}, "no rank 5: this engine ranks classes from 1 to 4"),
        (SEVERAL, {"contrasts": [Contrast(Rank(0))]}, "no rank 0"),
        (SEVERAL, {"contrasts": [Contrast(Rank(1.5))]}, "no rank 1.5"),
        (SEVERAL, {"contrasts": [Contrast("a", ["a"])]}, "is the target itself"),
        (SEVERAL, {"contrasts": [Contrast("a", ["b", "b"])]}, "given twice"),
        (SEVERAL, {"contrasts": [Contrast("nothing")]}, "no class 'nothing'"),
        (SEVERAL, {"contrasts": [Contrast("a", alpha=-1)]}, "alpha is -1"),
        (SEVERAL, {"contrasts": ["a", "b"]}, "is not a Contrast"),
        (SEVERAL, {"contrasts": [[Contrast()], [Contrast(), Contrast()]]}, "1 to 2 contrasts"),
        (SEVERAL, {"contrasts": [[Contrast()]]}, "contrasts has 1 values for 2 images"),
        (ContrastResolver(Classes(None, 7), 3, 1.0), {"contrasts": [Contrast()]}, "explains one contrast an image"),
    ],
)
def test_several_refused(resolver, arguments, says):
    given = {"target": None, "references": None, "alpha": None, **arguments}
    with pytest.raises(InputError) as caught:
        resolver.resolve(2, **given)
    assert says in str(caught.value)
