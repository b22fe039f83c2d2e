"""Libraries that are missing, and libraries that are there and do not load."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from finercam_rt import BackendError, Engine
from finercam_rt.cli.export import import_export
from finercam_rt.errors import ExportError
from finercam_rt.packages import import_package


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`install(name, source)`: the package of that name is this one module, not imported yet."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(name: str, source: str) -> None:
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(source)

    return put


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            'raise ImportError("libcublas.so.12: cannot open shared object file.")',
            "libcublas.so.12: cannot open shared",
        ),
        ('raise OSError("[WinError 127] a procedure was not found")', r"\[WinError 127\] a procedure"),
        ('raise RuntimeError("module compiled against\\nABI version 2")', "module compiled against ABI version 2"),
        ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
    ],
)
def test_one_that_is_broken_says_so(install, source, says):
    install("library_of_a_test", source)
    with pytest.raises(BackendError, match=rf"^A library is installed and does not load \({says}.*\); get it anew\.$"):
        import_package("library_of_a_test", "A library", "get it")


def test_one_that_is_missing_says_so():
    with pytest.raises(BackendError, match=r"^A library is not installed; get it\.$"):
        import_package("library_of_no_test", "A library", "get it")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_backends_that_are_broken(toy, install, backend):
    install(backend, 'raise ImportError("libgomp.so.1: cannot open shared object file")')
    with pytest.raises(BackendError, match=r"is installed and does not load \(libgomp\.so\.1.*finercam-rt\["):
        Engine(toy.path, backend=backend)


def test_an_export_stage_that_is_broken(install, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("finercam_rt.export")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("finercam_rt.export", raising=False)
    install("torch", 'raise ImportError("libtorch.so: undefined symbol: a")')
    with pytest.raises(ExportError, match=r"a library that does not load \(libtorch\.so: undefined symbol: a\)"):
        import_export()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ExportError, match="exporting needs torch, which is not installed"):
        import_export()
