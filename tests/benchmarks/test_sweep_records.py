"""What a case comes to, the summary with the goal, the file and its tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")

from sweep import records, tables

from .sweeps import record_of

CASES = [
    ({}, {}, "right"),
    ({"openvino": {"status": "refused", "reason": "no Gather"}}, {}, "partly"),
    ({"tensorrt_rtx": {"status": "refused", "operation": "Einsum", "reason": "r"}}, {}, "partly"),
    ({"tensorrt_rtx": {"status": "not installed", "reason": "r"}}, {}, "right"),
    ({"export": {"refused": "no layer was found."}, "oracle": None, "onnxruntime": None}, {}, "refused"),
    ({"oracle": {"degenerate": "the maps are constant", "placement": 0.9}}, {}, "untested"),
    ({"export": None, "oracle": None, "onnxruntime": None}, {"export": "exit code 1: KeyError"}, "crashed"),
    ({}, {"openvino": "exit code -11: no message"}, "crashed"),
    ({"model": {"not_accepted": "it has no head"}}, {}, "crashed"),
    ({"onnxruntime": {"status": "wrong", "reason": "it differs", "map_error": None}}, {}, "wrong"),
    ({"openvino": {"status": "wrong", "reason": "it differs", "map_error": 0.3}}, {"tensorrt-rtx": "killed"}, "wrong"),
    ({"oracle": {"degenerate": None, "placement": 0.5}}, {}, "wrong"),
]


@pytest.mark.parametrize(("stages", "ended", "verdict"), CASES)
def test_the_verdict_of_a_case(stages: dict[str, Any], ended: dict[str, str], verdict: str) -> None:
    record = {**record_of(**stages), "ended": ended}
    assert records.verdict(record) == verdict
    assert bool(records.reason(record)) == (verdict != "right")


def test_a_variant_that_the_model_itself_refuses_does_not_count() -> None:
    refused = {"model": {"not_accepted": "299x247: AssertionError"}, "export": None}
    assert records.verdict(record_of(variant="odd", **refused)) == records.NOT_ACCEPTED
    counts = _summary([record_of(), record_of(variant="odd", **refused), record_of(variant="wide")])
    assert counts["variants"] == {**dict.fromkeys(records.VERDICTS, 0), "right": 1, "not accepted": 1, "too slow": 0}
    assert counts["families"]["right"] == sum(counts["families"].values()) == 1


def _summary(found: list[dict[str, Any]], every: Sequence[str] = (), left_out: Sequence[str] = ()) -> dict[str, Any]:
    return records.summary({"records": found, "families": every, "left_out": dict.fromkeys(left_out, "too large")})


def test_the_summary_and_the_goal() -> None:
    right = [record_of(f"timm/{number}") for number in range(19)]
    refused = record_of("timm/refused", export={"refused": "why."}, oracle=None, onnxruntime=None)
    wrong = record_of("timm/0", openvino={"status": "wrong", "reason": "it differs"})
    found = _summary([*right, refused])
    assert (found["share_right"], found["goal"]) == (0.95, True)
    assert found["runtimes"] == {"onnxruntime": {"right": 19}, "tensorrt-rtx": {"builds": 20}}
    assert _summary([*right, refused, refused | {"family": "timm/too"}])["goal"] is False
    found = _summary([*right, wrong])  # a second member of a family that was right
    assert (found["families"]["wrong"], found["families"]["right"], found["goal"]) == (1, 18, False)
    partly = _summary([*right, record_of("timm/p", openvino={"status": "refused", "reason": "why."})])
    assert (partly["share_right"], partly["share_right_onnxruntime"], partly["goal"]) == (0.95, 1.0, True)
    assert _summary([])["goal"] is False


def test_a_family_that_was_not_swept_is_not_right() -> None:
    right = [record_of(f"timm/{number}") for number in range(19)]
    names = [record["family"] for record in right]
    found = _summary(right, [*names, "timm/x"])
    assert (found["total"], found["not_swept"], found["share_right"], found["goal"]) == (20, ["timm/x"], 0.95, True)
    found = _summary(right, [*names, "timm/x", "timm/y"])
    assert (found["share_right_onnxruntime"], found["goal"]) == (19 / 21, False)
    found = _summary(right, [*names, "timm/x", "timm/y"], ["timm/y", "timm/0"])  # the second was swept all the same
    assert (found["total"], found["not_swept"], found["share_right"], found["goal"]) == (21, ["timm/x"], 0.95, True)
    assert _summary([], names)["not_swept"] == sorted(names)
    variant = record_of("timm/x", "wide")  # says nothing of the family
    assert _summary([*right, variant], [*names, "timm/x"])["not_swept"] == ["timm/x"]


def test_the_file_and_its_tables(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    refused = record_of("timm/r", export={"refused": "no layer was found."}, oracle=None, onnxruntime=None, cost=None)
    wide = record_of(variant="wide", onnxruntime={"status": "wrong", "reason": "it differs", "map_error": 0.2})
    document = {"schema": 1, "kind": "coverage", "command": "c", "left_out": {"timm/l": "too large"}}
    document["families"] = ["timm/a", "timm/l", "timm/n", "timm/r"]
    records.write({**document, "records": [record_of(), refused, wide]}, path)
    read = records.read(path)
    assert [record["verdict"] for record in read["records"]] == ["right", "refused", "wrong"]
    text = tables.markdown(read)
    row = "| timm/a | x | 1.5 | 224x224 | blocks.1 | tokens +1 | 14x14 | 0.99 | sink, sparse | 0.96 | 1e-06 | 3e-07 |"
    assert row in text
    assert "**2 of 4 families: 1 right, 0 partly, 1 refused" in text
    assert "Left out with a reason: 1; not swept: 1. Of all but those left out, right in every runtime: 33.3%;" in text
    assert "The goal (95% right, none wrong or crashed) is not reached." in text
    assert "## Not swept\n\ntimm/n\n" in text
    assert read["summary"]["not_swept"] == ["timm/n"]
    assert "| timm/r (x) | refused | no layer was found. |" in text
    assert "| timm/a (x, wide) | wrong | onnxruntime: it differs |" in text
    assert "| timm/l | too large |" in text
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.json"]
    for change in ({"schema": 2}, {"kind": "x"}, {"records": [{"identity": "x"}]}):
        path.write_text(json.dumps({**document, "records": [], **change}))
        with pytest.raises(ValueError, match=r"c\.json"):
            records.read(path)
