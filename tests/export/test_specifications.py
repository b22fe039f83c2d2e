"""What a specification may be besides timm: and torchvision: names: programs, hub folders, heads on backbones."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.utils import prune

from finercam_rt.cli.main import main
from finercam_rt.engine import Engine
from finercam_rt.errors import ExportError
from finercam_rt.export import ModelRequest, export_model, load_model
from finercam_rt.export.classifier import as_classifier
from finercam_rt.export.eager import run_with_gradients

from .models import SmallCNN
from .oracle import noise, perturb

HUBCONF = """
dependencies = ["torch"]
import torch
from torch import nn

class Backbone(nn.Module):
    '''As DINOv2's own code: a dictionary of normalised tokens.'''
    def __init__(self):
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 14, 14), nn.LayerNorm(8)

    def forward_features(self, x):
        tokens = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        return {"x_norm_clstoken": tokens.amax(1), "x_norm_patchtokens": tokens}

    def forward(self, x):
        return self.forward_features(x)["x_norm_clstoken"]

def backbone(scale=1.0):
    torch.manual_seed(3)
    model = Backbone().eval()
    with torch.no_grad():
        model.patches.weight *= scale
    return model
"""


def _refused(message: str, specification: str, **arguments: Any) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        load_model(ModelRequest(specification, **arguments))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def _program(path: Path, model: nn.Module, size: Any, dynamic: Any) -> Path:
    torch.export.save(torch.export.export(model.eval(), (noise(2, size),), dynamic_shapes=(dynamic,)), path)
    return path


def test_exported_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line, with a target layer by its module's name; the file's size is the input's."""
    dim = torch.export.Dim.DYNAMIC
    model = perturb(SmallCNN(), scale=0.3)
    path = _program(tmp_path / "model.pt2", model, (48, 64), {0: dim})
    output = tmp_path / "model.onnx"
    assert main(["export", str(path), "-o", str(output), "--target-layer", "features", "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["model"]["name"] == "model.pt2"
    assert manifest["input"]["size"] == [48, 64]
    assert manifest["layers"][0]["name"] == "features"
    images = noise(3, (48, 64))
    with Engine(output) as engine, torch.no_grad():
        np.testing.assert_allclose(engine(images.numpy()).logits, model(images).numpy(), rtol=1e-4, atol=1e-5)
    _refused("was exported for images of 48x64; leave --input-size out", str(path), input_size=(32, 32))
    _refused("is complete; leave --checkpoint out", str(path), checkpoint=path)
    _refused("is complete; leave --random-weights out", str(path), random_weights=True)
    free = _program(tmp_path / "free.pt2", SmallCNN(), (48, 64), {0: dim, 2: dim, 3: dim})
    assert load_model(ModelRequest(str(free), input_size=(64, 32))).input.size == (64, 32)


def test_programs_and_files_that_are_refused(tmp_path: Path) -> None:
    fixed = _program(tmp_path / "fixed.pt2", SmallCNN(), (48, 64), None)
    _refused(r"takes batches of 2 alone; export it again with dynamic_shapes", str(fixed))
    broken = tmp_path / "broken.pt2"
    broken.write_bytes(fixed.read_bytes()[:-400])
    _refused("no program that this PyTorch .* can load", str(broken))
    broken.write_text("text")
    _refused("no program that this PyTorch .* can load", str(broken))
    _refused("none.pt2: no such file", str(tmp_path / "none.pt2"))
    checkpoint = tmp_path / "weights.pth"
    torch.save(SmallCNN().state_dict(), checkpoint)
    _refused("a checkpoint says no architecture; give the model, such as timm:NAME, and --checkpoint", str(checkpoint))
    script = tmp_path / "script.pt"
    torch.jit.script(nn.Linear(3, 3)).save(str(script))
    _refused("script.pt: is TorchScript, whose layers cannot be looked into", str(script))
    _refused("script.pt2: is TorchScript", str(script.rename(tmp_path / "script.pt2")))
    onnx = tmp_path / "model.onnx"
    onnx.write_bytes(b"x")
    _refused("is an ONNX file, which has no layers", str(onnx))
    text = tmp_path / "model.txt"
    text.write_text("x")
    _refused("model.txt: is no model; give timm:NAME", str(text))
    _refused("is not a model specification", str(tmp_path / "nothing"))


def test_hub_folders(tmp_path: Path) -> None:
    (tmp_path / "hubconf.py").write_text(HUBCONF)
    loaded = load_model(ModelRequest(f"hub:{tmp_path}:backbone", arguments={"scale": 2.0}))
    other = load_model(ModelRequest(f"hub:{tmp_path}:backbone"))
    assert torch.equal(loaded.model.patches.weight, other.model.patches.weight * 2)
    assert loaded.name == f"hub:{tmp_path.name}:backbone"
    _refused("cannot be built .*Cannot find callable", f"hub:{tmp_path}:nothing")
    _refused("has no hubconf.py; clone the repository", f"hub:{tmp_path}/none:backbone")
    _refused("names no callable; give hub:FOLDER:CALLABLE", "hub:folder")


def test_a_module_beside_the_user_is_found_by_the_command_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the model runs, too, which may import; behind the command Python looks where it looked before."""
    (tmp_path / "shift_beside.py").write_text("SHIFT = 1.0\n")
    (tmp_path / "model_beside.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Lazy(nn.Sequential):\n    def forward(self, x):\n"
        "        from shift_beside import SHIFT\n        return super().forward(x) + SHIFT\n\n"
        "def load():\n    torch.manual_seed(0)\n    return Lazy(nn.Conv2d(3, 9, 8, 8), nn.ReLU(), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 4)).eval()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", before := [folder for folder in sys.path if folder])
    command = ["export", "py:model_beside:load", "-o", "x.onnx", "--input-size", "32", "--target-layer", "1"]
    try:
        for specification, code in ((command[1], 0), ("py:model_beside:lode", 2)):
            assert main(["export", specification, *command[2:]]) == code, capsys.readouterr().err
            assert "" not in sys.path
            assert sys.path is before
    finally:
        for name in ("model_beside", "shift_beside"):
            sys.modules.pop(name, None)


def _head(path: Path, width: int, classes: int = 5, **more: torch.Tensor) -> nn.Linear:
    torch.manual_seed(1)
    head = nn.Linear(width, classes)
    torch.save({**{key: value.detach() for key, value in head.state_dict().items()}, **more}, path)
    return head


def test_a_linear_head_on_the_authors_own_backbone(tmp_path: Path) -> None:
    (tmp_path / "hubconf.py").write_text(HUBCONF)
    specification, file, images = f"hub:{tmp_path}:backbone", tmp_path / "head.pth", noise(2, (28, 42))
    for pool, width in (("mean", 8), ("cls", 8), ("cls+mean", 16)):
        head = _head(file, width)
        loaded = load_model(ModelRequest(specification, linear_head=file, pool=pool, input_size=(28, 42)))
        tokens = load_model(ModelRequest(specification)).model.forward_features(images)
        token, mean = tokens["x_norm_clstoken"], tokens["x_norm_patchtokens"].mean(1)
        with torch.no_grad():
            expected = head({"mean": mean, "cls": token, "cls+mean": torch.cat([token, mean], 1)}[pool])
            torch.testing.assert_close(loaded.model(images), expected)


def test_a_linear_head_on_timm_as_the_authors_train_it(tmp_path: Path) -> None:
    """Mean of the normalised patch tokens; a checkpoint of another size, in bfloat16; the layer keeps timm's name."""
    arguments = {"depth": 2, "embed_dim": 32, "num_heads": 2}
    torch.manual_seed(0)
    name = "vit_small_patch14_dinov2"
    published = perturb(timm.create_model(name, img_size=56, **arguments), scale=0.1)
    torch.save(published.state_dict(), tmp_path / "backbone.pth")
    head = _head(tmp_path / "head.pth", 32)
    loaded = load_model(
        ModelRequest(
            f"timm:{name}",
            checkpoint=tmp_path / "backbone.pth",
            linear_head=tmp_path / "head.pth",
            input_size=(70, 42),
            arguments=arguments,
        )
    )
    images = noise(2, (70, 42))
    other = timm.create_model(name, img_size=(70, 42), num_classes=0, **arguments).eval()
    resized = timm.models.vision_transformer.checkpoint_filter_fn(dict(published.state_dict()), other)
    other.load_state_dict(resized)
    with torch.no_grad():
        expected = head(other.forward_features(images)[:, 1:].mean(1))
        torch.testing.assert_close(loaded.model(images), expected)
    copied = as_classifier(loaded.model.bfloat16(), images).module
    (activations,), logits = run_with_gradients(copied, ["blocks.1.norm1"], images)
    assert activations.shape == (2, 1 + 5 * 3, 32)
    assert activations.dtype == torch.float32
    torch.testing.assert_close(logits.detach(), expected, rtol=0.1, atol=0.1)


def test_an_engine_of_a_linear_head(tmp_path: Path) -> None:
    head = _head(tmp_path / "head.pth", 64)
    request = ModelRequest(
        "timm:test_vit",
        random_weights=True,
        linear_head=tmp_path / "head.pth",
        input_size=(96, 64),
        arguments={"depth": 2},
    )
    loaded = load_model(request)
    perturb(loaded.model.blocks, scale=0.05)
    manifest = export_model(
        loaded.model, tmp_path / "x.onnx", target_layer="blocks.1.norm1", input=loaded.input, name=loaded.name
    )
    assert (manifest.layers[0].grid, manifest.layers[0].prefix_tokens) == ((6, 4), 1)
    assert manifest.num_classes == 5
    images = noise(2, (96, 64))
    with Engine(tmp_path / "x.onnx") as engine, torch.no_grad():
        tokens = loaded.model.forward_features(images)
        expected = head(tokens[:, 1:].mean(1))
        np.testing.assert_allclose(engine(images.numpy()).logits, expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "channels_last"), [("test_resnet", False), ("swin_tiny_patch4_window7_224", True)])
def test_linear_heads_on_maps(tmp_path: Path, name: str, channels_last: bool) -> None:
    """Convolutional networks and Swin have no class token: the mean is over the positions of their last map."""
    arguments = {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "img_size": 56} if channels_last else {}
    backbone = timm.create_model(name, num_classes=0, **arguments)
    head = _head(tmp_path / "head.pth", backbone.num_features)
    specification = {"specification": f"timm:{name}", "random_weights": True, "arguments": arguments}
    loaded = load_model(ModelRequest(**specification, linear_head=tmp_path / "head.pth"))
    images = noise(2, loaded.input.size)
    with torch.no_grad():
        features = loaded.model.forward_features(images)
        torch.testing.assert_close(loaded.model(images), head(features.mean((1, 2) if channels_last else (2, 3))))
    message = "the backbone has no class token for pool 'cls'; give --pool mean"
    _refused(message, **specification, linear_head=tmp_path / "head.pth", pool="cls")


def _named(state: dict[str, Any], *prefixes: str) -> dict[str, Any]:
    return {prefix + key: value for prefix in prefixes for key, value in state.items()}


@pytest.mark.parametrize(
    "content",
    [
        lambda state: {"state_dict": _named(state, "net."), "hyper_parameters": argparse.Namespace(lr=0.1)},
        lambda state: {"state_dict": {**_named(state, "model."), "criterion.weight": torch.ones(5)}},
        lambda state: {**_named(state, "module."), "n_averaged": torch.tensor(5)},
        lambda state: {"model": _named(state, "_forward_module.")},
        lambda state: _named(state, "_orig_mod.module."),
        lambda state: _named(state, "module._orig_mod."),
        lambda state: {"model_ema": state, "epoch": 2},
        lambda state: {"state_dict": state, "state_dict_ema": None, "model": {"name": "resnet"}},
    ],
)
def test_checkpoints_of_training_frameworks(content: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    """Lightning, Fabric, AveragedModel, torch.compile and DataParallel, averages alone."""
    torch.manual_seed(3)
    state = timm.create_model("test_resnet", num_classes=5).state_dict()
    torch.save(content(state), tmp_path / "x.pth")
    loaded = load_model(ModelRequest(specification="timm:test_resnet", checkpoint=tmp_path / "x.pth"))
    torch.testing.assert_close(loaded.model.state_dict(), state)


def test_masks_of_pruning_are_applied(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = timm.create_model("test_resnet", num_classes=5)
    for module in (model.conv1[0], model.fc):
        prune.l1_unstructured(module, "weight", 0.6)
    prune.random_structured(model.layer1[0].conv1, "weight", 0.5, dim=0)
    model.register_buffer("gain_mask", torch.ones(2))  # a name alone is no pruning
    torch.save({"state_dict": _named(model.state_dict(), "module.")}, tmp_path / "x.pth")
    with pytest.raises(ExportError, match=r"1 unexpected, first unexpected 'gain_mask'"):
        load_model(ModelRequest(specification="timm:test_resnet", checkpoint=tmp_path / "x.pth"))
    del model.gain_mask
    torch.save(_named(model.state_dict(), "module."), tmp_path / "x.pth")
    loaded = load_model(ModelRequest(specification="timm:test_resnet", checkpoint=tmp_path / "x.pth")).model
    for module in (model.conv1[0], model.fc, model.layer1[0].conv1):
        prune.remove(module, "weight")
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())
    assert (loaded.fc.weight == 0).float().mean() == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net_a.", "module.net_a."])
@pytest.mark.parametrize("function", ["backbone", "wrapped"])
def test_checkpoints_for_functions(prefix: str, function: str, tmp_path: Path) -> None:
    """A model with a child that is called `model` has that name in its own weights."""
    wrapped = "\ndef wrapped():\n    model = nn.Module()\n    model.model = backbone(2.0)\n    return model.eval()\n"
    (tmp_path / "hubconf.py").write_text(HUBCONF + wrapped)
    state = load_model(ModelRequest(f"hub:{tmp_path}:{function}")).model.state_dict()
    stored = {key: torch.full_like(value, 0.5) for key, value in state.items()}
    torch.save(_named(stored, prefix), tmp_path / "x.pth")
    loaded = load_model(ModelRequest(f"hub:{tmp_path}:{function}", checkpoint=tmp_path / "x.pth"))
    torch.testing.assert_close(dict(loaded.model.state_dict()), stored)


@pytest.mark.parametrize(
    ("specification", "arguments"),
    [("timm:deit_tiny_distilled_patch16_224", {"depth": 1}), ("torchvision:squeezenet1_1", {})],
)
def test_the_classes_of_checkpoints_with_other_heads(
    specification: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """Two linear layers, and a convolution."""
    make = timm.create_model if specification.startswith("timm") else torchvision.models.get_model
    state = make(specification.partition(":")[2], num_classes=5, **arguments).state_dict()
    torch.save(state, tmp_path / "x.pth")
    loaded = load_model(ModelRequest(specification, checkpoint=tmp_path / "x.pth", arguments=arguments))
    torch.testing.assert_close(loaded.model.state_dict(), state)


def test_a_checkpoint_of_a_head_alone_is_refused_for_a_backbone(tmp_path: Path) -> None:
    head, file = _head(tmp_path / "head.pth", 64), tmp_path / "x.pth"
    torch.save({"head.weight": head.weight.data}, file)
    message = "belongs to another architecture"
    _refused(message, specification="timm:test_vit", checkpoint=file, linear_head=tmp_path / "head.pth")


def test_a_checkpoint_of_two_models_is_refused(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet", num_classes=5).state_dict()
    torch.save({"state_dict": _named(state, "net.", "teacher.")}, tmp_path / "x.pth")
    message = r"holds several such models, 'net\.' and 'teacher\.'; save the state dict of one"
    _refused(message, specification="timm:test_resnet", checkpoint=tmp_path / "x.pth")
    torch.save({"model": {"state_dict": state, "state_dict_ema": state}}, tmp_path / "x.pth")
    message = r"holds several state dicts, 'state_dict' and 'state_dict_ema'; save one of them alone"
    _refused(message, specification="timm:test_resnet", checkpoint=tmp_path / "x.pth")


def test_heads_that_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "head.pth"
    model = {"specification": "timm:test_vit", "random_weights": True, "linear_head": file}
    _head(file, 20)
    _refused(r"takes 20 numbers, and pool 'mean' of timm:test_vit gives 64", **model)
    _head(file, 64)
    _refused("pool 'max' is unknown; give one of mean, cls, cls\\+mean", **model, pool="max")
    _refused("has 5 classes; leave --num-classes out", **model, num_classes=7)
    _head(file, 64, more=torch.zeros(3))
    _refused("holds 'more' besides a linear layer", **model)
    torch.save({"a.weight": torch.zeros(3, 64), "b.weight": torch.zeros(3, 64)}, file)
    _refused("holds 2 weights of linear layers, and a linear head is one", **model)
    torch.save({"weight": torch.zeros(3)}, file)
    _refused("holds 0 weights of linear layers", **model)
    file.unlink()
    _refused("no such checkpoint file", **model)


def test_a_layer_that_all_but_few_operations_come_behind_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hubconf.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def stages(n):\n    return [m for _ in range(n) for m in (nn.Conv2d(9, 9, 3, padding=1), nn.ReLU())]\n\n"
        "class Branches(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.stem = nn.Conv2d(3, 9, 4, 4)\n"
        "        self.a, self.b = nn.Sequential(*stages(6)), nn.Sequential(*stages(6))\n"
        "        self.head = nn.Linear(18, 4)\n"
        "    def forward(self, x):\n        x = self.stem(x)\n"
        "        return self.head(torch.cat([self.a(x).amax((2, 3)), self.b(x).mean((2, 3))], 1))\n\n"
        "def branches():\n    torch.manual_seed(0)\n    return Branches().eval()\n"
    )
    command = ["export", f"hub:{tmp_path}:branches", "-o", str(tmp_path / "x.onnx"), "--input-size", "32"]
    assert main(command) == 0
    said = "% OF THE MODEL'S OPERATIONS COME BEHIND IT, since no later map was found that everything passes through"
    printed = capsys.readouterr().out
    assert "target layer stem, nchw" in printed
    assert said in printed
    assert main([*command, "--target-layer", "stem"]) == 0
    assert "OPERATIONS" not in capsys.readouterr().out


def test_adapted_models_say_so_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hubconf.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Two(nn.Sequential):\n    def forward(self, x, shift):\n"
        "        y = super().forward(x)\n        return {'a': y + shift, 'b': y}\n\n"
        "def two():\n    torch.manual_seed(0)\n    return Two(nn.Conv2d(3, 9, 8, 8), nn.ReLU(), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 4)).bfloat16().eval()\n"
    )
    command = [
        "export",
        f"hub:{tmp_path}:two",
        "-o",
        str(tmp_path / "x.onnx"),
        "--input-size",
        "32",
        "--target-layer",
        "1",
    ]
    assert main([*command, "--logits", "a", "--input", "shift=[0, 0, 1.5, 0]"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "its input 'shift' is the constant of shape (4,)" in lines
    assert "the logits are 'a' of its dict" in lines
    assert "its bfloat16 weights were converted to float32" in lines
    with (tmp_path / "hubconf.py").open("a") as file:
        file.write("\ndef one():\n    return nn.Sequential(*list(two().float())[:-1], nn.Linear(9, 1)).eval()\n")
    command[1] = f"hub:{tmp_path}:one"
    assert main([*command, "--binary"]) == 0
    printed = capsys.readouterr().out
    assert "its one logit z makes two classes, of the logits -z/2 and z/2" in printed
    assert "PROBABILITIES" not in printed
    with (tmp_path / "hubconf.py").open("a") as file:
        file.write("\ndef shares():\n    return nn.Sequential(*list(two().float()), nn.Softmax(1)).eval()\n")
    command[1] = f"hub:{tmp_path}:shares"
    assert main(command) == 0
    assert (
        "ITS OUTPUTS ARE PROBABILITIES, which are explained and given in the place of logits" in capsys.readouterr().out
    )
