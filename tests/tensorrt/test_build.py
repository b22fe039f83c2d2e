"""`finercam build`: plans of TensorRT-RTX, which needs no GPU, and what is asked of TensorRT."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from finercam_rt.cli.main import main
from finercam_rt.errors import BackendError, EngineError, InputError
from finercam_rt.tensorrt import library
from finercam_rt.tensorrt.build import build_plan
from finercam_rt.tensorrt.builder import BuildOptions, UnsupportedError, build
from finercam_rt.tensorrt.kernels import behind, read_kernels
from finercam_rt.tensorrt.plan import read_checked_plan, read_plan_info

from ..fakes.tensorrt import LAYERS, PLAN

OPTIONS = BuildOptions(batch=(1, 2, 8), classes=(2, 10, 20), capabilities=("SM89",))


def test_kernels_are_counted_and_those_of_the_explanation_told_apart():
    kernels = read_kernels(LAYERS.splitlines())
    assert [kernel.name for kernel in kernels] == ["conv", "gemm", "seed", "map"]  # sizes come from the host
    assert kernels[1].inputs == {"pooled"}
    assert [kernel.name for kernel in behind(kernels, "logits")] == ["seed", "map"]
    assert [kernel.name for kernel in behind(kernels, "saliency_map")] == []
    assert read_kernels(["nothing of this kind"]) == ()
    line = "Name: x, LayerType: {}, Inputs: [], Constants: [], Outputs: [], TacticName: {}, StreamId: 0, Metadata: "
    kinds = ["shape_call", "signal", "wait", "cast", "runtime_fusion"]
    assert [kernel.kind for kernel in read_kernels(line.format(kind, "") for kind in kinds)] == ["runtime_fusion"]
    assert len(read_kernels([line.format("cast", "__myl_Cast_0x12")])) == 1


def test_rtx_builds_a_plan(rtx, toy, tmp_path):
    plan = tmp_path / "out.plan"
    seen = []
    options = dataclasses.replace(OPTIONS, capabilities=("SM86", "SM89", "SM120"), workspace_mib=64)
    written = build_plan(toy.path, plan, rtx, options, on_progress=lambda share, phase: seen.append(share))
    data, info = read_checked_plan(plan)
    assert info == written.info
    assert data == plan.read_bytes()
    assert info.plan_sha256 == hashlib.sha256(data).hexdigest()
    assert info.onnx_sha256 == hashlib.sha256(toy.path.read_bytes()).hexdigest()
    assert (info.flavour, info.version) == ("tensorrt-rtx", rtx.version)
    assert info.capabilities == ("SM86", "SM89", "SM120")
    assert (info.batch, info.classes) == ((1, 2, 8), None)
    assert info.options == {
        "workspace_mib": 64,
        "tf32": False,
        "optimization_level": None,
        "version_compatible": False,
        "map_kernel": "auto",
    }
    assert info.kernels["total"] > info.kernels["behind_logits"] > 0
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert sorted(os.listdir(tmp_path)) == ["out.json", "out.plan", "toy.onnx"]


def test_an_up_to_date_plan_is_kept(tensorrt, fake, toy, tmp_path):
    plan = tmp_path / "out.plan"

    def builds(**changes) -> int:
        before = fake.builds
        force = changes.pop("force", False)
        written = build_plan(toy.path, plan, tensorrt, dataclasses.replace(OPTIONS, **changes), force=force)
        assert (written.seconds is None) == (fake.builds == before)
        return fake.builds - before

    assert builds() == 1
    assert builds() == 0
    assert builds(force=True) == 1
    assert builds(batch=(1, 2, 9)) == 1  # another option
    fake.__version__ = "11.5"
    newer = tensorrt._replace(version="11.5")
    build_plan(toy.path, plan, newer, dataclasses.replace(OPTIONS, batch=(1, 2, 9)))
    assert fake.builds == 4  # another library
    assert builds(batch=(1, 2, 9)) == 1
    plan.write_bytes(PLAN[:-1])
    assert builds(batch=(1, 2, 9)) == 1  # a damaged plan
    plan.write_bytes(PLAN[:-1] + b"!")
    assert builds(batch=(1, 2, 9)) == 1
    toy.path.write_bytes(toy.path.read_bytes() + b"\xa2\x06\x00")  # one more empty field: another file
    assert builds(batch=(1, 2, 9)) == 1
    assert builds(batch=(1, 2, 9)) == 0


def test_what_tensorrt_is_asked(tensorrt, fake, toy, tmp_path):
    options = dataclasses.replace(OPTIONS, workspace_mib=3, optimization_level=5, version_compatible=True)
    plan = build_plan(toy.path, tmp_path / "out.plan", tensorrt, options).info
    assert fake.network_flags == 2  # strongly typed
    assert fake.config.max_aux_streams == 0
    assert fake.config.builder_optimization_level == 5
    assert fake.config.limits == {fake.MemoryPoolType.WORKSPACE: 3 << 20}
    assert fake.config.flags == [fake.BuilderFlag.VERSION_COMPATIBLE]
    assert fake.config.profiles[0].shapes == {
        "images": ((1, 3, 32, 48), (2, 3, 32, 48), (8, 3, 32, 48)),
        "target": ((1,), (2,), (8,)),
        "references": ((1, 3), (2, 3), (8, 3)),
        "class_embeddings": ((2, 6), (10, 6), (20, 6)),
    }
    assert fake.config.cleared == [fake.BuilderFlag.TF32]
    build(toy.path, tensorrt, dataclasses.replace(options, tf32=True))
    assert fake.config.cleared == []
    assert plan.kernels == {"total": 4, "behind_logits": 2}


@pytest.mark.parametrize(
    ("stored", "kept"), [(None, b"+measured"), (b"earlier", b"earlier+measured"), (b"of another GPU", b"+measured")]
)
def test_a_timing_cache_is_read_and_written(tensorrt, toy, tmp_path, stored, kept):
    cache = tmp_path / "cache"
    if stored is not None:
        cache.write_bytes(stored)
    build_plan(toy.path, tmp_path / "out.plan", tensorrt, OPTIONS, timing_cache=cache)
    assert cache.read_bytes() == kept


def test_progress_of_nested_phases(tensorrt, toy):
    seen = []
    build(toy.path, tensorrt, OPTIONS, on_progress=lambda share, phase: seen.append((phase, share)))
    assert seen == [
        ("Building", 0.0),
        ("Building", 0.5),
        ("Timing", 0.5),
        ("Timing", 0.625),
        ("Timing", 0.75),
        ("Timing", 0.875),
        ("Timing", 1.0),
        ("Timing", 1.0),
        ("Building", 1.0),
    ]


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_a_build_and_writes_nothing(toy, tmp_path, number):
    """In a process of its own: a signal that comes late would end the worker that runs the tests."""
    script = f"""
