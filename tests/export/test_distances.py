"""torch.cdist as models of prototypes use it: any number of images, many and few prototypes, distances of zero."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from finercam_rt.engine import Engine
from finercam_rt.export.export_model import export_model
from finercam_rt.manifest import InputSpec

CHANNELS, SIZE = 8, (8, 12)
SPEC = InputSpec(SIZE, (0.5,) * 3, (0.5,) * 3)


class _Prototypes(nn.Module):
    """A classifier by distances to learned prototypes, of each position or of the image."""

    def __init__(self, rows: int, p: float, of_images: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tap, self.head = nn.Conv2d(3, CHANNELS, 2, 2), nn.Linear(rows, 7)
        self.prototypes, self.p, self.of_images = nn.Parameter(torch.randn(rows, CHANNELS)), p, of_images

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.tap(images).flatten(2).mT.tanh()
        found = torch.cdist(tokens.mean(1) if self.of_images else tokens, self.prototypes, p=self.p)
        return self.head(torch.log1p(found if self.of_images else found.amin(1)))


@pytest.mark.parametrize(("rows", "p", "of_images"), [(7, 2.0, False), (40, 2.0, True), (7, 1.0, False)])
def test_distances_to_prototypes(rows: int, p: float, of_images: bool, tmp_path: Path) -> None:
    """For any number of images: they are rows of a matrix, whose size PyTorch asks for."""
    model = _Prototypes(rows, p, of_images).eval()
    export_model(model, tmp_path / "x.onnx", target_layer="tap", input=SPEC)  # which verifies it
    images = torch.randn(40, 3, *SIZE)
    with Engine(tmp_path / "x.onnx") as engine:
        np.testing.assert_allclose(engine(images).logits, model(images).detach(), rtol=1e-4, atol=1e-5)


class _Still(nn.Module):
    """Distances of a map's channels, half of which are zero, from the origin, again and again."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tap, self.head = nn.Conv2d(3, CHANNELS, 2, 2), nn.Linear(CHANNELS * rows, 7)
        self.register_buffer("kept", (torch.arange(CHANNELS) % 2)[:, None].float())
        self.register_buffer("origin", torch.zeros(rows, SIZE[0] * SIZE[1] // 4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cdist(self.tap(images).flatten(2) * self.kept, self.origin).flatten(1))


@pytest.mark.parametrize("rows", [3, 30])
def test_a_distance_of_zero_has_no_gradient(rows: int, tmp_path: Path) -> None:
    """PyTorch's derivative is 0 there, a root's is infinite."""
    export_model(_Still(rows).eval(), tmp_path / "x.onnx", target_layer="tap", input=SPEC)
