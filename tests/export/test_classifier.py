"""What users bring: outputs of every form, several inputs, wrappers, other dtypes; exported and equal to eager."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
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
from finercam_rt.export.capture import capture
from finercam_rt.export.classifier import ClassifierRequest, as_classifier
from finercam_rt.export.eager import run_with_gradients
from finercam_rt.manifest import InputSpec, Manifest

from .oracle import noise, perturb

SIZE = (32, 48)
SPEC = InputSpec(SIZE, (0.5,) * 3, (0.5,) * 3)
CLASSES = 7


class Body(nn.Module):
    """The network of all tests here: a map at `features`, and logits by `form` of (x, logits)."""

    def __init__(self, form: Callable[[torch.Tensor, torch.Tensor], Any] = lambda x, y: y) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 8, 8)
        self.features = nn.Sequential(nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(12, CLASSES)
        self.form = form

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(self.stem(x)).mean((2, 3)))

    def forward(self, x: torch.Tensor) -> Any:
        return self.form(x, self.logits(x))


def body(form: Callable[[torch.Tensor, torch.Tensor], Any] = lambda x, y: y) -> Body:
    torch.manual_seed(0)
    return perturb(Body(form), scale=0.3)


@dataclasses.dataclass
class Output:
    loss: torch.Tensor | None
    logits: torch.Tensor
    embedding: torch.Tensor


Pair = namedtuple("Pair", ["embedding", "scores"])


def _image_features(x: torch.Tensor) -> torch.Tensor:
    return x[:, :, :4, :4]


FORMS: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], Any], str]] = {
    "tensor": (lambda x, y: y, ""),
    "four axes": (lambda x, y: y[:, :, None, None], ""),
    "one token": (lambda x, y: y[:, None], ""),
    "half": (lambda x, y: y.double(), ""),
    "tuple of one": (lambda x, y: (y,), "0"),
    "tuple": (lambda x, y: (_image_features(x), y), "1"),
    "list": (lambda x, y: [y, _image_features(x)], "0"),
    "integers beside": (lambda x, y: (y.argmax(1, keepdim=True), y), "1"),
    "dictionary": (lambda x, y: {"embedding": y[:, :3] * 2, "logits": y}, "logits"),
    "ordered": (lambda x, y: OrderedDict(out=y, map=_image_features(x)), "out"),
    "nested": (lambda x, y: {"head": (None, {"scores": y}), "map": _image_features(x)}, "head.1.scores"),
    "dataclass": (lambda x, y: Output(None, y, y[:, :5]), "logits"),
    "named tuple": (lambda x, y: Pair(_image_features(x), y), "scores"),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_logits_are_found(form: str) -> None:
    function, name = FORMS[form]
    model, images = body(function), noise(3, SIZE)
    classifier = as_classifier(model, images)
    with torch.no_grad():
        assert torch.equal(classifier.module(images), model.logits(images))
        assert classifier.module(images[:1]).shape == (1, CLASSES)
    assert classifier.width == CLASSES
    assert classifier.source is model
    assert any(f"the logits are {name!r}" in line for line in classifier.notes) == bool(name)
    assert [n for n, _ in classifier.module.named_modules()] == [n for n, _ in model.named_modules()]
    assert list(classifier.module.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize(("output", "index"), [("b", 1), (1, 1), ("a", 0), ("0", 0)])
def test_the_logits_are_named(output: str | int, index: int) -> None:
    model, images = body(lambda x, y: {"a": y, "b": y * 2}), noise(2, SIZE)
    classifier = as_classifier(model, images, ClassifierRequest(output=output))
    with torch.no_grad():
        assert torch.equal(classifier.module(images), model.logits(images) * (index + 1))


@pytest.mark.parametrize(
    ("form", "output", "message"),
    [
        (lambda x, y: (y, y[:, :3]), None, r"several tensors that may be the logits, '0' \(2, 7\), '1' \(2, 3\); say"),
        (lambda x, y: {"a": y}, "b", r"no output 'b': it returns 'a' \(2, 7\)"),
        (lambda x, y: (y, x), 2, "no output 2"),
        (lambda x, y: y, "logits", "returns one tensor, which has no name"),
        (lambda x, y: (y, x), 1, r"must return logits \(N,K\)"),
        (lambda x, y: x, None, r"returns a tensor of shape \(2, 3, 32, 48\), not those"),
        (lambda x, y: y.argmax(1), None, r"returns a tensor of shape \(2,\)"),
        (lambda x, y: y.argmax(1, keepdim=True), None, r"a tensor of shape \(2, 1\)"),
        (lambda x, y: (x, x.sum()), None, r"it returns '0' \(2, 3, 32, 48\), '1' \(\), and not those"),
        (lambda x, y: {"logits": x}, None, r"must return logits \(N,K\)"),
        (lambda x, y: y[:1], None, r"a tensor of shape \(1, 7\)"),
        (lambda x, y: None, None, "returns a NoneType and no tensor"),
        (lambda x, y: {"names": ["a"]}, None, "returns a dict and no tensor"),
        (lambda x, y: y / 0, None, "logits are not finite"),
    ],
)
def test_outputs_that_are_no_logits(form: Any, output: str | int | None, message: str) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        as_classifier(body(form), noise(2, SIZE), ClassifierRequest(output=output))
    assert "\n" not in str(caught.value)


class TwoInputs(Body):
    def forward(self, metadata: torch.Tensor, image: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
        assert metadata.shape == (len(image), 2)
        return self.logits(image) * scale + metadata @ self.head.weight[:, :2].T


class Keyword(Body):
    """As transformers has it: all have defaults, and the images are not the first."""

    def forward(self, input_ids: Any = None, *, pixel_values: Any = None, **rest: Any) -> Any:
        assert input_ids is None
        assert pixel_values is not None
        return {"logits": self.logits(pixel_values) + rest.get("shift", 0)}


class Packed(Body):
    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.logits(*args)


class Unclear(Body):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.logits(left) + right


@pytest.mark.parametrize(
    ("kind", "inputs", "expected"),
    [
        (TwoInputs, {"metadata": [0.5, -1.0]}, lambda m, y: 2 * y + torch.tensor([0.5, -1]) @ m.head.weight[:, :2].T),
        (TwoInputs, {"metadata": torch.zeros(2), "scale": 3}, lambda m, y: 3 * y),
        (Keyword, {}, lambda m, y: y),
        (Keyword, {"shift": 1.5}, lambda m, y: y + 1.5),
        (Packed, {}, lambda m, y: y),
        (Unclear, {"right": [0.0, 1, 2, 3, 4, 5, 6]}, lambda m, y: y + torch.arange(7.0)),
    ],
)
def test_several_inputs(kind: type[Body], inputs: dict[str, Any], expected: Any) -> None:
    model, images = perturb(kind(), scale=0.3), noise(3, SIZE)
    classifier = as_classifier(model, images[:2], ClassifierRequest(inputs=inputs))
    with torch.no_grad():
        torch.testing.assert_close(classifier.module(images), expected(model, model.logits(images)))
    for name in inputs:
        assert any(f"input {name!r} is the constant" in line for line in classifier.notes)


@pytest.mark.parametrize(
    ("kind", "inputs", "message"),
    [
        (
            TwoInputs,
            {},
            "input 'metadata', besides the image, has no default; give it a constant with --input metadata=",
        ),
        (TwoInputs, {"meta": 1}, "no input 'meta'; it has 'metadata', 'image', 'scale'"),
        (TwoInputs, {"metadata": ["a"]}, "not a list of numbers"),
        (Unclear, {}, "the inputs 'left', 'right', and which is the image is not clear"),
    ],
)
def test_inputs_without_a_value(kind: type[Body], inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        as_classifier(kind().eval(), noise(2, SIZE), ClassifierRequest(inputs=inputs))


class NoGrad(Body):
    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits(x)


class FrozenBackbone(Body):
    """A linear probe as many write it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            features = self.features(self.stem(x))
        return self.head(features.mean((2, 3)))


