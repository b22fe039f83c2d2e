"""Which families, members and variants a sweep asks for."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")

from sweep import families
from sweep.cases import VARIANTS, draw_families, earlier_layer, find_variant, own_sizes
from sweep.families import choose

from .sweeps import FAMILIES


def test_the_smallest_members_are_chosen() -> None:
    found, left_out = choose(FAMILIES, 1, 500, None)
    assert [member.specification for member in found] == ["timm:a1", "torchvision:a"]
    assert list(left_out) == ["timm/b"]
    found, left_out = choose(FAMILIES, 2, 1000, ["a"])
    assert [member.specification for member in found] == ["timm:a1", "timm:a2", "torchvision:a"]
    assert left_out == {}
    assert [m.specification for m in choose(FAMILIES, 2, 1000, ["torchvision/a"])[0]] == ["torchvision:a"]
    (single,) = choose(FAMILIES, 1, 1000, ["timm:test_vit"])[0]
    assert (single.family, single.parameters) == ("timm/vision_transformer", 371240)
    for members, only in ((0, None), (1, ["c"]), (1, ["timm:resnet51"])):
        with pytest.raises(ValueError, match=r"give 1|there is no"):
            choose(FAMILIES, members, 1000, only)


def test_families_that_are_no_classifiers_are_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.NOT_COVERED, "timm/a", "it has no map")
    found, left_out = choose(FAMILIES, 1, 1000, None)
    assert [member.family for member in found] == ["timm/b", "torchvision/a"]
    assert left_out == {"timm/a": "it has no map"}


def test_the_picks_are_those_of_the_libraries() -> None:
    content = json.loads(families.PICKS.read_text())
    if any(families.metadata.version(name) != version for name, version in content["versions"].items()):
        pytest.skip("picks.json is of other versions of the libraries")
    members = dict(families.architectures())
    assert content["families"].keys() == members.keys()
    assert len(members) > 100
    for family, rows in content["families"].items():
        assert rows == sorted(rows, key=lambda row: (row[1], row[0])), family
        assert {name for name, _ in rows} <= set(members[family])
        assert not any(name.startswith(families.TOYS) for name, _ in rows)
    assert families._count("timm:resnet10t") == dict(content["families"]["timm/resnet"])["timm:resnet10t"]


def test_variants_are_asked_of_drawn_families() -> None:
    names = [f"timm/{letter}" for letter in "abcdefghij"]
    drawn = draw_families(names, 4, seed=1)
    assert len(drawn) == 4
    assert drawn == draw_families(names[::-1], 4, seed=1)[::-1]
    assert drawn != draw_families(names, 4, seed=2)
    assert draw_families(names, 99, seed=1) == names
    assert find_variant("wide").candidates((224, 224))[0] == (224, 336)
    assert find_variant("odd").candidates((224, 192)) == [(299, 215)]
    assert [variant.name for variant in VARIANTS if not variant.keeps_size] == ["larger", "wide", "odd"]
    assert own_sizes((384, 288)) == [(384, 288)]
    assert own_sizes((1024, 1024)) == [(256, 256), (252, 252), (1024, 1024)]


@pytest.mark.parametrize(
    ("layer", "names", "earlier"),
    [
        ("blocks.11.norm1", [f"blocks.{i}.norm1" for i in range(12)], "blocks.5.norm1"),
        ("layer4", ["layer1", "layer2", "layer3", "layer4"], "layer3"),
        ("stages.3", ["stages.0", "stages.2", "stages.3"], "stages.2"),
        ("stages.0", ["stages.0"], "stages.0"),
        ("conv_head", ["blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.0.1"], "blocks.1"),
        ("norm", ["norm", "trunk"], None),
    ],
)
def test_an_earlier_layer(layer: str, names: list[str], earlier: str | None) -> None:
    assert earlier_layer(layer, names) == earlier
