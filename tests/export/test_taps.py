"""Head "taps": what it gives equals autograd, and the maps drawn from it equal those of head "graph"."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

torch: Any = pytest.importorskip("torch", reason="the export needs PyTorch")
onnx: Any = pytest.importorskip("onnx", reason="the export needs onnx")
timm: Any = pytest.importorskip("timm", reason="the export's models come from timm")

from finercam_rt import Engine, EngineError, ExportError, InputError, Tail, top_classes  # noqa: E402
from finercam_rt.cli.main import main  # noqa: E402
from finercam_rt.export import export_model  # noqa: E402
from finercam_rt.export.eager import objective_value, run_with_gradients  # noqa: E402
from finercam_rt.export.method import raw_map  # noqa: E402
from finercam_rt.export.verify import verify  # noqa: E402
from finercam_rt.manifest import METHODS, InputSpec, Manifest  # noqa: E402
from finercam_rt.outputs import Outputs  # noqa: E402

from ..fakes.gpu import Gpu  # noqa: E402
from .models import SmallCNN  # noqa: E402

SPEC = InputSpec((32, 48), (0.5,) * 3, (0.5,) * 3)
BACKENDS = ("onnxruntime", "openvino", "tensorrt")


class Nhwc(torch.nn.Module):
    """A feature map with its channels last, behind which something is not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 8, 8)
        self.layer = torch.nn.LayerNorm(16)
        self.mlp = torch.nn.Linear(16, 16)
        self.head = torch.nn.Linear(16, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(self.stem(x).permute(0, 2, 3, 1))
        return self.head(torch.nn.functional.gelu(self.mlp(x)).mean((1, 2)))


def _vit() -> torch.nn.Module:
    model: torch.nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=SPEC.size, patch_size=8, embed_dim=24, num_heads=2, depth=1, num_classes=7
    )
    return model


class Case(NamedTuple):
    """A model, its target layer, and how many contrasts its engines have."""

    build: Callable[[], torch.nn.Module]
    layer: str
    contrasts: int


MODELS = {
    "nchw": Case(SmallCNN, "features", 1),
    "nhwc": Case(Nhwc, "layer", 1),
    "tokens": Case(_vit, "blocks.0.norm1", 3),
}
FULL: dict[str, Any] = {"head": "taps", "gradients": True}


class Made(NamedTuple):
    """A model with the path and the manifest of an engine made from it."""

    model: Any
    path: Path
    manifest: Manifest


Make = Callable[..., Made]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`make(name, **options)`: an engine of one of MODELS, made once."""
    folder, made = tmp_path_factory.mktemp("taps"), {}

    def export(name: str, **options: Any) -> Made:
        key = (name, *sorted(options.items()))
        if key not in made:
            case = MODELS[name]
            torch.manual_seed(3)
            model = case.build().eval()
            path = folder / f"{len(made)}.onnx"
            fixed = {"input": SPEC, "target_layer": case.layer, "contrasts": case.contrasts}
            made[key] = Made(model, path, export_model(model, path, **fixed, **options))
        return made[key]

    return export


def images(count: int = 3) -> np.ndarray:
    generator = torch.Generator().manual_seed(11)
    return 2 * torch.randn(count, 3, *SPEC.size, generator=generator).numpy()


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def autograd(made: Made, batch: np.ndarray, outputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations, and gradients (N,P,...)."""
    (activations,), logits = run_with_gradients(made.model, [made.manifest.layers[0].name], torch.from_numpy(batch))
    rows = [values.reshape(len(batch), made.manifest.contrasts, -1) for values in outputs[2:5]]
    gradients = []
    for p in range(made.manifest.contrasts):
        targets, references, alphas = (values[:, p].tolist() for values in rows)
        asked = [row[0] for row in targets], references, [row[0] for row in alphas]
        value = objective_value(logits, *asked, made.manifest.objective)
        gradients.append(torch.autograd.grad(value, activations, retain_graph=True)[0])
    return activations.detach(), torch.stack(gradients, 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODELS)
