"""Models of other images than RGB: their channels are found or asked for, and their maps are autograd's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from finercam_rt.engine import Engine
from finercam_rt.errors import ExportError, InputError
from finercam_rt.export import ModelRequest, export_model, load_model
from finercam_rt.export.channels import fitted, found_channels
from finercam_rt.export.reduce import take_samples
from finercam_rt.images import load_image
from finercam_rt.manifest import InputSpec
from finercam_rt.preprocess import Preprocessor

from .conftest import check_untouched
from .models import SmallCNN
from .oracle import RELATIVE_L2, Oracle, perturb, relative_l2

SIZE = (64, 64)
GREY = InputSpec(SIZE, (0.4,), (0.25,))
RGB = InputSpec(SIZE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def small(channels: int) -> nn.Module:
    torch.manual_seed(0)
    model = SmallCNN()
    model.stem = nn.Conv2d(channels, 24, 8, 8)
    return perturb(model)


class Around(nn.Module):
    """A small classifier behind a change of the image's channels, which its convolutions do not tell."""

    def __init__(self, inner: int, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.change = small(inner), change
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.change(x))


class Patches(nn.Module):
    """Patches through a linear layer: there is no convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(channels * 64, 24), nn.LayerNorm(24)
        self.mix, self.head = nn.Linear(24, 24), nn.Linear(24, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = nn.functional.unfold(x, 8, stride=8).transpose(1, 2)
        return self.head(torch.relu(self.mix(self.norm(self.embed(patches)))).mean(1))


def program(channels: int) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    return torch.export.export(small(channels), (torch.randn(2, channels, *SIZE),), dynamic_shapes=shapes)


def resnet_of_torchvision() -> nn.Module:
    import torchvision

    model = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=7)
    model.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return model


def vit_of_transformers() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=64,
        patch_size=16,
        num_channels=1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=7,
    )
    return transformers.ViTForImageClassification(config)


class Logits(nn.Module):
    """What the oracle differentiates, of a model that gives its logits among others."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).logits


FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "timm CNN": (lambda: timm.create_model("test_resnet", in_chans=1, num_classes=7), 1),
    "timm ViT": (lambda: timm.create_model("test_vit", in_chans=4, num_classes=7, img_size=64, depth=2), 4),
    "torchvision": (resnet_of_torchvision, 1),
    "transformers": (vit_of_transformers, 1),
    "twelve": (lambda: small(12), 12),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_those_of_eager_autograd(family: str, tmp_path: Path) -> None:
    """In ONNX Runtime and in OpenVINO, on other images than the export verified on."""
    make, channels = FAMILIES[family]
    torch.manual_seed(0)
    model = perturb(make(), scale=0.05)
    path = tmp_path / "engine.onnx"
    manifest = export_model(model, path, input=GREY)
    assert (manifest.input.channels, manifest.input.mean) == (channels, (0.4,) * channels)
    generator = torch.Generator().manual_seed(5)
    images = 2 * nn.functional.interpolate(torch.randn(3, channels, 6, 6, generator=generator), SIZE, mode="bicubic")
    layer, subject, name = manifest.layers[0], model, manifest.layers[0].name
    if family == "transformers":
        subject, name = Logits(model), f"model.{name}"
    oracle = Oracle(subject, name, images, layer.prefix_tokens)
    asked: dict[str, Any] = {"target": [1, 2, 3], "alpha": [1.0, 0.5, 1.0]}
    answer = oracle.explain(layer.grid, layer.layout, references=3, objective="weighted", **asked)
    for backend in ("onnxruntime", "openvino"):
        pytest.importorskip(backend)
        with Engine(path, backend=backend, threads=1) as engine:
            got = engine(images.numpy(), **asked)
        assert np.abs(got.logits - oracle.logits).max() <= 1e-4 * np.abs(oracle.logits).max()
        assert relative_l2(got.saliency_map, answer).max() <= RELATIVE_L2, backend
        assert got.references.tolist() == answer.references


def refuse_three(x: torch.Tensor) -> torch.Tensor:
    """A check of the user's own, whose words nobody can read."""
    if x.shape[1] == 3:
        raise ValueError("no")
    return x


