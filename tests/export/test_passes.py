"""The graph passes: each against autograd in float64 on small adversarial tails, and a count of what it must save."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="the export needs PyTorch")
pytest.importorskip("onnx", reason="the export needs onnx")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from finercam_rt.export.capture import capture  # noqa: E402
from finercam_rt.export.cut import Split, cut  # noqa: E402
from finercam_rt.export.fold import fold_batch_norms  # noqa: E402
from finercam_rt.export.head import take_head  # noqa: E402
from finercam_rt.export.lift import LiftedTail  # noqa: E402
from finercam_rt.export.lifted import CARRIED, Lifted  # noqa: E402
from finercam_rt.export.sink import sink_selections  # noqa: E402

from .oracle import perturb  # noqa: E402

aten = torch.ops.aten
CHANNELS, GRID, TOKENS = 12, (4, 6), 25


class Tail(nn.Module):
    """A trunk of one layer, named `tap`, then whatever the test puts behind it; images (N,3,8,12)."""

    def __init__(self, layout: str, prefix: int = 1) -> None:
        super().__init__()
        self.layout, self.prefix = layout, prefix
        self.stem = nn.Conv2d(3, CHANNELS, 2, 2)
        self.tap = nn.Identity()
        self.cls = nn.Parameter(torch.randn(1, prefix, CHANNELS))

    def forward(self, images: Any) -> Any:
        x = self.stem(images).tanh()
        if self.layout == "tokens":
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1)
        elif self.layout == "nhwc":
            x = x.permute(0, 2, 3, 1)
        return self.behind(self.tap(x), x)

    def behind(self, a: Any, before: Any) -> Any:
        raise NotImplementedError


class PooledLinear(Tail):
    """GAP and a linear head, with a frozen batch norm and a 1x1 convolution on the way: linear throughout."""

    def __init__(self) -> None:
        super().__init__("nchw")
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.conv = nn.Conv2d(CHANNELS, 8, 1)
        self.fc = nn.Linear(8, 7)

    def behind(self, a: Any, before: Any) -> Any:
        return self.fc(self.conv(self.norm(a)).mean((2, 3)))


class PaddedPool(Tail):
    """Zero padding, average pooling with its borders counted, a flatten that mixes positions and channels."""

    def __init__(self) -> None:
        super().__init__("nchw")
        self.fc = nn.Linear(CHANNELS * 3 * 4, 7)

    def behind(self, a: Any, before: Any) -> Any:
        return self.fc(F.avg_pool2d(F.pad(a, (1, 1, 1, 1)), 2).flatten(1))


class Flat(Tail):
    """Two linear layers behind a flatten of positions and channels, as VGG has them; `between` lies before them."""

    def __init__(self, layout: str, between: Any = nn.Identity) -> None:
        super().__init__(layout, prefix=2)
        positions = GRID[0] * GRID[1] + (2 if layout == "tokens" else 0)
        self.between = between()
        self.fc1, self.fc2 = nn.Linear(CHANNELS * positions, 16), nn.Linear(16, 7)

    def behind(self, a: Any, before: Any) -> Any:
        return self.fc2(self.fc1(self.between(a.flatten(1))).relu())


class WholeKernel(Tail):
    """The same as a convolution as large as the map, as timm has it, behind a padding."""

    def __init__(self) -> None:
        super().__init__("nchw")
        self.conv, self.fc = nn.Conv2d(CHANNELS, 16, (GRID[0], GRID[1] + 1), groups=2), nn.Linear(16, 7)

    def behind(self, a: Any, before: Any) -> Any:
        return self.fc(self.conv(F.pad(a, (1, 0))).relu().flatten(1))


class Gate(Tail):
    """x times a gate that depends on the layer, as in squeeze-and-excitation, and a residual around the layer."""

    def __init__(self) -> None:
        super().__init__("nchw")
        self.squeeze = nn.Linear(CHANNELS, CHANNELS)
        self.fc = nn.Linear(CHANNELS, 7)

    def behind(self, a: Any, before: Any) -> Any:
        gate = self.squeeze(a.mean((2, 3))).sigmoid()[:, :, None, None]
        return self.fc((before + a * gate * 0.5).mean((2, 3)))


class TwiceUsed(Tail):
    """One weight used twice, the layer read by two ways, one linear and one not."""

    def __init__(self) -> None:
        super().__init__("nhwc")
        self.shared = nn.Linear(CHANNELS, CHANNELS)
        self.fc = nn.Linear(CHANNELS, 7)

    def behind(self, a: Any, before: Any) -> Any:
        y = self.shared(a)
        return self.fc((y + self.shared(F.gelu(y)) - a / 3).mean((1, 2)))


def _heads(parts: Any, n: int, length: int) -> list[Any]:
    return [part.reshape(n, length, 3, CHANNELS // 3).transpose(1, 2) for part in parts]


QKV: dict[str, Any] = {
    "unbind": lambda x, n, length: x.reshape(n, length, 3, 3, CHANNELS // 3).permute(2, 0, 3, 1, 4).unbind(0),
    "chunk": lambda x, n, length: _heads(x.chunk(3, -1), n, length),
    "split": lambda x, n, length: _heads(x.split([CHANNELS] * 3, 2), n, length),
    "slices": lambda x, n, length: _heads([x[..., i * CHANNELS : (i + 1) * CHANNELS] for i in range(3)], n, length),
    "chunk of heads": lambda x, n, length: x.reshape(n, length, 3, CHANNELS).transpose(1, 2).chunk(3, -1),
}
"""How the queries, keys and values are taken from what projects all three: (N,L,3C) -> three of (N,heads,L,D)."""


class Block(Tail):
    """The last block of a ViT: fused projections, attention, MLP; `read` says how the head reads the tokens."""

    def __init__(self, read: str, scale: bool = False, prefix: int = 1, qkv: str = "unbind") -> None:
        super().__init__("tokens", prefix)
        self.read, self.pieces = read, qkv
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS)
        self.proj = nn.Linear(CHANNELS, CHANNELS)
        self.norm = nn.LayerNorm(CHANNELS)
        self.fc1, self.fc2 = nn.Linear(CHANNELS, 20), nn.Linear(20, CHANNELS)
        self.last = nn.LayerNorm(CHANNELS)
        self.gamma = nn.Parameter(torch.rand(CHANNELS)) if scale else 1.0
        self.head = nn.Linear(2 * CHANNELS if read == "both" else CHANNELS, 7)

    def behind(self, a: Any, before: Any) -> Any:
        n, length, _ = a.shape
        q, k, v = QKV[self.pieces](self.qkv(a), n, length)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, CHANNELS)
        x = before + self.proj(y) * self.gamma
        x = self.last(x + self.fc2(F.gelu(self.fc1(self.norm(x)))) * self.gamma)
        readings = {
            "index": lambda: x[:, 0],
            "slice": lambda: x[:, 0:1].squeeze(1),
            "last": lambda: x[:, -1],
            "mean": lambda: x[:, self.prefix :].mean(1),
            "two": lambda: (x[:, 0] + x[:, 1]) / 2,
            "both": lambda: torch.cat([x[:, 0], x[:, self.prefix :].mean(1)], 1),
            "gather": lambda: x.index_select(1, torch.tensor([0])).flatten(1),
        }
        return self.head(readings[self.read]())


class Gated(Tail):
    """A block's MLP that multiplies two halves of one projection, behind positions taken apart into unequal pieces."""

    def __init__(self, read: str) -> None:
        super().__init__("tokens", 5)
        self.read = read
        self.norm = nn.LayerNorm(CHANNELS)
        self.fc1, self.fc2 = nn.Linear(CHANNELS, 20), nn.Linear(10, CHANNELS)
        self.head = nn.Linear(CHANNELS, 7)

    def behind(self, a: Any, before: Any) -> Any:
        prefix, top, bottom = a.split([5, 8, 16], 1)
        shift = 0.1 * (top.mean(1, keepdim=True) - 3 * bottom.mean(1, keepdim=True) + prefix.mean(1, keepdim=True))
        x = before + a + shift
        gate, value = self.fc1(self.norm(x)).chunk(2, -1)
        x = x + self.fc2(F.silu(gate) * value)
        return self.head(x[:, 0] if self.read == "index" else x[:, 5:].mean(1))


