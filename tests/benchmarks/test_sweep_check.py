"""What is right: the oracle, engines held to it, and what would prove nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")

import torch
from sweep import check, oracle, outcome, records
from sweep.oracle import Contrast, Oracle, choice_error, degenerate, placement
from sweep.worker import placed
from torch import nn

from finercam_rt.errors import EngineError
from finercam_rt.manifest import LayerInfo


class Patches(nn.Module):
    """The model of the tests' hand-made engine."""

    def __init__(self, toy: Any) -> None:
        super().__init__()
        classes, channels = toy.weight.shape
        patch = toy.kernel.shape[-1]
        self.conv = nn.Conv2d(3, channels, patch, patch, bias=False)
        self.head = nn.Linear(channels, classes)
        self.conv.weight.data = torch.from_numpy(toy.kernel.copy())
        self.head.weight.data = torch.from_numpy(toy.weight.copy())
        self.head.bias.data = torch.from_numpy(toy.bias.copy())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(images).mean((2, 3)))


CONV = LayerInfo("conv", "nchw", (4, 6))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 48, generator=torch.Generator().manual_seed(4))


def test_the_oracle_is_the_closed_form(toy: Any, images: torch.Tensor) -> None:
    judge = Oracle(Patches(toy).eval(), CONV, images)
    contrast = judge.nearest(3)
    found = judge.expected(contrast)
    for row, image in enumerate(images.numpy()):
        target, references = int(contrast.target[row]), contrast.references[row].tolist()
        assert target == int(toy.logits(image[None])[0].argmax())
        assert references == toy.nearest(toy.logits(image[None])[0], target)
        expected = toy.raw_map(image, target, references, 1.0)
        assert np.linalg.norm(found.saliency_map[row] - expected) < 1e-5 * found.scale[row]
    one = Contrast(*(part[:1] for part in contrast))
    assert np.allclose(judge.expected(one).saliency_map, found.saliency_map[:1])
    assert choice_error(judge.logits, contrast) == 0
    other = contrast._replace(references=np.roll(contrast.references, 1, axis=1))
    assert choice_error(judge.logits, other) == 0  # in whatever order
    assert choice_error(judge.logits, contrast._replace(target=contrast.references[:, 0])) == np.inf
    assert choice_error(judge.logits, contrast._replace(references=contrast.references[:, [0, 0, 1]])) == np.inf
    farthest = np.argsort(judge.logits, axis=1)[:, :3]
    assert choice_error(judge.logits, contrast._replace(references=farthest)) > 1e-3
    exact = judge.in_float64()
    assert exact is not None
    assert 0 < oracle.map_error(exact.expected(contrast).saliency_map, found) < 1e-5


