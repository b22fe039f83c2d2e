"""A session of the GPU's benchmark: its processes, its file, what is resumed, the goals, and mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")

import report
from comparison.contenders import GRADCAM, OURS, PLAIN, TORCHCAM
from gpu import children, documents, goals, session
from gpu.plan import PARTS, jobs_of

from finercam_rt import _core

ENVIRONMENT = {"versions": {"torch": "2"}}


def test_a_rehearsal_runs_in_its_own_process_and_is_resumed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--rehearse", "--parts", "kernels", "--only", "e", "finite", "--output-folder", str(tmp_path)]
    assert session.main(options) == 0
    path = tmp_path / "cpu-kernels.json"
    document = documents.read(path)
    (record,) = document["records"]
    assert (record["kind"], record["name"], record["environment"]) == ("kernels", "finite float32, 2x768", 0)
    assert document["environments"][0]["device"] == "cpu"
    assert document["environments"][0]["versions"]["torch"]
    assert document["goals"] == []
    assert "its figures mean nothing" in capfd.readouterr().out

    assert session.main([*options, "--resume"]) == 0
    again = documents.read(path)
    assert again["records"] == document["records"]
    assert len(again["commands"]) == 2
    assert len(again["environments"]) == 1
    assert capfd.readouterr().out.splitlines()[-1].startswith("0 cases in ")


def test_without_time_nothing_begins_and_it_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--rehearse", "--only", "seed", "--parts", "kernels", "--output-folder", str(tmp_path)]
    assert session.main([*options, "--seconds", "1e-9"]) == 1
    assert "1 not begun: run it again with --resume" in capsys.readouterr().out
    assert documents.read(tmp_path / "cpu-kernels.json")["records"] == []


WORKER = """
import json, sys
request = json.loads(sys.stdin.read())
def say(**message): print(json.dumps(message), flush=True)
say(environment={"versions": {"torch": "2"}})
for index, job in enumerate(request["jobs"]):
    say(begun=index)
    if job["name"] == "deadly":
        print("a line before", file=sys.stderr)
        sys.exit("Segmentation fault")
    if job["name"] == "wrong":
        say(error="ValueError: it is wrong", of=index)
    else:
        for number in range(job["records"]):
            say(record={"precision": "fp32", "batch": number, "latency_ms": {}, "queued_ms": {}, "queued_ratios": {},
                        "left_out": {}}, of=index)
    say(ended=index)
"""


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in that speaks as the worker does; what it was asked."""
    asked: list[dict[str, Any]] = []

    def start(request: dict[str, Any], errors: Any) -> subprocess.Popen[str]:
        asked.append(request)
        command = [sys.executable, "-c", WORKER]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdin is not None
        process.stdin.write(json.dumps(request))
        process.stdin.close()
        return process

    monkeypatch.setattr(children, "_start", start)
    return asked


def _jobs(*names: str) -> list[dict[str, Any]]:
    return [{"part": "models", "name": name, "process": "p", "records": 2} for name in names]


def test_a_job_that_ends_its_process_is_recorded_and_the_next_one_begins(worker: list[dict[str, Any]]) -> None:
    found = list(children.run(_jobs("a", "deadly", "wrong", "b"), "cpu", time.time() + 60, rehearsal=True))
    assert [len(request["jobs"]) for request in worker] == [4, 2]
    errors = {message.job["name"]: message.error for message in found if message.error and message.job}
    assert errors == {
        "deadly": "its process ended: exit code 1: Segmentation fault",
        "wrong": "ValueError: it is wrong",
    }
    assert [m.job["name"] for m in found if m.record and m.job] == ["a", "a", "b", "b"]
    assert [m.job["name"] for m in found if m.ended and m.job] == ["a", "deadly", "wrong", "b"]
    assert sum(message.environment == ENVIRONMENT for message in found) == 2


