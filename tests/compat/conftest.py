"""Small models that are compiled once in a session, and the original libraries."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="the drop-in compiles PyTorch models")
pytest.importorskip("onnx", reason="the drop-in exports")

SIZE = (32, 48)
CLASSES = 7


def small_cnn(classes: int = CLASSES, seed: int = 0) -> Any:
    """stem -> features (ReLU, conv, ReLU) -> mean -> head, with a map of 4x6 for images of 32x48."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 24, 8, 8),
        torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv2d(24, 24, 3, padding=1), torch.nn.ReLU()),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(1),
        torch.nn.Linear(24, classes),
    ).eval()


def blobs(count: int, size: tuple[int, int] = SIZE, seed: int = 3) -> Any:
    """Smooth noise, (count,3,H,W)."""
    values = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return 2 * torch.nn.functional.interpolate(values, size, mode="bicubic")


@pytest.fixture(scope="session")
def cnn() -> Any:
    """Never changed by a test: those that change weights make a model of their own."""
    return small_cnn()


@pytest.fixture
def images() -> Any:
    return blobs(4)
