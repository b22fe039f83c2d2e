"""The case table, the verification before timing, and a whole run on a toy with its result file and tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")

import torch
from comparison import engines, records, tables, verification
from comparison.cases import CASES, TOY_CASES, find_cases, load
from comparison.contenders import CONTENDERS, OURS, PLAIN, Answer, Setting

from finercam_rt.onnx_metadata import read_manifest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run_script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, BENCHMARKS / name, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module", params=TOY_CASES, ids=lambda case: case.name)
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, engines.Build]:
    """A toy case and its two graphs."""
    graphs = engines.build_of(request.param, tmp_path_factory.mktemp("graphs"))
    engines.build(request.param, graphs)
    return request.param, graphs


def test_names_are_unique_and_families_have_goals() -> None:
    table = [*CASES, *TOY_CASES]
    assert len({case.name for case in table}) == len(table)
    assert all(0.9 < case.goal <= 1.1 for case in table)
    assert find_cases(None) == list(CASES)
    with pytest.raises(ValueError, match="toy_cnn"):
        find_cases(["resnet51"])


def test_a_case_loads_the_same_weights_every_time() -> None:
    first, second = (load(TOY_CASES[0]).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_graphs_are_found_again_only_for_the_same_case(tmp_path: Path) -> None:
    names = {engines.build_of(case, tmp_path).folder.name for case in (*CASES, *TOY_CASES)}
    assert len(names) == len(CASES) + len(TOY_CASES)
    assert engines.build_of(CASES[0], tmp_path) == engines.build_of(CASES[0], tmp_path)


def test_a_build_is_recorded(toy: tuple[Any, engines.Build]) -> None:
    _, graphs = toy
    record = graphs.record
    assert record["engine_bytes"] == graphs.engine.stat().st_size
    assert record["forward_bytes"] == graphs.forward.stat().st_size
    assert record["export_peak_mib"] >= record["loaded_peak_mib"] > record["weights_mib"] > 0
    assert {path.name for path in graphs.folder.iterdir()} == {"engine.onnx", "forward.onnx", "build.json"}
    assert [path for path in graphs.folder.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: contender.name)
def test_contenders_are_right_and_wrong_answers_are_refused(toy: tuple[Any, engines.Build], contender: Any) -> None:
    case, graphs = toy
    layer = read_manifest(graphs.engine).layers[0]
    if layer.layout not in contender.layouts:
        pytest.skip(f"{contender.name} does not read {layer.layout} maps")
    for module in contender.modules:
        pytest.importorskip(module)
    model = load(case).model
    size = read_manifest(graphs.engine).input.size
    batch = np.random.default_rng(1).standard_normal((3, 3, *size), np.float32)
    images = torch.from_numpy(batch)
    answer = contender.make(Setting(graphs.engine, graphs.forward, model, layer, 1))(batch)()
    measured = verification.check(contender, answer, model, layer, images)
    assert max(value for key, value in measured.items() if key != "maps") < 1e-3

    wrong = []
    if answer.logits is not None:
        wrong.append(Answer(torch.as_tensor(answer.logits).flip(0), answer.saliency_map))
    if contender.objective is not None:
        saliency_map = torch.as_tensor(np.asarray(answer.saliency_map))
        wrong += [Answer(answer.logits, saliency_map.flip(2)), Answer(answer.logits, saliency_map * torch.nan)]
    for other in wrong:
        with pytest.raises(ValueError, match="differ"):
            verification.check(contender, other, model, layer, images)


@pytest.mark.slow
def test_a_run_writes_a_file_of_the_schema_and_its_tables(tmp_path: Path) -> None:
    pytest.importorskip("torchcam")
    output = tmp_path / "toy.json"
    options = ("--cases", "toy_vit", "--batches", 1, 2, "--threads", 1, "--rounds", 4, "--seconds", 1)
    ran = run_script("run.py", *options, "--contenders", "torch-cam", "--output", output)
    assert ran.returncode == 0, ran.stderr
    document = records.read(output)
    kinds = [record["kind"] for record in document["records"]]
    assert (kinds.count("build"), kinds.count("timing"), kinds.count("memory"), len(kinds)) == (1, 2, 3, 6)
    for record in tables.of_kind(document, "timing"):
        assert set(record["samples"]) == {OURS, PLAIN, "torch-cam"}
        assert record["verification"][OURS]["normalised_map_relative_l2"] < 1e-3
        assert len(record["samples"][OURS]["cpu_ms"]) == 4
        assert set(record["ratios"]["cpu"]) == {f"{OURS} / {PLAIN}", f"torch-cam / {OURS}"}
    for record in tables.of_kind(document, "memory"):
        assert record["run_peak_mib"]["2"] >= record["imported_mib"] > 10
    text = tables.markdown(document)
    assert "toy_vit | 2 |" in text
    assert "### Export" in text
    assert "### Resident memory" in text

    again = run_script("run.py", *options, "--contenders", "torch-cam", "--output", output, "--resume")
    assert again.returncode == 0
    assert records.read(output)["records"] == document["records"]

    profile = run_script("nodes.py", "toy_vit", "--runs", 2)
    assert profile.returncode == 0, profile.stderr
    title, engine, plain, more, nodes = profile.stdout.splitlines()[1].split()
    assert (title, nodes.count("/")) == ("all", 1)
    assert float(engine) - float(plain) == pytest.approx(float(more), abs=2e-3)


def test_the_report_makes_a_table_and_a_plot(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    records.write(_document(), path)
    table = run_script("report.py", path, "--no-plot")
    assert table.returncode == 0
    assert "| toy | 4 | 3.0 (2.0; 1.0) | 2.0 (1.5; 0.5) | **1.500** [1.400, 1.600] |" in table.stdout
    assert "| 2.50 [2.00, 3.00] |" in table.stdout
    assert "toy: captum is left out: no tokens" in table.stdout
    pytest.importorskip("matplotlib")
    assert run_script("report.py", path).returncode == 0
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    for script, *arguments in (
        ("run.py", "--cases", "resnet51"),
        ("run.py", "--batches", 0),
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
        (lambda d: d.update(schema=2), "schema"),
        (lambda d: d["records"][0].update(kind="timings"), "kind"),
        (lambda d: d["records"][0]["environment"].pop("cpu"), "cpu"),
        (lambda d: d["records"][0].update(batch="4"), "batch"),
        (lambda d: d["records"][0]["ratios"]["cpu"].clear(), "ratio"),
        (lambda d: d["records"][0]["samples"][OURS]["cpu_ms"].pop(), "fit together"),
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
    own = {"ratio": 1.5, "low": 1.4, "high": 1.6, "of_minima": 1.33, "rounds": 2}
    peer = {"ratio": 2.5, "low": 2.0, "high": 3.0, "of_minima": 2.4, "rounds": 2}
    times = {OURS: spread, PLAIN: plain, "torch-cam": spread}
    samples = {name: {"cpu_ms": [2.0, 3.0], "wall_ms": [2.0, 3.0], "rounds": [0, 1]} for name in times}
    record = {
        "kind": "timing",
        "asked": {},
        "case": {"name": "toy", "goal": 1.01},
        "environment": {**dict.fromkeys(keys), "versions": {"python": "3"}},
        "batch": 4,
        "threads": 1,
        "left_out": {"captum": "no tokens"},
        "cpu_ms": times,
        "wall_ms": times,
        "ratios": {clock: {f"{OURS} / {PLAIN}": own, f"torch-cam / {OURS}": peer} for clock in ("cpu", "wall")},
        "samples": samples,
    }
    return json.loads(json.dumps({"schema": records.SCHEMA, "command": "run", "records": [record]}))
