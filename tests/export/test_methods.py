"""The methods' formulas against pytorch-grad-cam on the same A and G, in every layout, and in compiled engines."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="the export needs PyTorch")
pytest.importorskip("onnx", reason="the export needs onnx")
timm: Any = pytest.importorskip("timm", reason="the export's models come from timm")

from finercam_rt import Engine, ops  # noqa: E402
from finercam_rt.export.export_model import export_model  # noqa: E402
from finercam_rt.export.method import SCORES, raw_map  # noqa: E402
from finercam_rt.manifest import METHODS, LayerInfo  # noqa: E402

PUBLIC = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "layercam": "LayerCAM",
    "hirescam": "HiResCAM",
    "gradcamelementwise": "GradCAMElementWise",
    "eigengradcam": "EigenGradCAM",
    "fem": "FEM",
    "eigencam": "EigenCAM",
    "gradcam-eigen": "GradCAM",
    "gradcam++-eigen": "GradCAMPlusPlus",
    "xgradcam-eigen": "XGradCAM",
    "layercam-eigen": "LayerCAM",
    "gradcamelementwise-eigen": "GradCAMElementWise",
}
SMOOTHED = tuple(name for name in METHODS if name.endswith("-eigen"))
"""pytorch-grad-cam's eigen_smooth=True."""
GRID, CHANNELS, MANY, PREFIX = (5, 7), 24, 48, 2
"""Fewer channels than positions, and more: the eigen methods go two ways."""


def test_the_manifest_and_the_export_name_the_same_methods() -> None:
    assert set(SCORES) == set(METHODS) == set(PUBLIC)


def _activations_and_gradients(seed: int, channels: int) -> tuple[Any, Any]:
    """(2,C,h,w) with a leading direction, as real feature maps have: Eigen-CAM needs a first singular vector."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(2, 1, *GRID, generator=generator) * torch.rand(2, channels, 1, 1, generator=generator) * 4
    a = (base + torch.randn(2, channels, *GRID, generator=generator)).relu()
    g = torch.randn(2, channels, *GRID, generator=generator) * 0.1
    g[:, ::5] = 0  # Grad-CAM++ treats zero gradients on their own
    return a, g


def _in_layout(x: Any, layout: str) -> tuple[Any, LayerInfo]:
    if layout == "nchw":
        return x, LayerInfo("layer", "nchw", GRID)
    if layout == "nhwc":
        return x.permute(0, 2, 3, 1), LayerInfo("layer", "nhwc", GRID)
    junk = torch.full((len(x), PREFIX, x.shape[1]), 1e3)
    return torch.cat([junk, x.flatten(2).transpose(1, 2)], 1), LayerInfo("layer", "tokens", GRID, PREFIX)


def _public(name: str) -> Any:
    library = pytest.importorskip("pytorch_grad_cam", reason="parity needs grad-cam")
    cls = getattr(library, name, None)
    if cls is None:
        module = importlib.import_module(f"pytorch_grad_cam.{name.lower()}")
        cls = next(value for key, value in vars(module).items() if key.lower() == name.lower())
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1))
    return cls(model=model, target_layers=[model[0]])


def _public_scores(method: str, a: Any, g: Any) -> Any:
    """The library's map before ReLU; its sign is arbitrary for the eigen methods."""
    with _public(PUBLIC[method]) as cam:
        return cam.get_cam_image(torch.zeros(2, 3, 8, 8), None, None, a.numpy(), g.numpy(), method in SMOOTHED)


