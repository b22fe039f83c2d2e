"""Confident classifiers: the sign of the map is right, where the public code's epsilon flips or empties it."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from finercam_rt.engine import Engine
from finercam_rt.export import export_model
from finercam_rt.manifest import InputSpec

from .oracle import RELATIVE_L2, Answer, Oracle, blobs, perturb, relative_l2

SIZE = (160, 160)
SPEC = InputSpec(SIZE, (0.5,) * 3, (0.5,) * 3)
MARGINS = (5.0, 20.0, 40.0)


class Homogeneous(nn.Module):
    """Without biases and with ReLU alone, s times the image gives s times the logits: any margin from one engine."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 24, 8, 8, bias=False), nn.ReLU(), nn.Conv2d(24, 32, 3, padding=1, bias=False), nn.ReLU()
        )
        self.head = nn.Linear(32, 12, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


def _margin(logits: np.ndarray) -> np.ndarray:
    """The largest logit less the second largest, (N,)."""
    ordered = np.sort(logits, axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2])


def _cosine(left: np.ndarray, right: np.ndarray) -> float:
    return float((left * right).sum() / (np.linalg.norm(left) * np.linalg.norm(right)))


def _public_map(model: nn.Module, layer: str, image: torch.Tensor) -> np.ndarray:
    """grad-cam's FinerCAM with its default target, (H,W)."""
    cam = pytest.importorskip("pytorch_grad_cam", reason="grad-cam, the public code")
    with cam.FinerCAM(model, [model.get_submodule(layer)]) as finer:
        return np.asarray(finer(image, alpha=1.0)[0])


def _on_pixels(raw_map: np.ndarray) -> np.ndarray:
    """One map (h,w) resized to pixels, unnormalised: to set beside the public one."""
    values = torch.from_numpy(raw_map)[None, None].float()
    return nn.functional.interpolate(values, SIZE, mode="bilinear", align_corners=False)[0, 0].numpy()


def _check_public_code_fails(model: nn.Module, layer: str, image: torch.Tensor, signed: np.ndarray, margin: float):
    """Right at 5 nats, evidence against the target at 20, nothing left at 40."""
    public = _public_map(model, layer, image)
    evidence, against = (_on_pixels(np.maximum(sign * signed, 0)) for sign in (1, -1))
    if margin < 10:
        assert _cosine(public, evidence) > 0.99
    elif margin < 30:
        assert _cosine(public, against) > 0.9
        assert _cosine(public, evidence) < 0.5
    else:
        assert public.max() < 0.5 or _cosine(public, evidence) < 0.5


def test_scaled_logits(tmp_path: Path) -> None:
    """The same image at three brightnesses: margins of 5, 20 and 40 nats from one engine, in one batch."""
    torch.manual_seed(4)
    model = Homogeneous().eval()
    image = blobs(1, SIZE, seed=3)
    with torch.no_grad():
        unit = float(_margin(model(image).numpy())[0])
    images = torch.cat([image * (margin / unit) for margin in MARGINS])
    manifest = export_model(model, tmp_path / "scaled.onnx", input=SPEC)
    layer = manifest.layers[0]
    oracle = Oracle(model, layer.name, images)
    np.testing.assert_allclose(_margin(oracle.logits), MARGINS, rtol=1e-4)
    finer = oracle.explain(layer.grid, layer.layout, alpha=[1.0] * 3, objective="weighted")
    with Engine(tmp_path / "scaled.onnx") as engine:
        got = engine(images.numpy(), alpha=1.0)
    assert got.references.tolist() == finer.references
    assert relative_l2(got.saliency_map, finer).max() <= RELATIVE_L2
    for i, margin in enumerate(MARGINS):
        assert _cosine(got.saliency_map[i], finer.raw[i]) > 0.9999
        assert (finer.signed[i] < 0).any(), "a map without evidence against the target cannot show a flip"
        _check_public_code_fails(model, layer.name, images[i : i + 1], finer.signed[i], margin)


@pytest.mark.parametrize("margin", [20.0, 40.0])
def test_a_raised_bias_changes_nothing(tmp_path: Path, margin: float) -> None:
    """y_c + b moves neither q nor any gradient, so the map must stay what it was at a small margin."""
    torch.manual_seed(0)
    model = perturb(timm.create_model("test_resnet", num_classes=12), scale=0.1)
    image = blobs(1, SIZE, seed=6)
    before = Oracle(model, "layer3", image)
    (target,) = before.targets(None)
    confident = copy.deepcopy(model)
    with torch.no_grad():
        confident.get_classifier().bias[target] += margin - float(_margin(before.logits)[0])
    manifest = export_model(confident, tmp_path / "confident.onnx", target_layer="layer3", input=SPEC)

    with Engine(tmp_path / "confident.onnx") as engine:
        got = engine(image.numpy(), alpha=1.0)
    assert float(_margin(got.logits)[0]) == pytest.approx(margin, abs=1e-3)
    grid = manifest.layers[0].grid
    expected: Answer = before.explain(
        grid, "nchw", target=[target], references=got.references.tolist(), alpha=[1.0], objective="weighted"
    )
    assert relative_l2(got.saliency_map, expected).max() <= RELATIVE_L2
    assert (expected.signed < 0).any()
    assert (expected.signed > 0).any()
    _check_public_code_fails(confident, "layer3", image, expected.signed[0], margin)
