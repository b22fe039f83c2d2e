"""Seeded weights that hide nothing of a model."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")

import torch
from sweep.weights import randomise
from torch import nn


class Residual(nn.Module):
    """Every trap of freshly made models: a silent layer scale, a zero last norm, weak layers, zero biases."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.weak = nn.Conv2d(6, 6, 3, groups=6)
        self.norm = nn.BatchNorm2d(6)
        self.last_norm = nn.BatchNorm2d(6)
        self.gamma = nn.Parameter(1e-6 * torch.ones(6, 1, 1))
        self.head = nn.Linear(6, 5)
        nn.init.zeros_(self.last_norm.weight)
        nn.init.normal_(self.weak.weight, std=0.02)
        nn.init.normal_(self.norm.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        nn.init.zeros_(self.conv.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.weak(self.conv(images))).relu()
        x = x + self.gamma * self.last_norm(x)
        return self.head(x.mean((2, 3)))


def test_random_weights_have_no_silent_branch() -> None:
    torch.manual_seed(0)
    model, images = Residual().eval(), 3 + torch.randn(4, 3, 16, 16)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    randomise(model, images, seed=1)
    first = {key: value.clone() for key, value in model.state_dict().items()}
    assert not any(module.training for module in model.modules())
    assert 0.2 <= model.gamma.min() < model.gamma.max() <= 0.6
    assert 0.2 <= model.last_norm.weight.min() < model.last_norm.weight.max() <= 0.6
    assert 0.8 <= model.norm.weight.min() < model.norm.weight.max() <= 1.2
    assert model.conv.bias.std() > 0.01
    assert float(model.head.weight.detach().std()) * 6**0.5 == pytest.approx(0.8)
    assert float(model.weak.weight.detach().std()) * 9**0.5 == pytest.approx(0.8)
    assert torch.equal(first["conv.weight"], fresh["conv.weight"])
    with torch.no_grad():
        normalised = model.norm(model.weak(model.conv(images))).flatten(2).transpose(0, 1).flatten(1)
    # the statistics are those of the images, but for the noise
    assert (normalised.mean(1) - model.norm.bias).abs().max() < 0.6
    assert (model.norm.running_mean.abs() > 0.01).all()
    model.load_state_dict(fresh)
    randomise(model, images, seed=1)
    assert all(torch.equal(first[key], value) for key, value in model.state_dict().items())
