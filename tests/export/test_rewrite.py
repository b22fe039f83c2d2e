"""Operations as models use them: each in the trunk and in the tail of a toy, its compiled form against autograd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="the export needs PyTorch")
pytest.importorskip("onnx", reason="the export needs onnx")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from finercam_rt.cli.exported import summary  # noqa: E402
from finercam_rt.engine import Engine  # noqa: E402
from finercam_rt.errors import ExportError  # noqa: E402
from finercam_rt.export import export_model  # noqa: E402
from finercam_rt.export.capture import capture  # noqa: E402
from finercam_rt.export.cut import cut  # noqa: E402
from finercam_rt.export.eager import objective_value, run_with_gradients  # noqa: E402
from finercam_rt.export.expected import run_in_float64  # noqa: E402
from finercam_rt.export.method import raw_map  # noqa: E402
from finercam_rt.export.verify import _errors, verification_images, verify  # noqa: E402
from finercam_rt.export.vjp import Request, explained_tail  # noqa: E402
from finercam_rt.manifest import InputSpec, LayerInfo  # noqa: E402
from finercam_rt.tensorrt import library  # noqa: E402

CHANNELS, SIZE, GRID = 8, (8, 12), (4, 6)
LAYER = LayerInfo("tap", "nchw", GRID)


class Toy(nn.Module):
    """A convolution, an operation, the target layer `tap`, the same operation, and a head."""

    def __init__(self, operation: Callable[[Any], Any]) -> None:
        super().__init__()
        self.stem, self.tap, self.head = nn.Conv2d(3, CHANNELS, 2, 2), nn.Identity(), nn.Linear(CHANNELS, 7)
        self.operation = operation

    def forward(self, images: Any) -> Any:
        x = self.tap(self.operation(self.stem(images).tanh()))
        return self.head(self.operation(x).mean((2, 3)))


def _tokens(x: Any) -> Any:
    return x.flatten(2).transpose(1, 2)


def _image(tokens: Any, x: Any) -> Any:
    return tokens.transpose(1, 2).reshape(x.shape)


def _attended(x: Any, **options: Any) -> Any:
    """Attention of two heads; with enable_gqa one head of keys and values for both."""
    q = _tokens(x).reshape(x.shape[0], -1, 2, CHANNELS // 2).transpose(1, 2)
    k = q[:, :1] if options.get("enable_gqa") else q
    return x + _image(F.scaled_dot_product_attention(q, k, k, **options).transpose(1, 2).flatten(2), x)


def _attention_of_rank_3(x: Any) -> Any:
    t = _tokens(x)
    return x + _image(F.scaled_dot_product_attention(t, t, t, scale=0.7), x)


def _attention_of_rank_5(x: Any) -> Any:
    t = _tokens(x).reshape(x.shape[0], 4, -1, 2, CHANNELS // 2).transpose(2, 3)
    mask = torch.linspace(-1, 1, 6 * 6).reshape(6, 6)
    y = F.scaled_dot_product_attention(t, t, t, attn_mask=mask)
    return x + _image(y.transpose(2, 3).reshape(x.shape[0], -1, CHANNELS), x)


def _windows(x: Any) -> Any:
    u = F.unfold(x, 3, padding=1).reshape(x.shape[0], CHANNELS, 9, *x.shape[2:])
    return u.softmax(2).mul(u).sum(2)


def _sum_of_windows(x: Any) -> Any:
    """As in VOLO: dilated, strided windows, summed where they came from."""
    columns = F.unfold(x, (3, 2), dilation=(1, 2), padding=(1, 2), stride=(2, 1)).tanh()
    return x + F.fold(columns, x.shape[2:], (3, 2), dilation=(1, 2), padding=(1, 2), stride=(2, 1))


def _halo(x: Any) -> Any:
    """Overlapping windows of all positions, as in HaloNet: the mean square of each."""
    windows = F.pad(x, (1, 1, 1, 1)).unfold(2, 4, 2).unfold(3, 4, 2)
    return x + F.interpolate(windows.square().mean((-2, -1)), x.shape[2:])


def _assigned(x: Any) -> Any:
    """In place: a row, a range, every other column, a broadcast number."""
    y = torch.zeros_like(x)
    y[:, :, 1:] = x[:, :, :-1] * x[:, :, 1:]
    y[:, 0] = x[:, 1]
    y[:, :, :, ::2] *= 2
    y[:, 3, 1:3] = 0.5
    return y + x


def _resized(mode: str, size: tuple[int, int] | None = (3, 4), **options: Any) -> Callable[[Any], Any]:
    back = {"mode": mode, **({} if mode == "nearest" else {"align_corners": False})}

    def operation(x: Any) -> Any:
        less = F.interpolate(x, size, mode=mode, **options) if size else F.interpolate(x, scale_factor=2, mode=mode)
        return x * F.interpolate(less, x.shape[2:], **back)

    return operation


def _in_float64(x: Any) -> Any:
    return _resized("bilinear", (3, 5))(F.interpolate(F.adaptive_avg_pool2d(x.double(), 3), x.shape[2:]))


def _table(x: Any) -> Any:
    """A position table of another size, resized as ViTs do."""
    table = torch.linspace(-1, 1, CHANNELS * 9).reshape(1, CHANNELS, 3, 3)
    return x + F.interpolate(table, x.shape[2:], mode="bicubic", antialias=True)


def _clamped(x: Any) -> Any:
    """One value clamped three times by constants, as in a ViT with clipped projections."""
    inf = torch.tensor(torch.inf)
    y = x.clamp(torch.tensor(-0.5), torch.tensor(0.5)) + 2 * x.clamp(torch.tensor(-0.1), torch.tensor(0.4))
    return y + x.clamp(-inf, inf)


def _pooled_in_zeros(x: Any) -> Any:
    """As in HGNetV2 and NASNet; the least of its values is below zero at every border."""
    low = F.pad(x - 2, (0, 1, 0, 1))
    return x + F.max_pool2d(low, 2, 1) + F.interpolate(F.max_pool2d(nn.ZeroPad2d(1)(x - 2), 3, 2), x.shape[2:])


def _capital_einsum(x: Any) -> Any:
    """As in torchvision's MaxViT."""
    t = _tokens(x)
    return x + _image(torch.einsum("B I J, B K J -> B I K", t, t).softmax(-1) @ t, x)


