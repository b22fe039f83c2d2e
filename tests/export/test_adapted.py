"""Adapted models exported: the engine is that of the plain one, the model is left as it was, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from finercam_rt.engine import Engine
from finercam_rt.errors import ExportError
from finercam_rt.export import export_model
from finercam_rt.export.classifier import as_classifier
from finercam_rt.manifest import InputSpec, Manifest

from .bodies import CLASSES, SIZE, Body, NoGrad, Output, Unclear, body, frozen
from .oracle import noise, perturb

SPEC = InputSpec(SIZE, (0.5,) * 3, (0.5,) * 3)


class InferenceMode(Body):
    @torch.inference_mode()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits(x)


def _export(model: Any, path: Path, **options: Any) -> Manifest:
    return export_model(model, path, input=SPEC, target_layer="features", **options)


def test_the_engine_of_an_adapted_model_is_that_of_the_plain_one(tmp_path: Path) -> None:
    """Everything at once: wrapped, under no_grad, in bfloat16, several inputs and outputs."""

    class Awkward(Body):
        @torch.no_grad()
        def forward(self, metadata: Any, pixel_values: Any) -> Any:
            return Output(None, self.logits(pixel_values) + metadata.float(), metadata)

    torch.manual_seed(0)
    awkward = perturb(Awkward(), scale=0.3).bfloat16()
    plain = Body()
    plain.load_state_dict(awkward.state_dict())
    shift = [0.5, 0, 0, 1, 0, 0, 0]
    manifest = _export(nn.DataParallel(awkward), tmp_path / "a.onnx", inputs={"metadata": shift})
    assert manifest.layers[0].name == "features"
    assert manifest.model.name == "Awkward"
    assert [line for line in manifest.passes if line.startswith("classifier: ")] == [
        "classifier: taken out of its DataParallel",
        "classifier: the images are its input 'pixel_values'",
        "classifier: its input 'metadata' is the constant of shape (7,)",
        "classifier: the logits are 'logits' of its Output",
        "classifier: gradients are taken although its forward switches them off",
        "classifier: its bfloat16 weights were converted to float32",
    ]
    with torch.no_grad():
        plain.head.bias += torch.tensor(shift)
    images = noise(4, SIZE)
    with Engine(tmp_path / "a.onnx") as engine, torch.no_grad():
        outputs = engine(images.numpy())
        np.testing.assert_allclose(outputs.logits, plain(images).numpy(), atol=1e-5)
    assert outputs.saliency_map.max() > 0


def test_an_engine_of_one_logit(tmp_path: Path) -> None:
    model = body(lambda x, y: y[:, 0])
    with pytest.raises(ExportError, match=r"one class, so there is nothing .* give --binary \(binary=True in Python\)"):
        _export(body(lambda x, y: y[:, :1]), tmp_path / "a.onnx")
    manifest = _export(model, tmp_path / "a.onnx", binary=True, classes=["cancer"])
    assert manifest.classes == ("not cancer", "cancer")
    assert manifest.references == 1
    images = noise(4, SIZE)
    taps: list[torch.Tensor] = []
    model.features.register_forward_hook(lambda _module, _in, out: taps.append(out))
    z = model(images)
    (gradients,) = torch.autograd.grad(z.sum(), taps)
    signed = (gradients.mean((2, 3), keepdim=True) * taps[0]).sum(1).detach()
    with Engine(tmp_path / "a.onnx") as engine:
        for target, sign in ((0, -0.5), (1, 0.5)):
            for alpha in (0.0, 1.0):  # the other logit's gradient is the same with the other sign
                outputs = engine(images.numpy(), target=target, alpha=alpha)
                wanted = ((1 + alpha) * sign * signed).relu().numpy()
                np.testing.assert_allclose(outputs.saliency_map, wanted, atol=1e-5 * float(signed.abs().max()))
        np.testing.assert_allclose(np.diff(outputs.logits)[:, 0], z.detach().numpy(), rtol=1e-4, atol=1e-5)
        assert engine(images.numpy()).target.tolist() == (z > 0).long().tolist()


def _scripted_inside() -> nn.Module:
    model = body()
    model.features = torch.jit.script(model.features)
    return model


def _half_trained() -> nn.Module:
    model = body()
    model.features.train()
    return model


def _lazy() -> nn.Module:
    model = body()
    model.head = nn.LazyLinear(CLASSES)
    return model.eval()


def _quantised() -> nn.Module:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        return torch.ao.quantization.quantize_dynamic(body(), {nn.Linear}, torch.qint8)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "script": (lambda: torch.jit.script(nn.Linear(3, 3)), "the model is TorchScript"),
    "script inside": (_scripted_inside, "layer 'features' is TorchScript"),
    "training": (lambda: body().train(), r"training mode.*call model.eval\(\)"),
    "training inside": (_half_trained, "training mode"),
    "lazy": (_lazy, "'head.weight' has no shape yet; run the model once"),
    "quantised": (_quantised, "layer 'head' is quantised by PyTorch; give the model as it was before"),
    "meta": (lambda: body().to("meta"), "'stem.weight' is on the meta device and has no values"),
    "complex": (lambda: body().to(torch.complex64), "'stem.weight' is complex"),
    "inference mode": (frozen(InferenceMode), r"layer '\S+' runs under torch.inference_mode\(\)"),
    "function": (lambda: torch.relu, r"the model is a builtin_function_or_method; give a torch.nn.Module"),
    "state dict": (lambda: body().state_dict(), "the model is a OrderedDict; give a torch.nn.Module"),
    "size": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(7, 7)).eval(), "does not run on an input of shape"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_models_that_are_refused(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ExportError, match=message) as caught:
        _export(make(), tmp_path / "x.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_under_inference_mode_nothing_can_be_exported(tmp_path: Path) -> None:
    with torch.inference_mode(), pytest.raises(ExportError, match=r"runs under torch\.inference_mode"):
        _export(body(), tmp_path / "x.onnx")


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = frozen(NoGrad)()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.head.weight.requires_grad_(True)
    _export(model, tmp_path / "x.onnx")
    assert model.head.weight.requires_grad
    assert not model.stem.weight.requires_grad
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.head.weight.grad is None
    assert not model(noise(2, SIZE)).requires_grad  # its own no_grad works again


def _program(model: nn.Module, batch: Any) -> torch.export.ExportedProgram:
    return torch.export.export(model, (noise(2, SIZE),), dynamic_shapes=({0: batch},))


def test_a_decomposed_exported_program(tmp_path: Path) -> None:
    """One that was not is in test_specifications."""
    model = body(lambda x, y: {"logits": y, "map": x})
    program = _program(model, torch.export.Dim("batch", max=64))
    manifest = _export(program.run_decompositions(), tmp_path / "program.onnx")
    assert (manifest.layers[0].name, manifest.layers[0].grid) == ("features", (4, 6))
    images = noise(5, SIZE)
    with Engine(tmp_path / "program.onnx") as engine, torch.no_grad():
        np.testing.assert_allclose(engine(images.numpy()).logits, model.logits(images).numpy(), rtol=1e-4, atol=1e-5)


def test_exported_programs_that_are_refused() -> None:
    images = noise(2, SIZE)
    with pytest.raises(ExportError, match="takes batches of 2 alone; export it again with dynamic_shapes"):
        as_classifier(_program(body(), None), images)
    dropout = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Dropout(0.5), nn.Flatten(), nn.Linear(192, 5)).train()
    with pytest.raises(ExportError, match="exported in training mode"):
        as_classifier(_program(dropout, torch.export.Dim.DYNAMIC), images)
    norm = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(192, 5)).train()
    with pytest.raises(ExportError, match="exported in training mode"):
        as_classifier(_program(norm, torch.export.Dim.DYNAMIC), images)
    pair = torch.export.export(Unclear().eval(), (images, torch.zeros(7)))
    with pytest.raises(ExportError, match=r"takes \(2, 3, 32, 48\), \(7,\), not images"):
        as_classifier(pair, images)
