"""The command line on a plan: the same commands, and bench in trtexec's terms."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from finercam_rt import Engine, _core
from finercam_rt.cli.main import main

from ..fakes.gpu import Gpu

QUICK = ("--warmup-ms", "0", "--duration", "0", "--iterations", "5")


@pytest.fixture
def plan(toy, monkeypatch):
    monkeypatch.setattr(_core, "cuda_device_name", lambda device: "a GPU of no substance")
    monkeypatch.setattr(_core, "cuda_compute_capability", lambda device: 90)
    monkeypatch.setattr(_core, "cuda_memory_info", lambda device: (1 << 30, 2 << 30))
    return Gpu(monkeypatch).plan(toy.path)


def test_bench_reports_as_trtexec_does(plan, capsys):
    assert main(["bench", str(plan), "--batch", "3", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "GPU" in out
    assert "a GPU of no substance, a CUDA graph of 2 nodes; by its own clock:" in out
    for title in ("latency (H2D + compute + D2H)", "enqueue time", "H2D", "GPU compute", "D2H"):
        (line,) = (line for line in out.splitlines() if line.startswith(f"  {title} "))
        for term in ("min = ", "max = ", "mean = ", "median = ", "percentile(90%) = ", "(95%) = ", "(99%) = "):
            assert term in line


def test_the_record_of_a_bench(plan, capsys):
    assert main(["bench", str(plan), *QUICK, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    gpu = record["gpu"]
    assert (record["engine"]["backend"], record["engine"]["device"]) == ("tensorrt", "cuda:0")
    assert gpu["memory_mib"] == {"total": 2048, "free": 1024}
    assert gpu["graph_nodes"] == 2, "the run, and the status of its maps"
    assert set(gpu["ms"]) == {"latency", "enqueue", "h2d", "compute", "d2h"}
    # the stand-in's clock counts what its streams have done: the images' copy, the run, one copy back and the event of
    # its end, and the marks; the questions are the same in all runs
    parts = {name: gpu["ms"][name]["median"] for name in ("h2d", "compute", "d2h")}
    assert parts == {"h2d": 2, "compute": 2, "d2h": 3}
    assert gpu["ms"]["latency"]["median"] == 7
    assert 0 < gpu["ms"]["enqueue"]["mean"] < record["latency_ms"]["mean"]


def test_times_are_kept_while_they_are_asked_for(plan):
    engine = Engine(plan)
    images = np.zeros((2, 3, 32, 48), np.float32)
    with engine.device_times() as times:
        for _ in range(3):
            engine(images)
    engine(images)
    assert [run.graph_nodes for run in times] == [None, 2, 2]


def test_an_engine_on_the_cpu_has_none(toy):
    with Engine(toy.path) as engine, engine.device_times() as times:
        engine(np.zeros((2, 3, 32, 48), np.float32))
    assert times == []


def test_explain_and_compare(plan, toy, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(pictures / f"{name}.png")
    assert main(["explain", str(plan), str(pictures), "-o", str(tmp_path / "out"), "--json"]) == 0
    report = capsys.readouterr().out
    assert "tensorrt" in report
    assert len(list((tmp_path / "out").glob("*.png"))) >= 3
    assert main(["compare", str(toy.path), str(plan), "--images", str(pictures), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
