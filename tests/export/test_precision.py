"""Trunks in fp16, bf16 and int8: what is reduced and what is not, how near fp32 it stays, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from finercam_rt.cli.main import main
from finercam_rt.engine import Engine
from finercam_rt.errors import BackendError, ExportError, InputError
from finercam_rt.export import export_model
from finercam_rt.export.gate import LEAST, run_modules
from finercam_rt.export.precision import with_precision
from finercam_rt.manifest import INT8, InputSpec, Manifest

from .conftest import Exported
from .oracle import Oracle, has_evidence

SIZE = (64, 64)
SPEC = InputSpec(SIZE, (0.5,) * 3, (0.25,) * 3, crop_pct=1.0)
HALVES = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
REDUCED = ("fp16", "bf16", *INT8)


class Residual(nn.Module):
    """Convolutions, batch norm, clipping, an addition and a pooling: what a convolutional trunk is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.inner = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU6(), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        )
        self.down = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(24, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(self.down(x + self.inner(x)).mean((2, 3)))


def _vit() -> nn.Module:
    return timm.models.VisionTransformer(img_size=64, patch_size=8, embed_dim=48, depth=2, num_heads=4, num_classes=7)


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {"cnn": (Residual, "down"), "vit": (_vit, "blocks.1.norm1")}


def _photographs(count: int, seed: int) -> list[np.ndarray]:
    """Smooth colours, since what comes out of a camera is no noise."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
    return [np.asarray(Image.fromarray(image).resize(SIZE, Image.Resampling.BICUBIC)) for image in small]


def _model(name: str) -> tuple[nn.Module, str]:
    torch.manual_seed(5)
    make, layer = MODELS[name]
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval(), layer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, Manifest]]:
    """`made(model, precision)`: an engine and its manifest, exported once."""
    folder = tmp_path_factory.mktemp("precision")
    found: dict[tuple[str, str], tuple[Path, Manifest]] = {}

    def make(name: str, precision: str) -> tuple[Path, Manifest]:
        if (name, precision) not in found:
            model, layer = _model(name)
            path = folder / f"{name}-{precision}.onnx"
            manifest = export_model(
                model, path, target_layer=layer, input=SPEC, precision=precision, calibration=_photographs(24, 1)
            )
            found[name, precision] = path, manifest
        return found[name, precision]

    return make


def _part(model: Any, prefix: str) -> list[Any]:
    return [node for node in model.graph.node if node.name.startswith(prefix)]


def _types(model: Any) -> dict[str, int]:
    """The element type of every value of the graph."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    return {v.name: v.type.tensor_type.elem_type for v in values} | {v.name: v.data_type for v in graph.initializer}


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("name", MODELS)
def test_a_half_precision_ends_at_the_target_layer(made: Any, name: str, precision: str) -> None:
    path, manifest = made(name, precision)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    half, types = HALVES[precision], _types(model)
    assert manifest.precision == precision
    assert len(_part(model, "trunk/")) + len(_part(model, "tail/")) == len(model.graph.node)
    weighty = [n for n in _part(model, "trunk/") if n.op_type in ("Conv", "MatMul", "Gemm", "LayerNormalization")]
    assert len(weighty) >= 4
    for node in weighty:
        assert {types[name] for name in (*node.input, *node.output)} == {half}, node.name
    tail = {name for node in _part(model, "tail/") for name in (*node.input, *node.output) if name}
    assert tail <= set(types)
    assert not {name for name in tail if types[name] in HALVES.values()}


@pytest.mark.parametrize(("name", "quantised", "left"), [("cnn", 4, set()), ("vit", 4, {"Conv", "MatMul"})])
def test_int8_ends_at_the_target_layer(made: Any, name: str, quantised: int, left: set[str]) -> None:
    """In the CNN all convolutions, in the ViT the linear layers of a block, not its patches and its attention."""
    path, manifest = made(name, "int8")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    producer = {name: node for node in model.graph.node for name in node.output}

    def dequantised(name: str) -> bool:
        return name in producer and producer[name].op_type == "DequantizeLinear"

    weighty = [n for n in _part(model, "trunk/") if n.op_type in ("Conv", "MatMul", "Gemm")]
    reduced = [n for n in weighty if all(dequantised(name) for name in n.input)]
    assert len(reduced) == quantised
    assert {n.op_type for n in weighty if n not in reduced} == left
    assert f"int8 in {quantised} of the trunk's {len(weighty)}" in manifest.passes[-1]
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert node.name.startswith("trunk/")
    initializers = {value.name: value.data_type for value in model.graph.initializer}
    read = [name for node in _part(model, "tail/") for name in node.input if name in initializers]
    assert {onnx.TensorProto.INT8, onnx.TensorProto.UINT8} <= set(initializers.values())
    integers = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT32}
    assert not {initializers[name] for name in read} & integers
    weights = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in initializers]
    assert all(dict(model_zero(model, n)) == {"zero": True} for n in weights)
    assert {p.key for p in model.metadata_props} == {"finercam"}


