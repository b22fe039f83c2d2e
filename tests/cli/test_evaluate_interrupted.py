"""`finercam evaluate` stopped by signals, a full disk and a second process, in processes of their own."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="the report is drawn with it")
pytest.importorskip("jinja2", reason="the report is made with it")

PARTIAL = "unfinished.jsonl"
MAIN = "import sys; from finercam_rt.cli.main import main; sys.exit(main(sys.argv[1:]))"
SLOW = """
import time
from finercam_rt.evaluation.measuring import Measurer
measure = Measurer.measure
Measurer.measure = lambda *of: (time.sleep(0.1), measure(*of))[1]
"""
"""Before MAIN: so slow that a signal always comes in the middle."""


@pytest.fixture
def arguments(make_toy: Callable[..., Any], tmp_path: Path) -> list[str]:
    """All but the folder for the results: 48 images in 24 batches, some 20 ms each."""
    rng = np.random.default_rng(5)
    for k in range(48):
        path = tmp_path / "birds" / ("magpie", "kite")[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
        coarse.resize((60, 40), Image.Resampling.BICUBIC).save(path)
    asked = ["--metrics", "rd@10", "deletion", "adcc", "--steps", "40", "--seeds", "plain", "one:1", "weighted3:0.5"]
    data = ["--data", str(tmp_path / "birds"), "--batch-size", "2", "--threads", "1"]
    return ["evaluate", str(make_toy().path), *data, *asked, "-o"]


def _start(arguments: list[str], out: Path, before: str = "", **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", before + MAIN, *arguments, str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def _lines(out: Path) -> int:
    return (out / PARTIAL).read_bytes().count(b"\n") if (out / PARTIAL).exists() else 0


def _stopped(arguments: list[str], out: Path, how: signal.Signals, lines: int = 3) -> tuple[int, str]:
    """Exit code and stderr of an evaluation that is sent a signal when it has written so many lines."""
    process = _start(arguments, out, SLOW)
    deadline = time.monotonic() + 60
    while _lines(out) < lines and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert _lines(out) >= lines, said
    assert not (out / "results.json").exists()
    return process.returncode, said


def _results(out: Path) -> list[bytes]:
    """What both files hold, byte by byte, but for the times."""
    document = json.loads((out / "results.json").read_text())
    del document["run"]
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "results.csv", "results.json"]
    return [json.dumps(document).encode(), (out / "results.csv").read_bytes()]


@pytest.fixture
def uninterrupted(finercam: Callable[..., Any], arguments: list[str], tmp_path: Path) -> list[bytes]:
    assert finercam(*arguments, tmp_path / "at once").code == 0
    return _results(tmp_path / "at once")


@pytest.mark.usefixtures("interruptible")
def test_a_kill_and_an_interruption_are_gone_on_from(
    finercam: Callable[..., Any], arguments: list[str], uninterrupted: list[bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert _stopped(arguments, out, signal.SIGKILL)[0] == -signal.SIGKILL
    with (out / PARTIAL).open("ab") as stream:
        stream.write(b'{"images":[[null,[[3')  # as a kill in the middle of a line leaves it
    for how in (signal.SIGINT, signal.SIGTERM):
        code, said = _stopped(arguments, out, how, _lines(out) + 2)
        assert code == 130
        assert said.splitlines()[-1] == "finercam: interrupted."
        assert "Traceback" not in said
    assert _lines(out) < 24
    assert finercam(*arguments, out).code == 0
    assert _results(out) == uninterrupted


def test_what_was_begun_is_not_mixed_with_something_else(
    finercam: Callable[..., Any], make_toy: Callable[..., Any], arguments: list[str], tmp_path: Path
) -> None:
    out, engine = tmp_path / "out", Path(arguments[1])
    _stopped(arguments, out, signal.SIGKILL)
    finercam(*arguments, out, "--target", "label").refused("unfinished evaluation with other target;", "--fresh")
    finercam(*arguments, out, "--batch-size", "3").refused("other batch size;")
    own = engine.read_bytes()
    make_toy(engine.name, manifest={"producer": {"finercam-rt": "9"}})  # the same file name, another content
    assert engine.read_bytes() != own
    finercam(*arguments, out).refused("unfinished evaluation with other engines;")
    engine.write_bytes(own)
    picture = next((tmp_path / "birds").rglob("*.png"))
    os.utime(picture, (0, 0))
    finercam(*arguments, out).refused("unfinished evaluation with other data;")
    (out / PARTIAL).write_text("something else\n")
    finercam(*arguments, out).refused("is damaged; give --fresh")
    assert finercam(*arguments, out, "--fresh").code == 0


def test_two_at_once_into_one_folder(finercam: Callable[..., Any], arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = _start(arguments, out, SLOW)
    try:
        while _lines(out) < 2 and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGSTOP)
        finercam(*arguments, out).refused("another process is evaluating into")
        finercam(*arguments, out, "--fresh").refused("another process is evaluating into")
    finally:
        process.kill()
        process.communicate()


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(
    finercam: Callable[..., Any], arguments: list[str], tmp_path: Path
) -> None:
    """The operating system refuses to let a file grow: in the middle of a line, and while the report is written."""
    arguments.remove("deletion")  # whose curves would make the unfinished file larger than the report
    assert finercam(*arguments, tmp_path / "at once").code == 0
    report = (tmp_path / "at once" / "report.html").stat().st_size
    out = tmp_path / "out"
    for limit, there in ((6_000, {PARTIAL}), (report // 2, {PARTIAL, "results.json", "results.csv"})):
        process = _start(
            arguments, out, preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        )
        _, said = process.communicate(timeout=60)
        assert process.returncode == 2, said
        assert said.splitlines()[-1].startswith("finercam: ")
        assert said.splitlines()[-1].endswith("cannot be written (File too large).")
        assert "Traceback" not in said
        assert {path.name for path in out.iterdir()} == there
        assert 1 < _lines(out) <= 25
    assert finercam(*arguments, out).code == 0
    assert _results(out) == _results(tmp_path / "at once")


def test_folders_that_cannot_be_written(
    finercam: Callable[..., Any], arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    finercam(*arguments, tmp_path / "file").refused("is a file; give a folder")
    finercam(*arguments, tmp_path / "file" / "below").refused("is a file; give a folder")
    assert (tmp_path / "file").read_text() == "mine"
    finercam(*arguments, "/proc/finercam").refused("cannot be written")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.geteuid() != 0:  # root may write all the same
        finercam(*arguments, locked).refused("cannot be written")
    shutil.rmtree(locked)