def test_a_job_that_never_ends_is_stopped_with_the_time(
    monkeypatch: pytest.MonkeyPatch, worker: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(children, "GRACE", 1.0)
    hanging = WORKER.replace('sys.exit("Segmentation fault")', "import time; time.sleep(60)")
    monkeypatch.setitem(globals(), "WORKER", hanging)
    found = list(children.run(_jobs("a", "deadly", "b"), "cpu", time.time() + 2, rehearsal=True))
    (error,) = [message.error for message in found if message.error]
    assert error == "its process ended: ended after 1 s more than there were"
    assert not [message for message in found if message.job and message.job["name"] == "b"]


def test_a_worker_that_does_not_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch, worker: list[Any]) -> None:
    monkeypatch.setitem(globals(), "WORKER", "raise SystemExit('no such library')")
    with pytest.raises(ValueError, match=r"no worker starts \(no such library\)"):
        list(children.run(_jobs("a"), "cpu", time.time() + 60, rehearsal=True))


def test_failures_are_tried_again_and_batches_that_are_there_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker: list[dict[str, Any]]
) -> None:
    made = [{**job, "batches": [0, 1, 7]} for job in _jobs("a", "wrong")]
    monkeypatch.setattr(session, "jobs_of", lambda parts, *, rehearsal: made)
    options = ["--rehearse", "--parts", "models", "--output-folder", str(tmp_path)]
    assert session.main(options) == 1
    assert session.main([*options, "--resume"]) == 1
    assert [[(j["name"], j["batches"]) for j in request["jobs"]] for request in worker] == [
        [("a", [0, 1, 7]), ("wrong", [0, 1, 7])],
        [("a", [7]), ("wrong", [0, 1, 7])],
    ]
    records = documents.read(tmp_path / "cpu-models.json")["records"]
    assert [record["kind"] for record in records].count("failure") == 1


def test_a_kernel_that_is_wrong_is_a_failure_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker: list[dict[str, Any]]
) -> None:
    wrong, other = ({"error": "ValueError: its result differs"}, {"microseconds": {"median": 1.0}})
    kernel = {**_kernel("cam", "v", "s", 0), "moved_bytes": 3, "contenders": {"ours": wrong, "torch": other}}
    forms = {"by size": wrong, "one block": {"cold_us": {"median": 1.0}}}
    found = {"kernels": kernel, "sharing": {"variant": "v", "size": "s", "moved_bytes": 3, "forms": forms}}
    said = f"say(record=json.loads({json.dumps(found)!r})[job['part']], of=index)"
    speaks = WORKER.replace('for number in range(job["records"]):', f"{said}\n        for number in ():")
    monkeypatch.setitem(globals(), "WORKER", speaks)
    made = [{"part": part, "name": part, "process": "p"} for part in found]
    monkeypatch.setattr(session, "jobs_of", lambda parts, *, rehearsal: made)
    options = ["--rehearse", "--parts", *found, "--output-folder", str(tmp_path)]
    for _ in range(2):
        assert session.main([*options, "--resume"]) == 1
    assert [[job["name"] for job in request["jobs"]] for request in worker] == [list(found)] * 2
    # the form by size is the one that counts: another may be refused
    forms["by size"], forms["one block"] = forms["one block"], wrong
    kernel["contenders"] = {"ours": other, "torch": wrong}
    assert not any(session._failed({"kind": part, **record}) for part, record in found.items())


def test_an_export_that_fails_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []

    def export(case: Any, precision: str) -> None:
        if (case.name, precision) == ("resnet50", "fp32"):
            raise RuntimeError("no memory")
        made.append((case.name, precision))

    monkeypatch.setattr(session.models, "export", export)
    assert session.main(["--export"]) == 1
    assert made[0] == ("toy_cnn", "fp32")
    assert {name for name, _ in made[1:]} == {"resnet50", "vit_base", "dinov2_base_cls"}
    assert "resnet50 fp32: RuntimeError: no memory" in "".join(capsys.readouterr())


def _kernel(kernel: str, variant: str, size: str, share: float, **times: float) -> dict[str, Any]:
    found = {name.replace("_", "."): {"microseconds": {"median": value}} for name, value in times.items()}
    about = {"kind": "kernels", "kernel": kernel, "variant": variant, "size": size}
    return {**about, "several_caches": share > 0, "share_of_copy": share, "contenders": found}