@pytest.mark.parametrize(("name", "quantised", "left"), [("cnn", 3, 1), ("vit", 4, 3)])
def test_symmetric_int8_is_what_tensorrt_takes(made: Any, name: str, quantised: int, left: int) -> None:
    """Signed, all zero points 0, biases in float32; depthwise convolutions, patches and attention are not rounded."""
    path, manifest = made(name, "int8-symmetric")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    producer = {value: node for node in model.graph.node for value in node.output}
    values = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer}
    assert {array.dtype.name for array in values.values()} <= {"float32", "int8", "int64", "bool"}
    rounding = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in rounding:
        assert node.name.startswith("trunk/")
        assert node.metadata_props  # the line of the model it comes from
        assert not values[node.input[2]].any()
        assert (values[node.input[1]] > 0).all()
    weighty = [n for n in _part(model, "trunk/") if n.op_type in ("Conv", "MatMul", "Gemm")]
    reduced = [n for n in weighty if producer.get(n.input[1], n).op_type == "DequantizeLinear"]
    assert (len(reduced), len(weighty) - len(reduced)) == (quantised, left)
    assert all(producer[n.input[0]].op_type == "DequantizeLinear" for n in reduced)
    assert all(values[producer[n.input[1]].input[0]].shape[1] > 1 for n in reduced if n.op_type == "Conv")
    assert f"int8 with zero points 0 in {quantised} of the trunk's {len(weighty)}" in manifest.passes[-1]
    used = {value for node in model.graph.node for value in node.input}
    assert set(values) <= used  # the float32 weights are gone


def model_zero(model: Any, node: Any) -> list[tuple[str, bool]]:
    """Whether a dequantised weight has the zero point 0 everywhere."""
    values = {v.name: onnx.numpy_helper.to_array(v) for v in model.graph.initializer}
    return [("zero", len(node.input) < 3 or not values[node.input[2]].any())]


@pytest.mark.parametrize("precision", ["fp16", *INT8])
@pytest.mark.parametrize("name", MODELS)
def test_a_reduced_engine_stays_near_the_model(made: Any, name: str, precision: str) -> None:
    """On photographs that it was not calibrated on, against PyTorch in float32."""
    path, manifest = made(name, precision)
    model, layer = _model(name)
    photographs = _photographs(12, 9)
    with Engine(path, threads=1) as engine:
        got = engine.explain(photographs)
    images = torch.from_numpy((np.stack(photographs) / 255 - 0.5) / 0.25).float().permute(0, 3, 1, 2)
    spec = manifest.layers[0]
    oracle = Oracle(model, layer, images, spec.prefix_tokens)
    error = np.abs(got.logits - oracle.logits).max() / np.abs(oracle.logits).max()
    assert 1e-5 < error < (3e-3 if precision == "fp16" else 0.1)  # near the model, but not fp32
    wanted = oracle.explain(
        spec.grid,
        spec.layout,
        target=got.target.tolist(),
        references=got.references.tolist(),
        alpha=got.alpha.tolist(),
        objective="weighted",
    )
    cosines = [
        float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))
        for a, b, some in zip(got.saliency_map, wanted.raw, has_evidence(wanted), strict=True)
        if some and a.any()
    ]
    assert len(cosines) >= 6
    assert np.mean(cosines) > (0.999 if precision == "fp16" else 0.97)


