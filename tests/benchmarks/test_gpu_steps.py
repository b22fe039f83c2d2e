"""The steps of a session with a GPU: what fails is said, and what they need of the machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

STEPS = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A checkout with the scripts alone, beside programs that stand in for the machine's."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    (tmp_path / "checkout" / "benchmarks").mkdir(parents=True)
    shutil.copytree(STEPS, tmp_path / "checkout" / "benchmarks" / "gpu", ignore=shutil.ignore_patterns("*.py"))
    (tmp_path / "checkout" / ".gpu").mkdir()
    (tmp_path / "bin").mkdir()
    return tmp_path


def program(machine: Path, name: str, text: str) -> Path:
    path = machine / "bin" / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)
    return path


def run(machine: Path, script: str, python: Path | str) -> subprocess.CompletedProcess[str]:
    """Of bash in the checkout."""
    checkout = machine / "checkout"
    environment = {**os.environ, "PATH": f"{machine / 'bin'}:{os.environ['PATH']}", "PYTHON": str(python)}
    environment |= {"OUT": str(machine / "out"), "KEPT": str(machine / "kept")}
    return subprocess.run(
        ["bash", "-c", script], cwd=checkout, env=environment, text=True, capture_output=True, timeout=60
    )


@pytest.mark.parametrize("failing", [".gpu/tools", "--editable"])
def test_a_build_that_fails_is_said(machine: Path, failing: str) -> None:
    program(machine, "nvidia-smi", "echo 9.0")
    program(machine, "setsid", "true")
    python = program(machine, "python", f'[[ " $* " != *" {failing}"* ]] && echo 1 passed')
    found = run(machine, "bash benchmarks/gpu/1_build_and_test.sh", python)
    assert found.stdout.splitlines()[-1] == "failed: build", found
    assert found.returncode == 1


def test_a_test_that_never_ends_leaves_what_the_others_said(machine: Path) -> None:
    (machine / "checkout" / "test_it.py").write_text(
        "import time, pytest\npytestmark = pytest.mark.gpu\n"
        "def test_a(): pass\ndef test_b(): raise ValueError('wrong')\ndef test_c(): time.sleep(50)\n"
    )
    script = "source benchmarks/gpu/common.sh; step tests tested some 8 test_it.py; finish"
    found = run(machine, script, sys.executable)
    assert found.returncode == 1
    assert "ValueError: wrong" in found.stdout, found
    assert "1 failed, 1 passed" in found.stdout
    assert "ValueError: wrong" in (machine / "out" / "some.xml").read_text()
    assert found.stdout.splitlines()[-1] == "failed: tests"


def test_the_models_have_what_is_left_of_a_call(machine: Path) -> None:
    (machine / "kept" / "site").mkdir(parents=True)
    python = program(machine, "python", 'echo "1 passed $*"; [[ " $* " == *" pytest "* ]] && sleep 3')
    found = run(machine, "bash benchmarks/gpu/4_models.sh", python)
    (line,) = [line for line in found.stdout.splitlines() if "--parts calls models" in line]
    assert 500 < int(line.split("--seconds ")[1].split()[0]) <= 537, found
    found = run(machine, "SECONDS_LEFT=77 bash benchmarks/gpu/4_models.sh", python)
    assert "--seconds 77 --resume" in found.stdout


def test_what_is_prepared_anew_leaves_results(machine: Path) -> None:
    (machine / "checkout" / ".gpu" / "results").mkdir()
    (machine / "checkout" / ".gpu" / "results" / "h200-kernels.json").write_text("{}")
    (machine / "checkout" / ".gpu" / "part-07").write_text("of other versions")
    program(machine, "git", "echo abc")
    program(machine, "xz", "cat")
    python = program(machine, "python", "mkdir -p .gpu/site && echo 1 > .gpu/site/package.py")
    found = run(machine, "bash benchmarks/gpu/prepare.sh", python)
    assert found.returncode == 0, found.stderr
    names = sorted(path.name for path in (machine / "checkout" / ".gpu").iterdir())
    assert names == ["commit", "part-00", "results", "sums", "tools"]
    assert (machine / "checkout" / ".gpu" / "results" / "h200-kernels.json").exists()


def test_packages_are_unpacked_without_a_program_xz(machine: Path) -> None:
    program(machine, "xz", "exit 1")
    packages = machine / "packages"
    (packages / "nvidia").mkdir(parents=True)
    (packages / "nvidia" / "__init__.py").write_text("")
    (packages / "here.py").write_text("FOUND = 7")
    sent = machine / "checkout" / ".gpu"
    packed = machine / "packed"
    with tarfile.open(packed, "w:xz") as archive:
        archive.add(packages / "here.py", "./here.py")
    whole = packed.read_bytes()
    for number, part in enumerate((whole[:50], whole[50:])):
        (sent / f"part-{number:02}").write_bytes(part)
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in sorted(sent.glob("part-*"))]
    (sent / "sums").write_text("\n".join(sums) + "\n")
    script = f"export PYTHONPATH={packages}; source benchmarks/gpu/common.sh; join; echo $PYTHONPATH; ls $KEPT/site"
    found = run(machine, script, sys.executable)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [f"{machine / 'kept' / 'site'}:{packages}", "here.py", "nvidia"]
    assert (machine / "kept" / "site" / "here.py").read_text() == "FOUND = 7"


def test_initcheck_leaves_out_what_torch_has_written() -> None:
    """compute-sanitizer watches our kernels alone, and would call these inputs uninitialised."""
    found = subprocess.run(
        ["bash", "-n", *map(str, sorted(STEPS.glob("*.sh")))], text=True, capture_output=True, timeout=60
    )
    assert found.returncode == 0, found.stderr
    (line,) = [line for line in (STEPS / "3_sanitize.sh").read_text().splitlines() if line.startswith("initcheck()")]
    names = [name.split('"')[0] for name in line.split(" and not ")[1:]]
    kernels = STEPS.parents[1] / "tests" / "kernels"
    text = "".join(path.read_text() for path in kernels.glob("test_*.py"))
    assert names == ["bgr", "captured_graph"]
    assert all(name in text for name in names)
