"""The frame of the command line: versions, exit codes, lightness."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
from PIL import Image

import finercam_rt
from finercam_rt.cli import main as main_module
from finercam_rt.onnx_metadata import read_onnx_metadata


def test_version(finercam):
    ran = finercam("--version")
    assert ran.code == 0
    assert ran.out == f"finercam {finercam_rt.__version__}\n"


def test_the_version_is_an_attribute_like_others():
    from finercam_rt import __version__

    assert __version__ == metadata.version("finercam-rt")
    assert "__version__" in dir(finercam_rt)
    assert not hasattr(finercam_rt, "nonsense")


def test_help_names_every_command(finercam):
    ran = finercam("--help")
    assert ran.code == 0
    for command in main_module.COMMANDS:
        assert command in ran.out


@pytest.mark.parametrize("command", main_module.COMMANDS)
def test_help_of_each_command(finercam, command):
    ran = finercam(command, "--help")
    assert ran.code == 0
    assert ran.out.startswith(f"usage: finercam {command}")


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("explain",), ("inspect", "a", "--nonsense")])
def test_wrong_command_lines_exit_with_2(finercam, arguments):
    ran = finercam(*arguments)
    assert ran.code == 2
    assert "error:" in ran.err
    assert "Traceback" not in ran.err


def test_the_streams_are_left_as_they_were(finercam, toy, monkeypatch):
    """Within a command they take any text."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert finercam("inspect", toy.path).code == 0
    assert out.errors == "strict"


def test_interrupt(finercam, toy, monkeypatch):
    from finercam_rt.cli import inspect

    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "read_manifest", interrupted)
    ran = finercam("inspect", toy.path)
    assert ran.code == 130
    assert ran.err == "finercam: interrupted.\n"


def test_too_little_memory(finercam, toy, monkeypatch):
    from finercam_rt.cli import inspect

    def fails(path):
        raise MemoryError("Unable to allocate 561. GiB\nfor an array")

    monkeypatch.setattr(inspect, "read_manifest", fails)
    finercam("inspect", toy.path).refused("takes more memory than there is; ask for less at once")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams(toy, tmp_path, closed):
    """What would have been printed goes nowhere, and not into a file that got its number."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (60, 40), (200, 30, 30)).save(tmp_path / name)
    (tmp_path / "c.png").write_text("no image")
    code = "import sys; from finercam_rt.cli.main import main; sys.exit(main(sys.argv[1:]))"
    images = f"{tmp_path}/a.png {tmp_path}/b.png {tmp_path}/c.png"
    for command, expected in (
        (f"inspect {toy.path}", 0),
        (f"explain {toy.path} {images} --json", 1),
        (f"inspect {tmp_path}/none.onnx", 2),
    ):
        done = subprocess.run(
            f"{sys.executable} -c '{code}' {command} {closed}", shell=True, capture_output=True, text=True
        )
        assert done.returncode == expected, done
        assert "Traceback" not in done.stderr
        assert bool(done.stdout) == (closed == "2>&-" and expected < 2)
        if done.stdout and "explain" in command:
            assert len(json.loads(done.stdout)["images"]) == 3


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk(toy, tmp_path, unbuffered):
    """On the standard output, which is written when a buffer is full or at the end; on stderr the exit code is left."""
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full on this machine")
    Image.new("RGB", (60, 40), (200, 30, 30)).save(tmp_path / "a.png")
    code = "import sys; from finercam_rt.cli.main import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    sentence = "the standard output cannot be written (No space left on device); send it elsewhere, or make room."
    explain = f"explain {toy.path} {tmp_path}/a.png --references none"
    for command in (
        "--version",
        "inspect --help",
        f"inspect {toy.path}",
        f"{explain} --json",
        f"{explain} -o {tmp_path}/out",
    ):
        done = subprocess.run(
            f"{sys.executable} -c '{code}' {command} > /dev/full",
            shell=True,
            capture_output=True,
            text=True,
            env=environment,
        )
        lines = [line for line in done.stderr.splitlines() if "explains nothing" not in line]
        assert (done.returncode, lines) == (2, [f"finercam: {sentence}"]), command
    refused = subprocess.run(
        f"{sys.executable} -c '{code}' inspect {tmp_path}/none.onnx 2> /dev/full", shell=True, env=environment
    )
    assert refused.returncode == 2


def test_no_warnings_of_pillow(toy, tmp_path):
    """Of a palette with transparency in bytes, and of EXIF that is damaged: both are read."""
    images = [tmp_path / "palette.png", tmp_path / "exif.jpg"]
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    noise.quantize(4).save(images[0], transparency=b"\0\1\2\3")
    noise.save(images[1], exif=b"Exif\0\0II*\0\x08\0\0\0\2\0\x12\1\3\0\1\0\0\0\6\0\0\0")
    code = "import sys; from finercam_rt.cli.main import main; sys.exit(main(sys.argv[1:]))"
    for path in images:
        command = [sys.executable, "-c", code, "explain", toy.path, path, "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        loading = f"from finercam_rt.images import load_image; load_image({str(path)!r})"
        by_itself = subprocess.run([sys.executable, "-c", loading], capture_output=True, text=True)
        assert "UserWarning" in by_itself.stderr, "else this tests nothing"


def test_inspect(finercam, make_toy):
    toy = make_toy(manifest={"verification": {"map": {"relative_l2": 1.25e-6}}, "producer": {"torch": "2.14"}})
    ran = finercam("inspect", toy.path)
    assert ran.code == 0
    for text in (
        "toy",
        "32 x 48",
        "0.5 0.4 0.3",
        "7: magpie; house finch",
        "conv, nchw, map 4 x 6",
        "weighted, alpha 1",
    ):
        assert text in ran.out
    assert "map.relative_l2: 1.25e-06" in ran.out
    assert "torch 2.14" in ran.out


def test_inspect_json_is_the_manifest(finercam, toy):
    ran = finercam("inspect", toy.path, "--json")
    assert json.loads(ran.out) == json.loads(read_onnx_metadata(toy.path)["finercam"])


def test_inspect_classes(finercam, toy):
    lines = finercam("inspect", toy.path, "--classes").out.splitlines()
    assert lines[1] == "1\thouse finch, linnet"
    assert len(lines) == 7


def test_inspect_loads_no_runtime_and_no_framework(toy):
    code = (
        "import sys; from finercam_rt.cli.main import main; main(sys.argv[1:]); "
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'tqdm', 'timm') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(toy.path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_goes_away(toy):
    """`finercam inspect ... | head -1` ends quietly, and with the exit code of what a closed pipe stops."""
    code = "import sys; from finercam_rt.cli.main import main; sys.exit(main(['inspect', sys.argv[1]]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(toy.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 141
    assert err == b""
