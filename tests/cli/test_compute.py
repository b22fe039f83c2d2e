"""`--compute` of the commands that run engines, and what they say of the runtime that does it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

openvino: Any = pytest.importorskip("openvino", reason="openvino is not installed")

QUICK = ("--warmup-ms", 0, "--duration", 0, "--iterations", 2)


@pytest.fixture(autouse=True)
def _not_pinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FINERCAM_BACKEND")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def _bf16() -> None:
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor does not compute in bf16")


def test_inspect_says_what_auto_is_before_and_after_the_choice(finercam: Callable[..., Any], toy: Any) -> None:
    assert (
        "backend     not chosen yet: the first run measures onnxruntime and openvino"
        in finercam("inspect", toy.path).out
    )
    record = json.loads(finercam("bench", toy.path, *QUICK, "--json").out)
    chosen = record["engine"]["backend"]
    assert f"backend     {chosen}, the one chosen here of onnxruntime and openvino" in finercam("inspect", toy.path).out
    assert f"{chosen}, cpu, f32," in finercam("bench", toy.path, *QUICK).out


def test_inspect_says_what_is_pinned(finercam: Callable[..., Any], toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINERCAM_BACKEND", "openvino")
    assert "openvino, as FINERCAM_BACKEND says" in finercam("inspect", toy.path).out
    monkeypatch.setenv("FINERCAM_BACKEND", "openvisor")
    finercam("inspect", toy.path).refused("FINERCAM_BACKEND is 'openvisor'")


@pytest.mark.usefixtures("_bf16")
def test_bench_and_explain_compute_in_bf16_when_asked(
    finercam: Callable[..., Any], toy: Any, photographs: Path
) -> None:
    engine = json.loads(finercam("bench", toy.path, *QUICK, "--compute", "bf16", "--json").out)["engine"]
    assert (engine["backend"], engine["compute"], engine["precision"]) == ("openvino", "bf16", "fp32")
    logits = {}
    for compute in ("f32", "bf16"):
        document = json.loads(finercam("explain", toy.path, photographs, "--json", "--compute", compute).out)
        assert document["engine"]["compute"] == compute
        logits[compute] = [record["target"]["logit"] for record in document["images"]]
    assert logits["f32"] != logits["bf16"]
    assert logits["f32"] == pytest.approx(logits["bf16"], rel=0.05, abs=0.05)


@pytest.mark.usefixtures("_bf16")
def test_compare_holds_bf16_to_the_same_engine_in_f32(
    finercam: Callable[..., Any], toy: Any, photographs: Path
) -> None:
    ran = finercam("compare", toy.path, toy.path, "--images", photographs, "--json", "--compute", "bf16")
    assert ran.code == 0
    means = json.loads(ran.out)["mean"]
    assert 0.9 < means["cosine"] < 1 - 1e-9, "near, and not the same"


@pytest.mark.parametrize("command", ["bench", "explain", "compare"])
def test_bf16_without_openvino_is_one_sentence(
    finercam: Callable[..., Any], toy: Any, photographs: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    arguments = {"bench": (), "explain": (photographs, "--json"), "compare": (toy.path, "--images", photographs)}
    monkeypatch.setenv("FINERCAM_BACKEND", "onnxruntime")
    finercam(command, toy.path, *arguments[command], "--compute", "bf16").refused("computes in f32", "openvino")