READINGS = ["index", "slice", "last", "mean", "two", "both", "gather"]
ONE_AND_ALL = ["index", "mean"]
SPLIT = ["chunk", "split", "chunk of heads"]
TAILS: dict[str, Any] = {
    "pooled linear": PooledLinear,
    "padded pool": PaddedPool,
    **{f"flat, {layout}": lambda layout=layout: Flat(layout) for layout in ("nchw", "nhwc", "tokens")},
    "flat, merged": lambda: Flat("nchw", nn.SiLU),
    "whole kernel": WholeKernel,
    "gate": Gate,
    "twice used": TwiceUsed,
    **{f"block, {read}": lambda read=read: Block(read) for read in READINGS},
    "block, layer scale": lambda: Block("index", scale=True),
    "block, no prefix token": lambda: Block("mean", prefix=0),
    "block, class token and registers": lambda: Block("both", prefix=5),
    "block, class token of several": lambda: Block("index", prefix=5),
    **{
        f"block, {qkv}, {read}": lambda qkv=qkv, read=read: Block(read, qkv=qkv)
        for qkv in SPLIT
        for read in ONE_AND_ALL
    },
    **{f"gated, {read}": lambda read=read: Gated(read) for read in ONE_AND_ALL},
}


def _split(make: Any) -> tuple[Any, Split, Any]:
    torch.manual_seed(0)
    model = make().double().eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 2)
    images = torch.randn(3, 3, 8, 12, dtype=torch.float64)
    return model, cut(capture(model, ["tap"], images)), images


