"""The result file of a sweep: what it holds, and what follows from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comparison.script import read_document, write_document

from sweep import outcome, rtx
from sweep.cases import BASE
from sweep.process import OUT_OF_TIME

SCHEMA = 1
RUNTIMES = ("onnxruntime", "openvino", "tensorrt-rtx")
RIGHT, PARTLY, REFUSED, UNTESTED, CRASHED, WRONG = VERDICTS = (
    "right",
    "partly",
    "refused",
    "untested",
    "crashed",
    "wrong",
)
"""From best to worst. partly: right where it runs, refused by a runtime; untested: its maps would prove nothing."""
NOT_ACCEPTED = "not accepted"
"""Of variants alone: the PyTorch model itself does not take this input, or has no such layer."""
TOO_SLOW = "too slow"
"""Of variants alone: a process that ran out of time. How fast a family is, its base case says."""
LEAST_PLACEMENT = 0.8
"""A correlation below which the grid is not where the layer's reading says; see oracle.placement."""
GOAL_SHARE = 0.95
"""Of families that are right; none may be wrong."""


def verdict(record: Mapping[str, Any]) -> str:
    """What the stages of a case come to."""
    stages = record["stages"]
    if "not_accepted" in stages.get("model", {}):
        return NOT_ACCEPTED if record["variant"] != BASE else CRASHED
    if "refused" in stages.get("export", {}):
        return REFUSED
    found = {name: stages[name]["status"] for name in RUNTIMES if name in stages}
    if outcome.WRONG in found.values() or _misplaced(stages.get("oracle", {})):
        return WRONG
    if record["ended"]:
        slow = record["variant"] != BASE and all(why.startswith(OUT_OF_TIME) for why in record["ended"].values())
        return TOO_SLOW if slow else CRASHED
    if stages["oracle"]["degenerate"]:
        return UNTESTED
    return PARTLY if outcome.REFUSED in found.values() or rtx.REFUSED in found.values() else RIGHT


def reason(record: Mapping[str, Any]) -> str:
    """In words, for a case that is not simply right."""
    stages = record["stages"]
    refused = stages.get("model", {}).get("not_accepted") or stages.get("export", {}).get("refused")
    if refused:
        return str(refused)
    parts = []
    if _misplaced(stages.get("oracle", {})):
        parts.append(f"the grid does not lie on the image as the layer is read ({stages['oracle']['placement']:.2f})")
    for name in RUNTIMES:
        value = stages.get(name, {})
        if value.get("status") in (outcome.WRONG, outcome.REFUSED):
            operation = f"{value['operation']}: " if value.get("operation") else ""
            parts.append(f"{name}: {operation}{value['reason']}")
    parts += [f"{stage}: {why}" for stage, why in record["ended"].items()]
    if not parts and stages["oracle"]["degenerate"]:
        parts.append(stages["oracle"]["degenerate"])
    return "; ".join(parts)


def _misplaced(stage: Mapping[str, Any]) -> bool:
    return "placement" in stage and not stage["placement"] >= LEAST_PLACEMENT


def summary(document: Mapping[str, Any]) -> dict[str, Any]:
    """Families (of the base cases; each by its worst member) and variants by verdict, and whether the goal is reached.

    Returns:
        "total": how many families there are; "not_swept": the names of those that are neither swept nor left out with a
        reason; "families", "variants": verdict to count, of what was swept; "runtimes": runtime to status to count, of
        the base cases; "share_right": those right in every runtime asked for, of the families swept and not swept;
        "share_right_onnxruntime": those right in ONNX Runtime at least; "goal": whether share_right is at least
        GOAL_SHARE, and none is wrong or crashed.
    """
    families: dict[str, str] = {}
    variants: Counter[str] = Counter()
    runtimes: dict[str, Counter[str]] = {}
    for record in document["records"]:
        if record["variant"] != BASE:
            variants[verdict(record)] += 1
            continue
        before = families.get(record["family"], RIGHT)
        families[record["family"]] = max(before, verdict(record), key=VERDICTS.index)
        for name in RUNTIMES:
            if name in record["stages"]:
                runtimes.setdefault(name, Counter())[record["stages"][name]["status"]] += 1
    counts = Counter(families.values())
    every = {*document["families"], *families}
    not_swept = every - families.keys() - document["left_out"].keys()
    asked = max(1, len(families) + len(not_swept))
    share = counts[RIGHT] / asked
    return {
        "total": len(every),
        "not_swept": sorted(not_swept),
        "families": {name: counts[name] for name in VERDICTS},
        "variants": {name: variants[name] for name in (*VERDICTS, NOT_ACCEPTED, TOO_SLOW)},
        "runtimes": {name: dict(found) for name, found in runtimes.items()},
        "share_right": share,
        "share_right_onnxruntime": (counts[RIGHT] + counts[PARTLY]) / asked,
        "goal": share >= GOAL_SHARE and not counts[WRONG] and not counts[CRASHED],
    }


def check(document: dict[str, Any]) -> None:
    """Hold a document to this schema.

    Raises:
        ValueError: what is wrong.
    """
    if document.get("schema") != SCHEMA or document.get("kind") != "coverage":
        raise ValueError(f"it is no result of a sweep of schema {SCHEMA}; sweep again.")
    for record in document["records"]:
        missing = {"identity", "key", "family", "specification", "variant", "stages", "ended"} - record.keys()
        if missing:
            raise ValueError(f"the record {record.get('identity')} lacks {', '.join(sorted(missing))}.")


def read(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        ValueError: not there, not JSON, or not of this schema.
    """
    return read_document(path, check)


def write(document: dict[str, Any], path: Path) -> None:
    """Write it, if it has this schema, with its summary and verdicts made anew."""
    check(document)
    judged = [{**record, "verdict": verdict(record)} for record in document["records"]]
    write_document({**document, "summary": summary(document), "records": judged}, path)