def test_goals_are_held_to_the_worst_figure() -> None:
    one = _kernel("cam", "gradcam nchw float32", "1x2048x7x7", 0, ours=5.0, torch=20.0, torch_compile=4.0)
    many = _kernel("cam", "gradcam nchw float32", "1024x2048x7x7", 0.9, ours=200.0, torch=500.0, torch_compile=400.0)
    slow = _kernel("cam", "fem tokens float32", "1024x768x14x14", 0.8, ours=300.0, torch=299.0)
    other = _kernel("render", "values", "2048x7x7 to 224x224", 0.86, ours=100.0, torch=500.0, torch_compile=101.0)
    failed = {"kind": "kernels", **one, "size": "16x2048x7x7", "contenders": {"ours": {"error": "wrong"}}}
    rows = {row.goal: row for row in goals.rows("kernels", [one, many, slow, other, failed, {"kind": "failure"}])}
    found = {goal: (row.measured, row.met) for goal, row in rows.items()}
    assert found == {
        "cam, inputs several times the L2: share of the copy bandwidth": (0.8, False),
        "render, inputs several times the L2: share of the copy bandwidth": (0.86, True),
        "cam of one 2048 x 7 x 7 map, us": (5.0, True),
        "render of one 7 x 7 map, us": (None, None),
        "cam and render: plain torch / ours, at every size": (pytest.approx(299 / 300), False),
        "cam and render: torch.compile / ours, median of sizes": (1.01, True),
    }
    assert rows["cam, inputs several times the L2: share of the copy bandwidth"].at == (
        "cam fem tokens float32, 1024x768x14x14 (2 figures)"
    )
    text = goals.as_table(list(rows.values()))
    assert "| render of one 7 x 7 map, us | <= 6 | - | not measured | - |" in text
    assert "| >= 0.85 | 0.8 | no | cam fem" in text


def test_goals_of_calls_and_models() -> None:
    calls = {"kind": "calls", "case": {"name": "toy"}, "python_us": 14.0, "allocated_bytes": 0}
    calls |= {"busy_call_ms": 30.0, "busy_ms": 50.0}
    assert [row.met for row in goals.rows("calls", [calls])] == [True, True, False]
    silent = {**calls, "allocated_bytes": None, "busy_call_ms": None, "busy_ms": None}
    assert [row.met for row in goals.rows("calls", [silent])] == [True, None, None]

    def record(batch: int, queued: float, latency: float, peers: tuple[float, float]) -> dict[str, Any]:
        own, torchcam, gradcam = f"{OURS} / {PLAIN}", f"{TORCHCAM} / {OURS}", f"{GRADCAM} / {OURS}"
        ratios = {own: queued, torchcam: peers[0], gradcam: peers[1]}
        return {
            "kind": "models",
            "case": {"name": "resnet50"},
            "precision": "fp32",
            "batch": batch,
            "queued_ratios": {pair: {"ratio": value} for pair, value in ratios.items()},
            "latency_ratios": {own: {"ratio": latency}},
        }

    rows = goals.rows("models", [record(1, 1.02, 1.06, (9, 900)), record(64, 0.98, 0.5, (4, 120))])
    assert [(row.measured, row.met) for row in rows] == [(1.02, True), (1.06, False), (120, True), (4, False)]
    assert rows[0].at == "resnet50, fp32, batch 1 (2 figures)"


def test_every_goal_is_measured_by_some_job() -> None:
    """No part without jobs, and names tell them apart, since a run is resumed by them."""
    jobs = list(jobs_of(PARTS, rehearsal=False))
    assert {job["part"] for job in jobs} == set(PARTS)
    assert len({job["name"] for job in jobs}) == len(jobs)
    both = [
        job for job in jobs if job["part"] == "models" and {OURS, PLAIN, TORCHCAM, GRADCAM} <= set(job["contenders"])
    ]
    assert {(job["case"], job["precision"]) for job in both} == {
        (case, precision) for case in ("resnet50", "vit_base", "dinov2_base_cls") for precision in ("fp32", "fp16")
    }
    assert all(set(job["batches"]) == {1, 8, 64, 256} for job in both)