def _positions(activations: Any, model: Any) -> tuple[list[int], Any]:
    """The shape of delta, and the mask: prefix tokens take no part."""
    channel = 1 if model.layout == "nchw" else activations.ndim - 1
    shape = [size if i in (0, channel) else 1 for i, size in enumerate(activations.shape)]
    mask = torch.ones([1] * activations.ndim)
    if model.layout == "tokens":
        mask = torch.ones(1, activations.shape[1], 1)
        mask[:, : model.prefix] = 0
    return shape, mask


@pytest.mark.parametrize("name", TAILS)
def test_pooled_gradients_and_logits_equal_autograd(name: str) -> None:
    """With and without select sinking: float64, so that only a wrong rule can differ."""
    model, split, images = _split(TAILS[name])
    with torch.no_grad():
        activations, *carried = split.trunk(images)
    leaf = activations.clone().requires_grad_()
    (expected,) = split.tail(leaf, *carried)
    seed = torch.randn_like(expected)
    (gradients,) = torch.autograd.grad(expected, leaf, seed)
    assert torch.allclose(expected, model(images), rtol=0, atol=1e-12)

    shape, mask = _positions(activations, model)
    kept = gradients[:, model.prefix :] if model.layout == "tokens" else gradients
    dims = [i for i, size in enumerate(shape) if size == 1]
    for tail in (split.tail, sink_selections(split.tail)[0]):
        delta = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        (logits,) = LiftedTail(tail).run(Lifted(activations, delta, mask), *carried)
        logits = logits.merged() if isinstance(logits, CARRIED) else logits
        (pooled,) = torch.autograd.grad(logits, delta, seed)
        assert torch.allclose(logits, expected, rtol=0, atol=1e-12)
        assert pooled.abs().max() > 1e-6
        assert torch.allclose(pooled, kept.sum(dims, keepdim=True), rtol=0, atol=1e-12)


