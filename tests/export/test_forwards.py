"""Forwards as users write them: what is compiled is what they mean, and what cannot be is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from finercam_rt.engine import Engine
from finercam_rt.errors import ExportError
from finercam_rt.export import export_model
from finercam_rt.export.prove import LayoutRequest
from finercam_rt.manifest import InputSpec, Manifest

from .bodies import SIZE, Body, body
from .oracle import Oracle, noise, perturb, relative_l2

SPEC = InputSpec(SIZE, (0.5,) * 3, (0.5,) * 3)
Forward = Callable[[Any, torch.Tensor], Any]


def _with(forward: Forward) -> Body:
    """A Body with this forward."""
    torch.manual_seed(0)
    made = perturb(type("Own", (Body,), {"forward": forward})(), scale=0.3)
    assert isinstance(made, Body)
    return made


def _export(model: nn.Module, path: Path, **options: Any) -> Manifest:
    return export_model(model, path, input=SPEC, **options)


def _plain(model: Body, x: torch.Tensor) -> torch.Tensor:
    return model.logits(x)


def _map(model: Body, x: torch.Tensor) -> torch.Tensor:
    return model.features(model.stem(x))


def _under_autocast(model: Body, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model.logits(x)


def _in_place(model: Body, x: torch.Tensor) -> torch.Tensor:
    return model.logits(x.sub_(0.1).div_(0.5))


def _gated(model: Body, x: torch.Tensor) -> torch.Tensor:
    found = _map(model, x)
    return model.head((found * torch.sigmoid(found.mean((2, 3), keepdim=True))).mean((2, 3)))


def _frozen(model: Body, x: torch.Tensor) -> torch.Tensor:
    """A head on a backbone that is not trained."""
    with torch.no_grad():
        found = _map(model, x)
    return model.head(found.mean((2, 3)))


def _stopped(model: Body, x: torch.Tensor) -> torch.Tensor:
    found = _map(model, x)
    with torch.no_grad():
        gate = torch.sigmoid(5 * found.mean((2, 3), keepdim=True))
    return model.head((found * gate).mean((2, 3)))


def _detached(model: Body, x: torch.Tensor) -> torch.Tensor:
    found = _map(model, x)
    return model.head((found * torch.sigmoid(5 * found.mean((2, 3), keepdim=True)).detach()).mean((2, 3)))


def _checkpointed(model: Body, x: torch.Tensor) -> torch.Tensor:
    return checkpoint(model.head, _map(model, x).mean((2, 3)), use_reentrant=False)


MEANT: dict[str, tuple[Forward, Forward]] = {
    "len of the batch": (lambda m, x: m.head(_map(m, x).reshape(len(x), 12, -1).mean(-1)), _plain),
    "int of the batch": (lambda m, x: m.head(_map(m, x).reshape(int(x.shape[0]), 12, -1).mean(-1)), _plain),
    "squeeze": (lambda m, x: m.logits(x).squeeze(), _plain),
    "squeeze behind the pooling": (
        lambda m, x: m.head(functional.adaptive_avg_pool2d(_map(m, x), 1).squeeze()),
        _plain,
    ),
    "squeeze of an axis": (lambda m, x: m.logits(x).squeeze(1), _plain),
    "in place": (_in_place, lambda m, x: m.logits((x - 0.1) / 0.5)),
    "gate": (_gated, _gated),
    "gate that is detached": (_detached, _detached),
    "frozen backbone": (_frozen, _plain),
}
"""A forward, and one that means the same."""


@pytest.mark.parametrize("name", MEANT)
def test_what_is_compiled_is_what_they_mean(tmp_path: Path, name: str) -> None:
    """At another batch size than the captured one; the images that it is verified on stay as they are."""
    forward, meant = MEANT[name]
    model, images = _with(forward), noise(3, SIZE, seed=4)
    given = images.clone()
    manifest = _export(model, tmp_path / "a.onnx", images=given, target_layer="features")
    assert torch.equal(given, images)
    model.__class__.forward = meant
    batch = noise(4, SIZE, seed=5)
    with Engine(tmp_path / "a.onnx", backend="onnxruntime") as engine:
        outputs = engine(batch.numpy())
    oracle = Oracle(model, "features", batch)
    answer = oracle.explain(manifest.grid, "nchw", alpha=[1.0] * 4, objective="weighted")
    np.testing.assert_allclose(outputs.logits, oracle.logits, atol=1e-4 * np.abs(oracle.logits).max())
    assert outputs.references.tolist() == answer.references
    assert relative_l2(outputs.saliency_map, answer).max() < 1e-4


@pytest.mark.parametrize("layer", ["auto", "features"])
def test_a_gradient_that_is_stopped_in_part_is_not_taken_whole(tmp_path: Path, layer: str) -> None:
    """PyTorch's own map would be the one with the gate detached."""
    with pytest.raises(
        ExportError, match=r"takes a part of itself out of the gradient .* write that part with \.detach"
    ):
        _export(_with(_stopped), tmp_path / "a.onnx", target_layer=layer)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", [torch.sigmoid, torch.Tensor.sigmoid_, nn.Sigmoid(), lambda z: z.sigmoid().squeeze(1)])
def test_the_sigmoid_of_a_binary_model_is_not_taken_twice(tmp_path: Path, form: Callable[..., Any]) -> None:
    """Its output is no logit: taken for one, it would be above zero, a yes, for every image."""
    with pytest.raises(ExportError, match="give the model without its last sigmoid"):
        _export(_with(lambda m, x: form(m.logits(x)[:, :1] * 1.0)), tmp_path / "a.onnx", binary=True)


