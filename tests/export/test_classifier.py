"""What users bring: outputs of every form, several inputs, wrappers, other dtypes; the same logits and gradients."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.ao.nn import quantized as nnq
from torchvision.models.feature_extraction import create_feature_extractor

from finercam_rt.errors import ExportError
from finercam_rt.export.capture import capture
from finercam_rt.export.classifier import ClassifierRequest, as_classifier
from finercam_rt.export.eager import run_with_gradients

from .bodies import CLASSES, SIZE, Body, NoGrad, Output, Pair, Unclear, body, frozen
from .oracle import noise, perturb


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
    "behind their softmax": (lambda x, y: (y.softmax(1), y), "1"),
    "before their logarithms": (lambda x, y: {"a": y, "b": y.log_softmax(1), "c": y.log_softmax(1)}, "a"),
    "with sigmoids": (lambda x, y: {"a": y.sigmoid(), "b": y.half().softmax(1), "c": y}, "c"),
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
        (lambda x, y: (y, y * 2), None, r"several tensors that may be the logits, '0' \(2, 7\), '1' \(2, 7\); say"),
        (lambda x, y: (y.softmax(1), y, y + 1), None, r"'1' \(2, 7\), '2' \(2, 7\); say"),
        (lambda x, y: (y.log_softmax(1), y.log_softmax(1)), None, r"'0' \(2, 7\), '1' \(2, 7\); say"),
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


@pytest.mark.parametrize("form", [lambda x, y: y[:, :1], lambda x, y: y[:, 0], lambda x, y: {"z": y[:, :1, None]}])
def test_one_logit_makes_two_classes_of_the_same_probabilities(form: Any) -> None:
    model, images = body(form), noise(3, SIZE)
    classifier = as_classifier(model, images[:2], ClassifierRequest(binary=True))
    assert classifier.width == 2
    assert any("one logit z makes two classes" in line for line in classifier.notes)
    with torch.no_grad():
        z = model.logits(images)[:, 0]
        found = classifier.module(images)
    torch.testing.assert_close(found.softmax(1)[:, 1], z.sigmoid())
    torch.testing.assert_close(found[:, 1] - found[:, 0], z)


def test_binary_is_for_one_logit() -> None:
    with pytest.raises(ExportError, match="the model has 7 logits, so it has its classes already; leave --binary out"):
        as_classifier(body(lambda x, y: y), noise(2, SIZE), ClassifierRequest(binary=True))


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


def _compiled_inside() -> nn.Module:
    model = body()
    model.features = torch.compile(model.features, backend=never)
    return model


def _compiled_by_method() -> nn.Module:
    model = body()
    model.compile(backend=never)
    return model


WRAPPED: dict[str, tuple[Callable[[], Any], str]] = {
    "frozen": (frozen(Body), ""),
    "no_grad": (frozen(NoGrad), "gradients are taken although"),
    "frozen backbone": (frozen(FrozenBackbone), "gradients are taken although"),
    "torch.compile": (lambda: torch.compile(body()), "taken out of its OptimizedModule"),
    "compiled method": (_compiled_by_method, ""),
    "compiled inside": (_compiled_inside, ""),
    "compiled forward": (frozen(CompiledForward), ""),
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


def test_models_that_give_no_logits_of_three_channels() -> None:
    backbone = timm.create_model("test_resnet", num_classes=0).eval()
    with pytest.raises(ExportError, match="has no classifier"):
        as_classifier(backbone, noise(2, SIZE))
    backbone.fc = nn.Linear(backbone.num_features, 3).eval()  # as users put one on; num_classes stays 0
    assert as_classifier(backbone, noise(2, SIZE)).width == 3
    with pytest.raises(ExportError, match=r"got 3 channels instead\); say how many .* with --channels"):
        as_classifier(timm.create_model("test_resnet", in_chans=1).eval(), noise(2, SIZE))
    last = body()
    last.stem.register_forward_pre_hook(lambda _, inputs: inputs[0].permute(0, 3, 1, 2))
    with pytest.raises(ExportError, match=r"takes images \(N,H,W,C\), .* permute them ahead"):
        as_classifier(last, noise(2, SIZE))
    with pytest.raises(ExportError, match="videos or volumes"):
        as_classifier(nn.Sequential(nn.Conv3d(3, 4, 3), nn.Flatten()).eval(), noise(2, SIZE))
    with pytest.raises(ExportError, match="must return logits"):
        as_classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE[0] * SIZE[1], 0)).eval(), noise(2, SIZE))


def test_a_copy_of_a_feature_extractor_stays_in_evaluation_mode() -> None:
    """Torchvision's comes back from a copy in training mode, where batch norms mix the images."""
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 8, 8), norm=nn.BatchNorm2d(4), flat=nn.Flatten())).eval()
    extractor = create_feature_extractor(model, {"flat": "logits"}).eval().half()
    module = as_classifier(extractor, noise(2, SIZE)).module
    assert not any(part.training for part in module.modules())


def test_a_copy_of_what_was_adapted_is_adapted() -> None:
    """Torchvision's feature extractors make their copies themselves; they return a dictionary."""
    model = nn.Sequential(
        OrderedDict(conv=nn.Conv2d(3, 4, 8, 8), norm=nn.BatchNorm2d(4), flat=nn.Flatten(), head=nn.LazyLinear(5))
    ).eval()
    model(images := noise(3, SIZE))
    extractor = create_feature_extractor(model, {"norm": "map", "head": "logits"}).eval()
    module = as_classifier(extractor, images).module
    double = copy.deepcopy(module).double()
    with torch.no_grad():
        torch.testing.assert_close(double(images.double()), model(images), check_dtype=False)
    assert not any(part.training for part in double.modules())
    assert {value.dtype for value in module.state_dict().values()} == {torch.float32, torch.int64}


def test_models_that_pytorch_can_quantise_are_not_quantised() -> None:
    model = torchvision.models.quantization.resnet18(quantize=False, num_classes=5).eval()
    assert as_classifier(model, noise(2, SIZE)).width == 5
    model.layer1[0].add_relu = nnq.QFunctional().eval()
    with pytest.raises(ExportError, match=r"'layer1.0.add_relu' is quantised by PyTorch"):
        as_classifier(model, noise(2, SIZE))
