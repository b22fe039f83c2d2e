"""The command line of the sweep: one toy from start to end, what is kept, what is left out."""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")

from sweep import records
from sweep.cases import SweepCase, find_variant
from sweep.families import Member

from .conftest import BENCHMARKS
from .sweeps import FAMILIES, record_of


@pytest.fixture(scope="module")
def script() -> Any:
    """coverage.py by its path: a package of that name may be installed."""
    spec = importlib.util.spec_from_file_location("coverage_script", BENCHMARKS / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_toy_from_start_to_end_and_resumed(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "toy.json"
    options = ("--only", "timm:test_resnet", "--runtimes", "onnxruntime", "--seconds", 0.2, "--output", output)
    arguments = [str(option) for option in options]
    command = [sys.executable, BENCHMARKS / "coverage.py", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("timm/resnet timm:test_resnet base, ")
    (record,) = records.read(output)["records"]
    assert record["verdict"] == "right"
    stages = record["stages"]
    layer = {"name": "layer4", "layout": "nchw", "grid": [5, 5], "prefix_tokens": 0, "arrangement": None}
    assert stages["export"]["layers"] == [layer]
    assert 0 < stages["onnxruntime"]["map_error"] < 1e-4
    assert 0.8 < stages["cost"]["ratio"] < 2
    assert stages["oracle"]["placement"] > 0.95
    assert (
        "| timm/resnet | test_resnet | 0.5 | 160x160 | layer4 | nchw | 5x5 |" in output.with_suffix(".md").read_text()
    )

    assert script.main(arguments) == 0
    assert "0 cases" in capsys.readouterr().out.splitlines()[-1]
    assert records.read(output)["records"] == [record]


def test_a_case_is_swept_again_where_a_module_that_makes_it_has_changed(script: Any) -> None:
    """All that its process imports, and the draw; how a record is judged is asked of the record each time."""
    text = (BENCHMARKS / "sweep" / "worker.py").read_text()
    imported = set(re.findall(r"^from (sweep\.\w+) import", text, re.MULTILINE))
    assert {"sweep.weights", "sweep.records"} < imported
    assert (imported | {"sweep.worker", "sweep.draw"}) - set(script.SOURCES) == {"sweep.records"}


def test_what_is_done_is_left_out(script: Any) -> None:
    args = argparse.Namespace(keep_right=False, runtimes=["onnxruntime"])
    record = record_of()
    assert not script._done(None, "0", args)
    assert script._done(record, "0", args)
    assert not script._done(record, "1", args)
    assert script._done(record, "1", argparse.Namespace(keep_right=True, runtimes=["onnxruntime"]))
    assert not script._done(record, "0", argparse.Namespace(keep_right=False, runtimes=["openvino"]))
    case = SweepCase(Member("timm/a", "timm:x", 1), find_variant("early"))
    assert script._base_layer(case, {record["identity"]: record}) == "blocks.1"
    assert script._base_layer(case, {}) is None


def test_every_case_is_kept_as_soon_as_it_ends(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "c.json"
    monkeypatch.setattr(script, "families", lambda on_family: FAMILIES)
    monkeypatch.setattr(script, "digest_of", lambda *arguments: "0")
    swept: list[str] = []
    most = [2]

    def sweep(case: SweepCase, digest: str, layer: str | None, *rest: object) -> dict[str, Any]:
        if len(swept) == most[0]:
            raise KeyboardInterrupt
        swept.append(f"{case.member.specification} {case.variant.name} {layer}")
        record = record_of(case.member.family, case.variant.name)
        return {**record, "identity": case.identity, "key": digest, "runtimes": list(records.RUNTIMES), "seconds": 1.0}

    monkeypatch.setattr(script, "_sweep", sweep)
    arguments = ["--output", str(output), "--variant", "base", "early", "--variant-families", "1", "--jobs", "1"]
    assert script.main(arguments) == 130
    written = capsys.readouterr()
    assert "**2 of 3 families: 2 right" in written.out
    assert written.err.splitlines()[-1].startswith("coverage.py: interrupted; ")
    assert "| timm/a |" in output.with_suffix(".md").read_text()
    assert swept == ["torchvision:a base None", "timm:a1 base None"]
    assert [record["family"] for record in records.read(output)["records"]] == ["timm/a", "torchvision/a"]
    most[0] = 99
    assert script.main(arguments) == 0
    # what was left: the third family, and the variant of the one that was drawn, which asks for the base case's layer
    assert swept[2] == "timm:b1 base None"
    assert swept[3].endswith(" early blocks.1")
    assert len(swept) == 4
    assert "**3 of 3 families: 3 right" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"c.json", "c.md"}


def test_mistakes_are_one_sentence(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.json").write_text("{}")
    for arguments in (
        ("--only", "resnet51"),
        ("--members", "0"),
        ("--jobs", "0"),
        ("--draw", "1", "--cases", "0"),
        ("--output", str(tmp_path / "x.txt")),
        ("--output", str(tmp_path / "bad.json")),
    ):
        assert script.main(list(arguments)) == 2
        written = capsys.readouterr()
        assert written.out == ""
        assert written.err.startswith("coverage.py: ")
        assert written.err.count("\n") == 1
