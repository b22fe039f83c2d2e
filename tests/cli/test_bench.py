"""`finercam bench`: what it measures and prints, and its sentences for mistakes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finercam_rt.cli.bench import environment, measure, summary

QUICK = ("--warmup-ms", 0, "--duration", 0, "--iterations", 5)


def test_prints_trtexec_terms(finercam: Callable[..., Any], toy: Any) -> None:
    ran = finercam("bench", toy.path, *QUICK)
    assert ran.code == 0
    assert ran.err == ""
    for term in ("throughput", "images/s", "latency", "min =", "median =", "percentile(99%) =", "CPU time", "5 runs"):
        assert term in ran.out


def test_json_record_is_consistent_with_its_samples(finercam: Callable[..., Any], toy: Any) -> None:
    ran = finercam("bench", toy.path, *QUICK, "--batch", 3, "--threads", 1, "--json")
    record = json.loads(ran.out)
    samples = record["latencies_ms"]
    assert len(samples) == 5
    assert record["config"] == {"batch": 3, "threads": 1, "warmup_ms": 0, "duration_s": 0, "iterations": 5}
    assert record["engine"]["bytes"] == toy.path.stat().st_size
    assert record["latency_ms"]["median"] == pytest.approx(np.median(samples), abs=1e-3)
    assert record["latency_ms"]["min"] == pytest.approx(min(samples), abs=1e-3)
    assert record["throughput"]["images_per_s"] == pytest.approx(3 / (np.mean(samples) / 1e3), rel=1e-2)
    assert record["throughput"]["images_per_s"] == pytest.approx(3 * record["throughput"]["runs_per_s"])
    assert {"utc", "cpu", "logical_cpus", "memory_gib", "system", "versions"} <= set(record["environment"])
    assert {"python", "finercam-rt", "onnxruntime"} <= set(record["environment"]["versions"])


def test_runs_for_the_duration_asked_for(finercam: Callable[..., Any], toy: Any) -> None:
    record = json.loads(finercam("bench", toy.path, "--warmup-ms", 0, "--duration", 0.3, "--json").out)
    assert len(record["latencies_ms"]) > 10
    assert 0.25 < record["host_walltime_s"] < 3


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--batch", 0, "at least 1"),
        ("--warmup-ms", -1, "at least 0"),
        ("--iterations", 0, "at least 1"),
        ("--duration", -1, "0 or more"),
        ("--duration", "nan", "0 or more"),
        ("--duration", "inf", "0 or more"),
        ("--batch", 10**10, "fewer images"),
        ("--batch", 10**20, "fewer images"),
    ],
)
def test_refuses_a_number_out_of_range(
    finercam: Callable[..., Any], toy: Any, option: str, value: object, says: str
) -> None:
    finercam("bench", toy.path, option, value).refused(option, says)


@pytest.mark.parametrize("threads", [0, 5000])
def test_refuses_a_number_of_threads(finercam: Callable[..., Any], toy: Any, threads: int) -> None:
    finercam("bench", toy.path, "--threads", threads).refused(f"number of threads is {threads}; give 1 to 1024")


def test_refuses_what_is_not_an_engine(finercam: Callable[..., Any], tmp_path: Path) -> None:
    finercam("bench", tmp_path / "none.onnx").refused("no such file")
    (tmp_path / "text.onnx").write_text("not a graph")
    finercam("bench", tmp_path / "text.onnx").refused("text.onnx")


def test_a_fixed_batch_is_named(finercam: Callable[..., Any], make_toy: Callable[..., Any]) -> None:
    path = make_toy(batch=2).path
    finercam("bench", path, *QUICK).refused("exactly 2")
    assert finercam("bench", path, *QUICK, "--batch", 2).code == 0


def test_percentiles_of_known_values() -> None:
    values = summary(list(range(101))[::-1])  # 0 to 100: the p-th percentile is p
    assert values == {"min": 0, "max": 100, "mean": 50, "median": 50, "p90": 90, "p95": 95, "p99": 99}
    assert summary([1.0, 2.0])["p90"] == pytest.approx(1.9)  # linear between samples


def test_measure_counts_only_calls_after_the_warm_up() -> None:
    calls = []

    def call() -> None:
        calls.append(None)
        time.sleep(0.02 if len(calls) > 1 else 0.1)

    seconds, cpu, first = measure(call, warmup=0.15, duration=0, iterations=4)
    assert len(seconds) == 4
    assert len(calls) >= 6  # the first, at least one more until 0.15 s, and four
    assert first >= 0.1
    assert 0.02 <= min(seconds) < 0.1  # a loaded machine may delay some, not all
    assert cpu < 0.02  # sleeping is not CPU time


def test_environment_leaves_out_packages_that_are_absent() -> None:
    versions = environment(["numpy", "no-such-package"])["versions"]
    assert versions["numpy"] == np.__version__
    assert "no-such-package" not in versions