REAL: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "test_resnet": ("layer3", "nchw", 0, {}),
    "test_efficientnet": ("blocks.2", "nchw", 0, {}),
    "test_convnext": ("stages.2", "nchw", 0, {}),
    "test_vit": ("blocks.5.norm1", "tokens", 1, {"img_size": 64}),
    "deit_tiny_distilled_patch16_224": ("blocks.1.norm1", "tokens", 2, {"img_size": 64, "depth": 2}),
    "vit_small_patch14_reg4_dinov2": ("blocks.1.norm1", "tokens", 5, {"img_size": 56, "depth": 2}),
    "swin_tiny_patch4_window7_224": ("layers.2", "nhwc", 0, {"img_size": 64, "depths": (1, 1, 2, 1)}),
}
"""Real architectures: layer, layout, prefix tokens (of the distilled model two that its heads read), arguments."""


@pytest.mark.parametrize("name", REAL)
def test_tails_of_real_architectures_equal_autograd(name: str) -> None:
    """All passes before the trace, in float64, from the images on: pooled gradients and logits to 1e-11."""
    timm = pytest.importorskip("timm", reason="the export's models come from timm")
    layer, layout, prefix, arguments = REAL[name]
    torch.manual_seed(0)
    model = perturb(timm.create_model(name, num_classes=7, **arguments)).double()
    size = arguments.get("img_size", 64)
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    taps: list[Any] = []

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        taps.append(output.detach().clone().requires_grad_())
        return taps[-1] * 1

    handle = model.get_submodule(layer).register_forward_hook(hook)
    expected = model.requires_grad_(False)(images)
    handle.remove()
    seed = torch.randn_like(expected)
    (gradients,) = torch.autograd.grad(expected, taps[0], seed)

    split = cut(fold_batch_norms(capture(model, [layer], images))[0])
    with torch.no_grad():
        activations, *carried = split.trunk(images)
    shape, mask = _positions(activations, SimpleNamespace(layout=layout, prefix=prefix))
    delta = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    (logits,) = LiftedTail(sink_selections(split.tail)[0]).run(Lifted(activations, delta, mask), *carried)
    logits = logits.merged() if isinstance(logits, CARRIED) else logits
    (pooled,) = torch.autograd.grad(logits, delta, seed)
    dims = [i for i, length in enumerate(shape) if length == 1]
    wanted = (gradients * mask).sum(dims, keepdim=True)
    assert torch.allclose(logits, expected, rtol=0, atol=1e-11 * float(expected.detach().abs().max()))
    assert wanted.abs().max() > 0
    assert torch.allclose(pooled, wanted, rtol=0, atol=1e-11 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("name", "merged_at"),
    [
        ("pooled linear", []),
        ("padded pool", []),
        *[(f"flat, {layout}", ["aten.relu.default"]) for layout in ("nchw", "nhwc", "tokens")],
        ("flat, merged", ["aten.silu.default"]),
        ("whole kernel", ["aten.relu.default"]),
        ("gate", ["aten.sigmoid.default"]),
        ("twice used", ["aten.gelu.default"]),
        ("block, index", ["aten.scaled_dot_product_attention.default"]),
        ("block, mean", ["aten.scaled_dot_product_attention.default"]),
        *[(f"block, {qkv}, mean", ["aten.scaled_dot_product_attention.default"]) for qkv in SPLIT],
        ("gated, mean", ["aten.add.Tensor"]),
    ],
)
def test_the_pair_is_carried_to_the_first_operation_that_is_not_linear(name: str, merged_at: list[str]) -> None:
    model, split, images = _split(TAILS[name])
    with torch.no_grad():
        activations, *carried = split.trunk(images)
    shape, mask = _positions(activations, model)
    tail = LiftedTail(sink_selections(split.tail)[0])
    tail.run(Lifted(activations, torch.zeros(shape, dtype=torch.float64, requires_grad=True), mask), *carried)
    assert tail.merged_at == merged_at


def _shapes(tail: Any, target: Any) -> list[list[Any]]:
    return [list(node.meta["val"].shape)[1:] for node in tail.graph.nodes if node.target is target]