import signal, sys
from pathlib import Path
sys.path.append({str(Path(__file__).parents[2])!r})
from tests.fakes.tensorrt import FakeTensorRT
from finercam_rt.tensorrt import library
from finercam_rt.tensorrt.build import build_plan
from finercam_rt.tensorrt.builder import BuildOptions
from finercam_rt.tensorrt.library import TENSORRT, Library
library.compute_capability = lambda: "SM90"
signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command has it
fake, steps, before = FakeTensorRT(), [], signal.getsignal(signal.{number})
fake.during_build = lambda: (signal.raise_signal(signal.{number}), steps.append(1))  # nothing is raised there
options = BuildOptions(batch=(1, 2, 8), classes=(2, 10, 20), capabilities=("SM89",))
try:
    build_plan(Path(sys.argv[1]), Path(sys.argv[2]), Library(TENSORRT, fake.__version__, fake), options)
except KeyboardInterrupt:
    print(len(steps), signal.getsignal(signal.{number}) is before)
"""
    command = [sys.executable, "-c", script, toy.path, tmp_path / "out.plan"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["1", "True"]
    assert os.listdir(tmp_path) == ["toy.onnx"]


def test_an_operation_that_is_not_there_is_named_with_its_source(rtx, toy, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(toy.path)
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type, node.name = "BitShift", "tail/odd"
    entry = node.metadata_props.add()
    entry.key, entry.value = "finercam.source", "layer4.0 (birds/model.py, line 12)"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(UnsupportedError) as caught:
        build_plan(tmp_path / "odd.onnx", tmp_path / "out.plan", rtx, OPTIONS)
    text = str(caught.value)
    assert "BitShift of node tail/odd, layer4.0 (birds/model.py, line 12); choose" in text
    assert text.endswith(".")
    assert "\n" not in text
    assert not (tmp_path / "out.plan").exists()


def test_int8_with_zero_points_is_refused_with_the_way_out(tensorrt, fake, make_toy, tmp_path):
    toy = make_toy(manifest={"precision": "int8"})
    with pytest.raises(BackendError, match=r"does not take; export it with --precision int8-symmetric\.$"):
        build_plan(toy.path, tmp_path / "out.plan", tensorrt, OPTIONS)
    assert fake.builds == 0
    assert os.listdir(tmp_path) == ["toy.onnx"]


def test_an_engine_of_a_fixed_batch(rtx, make_toy, tmp_path):
    toy = make_toy(batch=3)
    with pytest.raises(UnsupportedError, match="exported for exactly 3 images; give --min-batch, --opt-batch"):
        build_plan(toy.path, tmp_path / "out.plan", rtx, OPTIONS)
    options = dataclasses.replace(OPTIONS, batch=(3, 3, 3))
    assert build_plan(toy.path, tmp_path / "out.plan", rtx, options).info.batch == (3, 3, 3)


def test_what_the_builder_refuses(tensorrt, fake, toy, tmp_path):
    fake.failure = "Error Code 9: Skipping tactic,\n no implementation."
    with pytest.raises(
        UnsupportedError, match=r"cannot build it \(Error Code 9: Skipping tactic, no implementation\)\.$"
    ):
        build(toy.path, tensorrt, OPTIONS)
    fake.refuse(-1, "unreadable")
    with pytest.raises(UnsupportedError, match=r"cannot read it \(unreadable\); export it again\.$"):
        build(toy.path, tensorrt, OPTIONS)
    fake.errors.clear()
    fake.profile_index = -1
    with pytest.raises(UnsupportedError, match="does not fit the graph"):
        build(toy.path, tensorrt, OPTIONS)
    fake.has_gpu = False
    with pytest.raises(BackendError, match=r"cannot build here \(CUDA initialization failure with error: 35\)\.$"):
        build(toy.path, tensorrt, OPTIONS)


def test_nothing_is_written_over_what_is_not_ours(tensorrt, toy, tmp_path):
    (tmp_path / "out.json").write_text('{"precious": 1}')
    with pytest.raises(InputError, match=r"out\.json is there and tells of no plan"):
        build_plan(toy.path, tmp_path / "out.plan", tensorrt, OPTIONS)
    assert (tmp_path / "out.json").read_text() == '{"precious": 1}'
    with pytest.raises(InputError, match=r"does not end in \.plan"):
        build_plan(toy.path, tmp_path / "out.engine", tensorrt, OPTIONS)
    with pytest.raises(InputError, match="does not exist"):
        build_plan(toy.path, tmp_path / "none" / "out.plan", tensorrt, OPTIONS)
    (tmp_path / "x.onnx").write_bytes(b"something else")
    with pytest.raises(EngineError, match="not an ONNX file"):
        build_plan(tmp_path / "x.onnx", tmp_path / "out2.plan", tensorrt, OPTIONS)


def _run(capsys, *arguments) -> tuple[int, str, str]:
    code = main(["build", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_the_command(rtx, toy, tmp_path, capsys):
    code, out, _ = _run(capsys, toy.path, "--compute-capability", "sm89, SM120", "--max-batch", 6)
    assert code == 0
    plan = tmp_path / "toy.plan"
    assert f"{plan}: toy" in out
    assert "for SM89, SM120; fp32, 1 to 6 images a run, tuned for 4" in out
    before = plan.read_bytes()
    code, out, _ = _run(capsys, toy.path, "-o", plan, "--compute-capability", "SM89,SM120", "--max-batch", 6)
    assert (code, plan.read_bytes()) == (0, before)
    assert "is up to date" in out
    code, out, _ = _run(capsys, toy.path, "--max-batch", 1, "--json")
    assert code == 0
    assert json.loads(out)["batch"] == [1, 1, 1]
    assert read_plan_info(plan).capabilities[0] == "SM80"  # all that it knows, where none is asked for


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max-batch", "0"], "--max-batch is 0"),
        (["--min-batch", "5", "--max-batch", "4"], "give none below the one before"),
        (["--opt-batch", "4", "--max-batch", "2"], "give none below the one before"),
        (["--max-classes", "50"], "toy.onnx has classes of its own; leave it out"),
        (["--workspace", "0"], "--workspace is 0"),
        (["--compute-capability", "8.9"], "is not a list such as"),
        (["--compute-capability", "SM90"], "does not build for SM90; choose among SM75"),
        (["--timing-cache", "x"], "leave the timing cache out"),
        (["--version-compatible"], "no version-compatible plans"),
        (["-o", "x.engine"], "does not end in .plan"),
    ],
)
def test_mistakes(rtx, toy, capsys, arguments, says):
    code, out, error = _run(capsys, toy.path, "--runtime", "tensorrt-rtx", *arguments)
    assert (code, out) == (2, "")
    assert error.startswith("finercam: ")
    assert error.count("\n") == 1
    assert says in error


def test_which_runtime(monkeypatch):
    installed, here = set(), None
    monkeypatch.setattr(library, "is_installed", lambda flavour: flavour in installed)
    monkeypatch.setattr(library, "compute_capability", lambda device=0: here)
    monkeypatch.setattr(library, "import_flavour", lambda flavour: library.Library(flavour, "1", None))
    with pytest.raises(BackendError, match="no TensorRT is installed"):
        library.load_library("auto")
    installed = {"tensorrt"}
    with pytest.raises(BackendError, match="needs the GPU that it builds for"):
        library.load_library("auto")
    here = "SM90"
    assert library.load_library("auto").flavour == "tensorrt"
    with pytest.raises(BackendError, match="for the GPU of this machine alone"):
        library.load_library("auto", cross=True)
    installed = {"tensorrt", "tensorrt-rtx"}
    assert library.load_library("auto").flavour == "tensorrt"
    assert library.load_library("auto", cross=True).flavour == "tensorrt-rtx"
    here = None
    assert library.load_library("auto").flavour == "tensorrt-rtx"
    with pytest.raises(BackendError, match="there is no runtime 'cuda'"):
        library.load_library("cuda")


def test_a_library_that_is_missing_broken_or_old(monkeypatch):
    with pytest.raises(BackendError, match=r"tensorrt is not installed; install it"):
        library.import_flavour("tensorrt")
    monkeypatch.setattr(library, "can_be_imported", lambda name: True)

    def broken(name: str) -> None:
        raise OSError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(library.importlib, "import_module", broken)
    with pytest.raises(BackendError, match=r"does not load \(libnvinfer\.so\.11: cannot open"):
        library.import_flavour("tensorrt")
    for version in ("8.6.1", "10.0.1"):
        old = type("Old", (), {"__version__": version})
        monkeypatch.setattr(library.importlib, "import_module", lambda name, old=old: old)
        with pytest.raises(BackendError, match=rf"tensorrt {re.escape(version)} is older than 10\.1"):
            library.import_flavour("tensorrt")


def test_a_zero_shot_engine(tensorrt, make_toy, tmp_path):
    toy = make_toy(zero_shot=True)
    info = build_plan(toy.path, tmp_path / "out.plan", tensorrt, OPTIONS).info
    assert info.classes == (2, 10, 20)