def never(*_: Any) -> Any:
    """A compiler; hooks would miss what it has compiled."""
    raise AssertionError("it was compiled")


class CompiledForward(Body):
    @torch.compile(backend=never)
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits(x)


class InferenceMode(Body):
    @torch.inference_mode()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits(x)


def _compiled_inside() -> nn.Module:
    model = body()
    model.features = torch.compile(model.features, backend=never)
    return model


def _compiled_by_method() -> nn.Module:
    model = body()
    model.compile(backend=never)
    return model


def _frozen(kind: type[Body]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return perturb(kind(), scale=0.3).requires_grad_(False)

    return make


WRAPPED: dict[str, tuple[Callable[[], Any], str]] = {
    "frozen": (_frozen(Body), ""),
    "no_grad": (_frozen(NoGrad), "gradients are taken although"),
    "frozen backbone": (_frozen(FrozenBackbone), "gradients are taken although"),
    "torch.compile": (lambda: torch.compile(body()), "taken out of its OptimizedModule"),
    "compiled method": (_compiled_by_method, ""),
    "compiled inside": (_compiled_inside, ""),
    "compiled forward": (_frozen(CompiledForward), ""),
    "DataParallel": (lambda: nn.DataParallel(body()), "taken out of its DataParallel"),
    "both": (lambda: torch.compile(nn.DataParallel(body())), "taken out of its DataParallel"),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrapped_models_have_their_names_and_gradients(wrapper: str) -> None:
    make, note = WRAPPED[wrapper]
    model, images, plain = make(), noise(3, SIZE), body()
    classifier = as_classifier(model, images[:2])
    assert note in " ".join(classifier.notes)
    (activations,), logits = run_with_gradients(classifier.module, ["features"], images)
    (gradients,) = torch.autograd.grad(logits[:, 2].sum(), activations)
    (expected,), plain_logits = run_with_gradients(plain, ["features"], images)
    torch.testing.assert_close(logits, plain_logits)
    torch.testing.assert_close(activations, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(plain_logits[:, 2].sum(), expected)[0])
    captured = capture(classifier.module, ["features"], images[:2])
    with torch.no_grad():
        torch.testing.assert_close(captured.graph_module(images), plain_logits)


def test_distributed_data_parallel(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(body()).eval()
        classifier = as_classifier(model, noise(2, SIZE))
        assert "features" in dict(classifier.module.named_modules())
        assert classifier.source is model.module
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floating_types_are_copied_to_float32(dtype: torch.dtype) -> None:
    model, images = body().to(dtype), noise(2, SIZE)
    classifier = as_classifier(model, images)
    assert f"classifier: its {str(dtype)[6:]} weights were converted to float32" in classifier.notes
    assert {v.dtype for v in model.parameters()} == {dtype}
    assert classifier.source is model
    with torch.no_grad():
        assert classifier.module(images).dtype == torch.float32
        difference = classifier.module(images) - model(images.to(dtype)).float()
    assert difference.abs().max() < 0.1


class FlakyTuple(nn.Module):
    """A block as transformers write them: the hidden state, and something behind it."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.convolution, self.form = nn.Conv2d(12, 12, 3, padding=1), form

    def forward(self, x: torch.Tensor) -> Any:
        value = self.convolution(x).relu()
        return {
            "tuple": (value, x.mean()),
            "list": [value, x],
            "named": Pair(value, x),
            "dictionary": {"weights": x.mean(), "last_hidden_state": value},
            "dataclass": Output(value, x, x),
        }[self.form]


class TupleBlocks(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 12, 8, 8), FlakyTuple(form), nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.block(self.stem(x))
        if isinstance(output, dict):
            assert output["weights"].ndim == 0
            return self.head(output["last_hidden_state"].mean((2, 3)))
        value, other = (output.loss, output.logits) if isinstance(output, Output) else (output[0], output[1])
        return self.head(value.mean((2, 3)) + other.mean())


@pytest.mark.parametrize("form", ["tuple", "list", "named", "dictionary", "dataclass"])
def test_a_target_layer_may_return_several_values(form: str) -> None:
    model, images = perturb(TupleBlocks(form), scale=0.2), noise(3, SIZE)
    (expected,), expected_logits = run_with_gradients(model, ["block.convolution"], images)
    (expected_gradient,) = torch.autograd.grad(expected_logits[:, 1].sum(), expected)
    (found,), logits = run_with_gradients(model, ["block"], images)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), found)
    torch.testing.assert_close(found, expected.relu())
    torch.testing.assert_close(gradient * (expected > 0), expected_gradient)
    captured = capture(as_classifier(model, images).module, ["block"], images[:2])
    with torch.no_grad():
        torch.testing.assert_close(captured.graph_module(images), logits)


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
    "inference mode": (_frozen(InferenceMode), r"layer '\S+' runs under torch.inference_mode\(\)"),
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
    model = _frozen(NoGrad)()
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
