"""Heads of the fine-grained and medical literature, exported: max poolings, products, spectra, masked classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from finercam_rt import Engine
from finercam_rt.errors import ExportError
from finercam_rt.export import export_model
from finercam_rt.manifest import InputSpec

from .oracle import RELATIVE_L2, Oracle, blobs, perturb, relative_l2

SIZE, GRID, WIDTH, CLASSES = (36, 60), (9, 15), 12, 5
SPEC = InputSpec(SIZE, (0.5,) * 3, (0.5,) * 3)


class _Net(nn.Module):
    """Two convolutions, the last of which gives (N,12,9,15), and a head."""

    def __init__(self, head: Callable[[torch.Tensor, _Net], torch.Tensor], width: int = WIDTH) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(8, WIDTH, 3, 2, 1))
        self.bilinear, self.scores = nn.Bilinear(WIDTH, WIDTH, CLASSES), nn.Conv2d(WIDTH, CLASSES, 1)
        self.norm, self.classifier, self.head = nn.LayerNorm(WIDTH), nn.Linear(width, CLASSES), head
        self.filter = nn.Parameter(torch.randn(GRID[0], GRID[1] // 2 + 1, WIDTH, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(x), self)


def _pyramid(x: torch.Tensor, net: _Net) -> torch.Tensor:
    """Of 9 rows and 15 columns neither 2 nor 4 windows are of one size; behind the rectifier many values are equal."""
    return net.classifier(torch.cat([functional.adaptive_max_pool2d(x.relu(), n).flatten(1) for n in (1, 2, 4)], 1))


def _global_max(x: torch.Tensor, net: _Net) -> torch.Tensor:
    return functional.max_pool2d(net.scores(x), kernel_size=x.size()[2:]).view(x.size(0), -1)


def _noisy_or(x: torch.Tensor, net: _Net) -> torch.Tensor:
    return 1 - torch.prod(1 - torch.sigmoid(net.scores(x) - 3).flatten(2), dim=2)


def _ordinal(x: torch.Tensor, net: _Net) -> torch.Tensor:
    return torch.cumprod(torch.sigmoid(net.classifier(x.mean((2, 3)))), dim=1)


def _bilinear(x: torch.Tensor, net: _Net) -> torch.Tensor:
    return net.bilinear(x.mean((2, 3)), x.amax((2, 3)))


def _compact_bilinear(x: torch.Tensor, net: _Net) -> torch.Tensor:
    spectrum = torch.fft.rfft(x.permute(0, 2, 3, 1), n=15)
    pooled = torch.fft.irfft(spectrum * spectrum.conj(), n=15).sum((1, 2))
    return net.classifier(functional.normalize(torch.sign(pooled) * torch.sqrt(torch.abs(pooled) + 1e-8)))


def _filtered(x: torch.Tensor, net: _Net) -> torch.Tensor:
    """A global filter network's block."""
    y = torch.fft.rfft2(net.norm(x.permute(0, 2, 3, 1)), dim=(1, 2), norm="ortho")
    y = torch.fft.irfft2(y * torch.view_as_complex(net.filter), s=GRID, dim=(1, 2), norm="ortho")
    return net.classifier(functional.gelu(y).mean((1, 2)))


def _low_frequencies(x: torch.Tensor, net: _Net) -> torch.Tensor:
    kept = torch.fft.rfftn(x, dim=(-2, -1))[..., :4, :3]
    return net.classifier((kept.real**2 + kept.imag**2).mean((2, 3)))


def _magnitudes(x: torch.Tensor, net: _Net) -> torch.Tensor:
    """At 0, too, where the magnitude has no derivative."""
    return net.classifier((torch.fft.rfft2(x).abs() + torch.fft.fft(x * 0).abs()[..., :8]).log1p().mean((2, 3)))


def _masked(x: torch.Tensor, net: _Net) -> torch.Tensor:
    logits = net.classifier(x.mean((2, 3)))
    return logits.masked_fill(torch.arange(CLASSES) > 2, -1e9)


HEADS: dict[str, tuple[Callable[[torch.Tensor, _Net], torch.Tensor], int]] = {
    "windows of several sizes": (_pyramid, 21 * WIDTH),
    "one window": (_global_max, WIDTH),
    "noisy or": (_noisy_or, WIDTH),
    "cumulative product": (_ordinal, WIDTH),
    "bilinear": (_bilinear, WIDTH),
    "compact bilinear": (_compact_bilinear, 15),
    "global filter": (_filtered, WIDTH),
    "low frequencies": (_low_frequencies, WIDTH),
    "magnitudes": (_magnitudes, WIDTH),
    "masked classes": (_masked, WIDTH),
}


@pytest.mark.parametrize("head", HEADS)
def test_the_map_is_autograds(head: str, tmp_path: Path) -> None:
    make, width = HEADS[head]
    model, path, images = perturb(_Net(make, width)), tmp_path / "model.onnx", blobs(3, SIZE, 1)
    export_model(model, path, target_layer="trunk.2", input=SPEC)
    with Engine(path, backend="onnxruntime") as engine:
        outputs = engine(images.numpy(), alpha=0.7)
    answer = Oracle(model, "trunk.2", images).explain(GRID, "nchw", alpha=[0.7] * 3, objective="weighted")
    assert relative_l2(outputs.saliency_map, answer).max() < RELATIVE_L2
    np.testing.assert_array_equal(outputs.target, answer.targets)


def test_auto_takes_no_map_of_class_scores(tmp_path: Path) -> None:
    """Behind a maximum over the positions few of any layer have a gradient, and one layer is as good as another."""
    manifest = export_model(perturb(_Net(_global_max)), tmp_path / "model.onnx", input=SPEC)
    assert manifest.layers[0].name == "trunk.2"


def test_one_window_takes_no_step_a_position(tmp_path: Path) -> None:
    """The derivative of a window of 9 x 15 positions would have 135 steps of several operations each."""
    import onnx

    export_model(perturb(_Net(_global_max)), tmp_path / "model.onnx", input=SPEC)
    assert len(onnx.load(tmp_path / "model.onnx").graph.node) < 150


def _cumulative(x: torch.Tensor, net: _Net) -> torch.Tensor:
    return net.classifier(x.mean((2, 3)))[:, :1] + torch.arange(CLASSES)


def _in_place(x: torch.Tensor, net: _Net) -> torch.Tensor:
    y = net.classifier(x.mean((2, 3))).exp()
    return y.mul_(2)


def _infinite(x: torch.Tensor, net: _Net) -> torch.Tensor:
    return net.classifier(x.mean((2, 3))).masked_fill(torch.arange(CLASSES) > 2, -math.inf)


@pytest.mark.parametrize(
    ("head", "sentence"),
    [(_cumulative, "ordinal head"), (_in_place, "writes in place"), (_infinite, "mask classes by a large negative")],
)
def test_refused(head: Callable[[torch.Tensor, _Net], torch.Tensor], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=sentence):
        export_model(perturb(_Net(head)), tmp_path / "model.onnx", input=SPEC)


def test_copies_in_one_batch_are_no_windows(tmp_path: Path) -> None:
    class Flipped(_Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = super().forward(torch.cat([x, x.flip(-1)]))
            return logits.view(2, len(x), CLASSES).mean(0)

    def mean(x: torch.Tensor, net: _Net) -> torch.Tensor:
        return net.classifier(x.mean((2, 3)))

    with pytest.raises(ExportError, match="several rows an image"):
        export_model(perturb(Flipped(mean)), tmp_path / "model.onnx", target_layer="trunk.2", input=SPEC)