FOUND: dict[str, tuple[Callable[[], Any], int]] = {
    "by a program's example": (lambda: program(5), 5),
    "by an error of a linear layer": (lambda: Patches(6).eval(), 6),
    "by an error of a norm": (lambda: Around(4, lambda x: x - torch.zeros(1, 4, 1, 1)), 4),
    "by an error behind a repetition": (lambda: Around(3, lambda x: x.repeat(1, 3, 1, 1)), 1),
    "by an error behind a concatenation": (lambda: Around(3, lambda x: torch.cat([x, x[:, :1]], 1)), 2),
    "by the first convolution": (lambda: Around(2, refuse_three), 2),
    "three where the model makes grey": (lambda: Around(1, lambda x: x.mean(1, keepdim=True)), 3),
    "three where the model makes RGB": (lambda: Around(3, lambda x: x.expand(-1, 3, -1, -1)), 3),
}


def run_on(model: nn.Module) -> Callable[[int], int]:
    from finercam_rt.export.classifier import as_classifier

    return lambda channels: as_classifier(model, torch.randn(2, channels, *SIZE)).width


@pytest.mark.parametrize("how", FOUND)
def test_channels_are_found(how: str) -> None:
    make, channels = FOUND[how]
    model = make()
    assert found_channels(model, run_on(model)) == (channels, 7)
    assert found_channels(model, run_on(model), channels) == (channels, 7)


