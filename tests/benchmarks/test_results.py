"""A whole run on a toy, the result file and its schema, the tables and the plot, and mistakes at the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")

from comparison import records, tables
from comparison.contenders import OURS, PLAIN

from .conftest import BENCHMARKS


def run_script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, BENCHMARKS / name, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_run_writes_a_file_of_the_schema_and_its_tables(tmp_path: Path) -> None:
    pytest.importorskip("torchcam")
    output = tmp_path / "toy.json"
    options = ("--cases", "toy_vit", "--batches", 1, 4, "--threads", 1, "--rounds", 4, "--seconds", 0.2)
    names = ("torch-cam", "onnxruntime forward again")
    ran = run_script("run.py", *options, "--contenders", *names, "--output", output)
    assert ran.returncode == 0, ran.stderr
    document = records.read(output)
    kinds = [record["kind"] for record in document["records"]]
    assert (kinds.count("build"), kinds.count("timing"), kinds.count("memory"), len(kinds)) == (1, 4, 3, 8)
    by_group = {(record["group"], record["batch"]): record for record in tables.of_kind(document, "timing")}
    assert set(by_group) == {("engine", 1), ("engine", 4), ("peers", 1), ("peers", 4)}
    own, peers = by_group["engine", 4], by_group["peers", 4]
    assert set(own["samples"]) == {OURS, *names[1:], PLAIN}
    assert own["samples"][OURS]["processes"] == [0] * 4 + [1] * 4 + [2] * 4
    assert set(own["ratios"]["cpu"]) == {f"{OURS} / {PLAIN}", f"{names[1]} / {PLAIN}"}
    assert len(own["ratios"]["cpu"][f"{OURS} / {PLAIN}"]["by_process"]) == 3
    assert all(found[OURS]["normalised_map_relative_l2"] < 1e-3 for found in own["verification"])
    assert set(peers["ratios"]["cpu"]) == {f"torch-cam / {OURS}"}
    for record in tables.of_kind(document, "memory"):
        assert record["run_peak_mib"]["1"] >= record["imported_mib"] > 10
        assert len(record["processes"]) == (1 if record["contender"] == "torch-cam" else 3)
    text = tables.markdown(document)
    assert "| toy_vit | 4 | finercam-rt |" in text
    assert "## Export" in text
    assert "## Resident memory" in text

    again = run_script("run.py", *options, "--contenders", *names, "--output", output, "--resume")
    assert again.returncode == 0
    assert records.read(output)["records"] == document["records"]

    profile = run_script("nodes.py", "toy_vit", "--runs", 2)
    assert profile.returncode == 0, profile.stderr
    title, engine, plain, more, nodes = profile.stdout.splitlines()[1].split()
    assert (title, nodes.count("/")) == ("all", 1)
    assert float(engine) - float(plain) == pytest.approx(float(more), abs=2e-3)


def test_the_report_makes_tables_and_a_plot(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    records.write(_document(), path)
    table = run_script("report.py", path, "--no-plot")
    assert table.returncode == 0, table.stderr
    head, _, row = table.stdout.splitlines()[:3]
    assert head.startswith("| model | ours, ms | / plain forward, batch 1 | / plain forward, batch 1, 2 threads |")
    # cpu at one thread, which misses the goal of 0.95; wall at two, which reaches it
    assert row == "| toy_vit | 3.0 | 1.50 | **0.90** | - | - |"
    assert "| toy_vit | **2.5** | - | - | - | - | - | - |" in table.stdout
    text = (tmp_path / "results.md").read_text()
    assert table.stdout.strip() in text
    assert "| toy_vit | 1 | finercam-rt | 3.0 (2.0; 1.0) | onnxruntime forward | 2.0 (1.5; 0.5) | 1.500 [1.4" in text
    assert "| finercam-rt / onnxruntime forward <= 0.95 | 1 of 2 |" in text
    assert "| toy_vit | batch 1 | finercam-rt / onnxruntime forward <= 0.95 | 1.500 [1.400, 1.600] |" in text
    assert "toy_vit: captum is left out: no tokens" in text
    assert "toy_vit, batch 1: torch-cam took more CPU than 1 threads can" in text
    pytest.importorskip("matplotlib")
    assert run_script("report.py", path).returncode == 0
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(tmp_path)) == ["results.json", "results.md", "results.png"]


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    for script, *arguments in (
        ("run.py", "--cases", "resnet51"),
        ("run.py", "--batches", 0),
        ("run.py", "--rounds", 1),
        ("run.py", "--openvino-xai-python", tmp_path / "none"),
        ("nodes.py", "resnet51"),
        ("nodes.py", "toy_vit", "--runs", 0),
        ("report.py", tmp_path / "none.json"),
        ("report.py", tmp_path / "bad.json"),
    ):
        ran = run_script(script, *arguments)
        assert ran.returncode == 2
        assert ran.stdout == ""
        assert ran.stderr.startswith(f"{script}: ")
        assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(schema=1), "schema"),
        (lambda d: d["records"][0].update(kind="timings"), "kind"),
        (lambda d: d["records"][0]["environment"].pop("cpu"), "cpu"),
        (lambda d: d["records"][0].update(batch="4"), "batch"),
        (lambda d: d["records"][0].update(threads=None), "threads"),
        (lambda d: d["records"][0]["ratios"]["cpu"].clear(), "ratio"),
        (lambda d: d["records"][0]["cpu_ms"].pop(OURS), "times"),
        (lambda d: d["records"][0]["samples"][OURS]["processes"].pop(), "fit together"),
    ],
)
def test_a_file_that_breaks_the_schema_is_refused(change: Any, says: str, tmp_path: Path) -> None:
    document = _document()
    change(document)
    with pytest.raises(ValueError, match=says):
        records.write(document, tmp_path / "x.json")
    assert os.listdir(tmp_path) == []


def _document() -> dict[str, Any]:
    keys = ("utc", "cpu", "logical_cpus", "memory_gib", "system", "commit", "sources_changed")
    spread = {"n": 2, "min": 2.0, "median": 3.0, "q1": 2.5, "q3": 3.5, "iqr": 1.0}
    plain = {"n": 2, "min": 1.5, "median": 2.0, "q1": 1.75, "q3": 2.25, "iqr": 0.5}

    def ratio(value: float) -> dict[str, Any]:
        bounds = {"low": value - 0.1, "high": value + 0.1, "of_minima": value}
        return {"ratio": value, **bounds, "rounds": 2, "by_process": [value]}

    def record(group: str, threads: int, ratios: dict[str, dict[str, Any]]) -> dict[str, Any]:
        times = {OURS: spread, PLAIN: plain, "torch-cam": spread}
        samples = {"cpu_ms": [2.0, 3.0], "wall_ms": [2.0, 3.0], "rounds": [0, 1], "processes": [0, 0]}
        return {
            "kind": "timing",
            "asked": {},
            "case": {"name": "toy_vit", "goal": 0.95},
            "environment": {**dict.fromkeys(keys), "versions": {"python": "3"}},
            "group": group,
            "batch": 1,
            "threads": threads,
            "left_out": {"captum": "no tokens"},
            "not_held_to_threads": ["torch-cam"] if group == "peers" else [],
            "cpu_ms": times,
            "wall_ms": times,
            "ratios": ratios,
            "samples": dict.fromkeys(times, samples),
        }

    own, peer = f"{OURS} / {PLAIN}", f"torch-cam / {OURS}"
    found = [
        record("engine", 1, {"cpu": {own: ratio(1.5)}, "wall": {own: ratio(0.8)}}),
        record("engine", 2, {"cpu": {own: ratio(1.5)}, "wall": {own: ratio(0.9)}}),
        record("peers", 1, {"cpu": {peer: ratio(2.5)}, "wall": {peer: ratio(9.0)}}),
    ]
    return json.loads(json.dumps({"schema": records.SCHEMA, "command": "run", "records": found}))