SQUARE = torch.linspace(-1, 1, CHANNELS**2).reshape(CHANNELS, CHANNELS)
PERMUTED = [3, 1, 0, 2, 7, 6, -3, 4]
OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "attention of rank 3": _attention_of_rank_3,
    "attention of rank 5, with a mask": _attention_of_rank_5,
    "causal attention": lambda x: _attended(x, is_causal=True),
    "grouped attention": lambda x: _attended(x, enable_gqa=True),
    "windows": _windows,
    "sum of windows": _sum_of_windows,
    "halo": _halo,
    "assigned in place": _assigned,
    "adaptive average pooling": lambda x: x * F.interpolate(F.adaptive_avg_pool2d(x, 3), x.shape[2:]),
    "adaptive average pooling of equal windows": lambda x: x * F.interpolate(F.adaptive_avg_pool2d(x, 2), x.shape[2:]),
    "adaptive average pooling in one dimension": lambda x: x * F.adaptive_avg_pool1d(x.flatten(2), 1)[..., None],
    "average pooling larger than the map": lambda x: x * F.avg_pool2d(x, 99, ceil_mode=True),
    "average pooling that stands out": lambda x: x * F.interpolate(F.avg_pool2d(x, 3, 4, 1), x.shape[2:]),
    "average pooling with a divisor": lambda x: x * F.avg_pool2d(x, x.shape[2:], divisor_override=7),
    "adaptive max pooling": lambda x: x + F.interpolate(F.adaptive_max_pool2d(x, 2), x.shape[2:]),
    "global max pooling": lambda x: x * F.adaptive_max_pool2d(x, 1),
    "max pooling in zeros": _pooled_in_zeros,
    "squeezed to a vector": lambda x: x * F.adaptive_avg_pool2d(x.sin(), 1).squeeze()[..., None, None],
    "squeezed in the middle": lambda x: x * x.sin().mean(2)[:, :, None, None, :].squeeze()[:, :, None],
    "einsum in capital letters": _capital_einsum,
    "einsum that does not say its output": lambda x: x + torch.einsum("NcA,Ab", _tokens(x), SQUARE).reshape(x.shape),
    "padded around": lambda x: x * F.pad(x.sin(), (2, 1, 0, 3), mode="circular")[:, :, 2:-1, 1:-2],
    "padded by what is at the edges": lambda x: x * F.pad(x.sin(), (2, 1, 0, 3), mode="replicate")[:, :, 3:, 3:],
    "padded by a mirror": lambda x: x * F.pad(x.sin().flatten(2), (2, 1), mode="reflect")[:, :, 3:].reshape(x.shape),
    "pooled and resized in float64": lambda x: x + _in_float64(x).float(),
    "nearest": _resized("nearest"),
    "bilinear": _resized("bilinear"),
    "bilinear, corners aligned": _resized("bilinear", align_corners=True),
    "bilinear, antialiased": _resized("bilinear", antialias=True),
    "bicubic, twice as large": _resized("bicubic", None),
    "resized table": _table,
    "constant index": lambda x: x[:, torch.tensor(PERMUTED)] * x,
    "index_select": lambda x: torch.index_select(x, 1, torch.tensor(PERMUTED) % CHANNELS) * x,
    "clamped": _clamped,
    "sum of two linear ways": lambda x: (x + x.flip(1)) / 2 + F.conv2d(x, torch.ones(CHANNELS, CHANNELS, 1, 1)),
    "len of the batch": lambda x: x.reshape(len(x), CHANNELS, -1).reshape(x.shape) * x,
}
WITH_ONNX = [
    *("attention of rank 5, with a mask", "sum of windows", "halo", "clamped", "resized table"),
    *("max pooling in zeros", "padded around", "squeezed to a vector", "squeezed in the middle"),
]
"""What the exporter itself failed on, or what no other test writes as ONNX."""