def test_an_engine_that_is_right_and_one_that_is_wrong(
    make_toy: Callable[..., Any], images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_toy()
    judge = Oracle(Patches(toy).eval(), CONV, images)
    found = check.check(toy.path, "onnxruntime", judge)
    assert found["status"] == outcome.RIGHT
    assert 0 < found["map_error"] < 1e-5
    assert 0 < found["logit_error"] < 1e-5

    other = Patches(toy).eval()
    with torch.no_grad():
        other.head.weight[0] *= 1.01
    found = check.check(toy.path, "onnxruntime", Oracle(other, CONV, images))
    assert found["status"] == outcome.WRONG

    class Flipped(check.Engine):
        """Its logits are right, and its maps are upside down."""

        def __call__(self, *args: Any, **options: Any) -> Any:
            outputs = super().__call__(*args, **options)
            return outputs._replace(saliency_map=outputs.saliency_map[:, ::-1])

    with monkeypatch.context() as patch:
        patch.setattr(check, "Engine", Flipped)
        found = check.check(toy.path, "onnxruntime", judge)
    assert found["status"] == outcome.WRONG
    assert found["map_error"] > 0.1
    assert found["rounding"]["engine"]["saliency_map"] > 0.1
    assert found["rounding"]["pytorch"]["saliency_map"] < 1e-5

    class Silent(check.Engine):
        def __call__(self, *args: Any, **options: Any) -> Any:
            outputs = super().__call__(*args, **options)
            return outputs._replace(saliency_map=np.full_like(outputs.saliency_map, np.nan))

    with monkeypatch.context() as patch:
        patch.setattr(check, "Engine", Silent)
        found = check.check(toy.path, "onnxruntime", judge)
    assert (found["status"], found["map_error"]) == (outcome.WRONG, None)

    def refuse(*args: Any, **options: Any) -> None:
        raise EngineError(f"{toy.path}: it cannot be loaded.")

    monkeypatch.setattr(check, "Engine", refuse)
    found = check.check(toy.path, "onnxruntime", judge)
    assert found == {"status": outcome.REFUSED, "reason": "toy.onnx: it cannot be loaded."}


def test_rounding_of_the_weights_explains_a_difference(
    toy: Any, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scale of the logits is what is left of a sum of whole numbers: it hangs on the last digit of each."""
    torch.manual_seed(0)
    large = torch.randint(-300, 300, (1000,)).float()
    rest = float(large.sum()) - 1
    some = torch.rand(1000) < 0.02

    class Scaled(Patches):
        def __init__(self) -> None:
            super().__init__(toy)
            self.large = nn.Parameter(torch.where(some, torch.nextafter(large, torch.tensor(1e9)), large))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) * (self.large.double().sum() - rest).to(images.dtype)

    judge = Oracle(Scaled().eval(), CONV, images)
    found = check.check(toy.path, "onnxruntime", judge)
    assert found["status"] == outcome.RIGHT
    assert found["map_error"] > outcome.TOLERANCE
    assert found["rounding"]["pytorch"]["logits"] > outcome.TOLERANCE
    monkeypatch.setattr(check, "ROUNDED_AGAIN", 0)
    assert check.check(toy.path, "onnxruntime", judge)["status"] == outcome.WRONG


def test_engines_of_several_contrasts_are_held_too(make_toy: Callable[..., Any], images: torch.Tensor) -> None:
    toy = make_toy(contrasts=3)
    found = check.check(toy.path, "onnxruntime", Oracle(Patches(toy).eval(), CONV, images))
    assert found["status"] == outcome.RIGHT
    assert 0 < found["map_error"] < 1e-5


def test_what_proves_nothing_is_named(toy: Any, images: torch.Tensor) -> None:
    model = Patches(toy).eval()
    assert degenerate(Oracle(model, CONV, images), 3) is None
    assert "same for every image" in str(degenerate(Oracle(model, CONV, images[:1].expand(3, -1, -1, -1)), 3))
    with torch.no_grad():
        model.head.weight.fill_(torch.nan)
    assert "not finite" in str(degenerate(Oracle(model, CONV, images), 3))


def test_a_grid_that_does_not_lie_on_the_image_is_seen(toy: Any, images: torch.Tensor) -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.turned, self.tokens = Patches(toy), nn.Identity(), nn.Identity()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = self.inner.conv(images)
            self.turned(x.transpose(2, 3).reshape(len(x), -1, 4, 6))
            self.tokens(x.flatten(2).transpose(1, 2))
            return x

    model = Turned().eval()
    readings = (LayerInfo("inner.conv", "nchw", (4, 6)), LayerInfo("tokens", "tokens", (4, 6)))
    wrong = (LayerInfo("turned", "nchw", (4, 6)), LayerInfo("tokens", "tokens", (6, 4)))
    assert all(placement(model, layer, images, 1) > 0.9 for layer in readings)
    assert all(placement(model, layer, images, 1) < records.LEAST_PLACEMENT for layer in wrong)


class Upset(nn.Module):
    """Every position answers to faint changes of its own place, and to strong ones of the opposite place."""

    def __init__(self, toy: Any, images: torch.Tensor) -> None:
        super().__init__()
        self.inner, self.mixed = Patches(toy), nn.Identity()
        self.strong = float(self.inner.conv(images).detach().abs().max())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.inner.conv(images)
        found: torch.Tensor = self.mixed(x + 100 * (x.flip(2, 3).abs() - self.strong).relu())
        return found


def test_a_layer_in_which_a_strong_change_upsets_everything_is_placed(
    toy: Any, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, layer = Upset(toy, images).eval(), LayerInfo("mixed", "nchw", (4, 6))
    assert placement(model, layer, images, 1) > oracle.PLACED
    monkeypatch.setattr(oracle, "CHANGES", oracle.CHANGES[:1])
    assert placement(model, layer, images, 1) < records.LEAST_PLACEMENT


class Wide(nn.Module):
    """Positions that see a window of so many positions, as `wide`, and turned round, as `turned`."""

    def __init__(self, toy: Any, window: tuple[int, int], only: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.inner, self.wide, self.turned, self.window, self.only = (
            Patches(toy),
            nn.Identity(),
            nn.Identity(),
            window,
            only,
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.only is not None and tuple(images.shape[2:]) != self.only:
            raise ValueError("a size that it does not take")
        padding = (self.window[0] // 2, self.window[1] // 2)
        x = self.wide(nn.functional.avg_pool2d(self.inner.conv(images), self.window, 1, padding))
        found: torch.Tensor = self.turned(x.flip(2, 3))
        return found


WIDE, TURNED = (LayerInfo(name, "nchw", (4, 6)) for name in ("wide", "turned"))


def test_a_bar_that_reaches_most_positions_does_not_turn_them_round(toy: Any, images: torch.Tensor) -> None:
    model = Wide(toy, (5, 7)).eval()
    assert placed(model, WIDE, images) >= records.LEAST_PLACEMENT
    assert placed(model, TURNED, images) < records.LEAST_PLACEMENT


def test_where_each_position_sees_nearly_the_whole_image_a_larger_one_is_taken(toy: Any, images: torch.Tensor) -> None:
    model = Wide(toy, (7, 9)).eval()
    assert placement(model, WIDE, images, 20261) < records.LEAST_PLACEMENT
    assert placed(model, WIDE, images) >= records.LEAST_PLACEMENT
    assert placed(model, TURNED, images) < records.LEAST_PLACEMENT
    stubborn = Wide(toy, (7, 9), only=(32, 48)).eval()
    assert placed(stubborn, WIDE, images) < records.LEAST_PLACEMENT
