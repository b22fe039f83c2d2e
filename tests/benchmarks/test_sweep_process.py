"""A case in a process of its own, however it ends, and the builder of TensorRT-RTX in another."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")

from sweep import process, rtx


@pytest.mark.parametrize(
    ("code", "ends"),
    [
        ("print('a'); print('b')", None),
        ("print('a'); print('b', flush=True); raise KeyError('missing')", "exit code 1: KeyError: 'missing'"),
        ("print('a'); print('b', flush=True); import os; os.abort()", "exit code -6"),
        ("print('a'); print('b', flush=True); import time; time.sleep(60)", "it ran out of time: more than 2 s"),
        ("print('a'); print('b', flush=True); x = bytearray(b'1' * (300 << 20)); input()", "MiB of memory"),
    ],
)
def test_a_process_may_end_in_any_way(
    code: str, ends: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "child.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    lines: list[str] = []
    limits = {"seconds": 2.0, "most_mib": 200.0, "stop": threading.Event()}
    reason = process.supervise("child", [], lambda line: lines.append(line.strip()), **limits)
    assert (reason is None) == (ends is None)
    assert ends is None or ends in str(reason)
    assert lines == ["a", "b"]


def test_a_sweep_that_is_stopped_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "child.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    stop = threading.Event()
    stop.set()
    assert process.supervise("child", [], print, seconds=60, most_mib=999, stop=stop) == "the sweep was stopped"


def test_without_the_builder_the_column_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_libs", None)
    assert rtx.build_status("x.onnx")["status"] == rtx.MISSING


def test_the_builder_builds_or_names_the_operation(toy: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    onnx = pytest.importorskip("onnx")
    found = rtx.build_status(str(toy.path))
    assert found["status"] == rtx.RIGHT
    assert found["bytes"] > 1000
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4])
    node = onnx.helper.make_node("Unique", ["x"], ["y"])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None])
    graph = onnx.helper.make_graph([node], "g", [value], [other])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "u.onnx")
    found = rtx.build_status(str(tmp_path / "u.onnx"))
    assert (found["status"], found["operation"]) == (rtx.REFUSED, "Unique")