def _model(name: str) -> Any:
    torch.manual_seed(0)
    return Toy(OPERATIONS[name]).eval()


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, "hirescam") for name in OPERATIONS),
        *((name, "gradcam") for name in ("windows", "bilinear", "len of the batch")),
    ],
)
def test_logits_and_maps_equal_autograd(name: str, method: str) -> None:
    """Through all stages up to the traced graph, at another batch size than the captured one."""
    model = _model(name)
    images = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    split = cut(capture(model, ["tap"], images[:2]))
    tail = explained_tail(split, [LAYER], Request(method, "mean", 2)).graph_module
    references = torch.tensor([[1, 2], [3, 4], [5, 6]])
    with torch.no_grad():
        logits, got, *_ = tail(tuple(split.trunk(images)), torch.tensor([0, 1, 2]), references, torch.full((3,), 0.6))
    (activations,), expected = run_with_gradients(model, ["tap"], images)
    value = objective_value(expected, [0, 1, 2], references.tolist(), [0.6] * 3, "mean")
    (gradients,) = torch.autograd.grad(value, activations)
    with torch.no_grad():
        wanted = raw_map(activations, gradients, LAYER, method)
    assert wanted.abs().max() > 0
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert (got - wanted).norm() <= 1e-5 * wanted.norm()
    targets = {node.target for node in tail.graph.nodes}
    scattering = {torch.ops.aten.index_put.default, torch.ops.aten._unsafe_index_put.default}
    assert not targets & {*scattering, torch.ops.aten.scatter_add.default, torch.ops.aten.index_add.default}


