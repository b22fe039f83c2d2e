"""A plan that is damaged, foreign or built for something else is refused before any library sees it."""

from __future__ import annotations

import json

import pytest

from finercam_rt import Engine
from finercam_rt.cli.main import main
from finercam_rt.errors import BackendError, EngineError
from finercam_rt.tensorrt import library
from finercam_rt.tensorrt.build import build_plan
from finercam_rt.tensorrt.builder import BuildOptions
from finercam_rt.tensorrt.library import Library
from finercam_rt.tensorrt.plan import read_plan_info
from finercam_rt.tensorrt.serve import serve

from ..fakes.tensorrt import PLAN


@pytest.fixture
def plan(tensorrt, toy, tmp_path, monkeypatch):
    """A plan of the fake, for a GPU of SM90, with the fake as what is installed."""
    path = tmp_path / "toy.plan"
    build_plan(toy.path, path, tensorrt, BuildOptions((1, 2, 8), (2, 10, 20), ("SM90",)))
    monkeypatch.setattr(library, "import_flavour", lambda flavour: Library(flavour, tensorrt.version, tensorrt.module))
    return path


def _rewrite(plan, **changes) -> None:
    sidecar = plan.with_suffix(".json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | changes))


def _refused(plan, error, says) -> None:
    with pytest.raises(error) as caught:
        serve(plan)
    text = str(caught.value)
    assert says in text
    assert "\n" not in text
    assert text.endswith(".")
    assert str(plan.parent) in text


def test_a_plan_that_fits(plan):
    served = serve(plan)
    assert served.data == PLAN
    assert served.info == read_plan_info(plan)
    assert served.library.flavour == "tensorrt"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is truncated, 0 of 18 bytes; copy it or build it again"),
        (PLAN[:-1], "is truncated, 17 of 18 bytes"),
        (PLAN[:-1] + b"!", "is not the plan that toy.json tells of, or it has been changed"),
        (PLAN + b"!", "is not the plan that toy.json tells of"),
        (b"\x08\x0a" + PLAN, "is not the plan that toy.json tells of"),
    ],
)
def test_a_damaged_or_foreign_plan(plan, content, says):
    plan.write_bytes(content)
    _refused(plan, EngineError, says)


def test_a_tampered_hash(plan):
    _rewrite(plan, plan_sha256="0" * 64)
    _refused(plan, EngineError, "is not the plan that toy.json tells of")


@pytest.mark.parametrize(
    ("sidecar", "says"),
    [
        (None, "has no toy.json beside it, which says what it is; copy that too, or build the plan"),
        ("{", "toy.json is not valid JSON; build the plan again"),
        ("[]", "does not tell of a plan"),
        ('{"schema": 1}', "does not tell of a plan"),
        ('{"schema": 99, "plan_sha256": ""}', "has schema 99, newer than the 1 that this finercam_rt reads; upgrade"),
        ('{"schema": 1, "plan_sha256": "", "manifest": {"schema": 1}}', "its manifest is damaged"),
        (b"\xff\xfe", "is damaged; build the plan again"),
    ],
)
def test_a_sidecar_that_is_missing_or_damaged(plan, sidecar, says):
    file = plan.with_suffix(".json")
    if sidecar is None:
        file.unlink()
    else:
        file.write_bytes(sidecar if isinstance(sidecar, bytes) else sidecar.encode())
    _refused(plan, EngineError, says)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch": [4, 2, 8]}, "is damaged (a range of 4, 2, 8)"),
        ({"plan_bytes": None}, "is damaged"),
        ({"flavour": "tensorrt-lean"}, "its runtime is 'tensorrt-lean', which this version does not know"),
    ],
)
def test_a_sidecar_that_makes_no_sense(plan, changes, says):
    _rewrite(plan, **changes)
    _refused(plan, EngineError, says)


def test_no_plan(plan, tmp_path):
    _refused(tmp_path / "none.plan", EngineError, "no such file; give the .plan file")
    (tmp_path / "folder.plan").mkdir()
    _refused(tmp_path / "folder.plan", EngineError, "is a folder")


@pytest.mark.parametrize(
    ("built", "options", "fits"),
    [
        ("11.4.0.1", {}, True),  # another build of one version
        ("11.3.0.106", {}, False),
        ("11.5.0", {}, False),
        ("10.13.0.35", {}, False),
        ("10.13.0.35", {"version_compatible": True}, True),
        ("11.5.0", {"version_compatible": True}, False),
    ],
)
def test_the_version_of_the_library(plan, built, options, fits):
    _rewrite(plan, version=built, options=options)
    if fits:
        assert serve(plan).data == PLAN
    else:
        _refused(plan, BackendError, f"was built by tensorrt {built}, and 11.4.0.106 is installed; build it again")


def test_another_gpu_or_none(plan, monkeypatch):
    monkeypatch.setattr(library, "compute_capability", lambda device=0: "SM120")
    _refused(plan, BackendError, "was built for SM90, and this GPU is SM120; build it again on this machine.")
    _rewrite(plan, flavour="tensorrt-rtx", capabilities=["SM86", "SM89"])
    _refused(
        plan, BackendError, "for SM86, SM89, and this GPU is SM120; build it again with --compute-capability SM120."
    )
    monkeypatch.setattr(library, "compute_capability", lambda device=0: None)
    _refused(plan, BackendError, "runs on an NVIDIA GPU, and there is none here")


def test_a_library_that_is_not_installed(plan, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(BackendError, match="tensorrt is not installed; install it with"):
        serve(plan)


def test_inspect_says_whether_it_fits(plan, capsys, monkeypatch):
    assert main(["inspect", str(plan)]) == 0
    out = capsys.readouterr().out
    assert "by tensorrt 11.4.0.106 for SM90" in out
    assert "1 to 8 images, tuned for 2" in out
    assert "4, 2 for the explanation alone" in out
    assert out.rstrip().endswith("yes")
    monkeypatch.setattr(library, "compute_capability", lambda device=0: None)
    assert main(["inspect", str(plan)]) == 0
    assert "no: " in capsys.readouterr().out
    assert main(["inspect", str(plan), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["name"] == "toy"
    plan.write_bytes(PLAN[:5])
    assert main(["inspect", str(plan)]) == 2
    assert "is truncated, 5 of" in capsys.readouterr().err


def test_an_engine_says_what_a_plan_lacks(plan, monkeypatch):
    with pytest.raises(BackendError, match="there is no CUDA device here"):  # the plan itself would fit
        Engine(plan)
    monkeypatch.setattr(library, "compute_capability", lambda device=0: None)
    with pytest.raises(BackendError, match="runs on an NVIDIA GPU, and there is none here"):
        Engine(plan)