@pytest.mark.parametrize(
    ("read", "qkv"),
    [
        *((read, "unbind") for read in ("index", "slice", "last", "two")),
        ("index", "chunk"),
        ("two", "split"),
        ("last", "slices"),
    ],
)
def test_dead_rows_are_not_computed(read: str, qkv: str) -> None:
    """After sinking, the attention has as many queries as the head reads tokens, and so have all the layers behind."""
    rows = 2 if read == "two" else 1
    _, split, _ = _split(lambda: Block(read, qkv=qkv))
    sunk, report = sink_selections(split.tail)
    assert report
    (attention,) = (n for n in sunk.graph.nodes if n.target is aten.scaled_dot_product_attention.default)
    queries, keys, values = (list(arg.meta["val"].shape)[2] for arg in attention.args[:3])
    assert (queries, keys, values) == (rows, TOKENS, TOKENS)
    linear = Counter(shape[0] for shape in _shapes(sunk, aten.linear.default) if len(shape) == 2)
    # queries, projection and both layers of the MLP on the live rows; keys and values on all tokens
    assert linear == {rows: 4, TOKENS: 2}
    assert all(shape[0] == rows for shape in _shapes(sunk, aten.layer_norm.default))


def test_dead_rows_of_two_halves_of_a_projection_are_not_computed() -> None:
    _, split, _ = _split(lambda: Gated("index"))
    sunk, _ = sink_selections(split.tail)
    assert {shape[0] for shape in _shapes(sunk, aten.linear.default) if len(shape) == 2} == {1}
    assert not _shapes(sunk, aten.split.Tensor)


@pytest.mark.parametrize("read", ["mean", "both"])
def test_a_head_that_reads_all_rows_is_left_alone(read: str) -> None:
    _, split, _ = _split(lambda: Block(read))
    sunk, report = sink_selections(split.tail)
    assert report == ()
    assert len(list(sunk.graph.nodes)) == len(list(split.tail.graph.nodes))


def test_the_head_is_taken_only_where_it_is_linear() -> None:
    _, split, _ = _split(lambda: Block("index"))
    head = take_head(split.tail)
    assert head is not None
    assert tuple(head.weight.shape) == (7, CHANNELS)
    assert head.bias is not None

    class Scaled(PooledLinear):
        def behind(self, a: Any, before: Any) -> Any:
            return 3 * super().behind(a, before)

    assert take_head(_split(Scaled)[1].tail) is None


def test_a_sparse_seed_costs_no_product_with_all_classes(tmp_path: Any) -> None:
    """With many classes only the forward pass multiplies with the whole last weight; the VJP gathers rows."""
    import onnx

    from finercam_rt.export import export_model
    from finercam_rt.manifest import InputSpec

    class Many(PooledLinear):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 50_021)

    torch.manual_seed(0)
    path = tmp_path / "many.onnx"
    spec = InputSpec((8, 12), (0.0,) * 3, (1.0,) * 3)  # type: ignore[arg-type]
    manifest = export_model(Many().eval(), path, target_layer="tap", input=spec)
    assert manifest.passes[-1].startswith("seed: sparse")
    graph = onnx.load(path).graph
    wide = {i.name for i in graph.initializer if 50_021 in i.dims}
    readers = [node.op_type for node in graph.node if wide & set(node.input)]
    # Equal marks the classes that are taken; no Transpose, which would be a second copy of the weight in memory
    assert Counter(op for op in readers if op != "Equal") == {"Gemm": 1, "Gather": 1}


def test_what_is_written_in_place_is_never_left_out() -> None:
    """The passes drop what nothing reads, and of an assignment to a part of a tensor nothing is read."""
    from finercam_rt.errors import ExportError
    from finercam_rt.export.vjp import _trace

    def assigned(x: Any) -> Any:
        y = torch.empty_like(x)
        y[:, :2].copy_(x[:, :2])
        return y * 2

    with pytest.raises(ExportError, match=r"writes in place \(aten\.copy_\.default\)"):
        _trace(assigned, torch.randn(2, 5))
