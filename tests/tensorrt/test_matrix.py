"""TensorRT-RTX parses and builds what the exporter writes: small models, for three generations of GPUs, without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finercam_rt.cli.export import summary
from finercam_rt.manifest import METHODS, InputSpec, LayerInfo, Manifest
from finercam_rt.tensorrt.builder import BuildOptions, Built, build
from finercam_rt.tensorrt.kernels import behind
from finercam_rt.tensorrt.library import Library

torch: Any = pytest.importorskip("torch", reason="the export needs PyTorch")
pytest.importorskip("onnx", reason="the export needs onnx")

CAPABILITIES = ("SM86", "SM89", "SM120")
DYNAMIC, STATIC = (1, 4, 16), (3, 3, 3)
CLASSES = (2, 10, 1000)
LINEAR_HEAD, TOKENS_HEAD, MEAN_HEAD = 6, 16, 23
"""The most kernels behind the logits, of a linear head, of a ViT, and of one whose head reads a mean."""
ADDED_LINEAR, ADDED_TOKENS, ADDED_MEAN = 8, 25, 26
"""The most kernels more than in the plain model's plan; the last of a ViT whose head reads a mean, one above the goal
in this small form."""


class Convolutions(torch.nn.Module):
    """ResNet's end: 7 x 7 positions, pooled, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 8, 8)
        self.features = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv2d(16, 512, 3, padding=1), torch.nn.ReLU())
        self.head = torch.nn.Linear(512, 1000)

    def forward(self, x: Any) -> Any:
        return self.head(self.features(self.stem(x)).mean((2, 3)))


class Tokens(torch.nn.Module):
    """A ViT of two blocks, whose head reads the first token, or the mean of the others."""

    def __init__(self, mean: bool = False) -> None:
        super().__init__()
        self.mean = mean
        self.patch = torch.nn.Conv2d(3, 32, 8, 8)
        self.first = torch.nn.Parameter(torch.randn(1, 1, 32))
        self.blocks = torch.nn.ModuleList(_Block() for _ in range(2))
        self.norm = torch.nn.LayerNorm(32)
        self.head = torch.nn.Linear(32, 40)

    def forward(self, x: Any) -> Any:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(x.shape[0], -1, -1), tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return self.head(tokens[:, 1:].mean(1) if self.mean else tokens[:, 0])


class _Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(32), torch.nn.LayerNorm(32)
        self.qkv, self.proj = torch.nn.Linear(32, 96), torch.nn.Linear(32, 32)
        self.mlp = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 32))

    def forward(self, x: Any) -> Any:
        n, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, length, 3, 2, 16).permute(2, 0, 3, 1, 4).unbind(0)
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class ChannelsLast(torch.nn.Module):
    """A stage of (N,h,w,C), as a Swin's, whose mean a linear head reads behind a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 24, 8, 8)
        self.stage = torch.nn.Sequential(torch.nn.LayerNorm(24), torch.nn.Linear(24, 24), torch.nn.GELU())
        self.norm, self.head = torch.nn.LayerNorm(24), torch.nn.Linear(24, 40)

    def forward(self, x: Any) -> Any:
        return self.head(self.norm(self.stage(self.stem(x).permute(0, 2, 3, 1))).mean((1, 2)))


def _zero_shot() -> Any:
    """A CLIP's image tower: its classes are an input of the graph."""
    from finercam_rt.export.zero_shot import ZeroShot

    model = Tokens()
    return ZeroShot(model, model, logit_scale=10.0, logit_bias=-1.0, image_tower=[n for n, _ in model.named_children()])


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "convolutions": (Convolutions, "features"),
    "tokens": (Tokens, "blocks.1.norm1"),
    "mean": (lambda: Tokens(mean=True), "blocks.1.norm1"),
    "nhwc": (ChannelsLast, "stage"),
    "zero-shot": (_zero_shot, "blocks.1.norm1"),
}
SPEC = InputSpec((56, 56), (0.5,) * 3, (0.5,) * 3)

