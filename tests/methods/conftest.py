"""Small models and their engines of head "taps", exported once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finercam_rt as fc

torch = pytest.importorskip("torch")
SIZE = (48, 64)


class Convolutions(torch.nn.Module):
    """A convolution that keeps its sign, one that is rectified, and a linear head behind a pooling and a square."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 10, 8, 8)
        self.features = torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Conv2d(10, 12, 3, padding=1), torch.nn.ReLU())
        self.mix = torch.nn.Conv2d(12, 16, 3, padding=1)
        self.head = torch.nn.Linear(16, 9)

    def forward(self, images: Any) -> Any:
        return 40 * self.head((self.mix(self.features(self.stem(images))) ** 2).mean((2, 3)))


class Tokens(torch.nn.Module):
    """A prefix token before patch tokens; the layer's output feeds an attention, beside a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = torch.nn.Conv2d(3, 16, 16, 16)
        self.prefix = torch.nn.Parameter(torch.randn(1, 1, 16))
        self.norm = torch.nn.LayerNorm(16)
        self.attention = torch.nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = torch.nn.Linear(16, 9)

    def forward(self, images: Any) -> Any:
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(images.shape[0], -1, -1), tokens], 1)
        normed = self.norm(tokens)
        return self.head((tokens + self.attention(normed, normed, normed, need_weights=False)[0])[:, 0])


@dataclass(frozen=True)
class Exported:
    """A model, its target layer, and the files that were made of it."""

    model: Any
    layer: Any
    path: Path
    tail: Path

    def engine(self, **options: Any) -> fc.Engine:
        return fc.Engine(self.path, threads=1, **options)


def _exported(model: Any, layer: str, folder: Path, **options: Any) -> Exported:
    from finercam_rt.export import export_model
    from finercam_rt.manifest import InputSpec

    folder.mkdir(exist_ok=True)
    files = folder / "engine.onnx", folder / "tail.onnx"
    spec = InputSpec(size=SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    export_model(model.eval(), files[0], target_layer=layer, input=spec, head="taps", tail=files[1], **options)
    return Exported(model, model.get_submodule(layer), *files)


@pytest.fixture(scope="session")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.manual_seed(1)
    return _exported(Convolutions(), "features", tmp_path_factory.mktemp("cnn"))


@pytest.fixture(scope="session")
def several(cnn: Exported, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The same model with two contrasts and the gradients."""
    return _exported(cnn.model, "features", tmp_path_factory.mktemp("several"), contrasts=2, gradients=True)


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.manual_seed(2)
    return _exported(Tokens(), "norm", tmp_path_factory.mktemp("vit"))


@pytest.fixture
def images() -> Callable[[int], np.ndarray]:
    return lambda count: np.random.default_rng(count).standard_normal((count, 3, *SIZE)).astype(np.float32)
