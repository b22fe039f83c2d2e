"""The engine file: graph interface and manifest as DESIGN section 3 has them, and nothing that is out of place."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from finercam_rt.engine import Engine
from finercam_rt.export import export_model
from finercam_rt.manifest import METADATA_KEY, InputSpec, Manifest, from_json
from finercam_rt.onnx_metadata import read_manifest

from .forbidden import forbidden
from .models import Pooled, SmallCNN
from .oracle import RELATIVE_L2, Oracle, noise, perturb, relative_l2

SIZE = (48, 64)
SPEC = InputSpec(SIZE, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", 0.9, "center")


def _small(classes: int = 7, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return SmallCNN(classes=classes).eval()


def _export(model: nn.Module, path: Path, **options: Any) -> Manifest:
    return export_model(model, path, **{"input": SPEC, **options})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest, nn.Module]:
    path = tmp_path_factory.mktemp("graph") / "small.onnx"
    model = _small()
    names = [f"Vögel {i}" for i in range(7)]
    return path, _export(model, path, classes=names, name="small birds", references=3), model


def test_inputs_and_outputs(small: tuple[Path, Manifest, nn.Module]) -> None:
    graph = onnx.load(small[0]).graph

    def described(values: Any) -> list[tuple[Any, ...]]:
        dims = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values]
        return [
            (v.name, onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type), d)
            for v, d in zip(values, dims, strict=True)
        ]

    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert batch, "the batch is not dynamic"
    assert described(graph.input) == [
        ("images", "FLOAT", [batch, 3, 48, 64]),
        ("target", "INT64", [batch]),
        ("references", "INT64", [batch, 3]),
        ("alpha", "FLOAT", [batch]),
    ]
    assert described(graph.output) == [
        ("logits", "FLOAT", [batch, 7]),
        ("saliency_map", "FLOAT", [batch, 6, 8]),
        ("target_class", "INT64", [batch]),
        ("reference_classes", "INT64", [batch, 3]),
    ]


def test_any_onnx_runtime_can_run_it(small: tuple[Path, Manifest, nn.Module]) -> None:
    """The bare graph, without finercam_rt: batches of several sizes, and the rules of references in the graph."""
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx.checker.check_model(str(small[0]), full_check=True)
    session = onnxruntime.InferenceSession(small[0])
    oracle = Oracle(small[2], small[1].layers[0].name, noise(7, SIZE))
    for count in (1, 2, 7):
        feeds = {
            "images": noise(7, SIZE)[:count].numpy(),
            "target": np.full(count, 4),
            "references": np.tile([[4, 1, 1]], (count, 1)),
            "alpha": np.full(count, 0.6, np.float32),
        }
        logits, raw_map, target, references = session.run(None, feeds)
        np.testing.assert_allclose(logits, oracle.logits[:count], rtol=1e-4, atol=1e-5)
        assert target.tolist() == [4] * count
        assert references.tolist() == [[-2, 1, -2]] * count
        answer = oracle.explain(
            (6, 8), "nchw", target=[4] * 7, references=[[1]] * 7, alpha=[0.6] * 7, objective="weighted"
        ).rows(slice(0, count))
        assert relative_l2(raw_map, answer).max() <= RELATIVE_L2


def test_manifest(small: tuple[Path, Manifest, nn.Module]) -> None:
    path, manifest, model = small
    assert manifest.schema == 1
    assert manifest.model.name == "small birds"
    assert len(manifest.model.weights_sha256) == 64
    assert manifest.input == SPEC
    assert manifest.classes == tuple(f"Vögel {i}" for i in range(7))
    assert manifest.num_classes == 7
    (layer,) = manifest.layers
    assert layer.name in dict(model.named_modules())
    assert (layer.layout, layer.grid, layer.prefix_tokens) == ("nchw", (6, 8), 0)
    assert (manifest.method, manifest.objective, manifest.references) == ("gradcam", "weighted", 3)
    assert (manifest.contrasts, manifest.head, manifest.precision) == (1, "graph", "fp32")
    assert {entry.version for entry in onnx.load(path).opset_import if entry.domain == ""} == {manifest.opset}
    assert {"finercam-rt", "torch", "onnx", "python"} <= set(manifest.producer)
    assert manifest.producer["torch"] == torch.__version__.split("+")[0]
    assert 0 <= manifest.verification["map_relative_l2"] <= 1e-4
    assert 0 <= manifest.verification["logits_relative_max"] <= 1e-4
    assert manifest.verification["images"] == 5


def test_manifest_round_trip(small: tuple[Path, Manifest, nn.Module]) -> None:
    """The file, read by onnx and by our own reader without onnx, gives back what export_model returned."""
    path, manifest, _ = small
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert list(metadata) == [METADATA_KEY]
    assert from_json(metadata[METADATA_KEY], "test") == manifest
    assert read_manifest(path) == manifest
    with Engine(path) as engine:
        assert engine.manifest == manifest


def test_the_hash_is_of_the_weights_alone(tmp_path: Path) -> None:
    first = _export(_small(), tmp_path / "a.onnx", name="one")
    other = _small()
    same = _export(other, tmp_path / "b.onnx", name="two", objective="mean", references=1)
    assert first.model.weights_sha256 == same.model.weights_sha256
    with torch.no_grad():
        other.head.bias[3] += 1e-6
    assert _export(other, tmp_path / "c.onnx").model.weights_sha256 != first.model.weights_sha256


@pytest.mark.parametrize(("classes", "asked", "kept"), [(2, None, 1), (3, None, 2), (7, None, 3), (7, 6, 6), (7, 1, 1)])
def test_references_are_three_or_those_that_there_are(
    tmp_path: Path, classes: int, asked: int | None, kept: int
) -> None:
    model = _small(classes)
    manifest = _export(model, tmp_path / "few.onnx", references=asked)
    assert (manifest.references, manifest.num_classes) == (kept, classes)
    images = noise(3, SIZE)
    oracle = Oracle(model, manifest.layers[0].name, images)
    answer = oracle.explain((6, 8), "nchw", references=kept, alpha=[1.0] * 3, objective="weighted")
    with Engine(tmp_path / "few.onnx") as engine:
        got = engine(images.numpy(), alpha=1.0)
    assert got.references.tolist() == answer.references
    assert relative_l2(got.saliency_map, answer).max() <= RELATIVE_L2


@pytest.mark.parametrize("opset", [18, 19])
def test_other_opsets(tmp_path: Path, opset: int) -> None:
    """20, the default, is every other test's."""
    manifest = _export(_small(), tmp_path / "opset.onnx", opset=opset)
    assert manifest.opset == opset
    assert {e.version for e in onnx.load(tmp_path / "opset.onnx").opset_import if e.domain == ""} == {opset}