@pytest.mark.parametrize("precision", REDUCED)
@pytest.mark.parametrize("name", MODELS)
def test_the_manifest_says_what_was_compared(made: Any, name: str, precision: str) -> None:
    measured = made(name, precision)[1].verification["precision"]
    assert measured["images"] == ("8 photographs" if precision in INT8 else "24 photographs")
    assert measured.get("calibration_photographs") == (16 if precision in INT8 else None)
    assert measured["computed_by"] == ("the same arithmetic in PyTorch" if precision == "bf16" else "ONNX Runtime")
    assert measured["maps_compared"] > 0
    assert all(measured[key] >= least for key, least in LEAST.items())
    assert 0 < measured["logit_error"] < {"fp16": 2e-3, "bf16": 2e-2}.get(precision, 0.1)
    assert "below_threshold" not in measured


def test_a_bf16_engine_is_refused_where_nothing_computes_it(made: Any) -> None:
    path, manifest = made("cnn", "bf16")
    assert manifest.opset == 22  # the first with convolutions in bf16
    with pytest.raises(BackendError, match=r"trunk is in bf16, which ONNX Runtime does not compute .* or int8\.$"):
        Engine(path, backend="onnxruntime")


def test_a_trunk_in_half_precision_keeps_its_conversions_and_its_source() -> None:
    """float() in a model is there for a reason: what it makes stays float32 until it meets half precision again."""

    source, conv = nn.Module(), nn.Conv2d(3, 4, 3).requires_grad_(False)
    source.register_buffer("weight", conv.weight.data)  # flat buffers, as `cut` makes them
    source.register_buffer("bias", conv.bias.data)
    graph = torch.fx.Graph()
    call, aten = graph.call_function, torch.ops.aten
    images = graph.placeholder("images")
    convolved = call(aten.conv2d.default, (images, graph.get_attr("weight"), graph.get_attr("bias")))
    exact = call(aten.to.dtype, (convolved, torch.float32))
    square = call(aten.mul.Tensor, (exact, exact))
    graph.output((call(aten.mul.Tensor, (convolved, square)), square))
    body = torch.fx.GraphModule(source, graph)
    images = torch.randn(2, 3, 8, 8)
    FakeTensorProp(body, FakeTensorMode(allow_non_fake_inputs=True)).propagate(images)
    product, square = with_precision(body, "fp16")(images)
    assert product.dtype == square.dtype == torch.float32
    convolved = torch.nn.functional.conv2d(images.half(), source.weight.half(), source.bias.half())
    assert torch.equal(square, convolved.float().square())
    assert torch.equal(product, (convolved * convolved.float().square().half()).float())
    assert source.weight.dtype == body.weight.dtype == torch.float32


def test_the_gate_keeps_a_bad_engine_from_disk_unless_forced(tmp_path: Path) -> None:
    """Ranges taken from black photographs cut off all that makes a real one."""
    model, layer = _model("cnn")
    path = tmp_path / "bad.onnx"
    images = torch.randn(6, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    black = [np.full((*SIZE, 3), 127, np.uint8)] * 8
    arguments: Any = {"target_layer": layer, "input": SPEC, "precision": "int8", "calibration": black, "images": images}
    with pytest.raises(ExportError, match=r"differs from its fp32 twin on the 6 images given: .*--force\.$") as caught:
        export_model(model, path, **arguments)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    manifest = export_model(model, path, force=True, **arguments)
    measured = manifest.verification["precision"]
    assert measured["below_threshold"]
    assert measured["logit_error"] > 0.15
    assert [file.name for file in tmp_path.iterdir()] == ["bad.onnx"]
    with Engine(path) as engine:
        assert engine.manifest.verification["precision"]["below_threshold"] == measured["below_threshold"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "int4"}, "precision 'int4' is unknown; give one of fp32, fp16, bf16, int8, int8-symmetric."),
        ({"precision": "int8"}, "at least 8, and 0 were given; give a folder of typical ones with --calibration."),
        ({"precision": "int8", "calibration": _photographs(7, 0)}, "and 7 were given"),
        ({"precision": "int8-symmetric"}, "at least 8, and 0 were given"),
        ({"precision": "int8", "check": "tensorrt"}, "which TensorRT does not take; give int8-symmetric, or no check."),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    model, layer = _model("cnn")
    with pytest.raises(ExportError) as caught:
        export_model(model, tmp_path / "x.onnx", target_layer=layer, input=SPEC, **arguments)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_photograph_is_named_before_the_layer_is_looked_for(tmp_path: Path) -> None:
    model, layer = _model("cnn")
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not an image")
    stages: list[str] = []
    with pytest.raises(InputError, match=r"bad\.jpg is not an image"):
        export_model(
            model,
            tmp_path / "x.onnx",
            target_layer=layer,
            input=SPEC,
            precision="int8",
            calibration=[*_photographs(8, 0), bad],
            on_stage=stages.append,
        )
    assert stages == ["finding the target layer"]  # which begins with the channels that photographs are read in