def test_the_sigmoid_of_a_gate_is_no_output(tmp_path: Path) -> None:
    model = _with(lambda m, x: _gated(m, x)[:, :1])
    assert _export(model, tmp_path / "a.onnx", binary=True).num_classes == 2


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("order", ["pooled scores", "scores of the pooled"])
def test_pooled_channels_are_no_map(tmp_path: Path, classes: int, order: str) -> None:
    """Of (N,C,1,1) the few channels divide the image as rows of a map would, and everything passes through it."""

    class Convolutional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU())
            self.scores, self.pool = nn.Conv2d(16, classes, 1), nn.AdaptiveAvgPool2d(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.f(x)
            x = self.pool(self.scores(x)) if order == "pooled scores" else self.scores(self.pool(x))
            return x.flatten(1)

    torch.manual_seed(0)
    model = perturb(Convolutional(), scale=0.1)
    square = InputSpec((32, 32), (0.5,) * 3, (0.5,) * 3)
    (layer,) = export_model(model, tmp_path / "a.onnx", input=square).layers
    assert (layer.layout, layer.grid) == ("nchw", (8, 8))
    last = "pool" if order == "pooled scores" else "scores"
    with pytest.raises(ExportError, match=rf"{last}', of shape \(2, {classes}, 1, 1\), is not a feature map"):
        export_model(model, tmp_path / "b.onnx", input=square, target_layer=last)


def _noisy(m: Body, x: torch.Tensor) -> torch.Tensor:
    f = _map(m, x)
    return m.head((f * (1 + 0.002 * torch.randn_like(f))).mean((2, 3)))


def _hooked(m: Body, x: torch.Tensor) -> torch.Tensor:
    f = _map(m, x)
    f.register_hook(lambda gradient: None)
    return m.head(f.mean((2, 3)))


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return -gradients[0]


@pytest.mark.parametrize(
    ("forward", "says"),
    [
        (lambda m, x: m.logits((x - x.mean()) / x.std()), "depend on the other images of the batch"),
        (lambda m, x: m.logits(functional.batch_norm(x, None, None, training=True)), "the other images of the batch"),
        (lambda m, x: m.head(functional.dropout(_map(m, x).mean((2, 3)), 0.3)), "random, such as dropout"),
        (_noisy, "random, such as dropout"),
        (_hooked, "take the hooks on tensors out"),
        (lambda m, x: m.head(_Reversed.apply(_map(m, x)).mean((2, 3))), r"derivatives of its own \(_Reversed\)"),
        (lambda m, x: m.head((torch.fft.rfft2(_map(m, x)) ** 3).real.mean((2, 3))), "the operation aten.pow"),
        (_checkpointed, "for training: switch that off"),
        (_under_autocast, "layer 'stem' runs under torch.autocast"),
    ],
    ids=[
        "mean of the batch",
        "norm",
        "dropout",
        "noise",
        "hook",
        "own derivative",
        "complex",
        "checkpoint",
        "autocast",
    ],
)
def test_forwards_that_cannot_be(tmp_path: Path, forward: Forward, says: str) -> None:
    with pytest.raises(ExportError, match=says) as refused:
        _export(_with(forward), tmp_path / "a.onnx", target_layer="features", force=True)
    assert str(refused.value).count("\n") == 0
    assert not list(tmp_path.iterdir())


class _Counting(Body):
    """What a forward keeps is the model's; the noise that an export shows it is not."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        found = _map(self, x)
        self.seen = 0.9 * self.seen + 0.1 * found.detach().mean((0, 2, 3))
        return self.head(found.mean((2, 3)))

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    """Its buffers too, those that a forward replaces among them; other things that it keeps are no obstacle."""
    torch.manual_seed(0)
    model = perturb(_Counting(), scale=0.3)
    model(noise(2, SIZE))
    runs, seen = model.runs, model.seen
    value = seen.clone()
    _export(model, tmp_path / "a.onnx")
    assert model.runs is runs
    assert model.seen is seen
    assert float(runs) == 1
    assert torch.equal(seen, value)


def _scripted() -> nn.Module:
    model = body()
    model.features = torch.jit.script(nn.Sequential(nn.BatchNorm2d(12)).eval())
    return model


def _of_no_values() -> nn.Module:
    model = body()
    model.register_buffer("scale", torch.ones(2, device="meta"))
    return model


def test_the_callers_modes_are_without_effect(tmp_path: Path) -> None:
    shas = []
    for mode in (torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad()):
        with mode:
            _export(body(), tmp_path / "a.onnx", images=noise(3, SIZE).requires_grad_(), precision="fp16")
        shas.append((tmp_path / "a.onnx").read_bytes())
    assert shas[0] == shas[1] == shas[2]


class _Growing(Body):
    """A table that grows with what is asked of it, and how far: one does not go without the other."""

    def __init__(self) -> None:
        super().__init__()
        self.known = 2
        self.register_buffer("table", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.known < 12:
            self.known = 12
            self.register_buffer("table", torch.arange(12.0))
        return self.head(_map(self, x).mean((2, 3)) + self.table)


def test_a_cache_that_grew_stays(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = perturb(_Growing(), scale=0.3)
    _export(model, tmp_path / "a.onnx")
    assert model(noise(2, SIZE)).shape == (2, 7)


@pytest.mark.parametrize("make", [_scripted, _of_no_values])
def test_models_with_buffers_that_cannot_be_copied(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    """What refuses them is what is wrong with them."""
    with pytest.raises(ExportError, match=r"TorchScript|meta device"):
        _export(make(), tmp_path / "a.onnx")


@pytest.mark.parametrize("request_", [LayoutRequest(prefix_tokens=-1), LayoutRequest(grid=(0, 4))])
def test_layouts_that_there_are_not(tmp_path: Path, request_: LayoutRequest) -> None:
    with pytest.raises(ExportError, match="at least one row"):
        _export(body(), tmp_path / "a.onnx", layout=request_)
