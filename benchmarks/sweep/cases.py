"""What is asked of a model: the case as it comes, and the variants."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweep.families import Member
from sweep.heads import LIBRARY

BASE = "base"
CLASSES = 1000
BARS = 6
"""Places along each axis at which the image is changed, to see where the layer's grid lies."""
LARGEST_DEFAULT = 384
"""Pixels: a model whose own input is larger (SAM's is 1024) is asked for ..."""
REDUCED = (256, 252)
"""... one of these, the first that it accepts, because graph and layout are the same and its own takes minutes."""


@dataclass(frozen=True)
class Variant:
    """What differs from the base case.

    sizes: input sizes as (height, width) in units of the model's own, of which the first that it accepts is taken;
    offset: pixels added to them; or_own: its own size where it accepts none of them; early: pin a layer before the one
    that "auto" takes; depth: or pin the module at this share of those that have a feature map and names at most
    `deepest` deep; classes, head: the classifier, see heads.py; options: of export_model.
    """

    name: str
    what: str
    sizes: Sequence[tuple[float, float]] = ((1, 1),)
    offset: tuple[int, int] = (0, 0)
    early: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    or_own: bool = False
    depth: float | None = None
    deepest: int = 9
    classes: int = CLASSES
    head: str = LIBRARY

    @property
    def keeps_size(self) -> bool:
        """Whether the input is the base case's."""
        return (tuple(map(tuple, self.sizes)), tuple(self.offset)) == (((1, 1),), (0, 0))

    def candidates(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """The sizes to try, for a model whose own is `size`."""
        height, width = size
        found = [(round(height * h) + self.offset[0], round(width * w) + self.offset[1]) for h, w in self.sizes]
        return [*found, size] if self.or_own else found


VARIANTS = (
    Variant(BASE, "as the library makes it, layer auto, Grad-CAM, one contrast"),
    Variant("larger", "a larger square input", sizes=((9 / 7, 9 / 7), (1.5, 1.5), (2, 2))),
    Variant("wide", "an input that is wider than high", sizes=((1, 1.5), (1, 2), (0.5, 1))),
    Variant("odd", "an input of odd edges, higher than wide", offset=(75, 23)),
    Variant("early", "an earlier layer, pinned", early=True),
    Variant("layercam", "method layercam", options={"method": "layercam"}),
    Variant("contrasts", "three contrasts an image", options={"contrasts": 3}),
)


def find_variant(name: str) -> Variant:
    """The variant of this name."""
    return next(variant for variant in VARIANTS if variant.name == name)


def draw_families(families: Collection[str], count: int, seed: int) -> list[str]:
    """Which families the variants are asked of: a seeded draw, so that nobody chose them."""
    drawn = random.Random(seed).sample(sorted(families), min(count, len(families)))
    return [family for family in families if family in drawn]


def own_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """The input sizes to try in the base case for a model that comes with `size`."""
    return [size] if max(size) <= LARGEST_DEFAULT else [*((edge, edge) for edge in REDUCED), size]


def earlier_layer(layer: str, names: Collection[str]) -> str | None:
    """A layer some way before `layer`: its first number halved where it counts blocks, one less where it counts stages.

    Where it has no number, the middle one of the model's first numbered sequence of stages or blocks. None: none.
    """
    number = re.search(r"\d+", layer)
    if number is not None and int(number[0]) > 0:
        last = int(number[0])
        for wanted in (last // 2 if last > 4 else last - 1, last - 1):
            name = f"{layer[: number.start()]}{wanted}{layer[number.end() :]}"
            if name in names:
                return name
    for container in ("stages", "layers", "blocks", "features"):
        children = [name for name in names if re.fullmatch(rf"{container}\.\d+", name)]
        if children:
            return children[len(children) // 2 - (len(children) > 1)]
    return None


@dataclass(frozen=True)
class SweepCase:
    """One model and one variant."""

    member: Member
    variant: Variant

    @property
    def identity(self) -> str:
        """Its name in the result file."""
        return f"{self.member.family} {self.member.specification} {self.variant.name}"