def test_channels_that_are_asked_for() -> None:
    expands = Around(3, lambda x: x.expand(-1, 3, -1, -1))
    assert found_channels(expands, run_on(expands), 1) == (1, 7), "both are right, and the caller knows"
    with pytest.raises(ExportError, match=r"takes images of 1 channel and not of 4; leave --channels \(channels in Py"):
        found_channels(small(1), run_on(small(1)), 4)
    with pytest.raises(ExportError, match="the number of channels is 0; give at least 1"):
        found_channels(small(1), run_on(small(1)), 0)
    nothing = Around(3, lambda x: nn.functional.conv2d(x, torch.zeros(3, 2, 1, 1), groups=7))
    with pytest.raises(ExportError, match="does not run on an input of shape"):
        found_channels(nothing, run_on(nothing))
    sized = Around(1, lambda x: x + torch.zeros(1, 1, 48, 1))
    with pytest.raises(ExportError, match=r"tensor b \(48\) at non-singleton dimension 2\); give the input size"):
        found_channels(sized, run_on(sized))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"input": RGB}, "takes images of 1 channel, and the mean 0.485 0.456 0.406 is of 3; give --mean and --std"),
        ({"input": InputSpec(SIZE, (0.5,), (0.1, 0.2))}, "and the std 0.1 0.2 is of 2; give"),
        ({"input": GREY, "channels": 3}, "takes images of 1 channel and not of 3; leave --channels"),
        ({"input": GREY, "images": torch.zeros(2, 3, *SIZE)}, r"images must be \(N,1,64,64\) float32 .*, not \(2, 3"),
        ({"input": GREY, "precision": "int8"}, "int8 takes its ranges from photographs"),
    ],
)
def test_what_does_not_fit_is_refused(output: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ExportError, match=says) as caught:
        export_model(small(1), output, **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    check_untouched(output)


def test_one_value_is_that_of_all_channels() -> None:
    same = fitted(InputSpec(SIZE, (0.5, 0.5, 0.5), (0.2,)), 4)
    assert (same.mean, same.std, same.channels, same.shape) == ((0.5,) * 4, (0.2,) * 4, 4, (4, 64, 64))
    assert fitted(RGB, 3) == RGB


def _saved(model: nn.Module, path: Path) -> Path:
    torch.save(model.state_dict(), path)
    return path


def test_checkpoints_say_their_channels(tmp_path: Path) -> None:
    """timm makes the model for them, and of torchvision's the first convolution is replaced, as people do it."""
    torch.manual_seed(0)
    file = _saved(timm.create_model("test_resnet", in_chans=2, num_classes=5), tmp_path / "timm.pth")
    loaded = load_model(ModelRequest("timm:test_resnet", checkpoint=file, input_size=SIZE))
    assert loaded.model(torch.zeros(1, 2, *SIZE)).shape == (1, 5)
    with pytest.raises(ExportError, match=r"has shape .*; give the num_classes, channels, input size and model argum"):
        load_model(ModelRequest("timm:test_resnet", checkpoint=file, channels=3))
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.mobilenet_v3_small(num_classes=5)
    model.features[0][0] = nn.Conv2d(1, 16, 3, 2, 1, bias=False)
    file = _saved(model, tmp_path / "torchvision.pth")
    for channels in (None, 1):
        loaded = load_model(ModelRequest("torchvision:mobilenet_v3_small", checkpoint=file, channels=channels))
        assert loaded.channels == 1
        torch.testing.assert_close(loaded.model(torch.ones(1, 1, *SIZE)), model.eval()(torch.ones(1, 1, *SIZE)))
    with pytest.raises(ExportError, match="torchvision's weights of mobilenet_v3_small are of RGB images; give --ch"):
        load_model(ModelRequest("torchvision:mobilenet_v3_small", pretrained=True, channels=1))


def test_programs_and_linear_heads(tmp_path: Path) -> None:
    torch.export.save(program(4), tmp_path / "model.pt2")
    assert load_model(ModelRequest(str(tmp_path / "model.pt2"))).channels == 4
    with pytest.raises(ExportError, match=r"model.pt2: was exported for images of 4 channels; leave --channels out"):
        load_model(ModelRequest(str(tmp_path / "model.pt2"), channels=1))
    dynamic = torch.export.Dim.DYNAMIC
    shapes = ({0: dynamic, 1: dynamic},)
    cuts = Around(3, lambda x: x[:, :3])
    any_channels = torch.export.export(cuts, (torch.randn(2, 7, *SIZE),), dynamic_shapes=shapes)
    with pytest.raises(ExportError, match=r"not images \(N,C,H,W\) alone"):
        export_model(any_channels, tmp_path / "engine.onnx", input=GREY)
    head = _saved(nn.Linear(64, 7), tmp_path / "head.pth")
    request = ModelRequest("timm:test_vit", random_weights=True, channels=2, input_size=SIZE, linear_head=head)
    assert load_model(request).model(torch.zeros(1, 2, *SIZE)).shape == (1, 7)


def test_a_processor_of_one_channel(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "grey"
    vit_of_transformers().save_pretrained(folder)
    size = {"height": 64, "width": 64}
    transformers.ViTImageProcessor(size=size, image_mean=[0.3], image_std=[0.2]).save_pretrained(folder)
    loaded = load_model(ModelRequest(str(folder)))
    assert (loaded.input.mean, loaded.input.std, loaded.input.crop_mode) == ((0.3,), (0.2,), "squash")
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8))
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = processor(images=photograph.convert("L"), return_tensors="np")["pixel_values"]
    got, view = np.empty(loaded.input.shape, np.float32), np.empty(loaded.input.view_shape, np.uint8)
    Preprocessor(loaded.input)(load_image(photograph, channels=1), got, view, "x")
    np.testing.assert_allclose(got, pixels[0], atol=1e-5)
    transformers.ViTImageProcessor(size=size).save_pretrained(folder)  # whose mean is of three
    with pytest.raises(ExportError, match=r"ViTImageProcessor.* does not run on an image of 1 channel .*; save"):
        load_model(ModelRequest(str(folder)))


def test_int8_is_calibrated_on_arrays() -> None:
    arrays = list(np.random.default_rng(0).integers(0, 256, (12, 80, 72, 4), dtype=np.uint8))
    spec = InputSpec(SIZE, (0.1, 0.2, 0.3, 0.4), (0.25,) * 4)
    samples = take_samples("int8", arrays, spec, None)
    assert (samples.calibration.shape, samples.comparison.shape) == ((8, 4, *SIZE), (4, 4, *SIZE))
    wanted, view = np.empty(spec.shape, np.float32), np.empty(spec.view_shape, np.uint8)
    Preprocessor(spec)(arrays[2], wanted, view, "x")
    np.testing.assert_array_equal(samples.comparison[0], wanted)
    assert take_samples("fp16", [], spec, None).comparison.shape[1:] == (4, *SIZE)
    photographs = [Image.new("RGB", (70, 70), (v, v, v)) for v in range(10)]
    with pytest.raises(InputError, match="is a photograph, and the engine's images have 4 channels"):
        take_samples("int8", photographs, spec, None)