CASES = {
    "convolutions fp32": {},
    "convolutions fp16, five contrasts": {"precision": "fp16", "contrasts": 5},
    "convolutions bf16, taps": {"precision": "bf16", "head": "taps"},
    "convolutions fp32, all taps of five contrasts": {"head": "taps", "gradients": True, "contrasts": 5},
    "tokens fp32": {},
    "tokens fp16": {"precision": "fp16"},
    "convolutions int8-symmetric, gradients of taps": {
        "precision": "int8-symmetric",
        "head": "taps",
        "gradients": True,
    },
    "tokens bf16": {"precision": "bf16"},
    "tokens fp16, taps of five contrasts": {"precision": "fp16", "head": "taps", "contrasts": 5},
    "tokens int8-symmetric": {"precision": "int8-symmetric"},
    "mean of tokens fp32": {},
    "nhwc bf16, layercam of five contrasts": {"precision": "bf16", "method": "layercam", "contrasts": 5},
    "zero-shot fp16, shares of the softmax": {"precision": "fp16", "objective": "softmax"},
}
ADDED = {
    "convolutions fp32": ADDED_LINEAR,
    "tokens fp32": ADDED_TOKENS,
    "tokens fp16": ADDED_TOKENS,
    "tokens int8-symmetric": ADDED_TOKENS,
    "tokens bf16": ADDED_TOKENS,
    "mean of tokens fp32": ADDED_MEAN,
}
"""The cases that are checked with TensorRT when they are exported, which counts their kernels."""
EIGEN = {
    "tokens": {"eigencam": 1, "gradcam-eigen": 5, "layercam-eigen": 1},
    "nchw": {"eigengradcam": 5, "gradcam++-eigen": 1},
    "nhwc": {"xgradcam-eigen": 1, "gradcamelementwise-eigen": 5},
}
"""They share what is behind their terms, and take a second each to export: each in one layout, of so many contrasts."""
PHOTOGRAPHS = [np.random.default_rng(seed).integers(0, 256, (56, 56, 3), np.uint8) for seed in range(12)]


def _model(name: str) -> tuple[Any, str]:
    torch.manual_seed(0)
    kind, layer = MODELS[name.split(" ")[0]]
    return kind().eval(), layer


@pytest.fixture(scope="module")
def exported(rtx: Library, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Manifest]]:
    """Each case, exported once; those of ADDED checked with TensorRT."""
    from finercam_rt.export import export_model

    made: dict[str, tuple[Path, Manifest]] = {}

    def export(name: str) -> tuple[Path, Manifest]:
        if name not in made:
            model, layer = _model(name)
            path = tmp_path_factory.mktemp("engines") / "engine.onnx"
            options: dict[str, Any] = CASES[name]
            # noise is no photograph: what a reduced precision does to its maps is another test's subject
            force = {"force": True} if "precision" in options else {}
            if options.get("precision") == "int8-symmetric":
                force["calibration"] = PHOTOGRAPHS
            check = "tensorrt" if name in ADDED else None
            made[name] = (
                path,
                export_model(model, path, target_layer=layer, input=SPEC, check=check, **options, **force),
            )
        return made[name]

    return export


def _built(path: Path, rtx: Library, batch: tuple[int, int, int], capabilities: tuple[str, ...]) -> Built:
    return build(path, rtx, BuildOptions(batch=batch, classes=CLASSES, capabilities=capabilities))


def _plain(folder: Path, name: str) -> Path:
    """The model alone."""
    model, _ = _model(name)
    path = folder / "plain.onnx"
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    example = torch.zeros(2, 3, *SPEC.size)
    torch.onnx.export(
        model,
        (example,),
        path,
        dynamo=True,
        verbose=False,
        dynamic_shapes=(batch,),
        input_names=["images"],
        output_names=["logits"],
        external_data=False,
    )
    return path


def _predicting(folder: Path, engine: Path) -> Path:
    """The part of an engine that predicts."""
    import onnx

    path = folder / "predicting.onnx"
    onnx.utils.extract_model(str(engine), str(path), ["images"], ["logits"])
    return path


@pytest.mark.parametrize("name", CASES)
def test_it_builds(rtx, exported, name):
    path, manifest = exported(name)
    static, *others = CAPABILITIES
    built = _built(path, rtx, STATIC, (static,))
    assert len(built.plan) > 1000
    built = _built(path, rtx, DYNAMIC, tuple(others))
    assert len(built.plan) > 1000
    assert len(built.kernels) > len(behind(built.kernels, "logits")) > 0
    written = {name for kernel in built.kernels for name in kernel.outputs}
    assert set(manifest.outputs) <= written


