"""Which rows there are: seeds by name, what an engine can, and twins."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from finercam_rt.errors import InputError
from finercam_rt.evaluation.provenance import engine_names
from finercam_rt.evaluation.rows import plan_rows
from finercam_rt.evaluation.seeds import Seed, parse_seed
from finercam_rt.evaluation.sources import EngineRows
from finercam_rt.manifest import InputSpec, LayerInfo, Manifest, ModelInfo, TapsInfo

WEIGHTED = Manifest(
    model=ModelInfo("toy", "0" * 64),
    input=InputSpec((32, 32), (0.5,) * 3, (0.5,) * 3),
    classes=None,
    num_classes=9,
    layers=(LayerInfo("conv", "nchw", (4, 4)),),
    method="gradcam",
    objective="weighted",
    references=3,
    opset=18,
)
MEAN = dataclasses.replace(WEIGHTED, objective="mean")
TAPS = dataclasses.replace(WEIGHTED, head="taps", taps=TapsInfo(6, True))
OTHER = dataclasses.replace(MEAN, model=ModelInfo("toy", "1" * 64))


@pytest.mark.parametrize(
    ("text", "seed"),
    [
        ("plain", Seed("plain", 0, 0.0)),
        ("one:1", Seed("one", 1, 1.0)),
        ("one", Seed("one", 1, 1.0)),
        ("mean3:0.6", Seed("mean", 3, 0.6)),
        ("mean2", Seed("mean", 2, 0.6)),
        ("weighted", Seed("weighted", 3, 1.0)),
        ("weighted1:0.5", Seed("one", 1, 0.5)),
        ("weighted3:0", Seed("plain", 0, 0.0)),
    ],
)
def test_seeds_by_name(text: str, seed: Seed) -> None:
    assert parse_seed(text, WEIGHTED) == seed
    assert parse_seed(seed.name, WEIGHTED) == seed


@pytest.mark.parametrize(
    "text", ["finer", "plain3", "plain:1", "one3:1", "mean3:x", "mean3:-1", "mean0:1", "mean3:inf", ""]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InputError) as error:
        parse_seed(text, WEIGHTED)
    assert str(error.value).endswith(".")


def _names(*arguments: object) -> list[str]:
    return [row.name for row in plan_rows(*arguments)]  # type: ignore[arg-type]


def test_by_default_plain_and_the_engines_own() -> None:
    assert _names(["e"], [WEIGHTED], None, None) == ["gradcam plain", "gradcam weighted3:1"]
    taps = _names(["e"], [TAPS], None, None)
    assert taps[:4] == ["gradcam plain", "gradcam weighted3:1", "gradcam++ plain", "gradcam++ weighted3:1"]
    # what reads no gradients is the same for every seed
    assert [name for name in taps if name.startswith(("eigencam", "fem"))] == ["fem plain", "eigencam plain"]


def test_twins_share_what_does_not_depend_on_the_objective() -> None:
    seeds = ["plain", "one:1", "mean3:0.6", "weighted3:1"]
    assert _names(["w", "m"], [WEIGHTED, MEAN], None, seeds) == [
        "w gradcam plain",
        "w gradcam one:1",
        "w gradcam weighted3:1",
        "m gradcam mean3:0.6",
    ]
    assert _names(["w", "o"], [WEIGHTED, OTHER], None, seeds)[3:] == [
        "o gradcam plain",
        "o gradcam one:1",
        "o gradcam mean3:0.6",
    ]


def test_engines_that_are_to_be_compared_are_no_twins() -> None:
    """Two of one objective, and two whose ranges in int8 were taken from other photographs."""
    int8 = dataclasses.replace(WEIGHTED, precision="int8")
    for second in (WEIGHTED, dataclasses.replace(int8, objective="mean")):
        first = WEIGHTED if second is WEIGHTED else int8
        names = _names(["a", "b"], [first, second], None, ["plain", "one:1"])
        assert names == [f"{name} gradcam {seed}" for name in "ab" for seed in ("plain", "one:1")]


def test_engines_and_seeds_have_names_of_their_own() -> None:
    paths = [Path("x/a.onnx"), Path("y/a.onnx"), Path("a-1.onnx"), Path("b.onnx")]
    assert engine_names(paths) == ["a-2", "a-3", "a-1", "b"]
    assert Seed("one", 1, 0.1234567).name != Seed("one", 1, 0.1234568).name
    assert Seed("one", 1, 0.6).name == "one:0.6"


@pytest.mark.parametrize(
    ("methods", "seeds", "says"),
    [
        (["layercam"], None, "none of the engines draws layercam"),
        (["layercm"], None, "the nearest is 'layercam'"),
        (None, ["mean3:0.6"], "no engine can compute the seed 'mean3:0.6'.*its objective is weighted"),
        (None, ["weighted5:1"], "it has 3 references"),
        (None, ["plain", "plain"], "given twice"),
        ([], None, "no method is given"),
    ],
)
def test_what_no_engine_can_is_refused(methods: list[str] | None, seeds: list[str] | None, says: str) -> None:
    with pytest.raises(InputError, match=says):
        plan_rows(["e"], [WEIGHTED], methods, seeds)


def test_methods_that_compute_the_objective_take_the_seeds_of_any() -> None:
    twins = [TAPS, dataclasses.replace(TAPS, objective="mean")]
    seeds = ["plain", "mean3:0.6", "weighted3:1"]
    assert _names(["e"], twins[:1], ["scorecam"], seeds) == [f"scorecam {seed}" for seed in seeds]
    assert _names(["w", "m"], twins, ["gradcam", "scorecam"], seeds) == [
        "w gradcam plain",
        "w gradcam weighted3:1",
        *(f"w scorecam {seed}" for seed in seeds),
        "m gradcam mean3:0.6",
    ]
    with pytest.raises(InputError, match="it has 3 references"):
        plan_rows(["e"], twins[:1], ["scorecam"], ["mean5:1"])


def test_of_few_classes_there_are_fewer_references() -> None:
    """A zero-shot engine takes fewer prompts than it has references and one."""
    engine: Any = SimpleNamespace(engine=SimpleNamespace(manifest=WEIGHTED))
    for others in (1, 2, 5):
        found = EngineRows._references(engine, np.tile(np.arange(others), (4, 1)), Seed("weighted", 3, 1.0))
        assert found.tolist() == [([*range(others)] + [-2] * 3)[:3]] * 4
