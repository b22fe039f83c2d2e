"""The public libraries' maps: grad-cam 1.5.7's GradCAM and FinerCAM, torch-cam 0.5.0's FinerCAM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finercam_rt.images import load_image
from finercam_rt.preprocess import Preprocessor

from .conftest import Exported, ExportedFactory
from .oracle import RELATIVE_L2, Answer, has_evidence, noise, relative_l2

pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam", reason="grad-cam, the library compared with")
torchcam_methods = pytest.importorskip("torchcam.methods", reason="torch-cam, the library compared with")

GRAD_CAM_ALPHAS = (0.0, 0.6, 1.0)
"""Above 1 hardly any random network has positive evidence left, which is all that grad-cam returns."""
TORCH_CAM_ALPHAS = (0.0, 0.6, 1.0, 2.5)
MAX_MARGIN = 10.0
"""In nats: above it grad-cam's `+ 1e-9` shows, and from 18 on it flips the map (facts, part A1)."""

NORMALISED = 1e-3
"""Largest difference of two maps in [0, 1], where at least a hundredth of the signed map is positive. Both are float32
sums of some hundred products in another order, equal to 1e-6 of the signed map or better, then divided by the range of
what the ReLU left; a wrong reference or layer gives more than 0.1."""


def _batch(item: Exported, photographs: list[Path]) -> torch.Tensor:
    """Photographs as the engine prepares them."""
    spec = item.manifest.input
    batch = np.empty((len(photographs), 3, *spec.size), np.float32)
    view = np.empty((*spec.size, 3), np.uint8)
    for row, path in enumerate(photographs):
        Preprocessor(spec)(load_image(path), batch[row], view, str(path))
    return torch.from_numpy(batch)


def _margins(logits: np.ndarray, target: np.ndarray, references: np.ndarray) -> np.ndarray:
    """How far each target lies above its nearest reference, in nats."""
    rows = np.arange(len(logits))
    return np.asarray(logits[rows, target] - logits[rows[:, None], references].max(1))


class Comparison:
    """One exported model on one batch, with contrasts that are asked of this product, the library and the oracle."""

    def __init__(self, item: Exported, images: torch.Tensor) -> None:
        self.item, self.images = item, images
        self.layer = item.model.get_submodule(item.layer.name)
        self._oracle = item.oracle(images)
        logits = self._oracle.logits
        # the second best class against the third to fifth: near enough to have evidence of its own
        order = np.argsort(-logits, axis=1)
        self.pinned, self.references = order[:, 1].tolist(), order[:, 2:5].tolist()

    def ours(self, alpha: float, *, pinned: bool = False) -> tuple[np.ndarray, Answer]:
        """The engine's raw maps, and what autograd says, for the scale."""
        contrast = {"target": self.pinned, "references": self.references} if pinned else {}
        got = self.item.engine(
            self.images.numpy(), alpha=alpha, **{name: np.array(value) for name, value in contrast.items()}
        )
        margins = _margins(got.logits, got.target, got.references)
        assert np.abs(margins).max() < MAX_MARGIN, margins
        answer = self._oracle.explain(
            self.item.layer.grid,
            self.item.layer.layout,
            alpha=[alpha] * len(self.images),
            objective=self.item.manifest.objective,
            **contrast,
        )
        return got.saliency_map, answer

    def check_grad_cam(self, theirs: np.ndarray, alpha: float, *, pinned: bool = False) -> None:
        """`theirs` (N,H,W) as grad-cam returns it; our raw map goes through its own normalisation and resize."""
        raw_map, answer = self.ours(alpha, pinned=pinned)
        scale_cam_image = pytorch_grad_cam.utils.image.scale_cam_image
        height, width = self.images.shape[2:]
        ours = scale_cam_image(scale_cam_image(raw_map, (width, height)))
        rows = has_evidence(answer)
        assert rows.mean() >= 0.5, "too few maps with evidence to compare"
        np.testing.assert_allclose(ours[rows], theirs[rows], rtol=0, atol=NORMALISED)