def test_the_command_refuses_what_does_not_belong_together(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], photographs: list[Path]
) -> None:
    command = ["export", "timm:resnet18", "--random-weights", "-o", str(tmp_path / "x.onnx")]
    for more, message in (
        (["--calibration", str(photographs[0])], "--calibration belongs to a reduced --precision"),
        (["--pool", "cls"], "--pool says what a --linear-head reads"),
        (["--precision", "int8", "--calibration", str(tmp_path / "none")], "no such file"),
        (["--precision", "int8", "--calibration", str(tmp_path)], "there is no image in this folder"),
    ):
        assert main([*command, *more]) == 2
        error = capfd.readouterr().err.splitlines()
        assert error[-1].startswith("finercam: ")
        assert message in error[-1]
        assert list(tmp_path.iterdir()) == []


@pytest.mark.assets
@pytest.mark.parametrize("precision", INT8)
def test_real_birds_in_int8(
    birds: Exported, assets: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], precision: str
) -> None:
    """By the command: calibrated on photographs 1, compared on photographs 5, which it has not seen."""
    path, folder = tmp_path / "int8.onnx", assets / "birds47"  # a name that must not meet one of ours
    half = str(128 / 255)
    command = ["export", "timm:mobilenetv2_100", "-o", path, "--model-arg", "pad_type=same"]
    command += ["--checkpoint", assets / "mobilenetv2_100_inat_birds965.pth"]
    command += ["--classes", assets / "inat_bird_labels.txt", "--crop-pct", "1", "--input-size", "224"]
    command += ["--mean", half, half, half, "--std", half, half, half]
    command += ["--precision", precision, "--calibration", *sorted(folder.glob("*/1.jpg"))]
    assert main([*map(str, command)]) == 0
    printed = capfd.readouterr().out
    assert f"{precision} against fp32 on 15 photographs: cosine 0.9" in printed, printed
    assert path.stat().st_size < 0.6 * birds.path.stat().st_size
    least = ["--min-cosine", "0.985", "--min-spearman", "0.94", "--min-top-overlap", "0.9"]
    least += ["--min-class-agreement", "0.95"]
    images = [str(file) for file in sorted(folder.glob("*/5.jpg"))]
    assert main(["compare", str(birds.path), str(path), "--images", *images, *least]) == 0
    assert main(["inspect", str(path)]) == 0
    shown = capfd.readouterr().out
    assert f"{precision}, opset 20" in shown
    assert "precision.images: 15 photographs" in shown


def test_the_arithmetic_in_pytorch_is_that_of_the_file(made: Any) -> None:
    """What stands for bf16's verification, held against ONNX Runtime where both exist: in fp16."""
    from finercam_rt.export.capture import capture
    from finercam_rt.export.cut import cut
    from finercam_rt.export.fold import fold_batch_norms
    from finercam_rt.export.vjp import Request, explained_tail

    model, layer = _model("cnn")
    path, manifest = made("cnn", "fp16")
    example = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(2))
    split = cut(fold_batch_norms(capture(model, [layer], example))[0])
    tail = explained_tail(split, manifest.layers, Request("gradcam", "weighted", 3)).graph_module
    feeds = {
        "images": example.numpy(),
        "target": np.full(3, -1),
        "references": np.full((3, 3), -1),
        "alpha": np.ones(3, np.float32),
    }
    got = run_modules(with_precision(split.trunk, "fp16"), tail, manifest)(feeds)
    with Engine(path) as engine:
        wanted = engine(example.numpy(), alpha=1.0)
    assert np.array_equal(got["target_class"], wanted.target)
    assert got["logits"] == pytest.approx(wanted.logits, abs=2e-3 * float(np.abs(wanted.logits).max()))
    for a, b in zip(got["saliency_map"], wanted.saliency_map, strict=True):
        assert (a * b).sum() > 0.999 * np.linalg.norm(a) * np.linalg.norm(b)