def test_no_path_of_this_machine_is_in_the_file(small: tuple[Path, Manifest, nn.Module]) -> None:
    content = small[0].read_bytes()
    for text in (
        str(Path.home()),
        os.getcwd(),
        sys.prefix,
        tempfile.gettempdir() + "/",
        str(Path(torch.__file__).parent.parent),
        str(small[0].parent),
        "site-packages",
        'File "',
        "stack_trace",
        "export/emit.py",
    ):
        assert text.encode() not in content, text


def test_pooling_in_the_tail_needs_no_indices(tmp_path: Path) -> None:
    """Autograd's own derivative of a maximum would scatter by indices; ours is compared in test_decompositions."""
    model = Pooled()
    model(torch.zeros(1, 3, *SIZE))
    export_model(perturb(model), tmp_path / "pooled.onnx", target_layer="layer", input=SPEC)
    assert "MaxPool" in {node.op_type for node in onnx.load(tmp_path / "pooled.onnx").graph.node}
    assert forbidden(tmp_path / "pooled.onnx") == []


def test_the_check_for_forbidden_operations_works(tmp_path: Path) -> None:
    helper, value = onnx.helper, onnx.helper.make_tensor_value_info
    nodes = [
        helper.make_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2]),
        helper.make_node("ScatterElements", ["x", "i", "y"], ["z"], reduction="add"),
    ]
    shape = [1, 1, 4, 4]
    outputs = [value("z", onnx.TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", [value("x", onnx.TensorProto.FLOAT, shape)], outputs)
    onnx.save(helper.make_model(graph), tmp_path / "x.onnx")
    assert len(forbidden(tmp_path / "x.onnx")) == 2


def test_the_model_is_left_as_it_was(small: tuple[Path, Manifest, nn.Module]) -> None:
    """No hook, no gradient, no changed weight: the fixture's model was exported, this one was not."""
    model, fresh = small[2], _small()
    for (key, value), other in zip(model.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