def test_taps_equal_autograd_and_serve_every_method(
    make: Make, name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "tensorrt":
        Gpu(monkeypatch).serve_graphs()
    else:
        pytest.importorskip(backend)
    made = make(name, **FULL)
    layer, contrasts = made.manifest.layers[0], MODELS[name].contrasts
    assert (layer.layout, layer.prefix_tokens) == (name, 1 if name == "tokens" else 0)
    assert made.manifest.taps.methods == tuple(METHODS)
    batch, several = images(), () if contrasts == 1 else (contrasts,)
    with Engine(made.path, backend=backend) as engine:
        outputs = engine(batch, alpha=[0.3, 1.0, 2.0])
        activations, gradients = autograd(made, batch, outputs)
        assert outputs.channel_weights is None
        assert outputs.gradients.shape == (3, *several, *outputs.activations.shape[1:])
        assert difference(outputs.activations, activations.numpy()) < 1e-5
        assert difference(outputs.gradients, gradients.numpy().reshape(outputs.gradients.shape)) < 1e-5
        given = torch.tensor(outputs.activations), torch.tensor(outputs.gradients).reshape(gradients.shape)
        for method in METHODS:
            found = engine.with_method(method)(batch, alpha=[0.3, 1.0, 2.0]).saliency_map
            assert found.shape == (3, *several, *layer.grid)
            for p in range(contrasts):
                wanted = raw_map(given[0], given[1][:, p], layer, method).numpy()
                of_contrast = found if contrasts == 1 else found[:, p]
                assert difference(of_contrast, wanted) < (1e-4 if "eigen" in method else 2e-6), method


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("name", ["nchw", "tokens"])
def test_maps_equal_those_of_head_graph(make: Make, name: str, planned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the gradients, and from the channel weights; a plan's are drawn behind its run."""
    if planned:
        Gpu(monkeypatch).serve_graphs()
    batch, several = images(), MODELS[name].contrasts > 1
    with Engine(make(name).path) as engine:
        wanted = engine(batch)
        part = engine(batch, contrasts=top_classes(2)) if several else None
    assert wanted.activations is None
    assert wanted.saliency_map.max() > 0
    for options in ({"head": "taps"}, FULL):
        with Engine(make(name, **options).path) as engine:
            found = engine(batch)
            assert difference(found.saliency_map, wanted.saliency_map) < 1e-6
            for field in ("logits", "target", "references", "alpha", "status"):
                np.testing.assert_allclose(getattr(found, field), getattr(wanted, field), rtol=1e-5)
            if part is not None:
                fewer = engine(batch, contrasts=top_classes(2))
                assert difference(fewer.saliency_map, part.saliency_map) < 1e-6


def test_channel_weights_are_the_means_of_the_gradients(make: Make) -> None:
    made = make("tokens", head="taps")
    batch = images()
    with Engine(made.path) as engine:
        outputs = engine(batch)
        other = engine.with_method("eigencam")(batch).saliency_map  # needs no gradients
    activations, gradients = autograd(made, batch, outputs)
    assert outputs.gradients is None
    assert difference(outputs.channel_weights, gradients[:, :, 1:].mean(2).numpy()) < 1e-5
    wanted = raw_map(activations, gradients[:, 0], made.manifest.layers[0], "eigencam").numpy()
    for p in range(made.manifest.contrasts):
        assert difference(other[:, p], wanted) < 1e-4


@pytest.mark.parametrize("name", ["nchw", "tokens"])
def test_a_pooled_head_keeps_the_passes_and_makes_the_graph_smaller(make: Make, name: str) -> None:
    graph, pooled, full = make(name), make(name, head="taps"), make(name, **FULL)
    assert pooled.manifest.passes == graph.manifest.passes
    assert any("pooled perturbation" in line for line in pooled.manifest.passes)
    assert any("gradients: at every position" in line for line in full.manifest.passes)
    assert all("pooled perturbation" not in line for line in full.manifest.passes)
    counts = [len(onnx.load(made.path).graph.node) for made in (graph, pooled)]
    assert counts[1] < counts[0]


def test_explain_and_torch_arrays(make: Make) -> None:
    made = make("nchw", **FULL)
    photograph = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    with Engine(made.path, method="layercam") as engine:
        assert engine.method == "layercam"
        explained = engine.explain([photograph, photograph])
        assert explained.saliency_at(0, "original").shape == (60, 80)
        outputs = engine(torch.from_numpy(images()))
        assert isinstance(outputs.gradients, torch.Tensor)
        np.testing.assert_array_equal(outputs.saliency_map.numpy(), engine(images()).saliency_map)
        broken = images()
        broken[1, 0, 0, 0] = np.nan
        assert engine(broken).status.tolist()[1] == 3


def test_a_method_that_the_engine_does_not_serve_is_one_sentence(make: Make) -> None:
    for made, method, sentence in (
        (make("nchw"), "layercam", "--method layercam, or with --head taps --gradients"),
        (make("nchw", head="taps"), "layercam", "channel weights alone, and layercam needs the gradients"),
        (make("nchw", head="taps"), "grad", "no method 'grad'; give one of gradcam"),
    ):
        with pytest.raises(InputError, match=sentence):
            Engine(made.path, method=method)
        with Engine(made.path) as engine, pytest.raises(InputError, match=sentence):
            engine.with_method(method)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"head": "both"}, "head 'both' is unknown; give one of graph, taps"),
        ({"gradients": True}, "output of head 'taps' alone"),
        ({"head": "taps", "target_layer": ["stem", "features"]}, "head 'taps' is of one target layer"),
        ({"head": "taps", "method": "fem"}, "'fem' reads no gradients; export it with head 'graph'"),
        ({"tail": "x.tail.onnx"}, "a tail belongs to an engine of head 'taps'"),
        ({"head": "taps", "tail": "x.onnx"}, "is the engine itself"),
        ({"head": "taps", "tail": "missing/x.onnx"}, "does not exist; make it first"),
    ],
)
def test_refusals_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=sentence):
        export_model(SmallCNN().eval(), "x.onnx", input=SPEC, **options)
    assert list(tmp_path.iterdir()) == []


