"""Whether a model has changed: what must be seen, and what must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from finercam_rt.compat.state import ModelState


def _model() -> Any:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(1), nn.Linear(8 * 36, 5)]
    return nn.Sequential(*layers).eval()


def _step(model: Any) -> None:
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    torch.optim.SGD(model.parameters(), 0.01).step()


def _replace(model: Any) -> None:
    model[4] = nn.Linear(8 * 36, 5)


def _replace_without_weights(model: Any) -> None:
    model[2] = nn.GELU()


def _through_data(model: Any) -> None:
    model[0].weight.data.mul_(0.999)


def _through_numpy(model: Any) -> None:
    model[0].weight.detach().numpy()[:] += 0.01


def _statistics(model: Any) -> None:
    model.train()(torch.randn(2, 3, 8, 8))
    model.eval()


CHANGES: list[Callable[[Any], Any]] = [
    _step,
    _replace,
    _replace_without_weights,
    _through_data,
    _through_numpy,
    _statistics,
    lambda model: model.load_state_dict(_model().state_dict()),
    lambda model: model.append(nn.Identity()),
    lambda model: setattr(model[0], "weight", nn.Parameter(model[0].weight.detach().clone())),
    lambda model: model[1].register_forward_hook(lambda *_: None),
    lambda model: model.double(),
    lambda model: model.to(memory_format=torch.channels_last),
]


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_a_change_is_seen(change: Callable[[Any], Any]) -> None:
    model = _model()
    state = ModelState(model)
    assert state.matches(model)
    change(model)
    assert not state.matches(model)
    assert ModelState(model).matches(model)


def _passive(*_: object) -> None:
    """A hook of our own."""


_passive.changes_nothing = True  # type: ignore[attr-defined]

USES: list[Callable[[Any], Any]] = [
    lambda model: model(torch.randn(2, 3, 8, 8)).sum().backward(),
    lambda model: model.requires_grad_(False),
    lambda model: model.zero_grad(),
    lambda model: model.state_dict(),
    lambda model: model.register_forward_pre_hook(_passive),
]


@pytest.mark.parametrize("use", USES, ids=range(len(USES)))
def test_use_is_no_change(use: Callable[[Any], Any]) -> None:
    model = _model()
    state = ModelState(model)
    use(model)
    assert state.matches(model)


def test_weights_of_every_kind_are_compared() -> None:
    model = _model().to(memory_format=torch.channels_last)
    with torch.no_grad():
        model[4].weight[0, 0] = torch.nan
    model.register_buffer("short", torch.zeros(3, dtype=torch.bfloat16))
    model.register_buffer("count", torch.zeros((), dtype=torch.int64))
    model.register_buffer("wide", torch.zeros(1).expand(100))
    model.register_buffer("empty", torch.zeros(0))
    with torch.inference_mode():
        model.register_buffer("inference", torch.zeros(3))
    state = ModelState(model)
    assert state.matches(model)
    for name in ("short", "count", "wide"):
        first = getattr(model, name).data.reshape(-1)[:1]  # one value, as the elements of `wide` share their memory
        first.add_(1)
        assert not state.matches(model), name
        first.sub_(1)
        assert state.matches(model), name
    model[0].weight.data[-1, -1, -1, 0] += 1  # the channels lie last in memory; a view in their order is a copy
    model[0].weight.data[:] += 1e-3
    assert not state.matches(model)


def test_another_model_of_the_same_weights_is_another() -> None:
    assert not ModelState(_model()).matches(_model())