def _terms(method: str, a: Any, g: Any) -> Any:
    """What the eigen methods take the first principal component of."""
    known = {
        "eigencam": a,
        "eigengradcam": a * g,
        "layercam-eigen": g.relu() * a,
        "gradcamelementwise-eigen": (g * a).relu(),
    }
    if method in known:
        return known[method]
    with _public(PUBLIC[method]) as cam:
        weights = cam.get_cam_weights(None, None, None, a.numpy(), g.numpy())
    return torch.from_numpy(np.float32(weights))[:, :, None, None] * a


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "tokens"])
@pytest.mark.parametrize(
    ("method", "channels"), [(m, CHANNELS) for m in METHODS] + [(m, MANY) for m in METHODS if "eigen" in m]
)
def test_formulas_equal_the_public_library(method: str, channels: int, layout: str) -> None:
    a, g = _activations_and_gradients(3, channels)
    if method.startswith("xgradcam"):
        a = a + 0.01  # a channel without any activation divides by the epsilon alone
    expected = _public_scores(method, a, g)
    if "eigen" in method:
        # of the two signs, ours is the one along which the terms are larger in the mean
        x = _terms(method, a, g).flatten(2).transpose(1, 2)
        centred = x - x.mean(1, keepdim=True)
        along = x.mean(1, keepdim=True) @ centred.transpose(1, 2) @ torch.from_numpy(expected).flatten(1)[:, :, None]
        expected = expected * np.sign(along.numpy())
    (got, layer), (cotangents, _) = _in_layout(a, layout), _in_layout(g, layout)
    ours = raw_map(got, cotangents, layer, method).numpy()
    rectified = np.maximum(expected, 0)
    assert np.linalg.norm(rectified) > 0
    allowed = 1e-5 * np.linalg.norm(rectified)
    assert np.linalg.norm(ours - rectified) <= allowed
    if layout == "nchw":
        # what draws from taps
        assert np.linalg.norm(ops.cam(a.numpy(), g.numpy(), method=method) - rectified) <= allowed


@pytest.mark.parametrize("channels", [CHANNELS, MANY])
@pytest.mark.parametrize("second", [0.5, 0.97, 0.99, 0.997, 0.999])
def test_a_second_component_as_large_as_the_first(second: float, channels: int) -> None:
    """Eigen-CAM's first principal component is told from one that explains nearly as much of the variance."""
    draw = np.random.default_rng(5)
    rank = min(channels, GRID[0] * GRID[1] - 1)
    left = draw.standard_normal((GRID[0] * GRID[1], rank))
    left = np.linalg.qr(left - left.mean(0))[0]
    right = np.linalg.qr(draw.standard_normal((channels, rank)))[0]
    sigma = np.sqrt([1, second, *sorted(second * draw.random(rank - 2), reverse=True)])
    a = 3 * (left * sigma) @ right.T + right[:, 0]  # the mean is along the first component
    activations = torch.from_numpy(a.T.reshape(1, channels, *GRID).astype(np.float32))
    expected = np.maximum(3 * left[:, 0], 0).reshape(1, *GRID)
    # float32 moves the component by its own rounding over the distance of the two
    allowed = (1e-6 + 3e-7 / (1 - second)) * np.linalg.norm(expected)
    ours = raw_map(activations, activations, LayerInfo("layer", "nchw", GRID), "eigencam").numpy()
    taps = ops.cam(activations.numpy(), activations.numpy(), method="eigencam")
    assert np.linalg.norm(ours - expected) <= allowed
    assert np.linalg.norm(taps - expected) <= allowed


@pytest.mark.parametrize("method", ["gradcam", "xgradcam", "layercam", "gradcam++-eigen", "fem"])
def test_engines_of_methods(method: str, tmp_path: Path) -> None:
    """One for each way to a map: compiled, verified against eager autograd by the export itself, and the seed changes
    what it should change. All methods, in one graph: tests/tensorrt/test_matrix.py.
    """
    torch.manual_seed(0)
    # XGrad-CAM divides by the sum of a channel's activations, which is near zero behind a layer norm
    few = {"img_size": 64, "depth": 2}
    name, arguments = ("resnet18", {}) if method.startswith("xgradcam") else ("vit_tiny_patch16_224", few)
    model = timm.create_model(name, num_classes=10, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    from finercam_rt.manifest import InputSpec

    path = tmp_path / "engine.onnx"
    spec = InputSpec((64, 64), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    manifest = export_model(model, path, method=method, input=spec)
    assert manifest.method == method
    assert manifest.verification["map_relative_l2"] <= 1e-4
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    with Engine(path) as engine:
        plain, finer = (engine(images, alpha=alpha) for alpha in (0.0, 1.0))
    assert np.array_equal(plain.logits, finer.logits)
    same = np.array_equal(plain.saliency_map, finer.saliency_map)
    assert same == (METHODS[method] == "nothing")