def test_gradients_that_the_map_does_not_show_are_verified(make: Make) -> None:
    """Layer-CAM leaves negative gradients out, so that only the comparison of the taps can see them."""
    made = make("nchw", **FULL)

    class Wrong(Engine):
        def __call__(self, *arguments: Any, **options: Any) -> Outputs:
            outputs = super().__call__(*arguments, **options)
            return outputs._replace(gradients=np.where(outputs.gradients < 0, self.factor, 1) * outputs.gradients)

    with Wrong(made.path, method="layercam") as engine:
        engine.manifest = dataclasses.replace(made.manifest, method="layercam")
        engine.factor = np.float32(1)
        verify(engine, made.model, torch.from_numpy(images()))
        engine.factor = np.float32(2)
        for force in (False, True):  # a map that float32 holds is not written by force either
            with pytest.raises(ExportError, match="does not equal the model"):
                verify(engine, made.model, torch.from_numpy(images()), force=force)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_reduced_trunk(make: Make, tmp_path: Path, precision: str) -> None:
    twin = make("nchw", **FULL)
    photographs = [np.random.default_rng(i).integers(0, 256, (40, 60, 3), np.uint8) for i in range(12)]
    manifest = export_model(
        twin.model,
        tmp_path / "x.onnx",
        input=SPEC,
        target_layer="features",
        **FULL,
        precision=precision,
        calibration=photographs,
    )
    assert manifest.verification["precision"]["cosine"] > 0.99
    backend = "openvino" if precision == "bf16" else "onnxruntime"
    pytest.importorskip(backend)
    with Engine(tmp_path / "x.onnx", backend=backend) as engine, Engine(twin.path) as whole:
        found, wanted = (one.explain(photographs, target=1).saliency_map for one in (engine, whole))
        assert difference(found, wanted) < 0.1
        batch = images() / 4  # within the ranges of the photographs
        found, wanted = (one(batch, target=1).activations for one in (engine, whole))
        assert 0 < difference(found, wanted) < 0.15


def test_a_manifest_without_its_taps_is_refused(make: Make) -> None:
    from finercam_rt.manifest import from_json

    manifest = make("nchw", head="taps").manifest
    assert from_json(manifest.to_json(), "x") == manifest
    with pytest.raises(EngineError, match="taps are given exactly where"):
        from_json(dataclasses.replace(manifest, taps=None).to_json(), "x")


def test_the_command_line(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taps_command_model.py").write_text(
        "import torch\n"
        "def load():\n"
        "    torch.manual_seed(0)\n"
        "    body = torch.nn.Conv2d(3, 4, 8, 8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()\n"
        "    return torch.nn.Sequential(*body, torch.nn.Linear(4, 3)).eval()\n"
    )
    monkeypatch.chdir(tmp_path)
    options = ["--input-size", "32", "--target-layer", "1", "--head", "taps", "--gradients", "--tail", "x.tail.onnx"]
    assert main(["export", "py:taps_command_model:load", "-o", "x.onnx", *options]) == 0
    assert "activations and gradients; draws gradcam, gradcam++" in capsys.readouterr().out
    assert Tail("x.tail.onnx", Engine("x.onnx").manifest).manifest.layer == "1"
    assert main(["inspect", "x.onnx"]) == 0
    shown = capsys.readouterr().out
    assert "gradcam unless given, gradcam++" in shown
    assert "logits, target_class, reference_classes, activations, gradients" in shown
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save("photo.png")
    maps = {}
    for method in ("gradcam", "layercam"):
        assert main(["explain", "x.onnx", "photo.png", "-o", method, "--method", method]) == 0
        maps[method] = np.load(tmp_path / method / "photo.npy")
    assert difference(maps["layercam"], maps["gradcam"]) > 0.01
    assert main(["bench", "x.onnx", "--method", "layercam", "--duration", "0", "--iterations", "1"]) == 0
    assert main(["compare", "x.onnx", "x.onnx", "--images", "photo.png", "--method", "hirescam"]) == 0
    capsys.readouterr()
    assert main(["explain", str(make("nchw").path), "photo.png", "-o", "out", "--method", "layercam"]) == 2
    assert "makes the map of gradcam in its graph" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["inspect", "x.tail.onnx"]) == 2
    assert "is the tail of an engine" in capsys.readouterr().err
