"""The script for a device with TensorRT and no Python of ours, run against a trtexec that checks what it is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finercam_rt.cli.main import main

pytest.importorskip("onnx", reason="the stand-in reads the graph")

TRTEXEC = """\
#!{python}
import sys
KNOWN = {{"onnx", "saveEngine", "skipInference", "maxAuxStreams", "minShapes", "optShapes", "maxShapes", "noTF32",
    "memPoolSize", "builderOptimizationLevel", "versionCompatible", "timingCacheFile"}} | {extra}
if "--help" in sys.argv:
    print("\\n".join("  --" + name for name in KNOWN))
    sys.exit(0)
import onnx
options = dict((word[2:].split("=", 1) + [""])[:2] for word in sys.argv[1:])
if set(options) - KNOWN or len(options) != len(sys.argv) - 1:
    sys.exit("unknown option: " + " ".join(sorted(set(options) - KNOWN)))
inputs = {{v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in onnx.load(options["onnx"]).graph.input}}
for bound in ("min", "opt", "max"):
    given = dict(text.split(":") for text in options[bound + "Shapes"].split(","))
    shapes = {{name: [int(size) for size in text.split("x")] for name, text in given.items()}}
    if shapes.keys() != inputs.keys():
        sys.exit("inputs " + str(shapes.keys() ^ inputs.keys()))
    for name, wanted in inputs.items():
        right = len(wanted) == len(shapes[name]) and all(a in (0, b) for a, b in zip(wanted, shapes[name]))
        if not right:
            sys.exit(name + " is " + str(wanted) + " and not " + str(shapes[name]))
with open(options["saveEngine"], "w") as stream:
    stream.write(repr(sys.argv[1:]))
if {fails}:
    sys.exit("&&&& FAILED")
"""


@pytest.fixture
def device(tmp_path, monkeypatch):
    """`device(...)`: a trtexec on PATH, of TensorRT 10 or 11; the folder that stands for the device."""

    def make(*, version: int = 10, fails: bool = False) -> Path:
        programs, folder = tmp_path / "programs", tmp_path / "on the device"
        programs.mkdir()
        folder.mkdir()
        extra = {"stronglyTyped"} if version == 10 else set()
        file = programs / "trtexec"
        file.write_text(TRTEXEC.format(python=sys.executable, extra=extra or "set()", fails=fails))
        file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        return folder

    return make


def _copy(toy, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """What a user does: write the script, copy the two files, run it there, from another folder."""
    script = folder / "build it.sh"
    assert main(["build", str(toy.path), "--script", str(script), *arguments]) == 0
    (folder / toy.path.name).write_bytes(toy.path.read_bytes())
    return subprocess.run(["sh", str(script)], capture_output=True, text=True, cwd="/", check=False)


@pytest.mark.parametrize("version", [10, 11])
@pytest.mark.parametrize("options", [{}, {"contrasts": 5}, {"zero_shot": True}, {"channels": 4}], ids=str)
def test_the_script_builds_with_trtexec(device, make_toy, capsys, version, options):
    folder = device(version=version)
    ran = _copy(make_toy(**options), folder, "--min-batch", "2", "--opt-batch", "3", "--max-batch", "7")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert sorted(os.listdir(folder)) == ["build it.sh", "toy.onnx", "toy.plan"]
    told = (folder / "toy.plan").read_text()
    assert ("--stronglyTyped" in told) == (version == 10)
    assert "--noTF32" in told
    image = f"{options.get('channels', 3)}x32x48"
    assert f"--minShapes=images:2x{image},target:2" in told
    assert f"--maxShapes=images:7x{image},target:7" in told
    assert ("class_embeddings:1000x6" in told) == ("zero_shot" in options)
    assert ("references:7x5x3,alpha:7x5" in told) == ("contrasts" in options)
    assert "copy it and toy.onnx to the device" in capsys.readouterr().out


def test_options_reach_trtexec(device, toy):
    more = ["--tf32", "--workspace", "256", "--optimization-level", "5", "--version-compatible"]
    folder = device()
    assert _copy(toy, folder, *more, "--timing-cache", "a cache").returncode == 0
    told = (folder / "toy.plan").read_text()
    for word in ("memPoolSize=workspace:256'", "builderOptimizationLevel=5'", "versionCompatible'", "File=a cache'"):
        assert word in told
    assert "noTF32" not in told


def test_a_build_that_fails_leaves_no_plan(device, toy):
    folder = device(fails=True)
    ran = _copy(toy, folder)
    assert ran.returncode != 0
    assert "&&&& FAILED" in ran.stderr
    assert sorted(os.listdir(folder)) == ["build it.sh", "toy.onnx"]


def test_what_the_script_refuses(device, toy, monkeypatch):
    folder = device()
    script = folder / "build.sh"
    assert main(["build", str(toy.path), "--script", str(script)]) == 0

    def says() -> str:
        ran = subprocess.run(["sh", str(script)], capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert len(ran.stderr.splitlines()) == 1
        return ran.stderr

    assert "toy.onnx is not here" in says()
    (folder / "toy.onnx").write_bytes(toy.path.read_bytes() + b"\xa2\x06\x00")
    assert "is not the file that this script was written for" in says()
    (folder / "toy.onnx").write_bytes(toy.path.read_bytes())
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert "there is no trtexec" in says()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--json"], "--json does not go with --script"),
        (["-o", "x.plan"], "--output does not go with --script"),
        (["--compute-capability", "SM89"], "--compute-capability does not go with --script"),
        (["--script", "x.plan"], "x.plan is no name for a script; call it NAME.sh."),
        (["--script", "nowhere/x.sh"], "the folder nowhere does not exist"),
    ],
)
def test_mistakes(toy, capsys, tmp_path, arguments, says):
    assert main(["build", str(toy.path), "--script", str(tmp_path / "x.sh"), *arguments]) == 2
    assert says in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["toy.onnx"]


def test_int8_with_zero_points_gets_no_script(make_toy, capsys, tmp_path):
    toy = make_toy(manifest={"precision": "int8"})
    assert main(["build", str(toy.path), "--script", str(tmp_path / "x.sh")]) == 2
    assert "int8-symmetric" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["toy.onnx"]
