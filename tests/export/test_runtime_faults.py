"""Faults of other libraries that gave wrong maps: models in which they show, and the export that goes around them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from finercam_rt import Engine
from finercam_rt.export import export_model
from finercam_rt.manifest import InputSpec

from .oracle import noise

SIZE = (32, 32)
SPEC = InputSpec(SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class PooledBeforeConvolution(nn.Module):
    """The derivative of its mean expands what a transposed convolution gives, and divides it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.head = nn.Conv2d(3, 24, 4, 4), nn.Conv2d(24, 48, 1), nn.Linear(48, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = self.stem(images).mean((2, 3), keepdim=True)
        return self.head(nn.functional.relu(self.wide(pooled)).flatten(1))


class NormBeforeTokens(nn.Module):
    """Autograd mixes up the channels behind its batch norm, of one image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.norm = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        self.last, self.head = nn.LayerNorm(16), nn.Linear(16, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(nn.functional.gelu(self.wide(self.stem(images)))).flatten(2).transpose(1, 2)
        return self.head(self.last(tokens).mean(1))


@pytest.mark.parametrize("head", ["graph", "taps"])
def test_openvino_keeps_the_channels_of_what_is_expanded(tmp_path: Path, head: str) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    assert openvino
    torch.manual_seed(1)
    path = tmp_path / "pooled.onnx"
    export_model(PooledBeforeConvolution().eval(), path, target_layer="stem", method="hirescam", input=SPEC, head=head)
    maps = []
    for backend in ("onnxruntime", "openvino"):
        with Engine(path, backend=backend, device="cpu", threads=1) as engine:
            maps.append(engine(noise(2, SIZE).numpy()).saliency_map)
    assert maps[0].any()
    assert np.linalg.norm(maps[1] - maps[0]) <= 1e-4 * np.linalg.norm(maps[0])


def test_one_image_is_verified_by_two_copies(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = NormBeforeTokens().eval()
    nn.init.uniform_(model.norm.weight, 0.5, 2)
    nn.init.normal_(model.last.weight)
    manifest = export_model(model, tmp_path / "tokens.onnx", target_layer="stem", method="hirescam", input=SPEC)
    assert manifest.verification["map_relative_l2"] < 1e-4
