"""Seeds by name: what an engine's objective, references and alpha are called on the command line and in results."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from finercam_rt.errors import InputError
from finercam_rt.manifest import DEFAULT_ALPHA, OBJECTIVES, Manifest

PLAIN, ONE = "plain", "one"
_NAME = re.compile(rf"(?P<kind>{PLAIN}|{ONE}|{'|'.join(OBJECTIVES)})(?P<count>\d+)?(?::(?P<alpha>.+))?")


@dataclass(frozen=True)
class Seed:
    """What a map is contrasted with.

    kind: "plain" (no contrast), "one" (one reference, where the objectives weighted and mean are the same), or an
    objective. references: how many, 0 for plain. alpha: the strength, 0 for plain.
    """

    kind: str
    references: int
    alpha: float

    @property
    def name(self) -> str:
        """As `parse_seed` reads it: "plain", "one:1", "mean3:0.6", "weighted3:1"."""
        if self.kind == PLAIN:
            return PLAIN
        short = f"{self.alpha:g}" if float(f"{self.alpha:g}") == self.alpha else repr(float(self.alpha))
        return f"{self.kind}{'' if self.kind == ONE else self.references}:{short}"

    def unfit(self, manifest: Manifest, *, any_objective: bool = False) -> str | None:
        """Why an engine cannot compute it, None where it can; any_objective: for a method that does so itself."""
        if self.references > manifest.references:
            return f"it has {manifest.references} references"
        if self.kind in OBJECTIVES and self.kind != manifest.objective and not any_objective:
            return f"its objective is {manifest.objective}"
        return None


def parse_seed(text: str, manifest: Manifest) -> Seed:
    """The seed of a name: plain, one[:ALPHA], or OBJECTIVE[R][:ALPHA].

    What the name leaves out is the engine's: R, and the alpha that its objective has by default. Alpha 0 is plain.

    Raises:
        InputError: another text.
    """
    match = _NAME.fullmatch(text.strip())
    kind = "" if match is None else match["kind"]
    if match is None or (kind in (PLAIN, ONE) and match["count"]) or (kind == PLAIN and match["alpha"]):
        raise InputError(
            f"there is no seed {text!r}; write plain, one:ALPHA (one reference), or an objective with its references "
            "and alpha, such as mean3:0.6 or weighted3:1."
        )
    if kind == PLAIN:
        return Seed(PLAIN, 0, 0.0)
    count = 1 if kind == ONE else int(match["count"] or manifest.references)
    objective = manifest.objective if kind == ONE else kind
    alpha = DEFAULT_ALPHA[objective] if match["alpha"] is None else _alpha(match["alpha"], text)
    if count < 1:
        raise InputError(f"the seed {text!r} has no references; write plain, or give at least one.")
    if alpha == 0:
        return Seed(PLAIN, 0, 0.0)
    return Seed(ONE if count == 1 and kind != "softmax" else kind, count, alpha)


def default_seeds(manifest: Manifest) -> list[Seed]:
    """Plain, and the engine's own objective with all its references at its default alpha."""
    return [Seed(PLAIN, 0, 0.0), parse_seed(manifest.objective, manifest)]


def _alpha(text: str, seed: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        example = seed.split(":")[0]
        raise InputError(f"the alpha of the seed {seed!r} is no finite number of at least 0; write {example}:1.")
    return value