@pytest.mark.parametrize("name", WITH_ONNX)
def test_written_as_onnx(name: str, tmp_path: Path) -> None:
    spec = InputSpec(SIZE, (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    manifest = export_model(_model(name), tmp_path / "toy.onnx", target_layer="tap", input=spec)
    assert manifest.verification is not None
    assert manifest.verification["map_relative_l2"] < 1e-5


def test_a_pooling_larger_than_the_map_is_a_mean(tmp_path: Path) -> None:
    """As in transformers' EfficientNet; OpenVINO and TensorRT take no such window, and rightly so."""
    name = "average pooling larger than the map"
    graph = capture(_model(name), ["tap"], torch.randn(2, 3, *SIZE)).graph_module.graph
    assert torch.ops.aten.avg_pool2d.default not in {node.target for node in graph.nodes}
    spec = InputSpec(SIZE, (0.5,) * 3, (0.5,) * 3)
    export_model(_model(name), tmp_path / "toy.onnx", target_layer="tap", input=spec)
    with Engine(tmp_path / "toy.onnx", backend="openvino") as engine:
        assert engine(verification_images((3, *SIZE)).numpy()).saliency_map.any()


def test_no_equation_has_capital_letters() -> None:
    torch.manual_seed(0)
    graph = capture(Toy(_capital_einsum).eval(), ["tap"], torch.randn(2, 3, *SIZE)).graph_module.graph
    equations = [str(node.args[0]) for node in graph.nodes if node.target is torch.ops.aten.einsum.default]
    assert equations
    assert all(equation == equation.lower() for equation in equations)


def test_constants_are_computed_once_and_big_ones_stay_small() -> None:
    big = torch.nn.Parameter(torch.randn(1, CHANNELS, 1, 1))

    def operation(x: Any) -> Any:
        return x + (big.expand(-1, -1, 300, 300) * 2)[:, :, : x.shape[2], : x.shape[3]] + _table(x)

    torch.manual_seed(0)
    model = Toy(operation).eval()
    model.big = big
    graph = capture(model, ["tap"], torch.randn(2, 3, *SIZE)).graph_module
    names = {str(node.target) for node in graph.graph.nodes}
    assert "aten._upsample_bicubic2d_aa.vec" not in names
    assert sum(buffer.numel() for buffer in graph.buffers()) < 100_000


def test_a_number_is_assigned_to_a_range_in_the_graph_too(tmp_path: Path) -> None:
    """As Swin makes the mask of its shifted windows; the exporter's own form leaves the number without its axes."""

    def masked(x: Any) -> Any:
        mask = x.new_zeros(x.shape[2:])
        for number, rows in enumerate(((0, -2), (-2, None))):
            mask[rows[0] : rows[1], 1:3] = number
        return x + mask * x.square()

    torch.manual_seed(0)
    spec = InputSpec(SIZE, (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    export_model(Toy(masked).eval(), tmp_path / "toy.onnx", target_layer="tap", input=spec)  # which verifies it


def test_an_operation_without_a_form_is_named(tmp_path: Path) -> None:
    spec = InputSpec(SIZE, (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    toy = Toy(lambda x: x * torch.cdist(_tokens(x), _tokens(x), 3.0).mean(1).reshape(x.shape[0], 1, *x.shape[2:]))
    with pytest.raises(ExportError, match=r"\(the operation aten\._cdist_forward\)\.$"):
        export_model(toy.eval(), tmp_path / "toy.onnx", target_layer="tap", input=spec)
    assert not list(tmp_path.iterdir())


def _rough(by: float) -> Any:
    """A mean of large numbers is taken off again: what is left depends on the order of its sums."""
    torch.manual_seed(0)
    return Toy(lambda x: x * ((x.abs() + by).mean((2, 3), keepdim=True) - by)).eval()


def test_a_map_nearly_as_smooth_as_others_says_how_far_rounding_moves_it(tmp_path: Path) -> None:
    path, spec = tmp_path / "toy.onnx", InputSpec(SIZE, (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    manifest = export_model(_rough(1e4), path, target_layer="tap", input=spec)
    assert 1e-4 < manifest.verification["map_relative_l2"] < 2e-2
    assert 1e-4 < manifest.verification["rounding_of_pytorch"]["maps"] < 2e-2
    assert "rounding in float32 moves PyTorch's own map" in summary(manifest, path, 0)


def test_a_map_as_rough_as_pytorchs_own_is_written_by_force(tmp_path: Path) -> None:
    path, spec = tmp_path / "toy.onnx", InputSpec(SIZE, (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=r"^float32 cannot hold the map .*, or write it all the same with --force\.$"):
        export_model(_rough(1e6), path, target_layer="tap", input=spec)
    assert not path.exists()
    manifest = export_model(_rough(1e6), path, target_layer="tap", input=spec, force=True)
    assert manifest.verification["rounding_of_pytorch"]["maps"] > 2e-2
    assert "rounding in float32 moves PyTorch's own map" in summary(manifest, path, 0)


def test_weights_that_were_rounded_once_more_explain_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of a sum of whole numbers hangs on the last digit of each."""
    torch.manual_seed(0)
    large = torch.randint(-300, 300, (1000,)).float()
    total = float(large.sum()) - 1

    class Scaled(nn.Module):
        def __init__(self, values: Any) -> None:
            super().__init__()
            self.large = nn.Parameter(values)

        def forward(self, x: Any) -> Any:
            return x * (self.large.double().sum() - total).to(x.dtype)

    def model_of(values: Any) -> Any:
        torch.manual_seed(1)
        return Toy(Scaled(values)).eval()

    moved = torch.where(torch.rand(1000) < 0.02, torch.nextafter(large, torch.tensor(1e9)), large)
    path, spec = tmp_path / "toy.onnx", InputSpec(SIZE, (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    export_model(model_of(moved), path, target_layer="tap", input=spec)
    images = verification_images((3, *SIZE))
    with Engine(path, backend="onnxruntime") as engine:
        measured = verify(engine, model_of(large), images)
        assert measured["map_relative_l2"] > 1e-4
        assert measured["rounding_of_pytorch"]["maps"] < 1e-3
        monkeypatch.setattr("finercam_rt.export.verify.ROUNDED_AGAIN", 0)
        with pytest.raises(ExportError, match="does not equal the model"):
            verify(engine, model_of(large), images)


def test_a_model_that_does_not_run_in_float64_says_so_where_it_differs(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: Any) -> Any:
            return F.conv2d(x, torch.full((CHANNELS, 1, 1, 1), self.factor), groups=CHANNELS)

    def model_of(factor: float) -> Any:
        torch.manual_seed(1)
        return Toy(Fixed(factor)).eval()

    path, spec = tmp_path / "toy.onnx", InputSpec(SIZE, (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    export_model(model_of(1.0), path, target_layer="tap", input=spec)
    message = r"float64 does not show how much of it is rounding .*Double.*report it"
    with Engine(path, backend="onnxruntime") as engine, pytest.raises(ExportError, match=message):
        verify(engine, model_of(1.1), verification_images((3, *SIZE)))


def test_a_map_that_float32_cannot_hold_is_refused_with_its_cause(tmp_path: Path) -> None:
    """Logits of 1e9: which reference the softmax takes is a matter of the last digit."""

    class Huge(Toy):
        def forward(self, images: Any) -> Any:
            return super().forward(images) * 1e9 + torch.linspace(0, 300, 7)

    torch.manual_seed(0)
    model = Huge(torch.tanh).eval()
    model.head.weight.data[1:] = model.head.weight.data[0] + 1e-7 * torch.randn(6, CHANNELS)
    spec = InputSpec(SIZE, (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="float32 cannot hold the map of this layer: the logits reach"):
        export_model(model, tmp_path / "toy.onnx", target_layer="tap", input=spec)


def test_a_few_images_at_a_time_are_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps and taps of two contrasts in float64, of five images by twos and together."""
    torch.manual_seed(0)
    model, path, spec = Toy(torch.tanh).eval(), tmp_path / "toy.onnx", InputSpec(SIZE, (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    manifest = export_model(model, path, target_layer="tap", input=spec, contrasts=2, head="taps", gradients=True)
    images = verification_images((3, *SIZE))
    asked = [([p + i for i in range(5)], [[5, 6]] * 5, [0.2 * i for i in range(5)]) for p in (0, 1)]
    contrasts = [tuple(np.array(values) for values in contrast) for contrast in asked]
    found = []
    for at_once in (2, 5):
        monkeypatch.setattr("finercam_rt.export.expected.IN_FLOAT64", at_once)
        found.append(run_in_float64(model, manifest, images, contrasts, None))
    few, together = found
    assert few.logits.shape == (5, 7)
    assert [len(row) for row in few.maps] == [1, 1]
    assert [len(row) for row in few.taps] == [2, 2]
    assert max(_errors(few, together)) < 1e-12


class _Selecting(nn.Module):
    """As TransFG, FFVT and EViT: the tokens that score best go on, the others end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16)
        self.score, self.mix, self.head = nn.Linear(16, 1), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Any) -> Any:
        tokens = self.norm(self.stem(x).flatten(2).transpose(1, 2))
        best = self.score(tokens)[..., 0].topk(5, dim=1).indices
        chosen = tokens.gather(1, best[..., None].expand(-1, -1, 16))
        return self.head(F.gelu(self.mix(chosen)).square().mean(1))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_tokens_that_are_selected(backend: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = _Selecting().eval(), verification_images((3, 64, 96))[:3]
    spec = InputSpec((64, 96), (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    manifest = export_model(model, tmp_path / "x.onnx", target_layer="norm", input=spec, references=1)
    (layer,) = manifest.layers
    assert (layer.layout, layer.grid) == ("tokens", (8, 12))
    (activations,), logits = run_with_gradients(model, ["norm"], images)
    objective = objective_value(logits, [0, 1, 2], [[1], [2], [3]], [1.0] * 3, "weighted")
    (gradients,) = torch.autograd.grad(objective, activations)
    assert (gradients.abs().amax(2) > 0).sum(1).tolist() == [5, 5, 5]
    wanted = raw_map(activations, gradients, layer, "gradcam").detach().clamp_min(0)
    with Engine(tmp_path / "x.onnx", backend=backend) as engine:
        found = engine(images.numpy(), target=[0, 1, 2], references=[[1], [2], [3]], alpha=1.0)
    np.testing.assert_allclose(found.saliency_map, wanted.numpy(), rtol=0, atol=1e-5 * float(wanted.max()))


@pytest.mark.parametrize("number", [1e-8, 1e-10])
def test_a_small_number_is_not_zero(number: float, tmp_path: Path) -> None:
    """It keeps a logarithm and a division finite where an image has nothing that the model looks for."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 16, 8, 8, bias=False), nn.ReLU())
            self.head = nn.Linear(16, 5)

        def forward(self, x: Any) -> Any:
            v = self.body(x).mean((2, 3))
            return self.head((v + number).log()) - self.head(v / (v.norm(dim=1, keepdim=True) + number))

    torch.manual_seed(0)
    model = Small().eval()
    spec = InputSpec((64, 64), (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    export_model(model, tmp_path / "x.onnx", input=spec)
    images = verification_images((3, 64, 64))[:2]
    images[1] = 0
    with Engine(tmp_path / "x.onnx", backend="onnxruntime") as engine:
        found = engine(images.numpy()).logits
    np.testing.assert_allclose(found, model(images).detach().numpy(), rtol=1e-4, atol=1e-4)


def test_the_scatter_of_a_selection_is_named_where_tensorrt_is_asked(tmp_path: Path) -> None:
    if not library.is_installed(library.RTX):
        pytest.skip("TensorRT-RTX is not installed")
    torch.manual_seed(0)
    spec = InputSpec((64, 96), (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="does not take the operation Scatter"):
        export_model(_Selecting().eval(), tmp_path / "x.onnx", target_layer="norm", input=spec, check="tensorrt")
    assert not list(tmp_path.iterdir())


class _Encoded(nn.Module):
    """A transformer of PyTorch behind the target layer, in a forward that asks for the batch by len()."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.stem, self.encoder = nn.Conv2d(3, 16, 8, 8), nn.TransformerEncoder(block, 1)
        self.first, self.head = nn.Parameter(torch.randn(1, 1, 16)), nn.Linear(16, 5)

    def forward(self, x: Any) -> Any:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.encoder(torch.cat([self.first.expand(len(x), -1, -1), tokens], 1))[:, 0])


def test_a_transformer_of_pytorch_without_its_fast_path(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = InputSpec((64, 64), (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    manifest = export_model(_Encoded().eval(), tmp_path / "x.onnx", target_layer="stem", input=spec)
    assert manifest.verification["map_relative_l2"] < 1e-4
    assert torch.backends.mha.get_fastpath_enabled()
