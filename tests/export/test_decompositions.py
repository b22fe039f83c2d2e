"""Our own derivatives of convolutions and poolings against autograd in float64, ties of a maximum included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from finercam_rt.export.decompositions import decompositions

from .models import Pooled

aten = torch.ops.aten
TABLE = decompositions()


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _autograd(x: torch.Tensor, function: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A random cotangent of the output, and the input's gradient for it."""
    leaf = x.clone().requires_grad_()
    out = function(leaf)
    grad = _randn(*out.shape, seed=99)
    (expected,) = torch.autograd.grad(out, leaf, grad)
    return grad, expected


@pytest.mark.parametrize("size", [(7, 7), (8, 11), (12, 9)])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        ((1, 1), (1, 1), (0, 0), (1, 1)),
        ((1, 1), (2, 2), (0, 0), (1, 1)),
        ((3, 3), (1, 1), (1, 1), (1, 1)),
        ((3, 3), (2, 2), (1, 1), (1, 1)),
        ((3, 3), (1, 1), (0, 0), (2, 2)),
        ((3, 3), (2, 2), (2, 2), (2, 2)),
        ((3, 2), (2, 3), (2, 0), (2, 1)),
        ((2, 3), (3, 2), (0, 1), (1, 2)),
        ((5, 4), (2, 3), (2, 1), (1, 1)),
        ((4, 4), (4, 4), (0, 0), (1, 1)),
    ],
)
def test_convolution_backward(size, groups, kernel, stride, padding, dilation) -> None:
    x, weight = _randn(2, 4, *size), _randn(8, 4 // groups, *kernel, seed=1)
    grad, expected = _autograd(x, lambda v: functional.conv2d(v, weight, None, stride, padding, dilation, groups))
    got = TABLE[aten.convolution_backward.default](
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [True, False, False]
    )
    torch.testing.assert_close(got[0], expected, rtol=1e-12, atol=1e-12)
    assert got[1:] == (None, None)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "output_padding", "dilation"),
    [
        ((2, 2), (2, 2), (0, 0), (0, 0), (1, 1)),
        ((3, 3), (2, 2), (1, 1), (1, 1), (1, 1)),
        ((4, 3), (2, 3), (1, 0), (1, 2), (1, 1)),
        ((3, 3), (1, 1), (1, 1), (0, 0), (2, 2)),
    ],
)
def test_transposed_convolution_backward(groups, kernel, stride, padding, output_padding, dilation) -> None:
    x, weight = _randn(2, 4, 5, 6), _randn(4, 6 // groups, *kernel, seed=1)
    grad, expected = _autograd(
        x,
        lambda v: functional.conv_transpose2d(v, weight, None, stride, padding, output_padding, groups, dilation),
    )
    got = TABLE[aten.convolution_backward.default](
        grad, x, weight, None, stride, padding, dilation, True, output_padding, groups, [True, False, False]
    )
    torch.testing.assert_close(got[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dilation", [1, 3])
def test_convolution_backward_in_one_dimension(dilation: int) -> None:
    x, weight = _randn(2, 4, 13), _randn(6, 2, 3, seed=1)
    grad, expected = _autograd(x, lambda v: functional.conv1d(v, weight, None, 2, 1, dilation, 2))
    got = TABLE[aten.convolution_backward.default](
        grad, x, weight, None, [2], [1], [dilation], False, [0], 2, [True, False, False]
    )
    torch.testing.assert_close(got[0], expected, rtol=1e-12, atol=1e-12)


def test_a_weight_that_depends_on_the_activations_is_refused() -> None:
    x, weight = _randn(1, 2, 4, 4), _randn(2, 2, 3, 3)
    with pytest.raises(NotImplementedError, match="weight"):
        TABLE[aten.convolution_backward.default](
            x[:, :, :2, :2], x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False]
        )


POOLINGS = [
    pytest.param({"kernel_size": 2}, id="2"),
    pytest.param({"kernel_size": 2, "stride": 1}, id="overlap"),
    pytest.param({"kernel_size": 3, "stride": 2, "padding": 1}, id="resnet"),
    pytest.param({"kernel_size": 3, "stride": 2, "ceil_mode": True}, id="squeezenet, ceil"),
    pytest.param({"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}, id="ceil and padding"),
    pytest.param({"kernel_size": (2, 3), "stride": (3, 2), "padding": (1, 1)}, id="rectangular"),
    pytest.param({"kernel_size": (3, 2), "stride": (1, 3), "padding": (0, 1), "ceil_mode": True}, id="all of it"),
    pytest.param({"kernel_size": 5, "stride": 1, "padding": 2}, id="5, same"),
]


@pytest.mark.parametrize("values", ["distinct", "ties", "constant", "negative"])
@pytest.mark.parametrize("dilation", [1, 2, (2, 1)])
@pytest.mark.parametrize("arguments", POOLINGS)
@pytest.mark.parametrize("size", [(9, 9), (10, 13)])
def test_max_pool_backward(size, arguments: dict[str, Any], dilation, values: str) -> None:
    """The first maximum of a window takes the whole cotangent, as in PyTorch; after a ReLU ties are the rule."""
    x = _randn(2, 3, *size)
    x = {"distinct": x, "ties": x.round(), "constant": torch.zeros_like(x), "negative": -x.abs() - 5}[values]
    arguments = {"stride": None, "padding": 0, "ceil_mode": False, **arguments}
    out, indices = functional.max_pool2d_with_indices(x, **arguments, dilation=dilation)
    assert out.numel() > 0
    grad, expected = _autograd(x, lambda v: functional.max_pool2d(v, **arguments, dilation=dilation))

    def pair(value: Any) -> list[int]:
        return [] if value is None else [value, value] if isinstance(value, int) else list(value)

    got = TABLE[aten.max_pool2d_with_indices_backward.default](
        grad,
        x,
        pair(arguments["kernel_size"]),
        pair(arguments["stride"]),
        pair(arguments["padding"]),
        pair(dilation),
        arguments["ceil_mode"],
        indices,
    )
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("divisor_override", [None, 5])
@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("arguments", POOLINGS)
@pytest.mark.parametrize("size", [(9, 9), (10, 13)])
def test_avg_pool_backward(size, arguments: dict[str, Any], count_include_pad: bool, divisor_override) -> None:
    x = _randn(2, 3, *size).float()  # the decomposition's window of ones is float32, as every engine's tail
    arguments = {"stride": None, "padding": 0, "ceil_mode": False, **arguments}

    def pool(v: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(
            v, **arguments, count_include_pad=count_include_pad, divisor_override=divisor_override
        )

    leaf = x.double().requires_grad_()
    out = pool(leaf)
    grad = _randn(*out.shape, seed=99)
    (expected,) = torch.autograd.grad(out, leaf, grad)

    def pair(value: Any) -> list[int]:
        return [] if value is None else [value, value] if isinstance(value, int) else list(value)

    got = TABLE[aten.avg_pool2d_backward.default](
        grad.float(),
        x,
        pair(arguments["kernel_size"]),
        pair(arguments["stride"]),
        pair(arguments["padding"]),
        arguments["ceil_mode"],
        count_include_pad,
        divisor_override,
    )
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_tail_of_these_operations_end_to_end(tmp_path: Path) -> None:
    """Through the whole export: traced, decomposed, written as ONNX and run."""
    from finercam_rt.engine import Engine
    from finercam_rt.export import export_model
    from finercam_rt.manifest import InputSpec

    from .oracle import RELATIVE_L2, Oracle, noise, relative_l2

    size = (44, 60)
    torch.manual_seed(3)
    model = Pooled()
    model(torch.zeros(1, 3, *size))
    model.eval()
    spec = InputSpec(size, (0.5,) * 3, (0.5,) * 3)
    manifest = export_model(model, tmp_path / "pooled.onnx", target_layer="layer", input=spec)
    images = noise(4, size)
    answer = Oracle(model, "layer", images).explain(
        manifest.layers[0].grid, "nchw", references=3, alpha=[0.0, 0.6, 1.0, 2.5], objective="weighted"
    )
    with Engine(tmp_path / "pooled.onnx") as engine:
        got = engine(images.numpy(), alpha=[0.0, 0.6, 1.0, 2.5])
    assert got.references.tolist() == answer.references
    assert relative_l2(got.saliency_map, answer).max() <= RELATIVE_L2


def test_an_interpolation_by_a_parameter(tmp_path: Path) -> None:
    """Its derivative is written into empty tensors, which the exporter has no form for (found with nViT)."""
    from finercam_rt.export import export_model
    from finercam_rt.manifest import InputSpec

    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.share = torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.Parameter(torch.linspace(0.1, 0.9, 8))
            self.head = torch.nn.Linear(8, 5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            tokens = self.layer(images).flatten(2).transpose(1, 2)
            mixed: torch.Tensor = self.head(tokens.lerp(tokens.tanh(), self.share).mean(1))
            return mixed

    torch.manual_seed(0)
    spec = InputSpec((32, 48), (0.5,) * 3, (0.5,) * 3)
    manifest = export_model(Mixed().eval(), tmp_path / "mixed.onnx", target_layer="layer", input=spec)
    assert manifest.verification["map_relative_l2"] < 1e-5
