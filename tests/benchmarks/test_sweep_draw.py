"""The second sweep: what is drawn, the heads that are put on, the oracle's formulas, the tables."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")

import torch
from sweep import draw_tables, records
from sweep.cases import Variant
from sweep.draw import draw_cases
from sweep.families import Member, named
from sweep.formulas import signed_map
from sweep.heads import BACKBONE, HEADS, LIBRARY, SEQUENCE, feature_modules, replace_head
from torch import nn

from finercam_rt.export.method import raw_map
from finercam_rt.manifest import METHODS, LayerInfo

from .sweeps import record_of

TABLE = {f"timm/{letter}": [Member(f"timm/{letter}", f"timm:{letter}{n}", n) for n in (1, 2, 3)] for letter in "abcdef"}


class Small(nn.Module):
    """Two stages, a head, and a branch that runs twice."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.stem, self.stage = nn.Conv2d(3, 4, 4, 4), nn.Sequential(nn.Conv2d(4, 5, 2, 2), nn.GELU())
        self.twice, self.last = nn.ReLU(), last

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.twice(self.stage(self.twice(self.stem(images))))
        if isinstance(self.last, nn.Conv2d):
            return self.last(features.mean((2, 3), keepdim=True)).flatten(1)
        return self.last(features.mean((2, 3)))


def test_a_draw_is_seeded_and_goes_through_all_families() -> None:
    drawn = draw_cases(TABLE, 40, seed=1, most_parameters=2)
    assert drawn[:13] == draw_cases(TABLE, 13, seed=1, most_parameters=2)
    assert drawn != draw_cases(TABLE, 40, seed=2, most_parameters=2)
    assert {case.member.family for case in drawn[:6]} == TABLE.keys()
    assert {case.member.parameters for case in drawn} == {2}  # not the one of the first sweep, nor a large one
    assert len({case.identity for case in drawn}) == 40
    variants = [case.variant for case in drawn]
    assert {variant.head for variant in variants} == set(HEADS)
    assert {variant.depth is None for variant in variants} == {True, False}
    assert len({variant.candidates((224, 224))[0] for variant in variants}) > 8
    assert all(v.options["contrasts"] == 1 for v in variants if v.classes < 7 or v.options["head"] == "taps")
    again = Variant(**json.loads(json.dumps(dataclasses.asdict(variants[0]))))
    assert again.candidates((64, 96)) == variants[0].candidates((64, 96))
    assert [again.keeps_size, Variant("x", "y", **json.loads('{"sizes": [[1, 1]], "offset": [0, 0]}')).keeps_size] == [
        variants[0].keeps_size,
        True,
    ]
    alone = draw_cases({"timm/a": TABLE["timm/a"]}, 1, seed=1, most_parameters=1)
    assert [case.member.specification for case in alone] == ["timm:a1"]
    assert named(alone[0].member, ["a"])
    assert not named(alone[0].member, ["timm:a2", "torchvision/a"])


@pytest.mark.parametrize("head", [name for name in HEADS if name != LIBRARY])
def test_heads_are_replaced(head: str) -> None:
    images = torch.randn(2, 3, 16, 16)
    for last in (nn.Linear(5, 9), nn.Conv2d(5, 9, 1)):
        model = Small(last).eval()
        other = replace_head(model, 3, head, images)
        assert other is not None
        assert other(images).shape == (2, 3)
        assert not other.training
        if isinstance(last, nn.Linear):
            assert isinstance(other, nn.Sequential) == (head == BACKBONE)
            assert isinstance(model.last, nn.Sequential) == (head == SEQUENCE)
    doubled = nn.Sequential(Small(nn.Linear(5, 9)), nn.Softmax(1)).eval()
    assert replace_head(doubled, 3, head, images) is None


def test_modules_with_feature_maps_are_listed_in_their_order() -> None:
    model = Small(nn.Linear(5, 9)).eval()
    assert feature_modules(model, torch.randn(2, 3, 16, 16), 9) == ["stem", "stage.0", "stage.1", "stage"]
    assert feature_modules(model, torch.randn(2, 3, 16, 16), 1) == ["stem", "stage"]


@pytest.mark.parametrize("method", METHODS)
def test_the_formulas_are_those_of_the_methods(method: str) -> None:
    """Two that were written apart: one of them traced, by powers of a Gram matrix where this takes singular vectors."""
    generator = torch.Generator().manual_seed(5)
    a, g = (torch.randn(2, 6, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    a = a + torch.linspace(0, 3, 20).view(4, 5)  # a principal component that stands out
    expected = raw_map(a, g, LayerInfo("x", "nchw", (4, 5)), method)
    found = signed_map(method, a, g)
    assert (found.relu() - expected).norm() < 1e-5 * found.norm()
    with pytest.raises(ValueError, match="no method"):
        signed_map("othercam", a, g)


def test_the_tables() -> None:
    options = {"method": "layercam", "objective": "mean", "references": 2, "contrasts": 3, "head": "taps"}
    model: dict[str, Any] = {"size": [64, 96], "parameters": 1, "asked_layer": "stage", "classes": 7, "head": "linear"}
    right = record_of(variant="draw 1.000", model={**model, "options": options}) | {"seconds": 9.7}
    refused = record_of("timm/b", "draw 1.001", export={"refused": "why."}, oracle=None, onnxruntime=None)
    refused |= {"seconds": 1.0}
    slow = record_of("timm/b", "draw 1.002") | {"seconds": 200.0, "ended": {"openvino": "it ran out of time: more"}}
    assert records.verdict(slow) == records.TOO_SLOW
    assert records.verdict(slow | {"variant": "base"}) == records.CRASHED
    document = {"records": [right, refused, slow]}
    text = draw_tables.markdown(document)
    assert "**3 cases of 2 families: 1 right, 0 partly, 1 refused, 0 untested, 0 crashed, 0 wrong, 0 not acc" in text
    assert "| 1.000 | timm/a | x | 64x96 | 7, linear | stage | blocks.1 (tokens +1) | 14x14 | 0.99 |" in text
    assert "| layercam, mean 2, 3 contrasts, taps |" in text
    assert "| 1.001 | x | - | refused | why. |" in text
