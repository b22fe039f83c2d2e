"""The committed results on photographs of birds: they reproduce plain PyTorch, and the page is made from them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

import birds
import birds_report

from .conftest import BENCHMARKS

DOCUMENT: dict[str, Any] = json.loads((BENCHMARKS / "results" / "birds.json").read_text())


@pytest.mark.parametrize("name", birds_report.REFERENCE)
def test_the_engines_reproduce_plain_pytorch(name: str) -> None:
    """To 2 %, all rows of both models."""
    part = DOCUMENT["parts"][f"{name}-rd"]
    assert part["images_measured"] == 235
    assert birds_report.worst_deviation(name, part) <= 0.02
    damaged = copy.deepcopy(part)
    next(row for row in damaged["rows"] if row["method"] == "layercam")["summary"]["rd@10"]["mean"] *= 1.03
    assert birds_report.worst_deviation(name, damaged) > 0.02


def test_parts_are_those_that_the_script_asks_for() -> None:
    birds.check(DOCUMENT)
    for bird in birds.BIRDS:
        for name in birds.PARTS:
            part = DOCUMENT["parts"].get(f"{bird.name}-{name}")
            if part is None:
                continue
            asked = birds.question(bird, name)
            rows = {(row["method"], row["seed"]["name"]) for row in part["rows"]}
            assert rows == {(method, seed) for method in asked.methods or () for seed in asked.seeds or ()}
            assert set(part["columns"]) == set(asked.metrics or ())
            assert part["images_measured"] == (asked.limit or 235)
            assert set(birds.PACKAGES) <= part["environment"]["versions"].keys()


def test_the_page_is_made_from_the_results(tmp_path: Path) -> None:
    assert (birds_report.DOCS / "paper-table.md").read_text() == birds_report.markdown(DOCUMENT)
    assert birds_report.main([str(BENCHMARKS / "results" / "birds.json"), "--docs", str(tmp_path)]) == 0
    assert (tmp_path / "paper-table.png").stat().st_size > 10_000


def test_a_damaged_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "birds.json").write_text('{"schema": 7}')
    assert birds_report.main([str(tmp_path / "birds.json"), "--docs", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("its schema is 7, and this is 1; measure again.\n")


def test_without_the_assets_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(birds, "ASSETS", Path("not there"))
    assert birds.main([]) == 2
    assert "../shared/assets" in capsys.readouterr().err


def test_both_scripts_explain_themselves() -> None:
    for script in ("birds.py", "birds_report.py"):
        ran = subprocess.run([sys.executable, BENCHMARKS / script, "--help"], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr


def test_engines_of_other_sources_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def export(words: list[str]) -> int:
        made.append(Path(words[words.index("-o") + 1]))
        made[-1].write_text("an engine")
        return 0

    monkeypatch.setattr(birds, "SCRATCH", tmp_path)
    monkeypatch.setattr(birds, "finercam", export)
    first = [birds.exported(birds.BIRDS[0], "some", ()) for _ in range(2)]
    assert made == first[:1] == first[1:]
    monkeypatch.setattr(birds, "PACKAGES", (*birds.PACKAGES, "onnx"))  # as another version changes the digest
    assert birds.exported(birds.BIRDS[0], "some", ()) != first[0]
    assert len(made) == 2
