"""Twelve architectures through the drop-in, against pytorch-grad-cam 1.5.7 and torch-cam 0.5.0: maps and logits.

Small members of each family, with seeded and perturbed weights: what differs between families is the operations and
the layout, which few blocks have as well as many.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import finercam_rt.compat as ours
import finercam_rt.compat.torchcam as ours_torchcam

from .conftest import blobs

timm: Any = pytest.importorskip("timm", reason="the architectures are timm's")
torchvision: Any = pytest.importorskip("torchvision", reason="the architectures are torchvision's")
public: Any = pytest.importorskip("pytorch_grad_cam", reason="grad-cam, one of the libraries compared with")
public_torchcam: Any = pytest.importorskip("torchcam.methods", reason="torch-cam, one of the libraries compared with")

CLASSES = 11
NORMALISED = 1e-4
"""Largest difference of two maps in [0, 1]."""
RAW = 1e-4
"""Relative L2 error of raw maps."""
MAX_MARGIN = 10.0
"""In nats: above it the epsilon of grad-cam's weighted target shows (`compat.FinerWeightedTarget`)."""


MEAN = {"resnet", "mobilenet", "vit", "swin"}
"""Where torch-cam's mean of several references is held against, too, which takes an engine of its own."""


class Case(NamedTuple):
    """A model, its target layer, the size of its images, and what the original libraries need to read the layer."""

    make: Callable[[], Any]
    layer: str
    size: tuple[int, int] = (64, 64)
    reshape: Callable[[Any], Any] | None = None


def _tokens(prefix: int, height: int, width: int) -> Callable[[Any], Any]:
    return lambda t: t[:, prefix:].reshape(len(t), height, width, -1).permute(0, 3, 1, 2)


def _timm(name: str, **options: Any) -> Callable[[], Any]:
    return partial(timm.create_model, name, num_classes=CLASSES, **options)


def _resnet() -> Any:
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)


def _mobilenet() -> Any:
    blocks = [[1, 16, 1, 1], [6, 24, 1, 2], [6, 32, 1, 2], [6, 64, 1, 2]]
    return torchvision.models.MobileNetV2(CLASSES, inverted_residual_setting=blocks)


def _efficientnet() -> Any:
    config = torchvision.models.efficientnet.MBConvConfig
    blocks = [
        config(1, 3, 1, 16, 16, 1, 1.0, 1.0),
        config(4, 3, 2, 16, 24, 1, 1.0, 1.0),
        config(4, 5, 2, 24, 40, 1, 1.0, 1.0),
    ]
    return torchvision.models.EfficientNet(blocks, 0.2, num_classes=CLASSES)


def _mixer() -> Any:
    return timm.models.mlp_mixer.MlpMixer(CLASSES, img_size=64, patch_size=16, num_blocks=2, embed_dim=64)


def _regnet() -> Any:
    module = torchvision.models.regnet
    return module.RegNet(
        module.BlockParams([1, 1, 1, 1], [16, 24, 40, 64], [8] * 4, [1.0] * 4, [2] * 4, 0.25), num_classes=CLASSES
    )


ARCHITECTURES = {
    "resnet": Case(_resnet, "layer4.0", (64, 96)),
    "densenet": Case(
        lambda: torchvision.models.DenseNet(8, (1, 2, 1, 2), 16, num_classes=CLASSES), "features.denseblock4"
    ),
    "squeezenet": Case(lambda: torchvision.models.squeezenet1_1(num_classes=CLASSES), "features.12"),
    "mobilenet": Case(_mobilenet, "features"),
    "efficientnet": Case(_efficientnet, "features", (96, 64)),
    "regnet": Case(_regnet, "trunk_output"),
    "convnext": Case(_timm("convnext_atto", depths=(1, 1, 1, 1), dims=(24, 32, 48, 64)), "stages.3"),
    "vit": Case(
        _timm("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=96), "blocks.1.norm1", reshape=_tokens(1, 4, 4)
    ),
    "dinov2": Case(
        _timm(
            "vit_small_patch14_reg4_dinov2", img_size=(56, 84), depth=2, embed_dim=96, num_heads=3, global_pool="avg"
        ),
        "blocks.1.norm1",
        (56, 84),
        _tokens(5, 4, 6),
    ),
    "deit": Case(
        _timm("deit_tiny_distilled_patch16_224", img_size=64, depth=2, embed_dim=96),
        "blocks.1.norm1",
        reshape=_tokens(2, 4, 4),
    ),
    "swin": Case(
        _timm(
            "swin_tiny_patch4_window7_224", img_size=64, window_size=4, depths=(1, 2), num_heads=(2, 4), embed_dim=32
        ),
        "norm",
        reshape=lambda t: t.permute(0, 3, 1, 2),
    ),
    "mixer": Case(_mixer, "blocks.1.norm1", reshape=_tokens(0, 4, 4)),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parity(name: str) -> None:
    case = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = case.make().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # fresh heads, biases and layer scales are zero or tiny
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    images = blobs(4, case.size)
    _check_grad_cam(model, case, images)
    _check_torchcam(model, case, images, name in MEAN)


def _check_grad_cam(model: Any, case: Case, images: Any) -> None:
    layers, finer = [model.get_submodule(case.layer)], public.utils.model_targets.FinerWeightedTarget
    with torch.no_grad():
        logits = model(images)
    top = logits.topk(4, dim=1)
    assert (top.values[:, 0] - top.values[:, 1]).max() < MAX_MARGIN
    pinned = [finer(row[1], [row[2], row[3]], 0.6) for row in top.indices.tolist()]
    with_evidence = []
    for name, arguments in (
        ("GradCAM", {"targets": None}),
        ("FinerCAM", {}),
        ("FinerCAM", {"alpha": 0.6}),
        ("FinerCAM", {"targets": pinned}),
    ):
        # one after the other: the hooks of theirs would be compiled with the model
        with getattr(public, name)(model, layers, case.reshape) as theirs:
            expected = theirs(input_tensor=images, **arguments)
        with getattr(ours, name)(model, layers, case.reshape) as mine:
            got = mine(input_tensor=images, **arguments)
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=0, atol=NORMALISED)
        torch.testing.assert_close(mine.outputs, logits, rtol=1e-4, atol=1e-4)
        with_evidence.extend(expected.max(axis=(1, 2)) > 0.9)
    # of a random network a contrast can be without evidence, and the two agree on that, too
    assert np.mean(with_evidence) >= 0.4, "too few maps with evidence to compare"


def _check_torchcam(model: Any, case: Case, images: Any, mean: bool) -> None:
    """Raw maps. With one reference both objectives are the same, so that this needs no engine of its own."""
    options = {} if case.reshape is None else {"reshape_transform": case.reshape}
    asked: list[tuple[str, dict[str, Any]]] = [("GradCAM", {}), ("FinerCAM", {"num_references": 1})]
    if mean:
        asked.append(("FinerCAM", {"gamma": 0.5}))
    for name, settings in asked:
        found = []
        for library in (ours_torchcam, public_torchcam):
            with getattr(library, name)(model, case.layer, **settings, **options) as extractor:
                scores = model(images)
                (values,) = extractor(scores.argmax(1).tolist(), scores, normalized=False)
                found.append(values.numpy().reshape(len(values), -1))
        got, expected = found
        scale = np.linalg.norm(expected, axis=1)
        kept = scale > 0.01 * scale.max()
        assert kept.mean() >= 0.5, "too few maps with evidence to compare"
        assert (np.linalg.norm(got - expected, axis=1)[kept] <= RAW * scale[kept]).all()
