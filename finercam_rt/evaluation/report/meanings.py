"""What a column says, in a sentence each, for those who read a report without the documentation."""

from __future__ import annotations

from finercam_rt.evaluation.metrics.confidence_drop import PREFIXES

_RELATIVE, _PLAIN = PREFIXES
_MEANINGS = {
    "deletion": "area under the class's probability while the most salient pixels are removed, more and more",
    "insertion": "area under the class's probability while the most salient pixels are shown, more and more",
    "average_drop": "share of the class's probability that is lost where only what the map shows is kept",
    "increase_in_confidence": "1 where the class gains probability by that, else 0",
    "complexity": "mean of the map between 0 and 1: how much of the image it marks",
    "coherency": "whether the map of what it marked is the same again",
    "adcc": "harmonic mean of coherency, 1 - complexity and 1 - average drop",
    "energy": "share of the map inside the boxes or the mask of the object",
    "pointing_game": "1 where the map's maximum lies inside the boxes or the mask, else 0",
    "grid_pointing_game": "share of the map in the class's own photograph, among those of the classes most like it",
    "road": "half of what the class's probability loses more by the most than by the least salient pixels",
    "road_morf": "change of the class's probability where the most salient pixels are filled from their neighbours",
    "road_lerf": "change of the class's probability where the least salient pixels are filled from their neighbours",
    "noise_robustness": "noise_consistency times noise_responsiveness",
    "noise_consistency": "how alike the maps of noisy copies are that are taken for the same class",
    "noise_responsiveness": "how unlike the maps of noisy copies are that are taken for another class",
}


def meaning(column: str) -> str:
    """The sentence of a column, without its full stop."""
    if column.startswith(PREFIXES):
        share = column.partition("@")[2]
        lost = f"what the class's probability loses where the {share} % most salient pixels are removed"
        return lost if column.startswith(_PLAIN) else f"{lost}, beyond what the class nearest to it loses"
    return _MEANINGS[column]
