"""Each node of an engine says where in the model it comes from, and nothing of the machine that exported it."""

from __future__ import annotations

import pytest
import torch

from finercam_rt.export import export_model
from finercam_rt.export.sources import source_of
from finercam_rt.manifest import SOURCE_KEY, InputSpec
from finercam_rt.onnx_metadata import read_nodes

from .models import SmallCNN

onnx = pytest.importorskip("onnx")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nodes_know_their_lines(tmp_path, precision):
    torch.manual_seed(0)
    path = tmp_path / "small.onnx"
    input = InputSpec((32, 32), (0.5,) * 3, (0.5,) * 3)
    export_model(SmallCNN().eval(), path, target_layer="features", input=input, precision=precision, force=True)
    found = {}
    graph = onnx.load(path).graph
    assert {"stem_weight", "features_1_weight"} <= {weight.name for weight in graph.initializer}
    for node, read in zip(graph.node, read_nodes(path), strict=True):
        sources = [entry.value for entry in node.metadata_props if entry.key == SOURCE_KEY]
        assert len(sources) == 1, node.name
        assert read == (node.name, node.op_type, sources[0])
        found.setdefault((node.name.split("/")[0], node.op_type), []).append(sources[0])
    first, second = found["trunk", "Conv"]
    assert first.startswith("stem (")
    assert second.startswith("features.1 (")
    assert "models.py, line " in first
    assert found["tail", "TopK"] == ["behind the target layer"]
    text = path.read_bytes()
    assert str(tmp_path).encode() not in text
    assert b"site-packages" not in text


def test_lines_of_others_are_left_out():
    stack = f'File "/somewhere/birds.py", line 3, in forward\n  x\nFile "{torch.__file__}", line 5, in forward\n  y'
    traces = {"pkg.torch.onnx.stack_trace": stack, "pkg.torch.onnx.name_scopes": "['', 'layer1', 'relu']"}
    assert source_of(traces) == "layer1 (birds.py, line 3)"
    assert source_of({"pkg.torch.onnx.stack_trace": 'File "<eval_with_key>.3", line 1, in forward'}) == ""
    assert source_of({}) == ""
