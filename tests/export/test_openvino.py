"""Engines of every family in OpenVINO equal themselves in ONNX Runtime, which other tests hold to autograd."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finercam_rt import Engine
from finercam_rt.backends.selection import TOLERANCE
from finercam_rt.comparison import compare_maps
from finercam_rt.export import export_model
from finercam_rt.manifest import InputSpec

from .conftest import Exported, ExportedFactory
from .oracle import noise

openvino = pytest.importorskip("openvino", reason="openvino is not installed")

CASES = [
    ("resnet18", "weighted"),
    ("convnext_tiny", "mean"),
    ("vit_small_patch16_224", "mean"),
    ("vit_small_patch14_dinov2", "weighted"),
    ("swin_tiny_patch4_window7_224", "weighted"),
]


@pytest.mark.parametrize(("name", "objective"), CASES)
def test_maps_equal_those_of_onnx_runtime(exported: ExportedFactory, name: str, objective: str) -> None:
    """One image and three, which run in different graphs; ViTs read square weights both ways."""
    item = exported(name, objective)
    images = noise(3, seed=4).numpy()
    contrast = {"target": [3, 1, 2], "references": [[5, 6, 7], [8], []], "alpha": [1.0, 0.5, 0.0]}
    expected = item.engine(images, **contrast)
    with Engine(item.path, backend="openvino", threads=2) as engine:
        several = engine(images, **contrast)
        single = engine(images[:1], **{key: value[:1] for key, value in contrast.items()})
    for got, rows in ((several, slice(0, 3)), (single, slice(0, 1))):
        assert np.abs(got.logits - expected.logits[rows]).max() <= 1e-4 * np.ptp(expected.logits)
        for a, b in zip(got.saliency_map, expected.saliency_map[rows], strict=True):
            assert np.linalg.norm(a - b) <= TOLERANCE * np.linalg.norm(b)
            assert b.any(), "the comparison is not vacuous"
        assert got.references.tolist() == expected.references[rows].tolist()


def test_an_engine_loaded_again_computes_the_same(tmp_path: Path) -> None:
    """With several streams, OpenVINO 2026.4.1 computed windows of 16 wrong, in every other load or so."""
    transformers = pytest.importorskip("timm.models.swin_transformer_v2")
    torch.manual_seed(0)
    model = transformers.SwinTransformerV2(
        img_size=128, window_size=16, embed_dim=48, depths=(2,), num_heads=(2,), num_classes=7
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    path, images = tmp_path / "engine.onnx", np.random.default_rng(0).standard_normal((2, 3, 128, 128), np.float32)
    export_model(model.eval(), path, input=InputSpec((128, 128), (0.5,) * 3, (0.5,) * 3))
    with Engine(path, backend="onnxruntime", threads=1) as engine:
        wanted = engine(images).logits
    for _ in range(8):
        with Engine(path, backend="openvino", threads=1) as engine:  # fewer threads than there are cores
            np.testing.assert_allclose(engine(images).logits, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.assets
def test_birds_in_bf16(birds: Exported, assets: Path) -> None:
    """One photograph of each of the 47 species; the README has the figures of all 235."""
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor does not compute in bf16")
    files = sorted((assets / "birds47").rglob("5.jpg"))
    assert len(files) == 47
    expected = birds.engine.explain(files)
    with Engine(birds.path, backend="openvino", compute="bf16", threads=2) as engine:
        assert engine.explain(files).target.tolist() == expected.target.tolist()
        got = engine.explain(files, target=expected.target.tolist(), references=expected.references)
    assert not np.array_equal(got.logits, expected.logits)
    measures = np.array(
        [compare_maps(a, b, got.size) for a, b in zip(expected.saliency_map, got.saliency_map, strict=True)]
    )
    assert (measures.mean(axis=0) > [0.999, 0.99, 0.97]).all(), measures.mean(axis=0)