def _check_grad_cam(item: Exported, images: torch.Tensor, alphas: tuple[float, ...]) -> None:
    """GradCAM at alpha 0, and for the objective that it has, FinerCAM; automatic and pinned classes."""
    compare = Comparison(item, images)
    targets = pytorch_grad_cam.utils.model_targets
    with pytorch_grad_cam.GradCAM(item.model, [compare.layer], item.reshape()) as cam:
        compare.check_grad_cam(cam(images, None), 0.0)
        theirs = cam(images, [targets.ClassifierOutputTarget(c) for c in compare.pinned])
        compare.check_grad_cam(theirs, 0.0, pinned=True)
    if item.manifest.objective == "mean":
        return
    with pytorch_grad_cam.FinerCAM(item.model, [compare.layer], item.reshape()) as cam:
        for alpha in alphas:
            compare.check_grad_cam(cam(images, alpha=alpha), alpha)
            pairs = zip(compare.pinned, compare.references, strict=True)
            theirs = cam(images, targets=[targets.FinerWeightedTarget(c, row, alpha) for c, row in pairs])
            compare.check_grad_cam(theirs, alpha, pinned=True)


def _check_torch_cam(item: Exported, images: torch.Tensor, alphas: tuple[float, ...]) -> None:
    """Raw maps, at the layer's own grid; automatic and pinned classes."""
    compare = Comparison(item, images)
    extra: dict[str, Any] = {} if item.reshape() is None else {"reshape_transform": item.reshape()}
    for alpha in alphas:
        with torchcam_methods.FinerCAM(item.model, compare.layer, gamma=alpha, **extra) as extractor:
            scores = item.model(images)
            (automatic,) = extractor(scores.argmax(1).tolist(), scores, normalized=False)
            scores = item.model(images)
            (pinned,) = extractor(compare.pinned, scores, compare.references, normalized=False)
        for theirs, is_pinned in ((automatic, False), (pinned, True)):
            raw_map, answer = compare.ours(alpha, pinned=is_pinned)
            errors = relative_l2(raw_map, answer, theirs.detach().numpy())
            assert errors.max() <= RELATIVE_L2, errors


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("resnet18", "weighted"),
        ("vit_small_patch14_dinov2", "weighted"),
        ("swin_tiny_patch4_window7_224", "weighted"),
        ("convnext_tiny", "mean"),
        ("vit_small_patch16_224", "mean"),
    ],
)
def test_grad_cam_on_random_weights(exported: ExportedFactory, name: str, objective: str) -> None:
    _check_grad_cam(exported(name, objective), noise(2, seed=8), GRAD_CAM_ALPHAS if name == "resnet18" else (1.0,))


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "vit_small_patch16_224"])
def test_torch_cam_on_random_weights(exported: ExportedFactory, name: str) -> None:
    _check_torch_cam(exported(name, "mean"), noise(2, seed=8), TORCH_CAM_ALPHAS if name == "resnet18" else (0.6, 2.5))


def test_grad_cam_on_real_weights(exported: ExportedFactory, photographs: list[Path]) -> None:
    item = exported("lite0", "weighted")
    images = _batch(item, photographs)
    got = item.engine(images.numpy())
    below = np.flatnonzero(_margins(got.logits, got.target, got.references) < MAX_MARGIN)
    assert len(below) >= 15, "too few photographs with a margin where grad-cam's formula holds"
    _check_grad_cam(item, images[below[:4]], GRAD_CAM_ALPHAS)


def test_torch_cam_on_real_weights(exported: ExportedFactory, photographs: list[Path]) -> None:
    item = exported("lite0", "mean")
    _check_torch_cam(item, _batch(item, photographs[:4]), TORCH_CAM_ALPHAS)


@pytest.mark.assets
def test_grad_cam_on_real_birds(birds: Exported, assets: Path) -> None:
    files = sorted((assets / "birds47").glob("*/1.jpg"))[::6]
    item, images = birds, _batch(birds, files)
    got = item.engine(images.numpy())
    below = _margins(got.logits, got.target, got.references) < MAX_MARGIN
    assert below.sum() >= 4
    _check_grad_cam(item, images[torch.from_numpy(below)][:4], (1.0,))