@pytest.mark.parametrize(("name", "most"), ADDED.items())
def test_kernels_that_the_explanation_adds(rtx, exported, tmp_path, name, most):
    path, manifest = exported(name)
    found = manifest.verification["tensorrt"]
    assert found["runtime"] == f"tensorrt-rtx {rtx.version}"
    alone = _plain(tmp_path, name) if manifest.precision == "fp32" else _predicting(tmp_path, path)
    plain = _built(alone, rtx, DYNAMIC, ("SM89",))
    whole = _built(path, rtx, DYNAMIC, ("SM89",))
    assert behind(plain.kernels, "logits") == ()
    assert 0 < len(whole.kernels) - len(plain.kernels) <= most
    assert found["kernels"] == len(whole.kernels)
    assert found["kernels_behind_logits"] == len(behind(whole.kernels, "logits"))
    said = f"{found['kernels']} kernels, {found['kernels_behind_logits']} of them for the explanation alone"
    assert said in summary(manifest, path, 1.0)
    heads = {"convolutions": LINEAR_HEAD, "tokens": TOKENS_HEAD, "mean": MEAN_HEAD}
    assert found["kernels_behind_logits"] <= heads[name.split(" ")[0]]


@pytest.mark.parametrize("layout", EIGEN)
def test_every_method_builds_and_equals_eager(rtx, tmp_path, layout):
    """In one graph, from activations and gradients, as head "graph" makes them: one contrast and five."""
    import onnx_ir
    import onnxruntime

    from finercam_rt.export.emit import to_onnx
    from finercam_rt.export.method import raw_map

    layer = LayerInfo("layer", layout, (3, 5), 1 if layout == "tokens" else 0)
    maps = [(method, count) for method in METHODS if "eigen" not in method for count in (1, 5)]
    maps = [pair for pair in maps if pair != ("fem", 5)] + list(EIGEN[layout].items())  # FEM reads no gradients

    class Maps(torch.nn.Module):
        def forward(self, activations: Any, gradients: Any, five: Any) -> tuple[Any, ...]:
            return tuple(raw_map(activations, {1: gradients, 5: five}[count], layer, name) for name, count in maps)

    shape = layer.shape(8)
    inputs = torch.randn(2, *shape), torch.randn(2, *shape), torch.randn(2, 5, *shape)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    names = [f"{method}_{count}" for method, count in maps]
    program = torch.export.export(Maps(), inputs, dynamic_shapes=(batch,) * 3)
    model = to_onnx(program, ["activations", "gradients", "five"], names, 20, {"activations": "batch"})
    path = tmp_path / "maps.onnx"
    onnx_ir.save(model, path)
    built = _built(path, rtx, DYNAMIC, ("SM89",))
    assert set(names) <= {name for kernel in built.kernels for name in kernel.outputs}

    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(3, *value.shape[1:], generator=generator) for value in inputs]
    images[0] += 4 * torch.rand(3, *shape, generator=generator) + 4  # eigen methods need a first direction
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    got = session.run(names, {given.name: x.numpy() for given, x in zip(session.get_inputs(), images, strict=True)})
    for name, found, expected in zip(names, got, Maps()(*images), strict=True):
        assert expected.abs().max() > 0, name
        assert np.linalg.norm(found - expected.numpy()) <= 1e-4 * np.linalg.norm(expected.numpy()), name


def test_the_eigen_methods_are_all_there():
    assert {name for some in EIGEN.values() for name in some} == {name for name in METHODS if "eigen" in name}


@pytest.mark.usefixtures("rtx")
def test_the_derivative_of_a_convolution_with_a_stride_and_a_dilation(tmp_path):
    """TensorRT-RTX 1.7 ends in its compiler on a transposed convolution with both (found with timm's SKNet)."""
    from finercam_rt.export import export_model

    torch.manual_seed(0)
    nn = torch.nn
    layers = nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh(), nn.Conv2d(8, 8, 3, 2, 2, dilation=2, groups=2), nn.Tanh()
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6)).eval()
    manifest = export_model(model, tmp_path / "x.onnx", target_layer="0", input=SPEC, check="tensorrt")
    assert manifest.verification["tensorrt"]["kernels_behind_logits"] > 0


def test_an_operation_that_tensorrt_lacks_is_refused_before_anything_is_written(rtx, tmp_path):
    from finercam_rt.errors import ExportError
    from finercam_rt.export import export_model

    class Odd(Convolutions):
        def forward(self, x: Any) -> Any:
            largest = x.flatten(1).topk(4000).values  # TensorRT sorts at most 3840
            return super().forward(x + largest.mean(1)[:, None, None, None])

    torch.manual_seed(0)
    with pytest.raises(ExportError) as caught:
        export_model(Odd().eval(), tmp_path / "x.onnx", target_layer="features", input=SPEC, check="tensorrt")
    text = str(caught.value)
    assert "does not take the operation TopK of node trunk/" in text
    assert "test_matrix.py, line " in text
    assert text.endswith("nothing was written.")
    assert list(tmp_path.iterdir()) == []
