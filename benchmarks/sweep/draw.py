"""A second sweep, which nobody chose: models, input sizes, layers, heads and methods by a seeded draw."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from finercam_rt.manifest import METHODS
from sweep.cases import SweepCase, Variant
from sweep.families import Member
from sweep.heads import BACKBONE, LIBRARY, LINEAR, SEQUENCE

MOST_PARAMETERS = 30.0
"""Millions: larger models are left out of the draw, because they take minutes."""
CLASSES = (1, 2, 2, 7, 7, 7, 1000, 1000, 1000, 1000)
"""Each as often as it is drawn. One is the logit of yes against no: the export makes two classes of it."""
_SEVENTHS, _QUARTERS = (4, 5, 6, 8, 9, 10), (2, 3, 5, 6)
_ODD = 40
"""Pixels, the most that an odd input has more than the model's own."""


def draw_cases(table: Mapping[str, Sequence[Member]], count: int, seed: int, most_parameters: int) -> list[SweepCase]:
    """So many cases over all families in turn; more of them begin with the same ones.

    Args:
        table: all members of each family.
        count: of cases.
        seed: of the draw.
        most_parameters: families without a member of at most so many are left out. The smallest member, which stands
            for the family in the first sweep, is drawn only where there is no other.
    """
    small = {family: [m for m in rows if m.parameters <= most_parameters] for family, rows in sorted(table.items())}
    order = [family for family, rows in small.items() if rows]
    random.Random(seed).shuffle(order)
    found = []
    for number in range(count):
        generator = random.Random(f"{seed}.{number}")
        rows = small[order[number % len(order)]]
        member = generator.choice(rows[1:] or rows)
        found.append(SweepCase(member, _question(generator, f"draw {seed}.{number:03d}")))
    return found


def _question(draw: random.Random, name: str) -> Variant:
    classes = draw.choice(CLASSES)
    options: dict[str, Any] = {
        "method": "gradcam" if draw.random() < 0.4 else draw.choice(list(METHODS)),
        "objective": draw.choice(("weighted", "weighted", "weighted", "mean", "softmax")),
        "references": draw.randint(1, 5),
        "contrasts": 3 if classes >= 7 and draw.random() < 0.2 else 1,
        "head": "taps" if draw.random() < 0.15 else "graph",
    }
    if options["head"] == "taps":
        options["contrasts"] = 1
    if classes == 1:
        options["binary"] = True
    sizes, offset = _sizes(draw)
    # half of the pinned layers are stages and blocks, half whatever module there is
    pinned = draw.random() < 0.6
    return Variant(
        name,
        "drawn",
        sizes=sizes,
        offset=offset,
        or_own=True,
        options=options,
        depth=round(draw.uniform(0.1, 1), 3) if pinned else None,
        deepest=draw.choice((2, 9)),
        classes=classes,
        head=draw.choice((LIBRARY, LIBRARY, LINEAR, SEQUENCE, BACKBONE)),
    )


def _sizes(draw: random.Random) -> tuple[tuple[tuple[float, float], ...], tuple[int, int]]:
    """What to try one after the other, and the pixels added to each; many models take few sizes."""
    kind = draw.choice(("own", "square", "rectangle", "rectangle", "odd"))
    if kind == "odd":
        return ((1, 1), (1, 1.25)), (draw.randint(1, _ODD), draw.randint(1, _ODD))
    sevenths = draw.choice(_SEVENTHS) / 7, draw.choice(_SEVENTHS) / 7
    quarters = draw.choice(_QUARTERS) / 4, draw.choice(_QUARTERS) / 4
    if kind == "square":
        sevenths, quarters = (sevenths[0],) * 2, (quarters[0],) * 2
    return ((1, 1),) if kind == "own" else (sevenths, quarters, (2, 2)), (0, 0)
