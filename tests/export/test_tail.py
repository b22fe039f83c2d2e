"""The tail file: logits of other activations than the model's own, without the trunk."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="the export needs PyTorch")
onnx: Any = pytest.importorskip("onnx", reason="the export needs onnx")

from finercam_rt import Engine, EngineError, ExportError, InputError, Tail  # noqa: E402
from finercam_rt.export import export_model  # noqa: E402
from finercam_rt.export import tail as tail_module  # noqa: E402
from finercam_rt.export.capture import capture  # noqa: E402
from finercam_rt.export.classifier import as_classifier  # noqa: E402
from finercam_rt.export.cut import cut  # noqa: E402
from finercam_rt.export.tail import carried_shapes, cut_sha256  # noqa: E402
from finercam_rt.manifest import InputSpec  # noqa: E402

from .models import SmallCNN  # noqa: E402

SPEC = InputSpec((32, 32), (0.5,) * 3, (0.5,) * 3)


class Residual(torch.nn.Module):
    """Behind the layer it adds what came before it, as a transformer does, so that a value is carried."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 8, 8)
        self.norm = torch.nn.BatchNorm2d(8)
        self.mix = torch.nn.Conv2d(8, 8, 1)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.mix(torch.relu(self.norm(x)))
        return self.head(torch.relu(x).mean((2, 3)))


class Folded(SmallCNN):
    """It carries a value with the images and the channels in one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        folded = x.flatten(0, 1).sigmoid() * self.layer(x).flatten(0, 1)
        return self.head(folded.view_as(x).mean((2, 3)))


class Counted(SmallCNN):
    """It makes a value of one row more than there are images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = len(x) + 1
        x = self.layer(self.stem(x)).mean((2, 3))
        return self.head(torch.cat([x, x.new_zeros(count, x.shape[1])])[:-count])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """A model, its engine and its tail."""
    folder = tmp_path_factory.mktemp("tail")
    torch.manual_seed(5)
    model = Residual().eval()
    paths = folder / "x.onnx", folder / "x.tail.onnx"
    export_model(model, paths[0], input=SPEC, target_layer="norm", head="taps", tail=paths[1])
    assert sorted(folder.iterdir()) == sorted(paths)
    return model, *paths


def _eager(model: Any, batch: np.ndarray, factors: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        x = model.stem(torch.from_numpy(batch))
        x = x + model.mix(torch.relu(model.norm(x) * torch.from_numpy(factors)))
        logits: np.ndarray = model.head(torch.relu(x).mean((2, 3))).numpy()
    return logits


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_masked_activations_equal_the_masked_model(made: tuple[Any, Path, Path], backend: str) -> None:
    """Each channel of each image left out, in one run: what Ablation-CAM asks."""
    pytest.importorskip(backend)
    model, path, tail_path = made
    batch = np.random.default_rng(1).normal(size=(3, 3, 32, 32)).astype(np.float32)
    with Engine(path, backend=backend) as engine:
        outputs = engine(batch)
        assert engine.manifest.taps.carried == ((8, 4, 4),)
        tail = Tail(tail_path, engine.manifest, backend=backend, threads=1)
    np.testing.assert_allclose(tail.logits(outputs.activations, outputs.carried), outputs.logits, atol=1e-5)
    factors = np.tile(1 - np.eye(8, dtype=np.float32), (3, 1))[:, :, None, None]
    rows = np.repeat(np.arange(3), 8)
    found = tail.logits(outputs.activations[rows] * factors, [outputs.carried[0][rows]])
    wanted = _eager(model, batch[rows], factors)
    assert np.abs(wanted - outputs.logits[rows]).max() > 1e-2
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_what_does_not_fit_is_one_sentence(made: tuple[Any, Path, Path]) -> None:
    _, path, tail_path = made
    with Engine(path) as engine:
        manifest = engine.manifest
        outputs = engine(np.zeros((2, 3, 32, 32), np.float32))
    with pytest.raises(EngineError, match="is the tail of an engine; give the engine"):
        Engine(tail_path)
    with pytest.raises(EngineError, match="is no tail file"):
        Tail(path, manifest)
    tail = Tail(tail_path, manifest)
    for activations, carried, sentence in (
        (outputs.activations, (), "reads 1 carried values, and 0 were given"),
        (outputs.activations, outputs.activations, "reads 1 carried values, and 2"),
        (outputs.activations[:, :3], outputs.carried, r"activations is \(2, 3, 4, 4\) float32; give \(2, 8, 4, 4\)"),
        (outputs.activations[:1], outputs.carried, r"carried_0 is \(2, 8, 4, 4\) float32; give \(1, 8, 4, 4\)"),
        (outputs.activations.astype(np.float64), outputs.carried, "float64; give"),
        (outputs.activations[:0], [outputs.carried[0][:0]], "there are no activations"),
    ):
        with pytest.raises(InputError, match=sentence):
            tail.logits(activations, carried)
    without = dataclasses.replace(manifest.taps, carried=(), cut_sha256=None)
    with pytest.raises(EngineError, match="gives no taps for a tail; export it with --head taps --tail"):
        Tail(tail_path, dataclasses.replace(manifest, taps=without))
    other = dataclasses.replace(manifest.taps, cut_sha256="0" * 64)
    with pytest.raises(EngineError, match="belongs to another engine, of Residual at norm"):
        Tail(tail_path, dataclasses.replace(manifest, taps=other))


def test_another_cut_or_other_weights_are_another_tail(made: tuple[Any, Path, Path]) -> None:
    model, path, _ = made
    with Engine(path) as engine:
        manifest = engine.manifest
    found, example = set(), torch.zeros(2, 3, 32, 32)
    called = as_classifier(model, example).module
    for layer in ("norm", "mix"):
        info = dataclasses.replace(manifest.layers[0], name=layer)
        split = cut(capture(called, [layer], example))
        found |= {cut_sha256(split, weights, info) for weights in (manifest.model.weights_sha256, "0" * 64)}
    assert len(found) == 4
    assert manifest.taps.cut_sha256 in found


def test_a_wrong_tail_is_found_out(made: tuple[Any, Path, Path], tmp_path: Path) -> None:
    """One that is right but for how it reads what is carried."""
    model, path, tail_path = made
    graph = onnx.load(tail_path)
    scale = onnx.numpy_helper.from_array(np.float32(1.01), "scale")
    graph.graph.initializer.append(scale)
    for node in graph.graph.node:
        node.input[:] = ["scaled" if name == "carried_0" else name for name in node.input]
    graph.graph.node.insert(0, onnx.helper.make_node("Mul", ["carried_0", "scale"], ["scaled"]))
    onnx.save(graph, tmp_path / "wrong.onnx")
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with Engine(path) as engine:
        assert tail_module._verify(tail_path, engine, model, images)["logits_relative_max"] < 1e-5
        with pytest.raises(ExportError, match="the compiled tail does not equal the model"):
            tail_module._verify(tmp_path / "wrong.onnx", engine, model, images)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Folded, r"a value \('24\*.*, which has no row for each image"),
        (Counted, r"a number that the batch decides \(.*1\)"),
    ],
)
def test_what_no_image_has_a_row_of_is_refused(model: type[torch.nn.Module], message: str) -> None:
    split = cut(capture(model().eval(), ["layer"], torch.zeros(2, 3, 32, 32)))
    with pytest.raises(ExportError, match=rf"the tail reads {message}.*; leave the tail out"):
        carried_shapes(split)