@pytest.mark.parametrize(
    ("gpu", "file"),
    [
        ("NVIDIA H200", "h200-kernels.json"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090-kernels.json"),
        ("Tesla T4", "t4-kernels.json"),
        ("", "gpu-kernels.json"),
    ],
)
def test_files_are_named_after_the_gpu(gpu: str, file: str) -> None:
    assert documents.path_of(Path("x"), gpu, "kernels") == Path("x") / file


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(schema=7), "schema is 7"),
        (lambda d: d.pop("environments"), "no environments"),
        (lambda d: d["records"][0].update(kind="kernel"), "kind is 'kernel'"),
        (lambda d: d["records"][0].update(environment=3), "environment is not there"),
        (lambda d: d["records"][0].update(moved_bytes="many"), "moved_bytes is 'many'"),
    ],
)
def test_a_file_that_breaks_the_schema_is_refused(change: Any, says: str, tmp_path: Path) -> None:
    record = {**_kernel("cam", "v", "s", 0), "name": "cam v, s", "moved_bytes": 3, "environment": 0}
    document = {**documents.new("kernels", "x", rehearsal=True), "environments": [ENVIRONMENT], "records": [record]}
    documents.write(document, tmp_path / "x.json")
    change(document)
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=says):
        documents.read(tmp_path / "x.json")


def test_the_report_has_goals_figures_and_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {"error": "ValueError: wrong"}
    right = {**_kernel("cam", "gradcam", "1024x2048x7x7", 0.9, ours=200.0, torch=500.0), "bytes_per_s": 4e12}
    wrong = _kernel("render", "values", "s", 0.0, torch=7.0)
    wrong = {**wrong, "contenders": {**wrong["contenders"], "ours": own}}
    del wrong["share_of_copy"]
    more = {"name": "x", "moved_bytes": 3, "environment": 0, "copy_bytes_per_s": 4.4e12}
    records = [{**right, **more}, {**wrong, **more, "name": "render values, s"}]
    records.append({"kind": "failure", "name": "rank", "environment": 0, "error": "its process ended"})
    host = {"cpu": "a processor", "logical_cpus": 2, "commit": None, "sources_changed": None}
    environment = {**ENVIRONMENT, **host, "gpu": {"name": "NVIDIA H200", "driver_version": "580"}}
    document = {**documents.new("kernels", "NVIDIA H200", rehearsal=False), "environments": [environment]}
    path = tmp_path / "h200-kernels.json"
    documents.write({**document, "records": records}, path)
    assert report.main([str(path)]) == 0
    headline = capsys.readouterr().out
    assert "| cam, inputs several times the L2: share of the copy bandwidth | >= 0.85 | 0.9 | yes | cam" in headline
    text = path.with_suffix(".md").read_text()
    assert text.startswith("# Kernels on NVIDIA H200\n")
    assert headline.strip() in text
    assert "| cam | gradcam | 1024x2048x7x7 | 200.0 | 4000 | 90 % | - | - | 500.0 | - |" in text
    assert "| render | values | s | error | - | - | - | - | 7.0 | - |" in text
    assert "A copy within the device moves 4400 GB/s." in text
    assert "- rank failed: its process ended" in text
    assert "- render values, s: ours is left out: ValueError: wrong" in text
    assert "- GPU: name NVIDIA H200, driver_version 580" in text
    path.write_text(json.dumps({**document, "records": [{"kind": "x"}]}))
    assert report.main([str(path)]) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rehearse", "--seconds", "0"], "seconds must be above zero"),
        (["--rehearse", "--only", "resnet51"], "no case has resnet51 in its name"),
    ],
)
def test_mistakes_are_one_sentence(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert session.main(options) == 2
    found = capsys.readouterr().err
    assert says in found
    assert found.count("\n") == 1


@pytest.mark.skipif(bool(_core.cuda_status()[0]), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert session.main([]) == 2
    found = capsys.readouterr().err
    assert found.startswith("run.py: there is no GPU here (")
    assert "--rehearse" in found
    assert found.count("\n") == 1
