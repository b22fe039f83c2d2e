"""Delayed broadcasts and early sums: the same values in float64, and counts of the work that they must save."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="the export needs PyTorch")
pytest.importorskip("onnx", reason="the export needs onnx")

from torch import fx, nn  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from finercam_rt.export.broadcast import delay_broadcasts, shape_of  # noqa: E402
from finercam_rt.export.decompositions import decompositions  # noqa: E402
from finercam_rt.export.sums import sum_early  # noqa: E402

aten = torch.ops.aten
LENGTH, WIDTH, HIDDEN, HEADS = 10, 6, 14, 2
PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default)


def _traced(function: Any, *inputs: Any, batch: tuple[int, ...] = ()) -> Any:
    """The function as a graph of core ATen with a symbolic batch, as export/vjp.py makes them.

    `batch`: which dimension of each input it is, the first by default.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes = []
    for value, axis in zip(inputs, batch or (0,) * len(inputs), strict=True):
        sizes = [DimDynamic.DUCK if i == axis else DimDynamic.STATIC for i in range(value.ndim)]
        fakes.append(mode.from_tensor(value, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes)))
    return make_fx(
        function, tracing_mode="symbolic", decomposition_table=decompositions(), _allow_non_fake_inputs=True
    )(*fakes)


class _Counter(fx.Interpreter):
    """Runs a graph and counts the multiplications of its matrix products."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.multiplications = 0

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        result = super().call_function(target, args, kwargs)
        if target in PRODUCTS:
            self.multiplications += result.numel() * args[-1].shape[-2]
        return result


def _count(module: Any, inputs: Any) -> tuple[Any, int]:
    counter = _Counter(module)
    return counter.run(*inputs), counter.multiplications


def _both(module: Any) -> tuple[Any, tuple[str, ...]]:
    module.graph.eliminate_dead_code()
    module, summed = sum_early(module)
    module, delayed = delay_broadcasts(module)
    return module, (*summed, *delayed)


class Block(nn.Module):
    """What is behind the values of a ViT's block: (N,L,D) and the class token's place in the mean, to (N,D)."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.gamma = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Any) -> Any:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        y = ((q / 3) @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + self.proj(y.transpose(1, 2).reshape(n, length, WIDTH)) * self.gamma
        x = x + self.fc2(F.gelu(self.fc1(self.norm(x)))) * self.gamma
        return x[:, self.prefix :].mean(1)


class Grid(nn.Module):
    """Channels-last positions with two axes, a 1x1 mixing on them, and a mean over both: (N,5,2,D) to (N,D)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        x = x.reshape(-1, 5, 2, WIDTH)
        return self.mix(F.relu(self.mix(self.norm(x)))).mean((1, 2)) * 2


def _gradient(module: Any, contrasts: int | None) -> Any:
    """(x, cotangents) to the outputs and the gradient, summed over positions, of each contrast if there are several."""

    def run(x: Any, cotangent: Any) -> Any:
        delta = torch.zeros(x.shape[0], 1, x.shape[2], dtype=x.dtype).requires_grad_()
        with torch.enable_grad():
            result = module(x + delta)

        def vjp(one: Any) -> Any:
            return torch.autograd.grad(result, delta, one, retain_graph=True)[0]

        return result.detach(), vjp(cotangent) if contrasts is None else torch.vmap(vjp)(cotangent)

    return run


@pytest.mark.parametrize("contrasts", [None, 3])
@pytest.mark.parametrize("make", [lambda: Block(0), lambda: Block(1), Grid], ids=["tokens", "prefix", "grid"])
def test_gradients_are_those_of_autograd_with_less_work(make: Any, contrasts: int | None) -> None:
    torch.manual_seed(0)
    module = make().double().requires_grad_(False)
    run = _gradient(module, contrasts)

    def inputs(batch: int) -> tuple[Any, Any]:
        lead = () if contrasts is None else (contrasts,)
        x = torch.randn(batch, LENGTH, WIDTH, dtype=torch.float64)
        return x, torch.randn(*lead, batch, WIDTH, dtype=torch.float64)

    axes = (0, 0 if contrasts is None else 1)
    plain = _traced(run, *inputs(4), batch=axes)
    rewritten, report = _both(_traced(run, *inputs(4), batch=axes))
    assert any(line.startswith("delayed broadcast: 1 products") for line in report)
    for batch in (1, 4, 7) if contrasts is None else (4,):  # autograd below vmap fixes the batch when it is traced
        arguments = inputs(batch)
        expected, got = run(*arguments), rewritten(*arguments)
        before, after = _count(plain, arguments)[1], _count(rewritten, arguments)[1]
        rows = batch * (contrasts or 1)
        inner, outer = (HIDDEN, WIDTH) if isinstance(module, Block) else (WIDTH, WIDTH)
        assert before - after >= rows * (LENGTH - 1) * inner * outer
        for a, b in zip(expected, got, strict=True):
            assert float(a.abs().max()) > 1e-3
            assert torch.allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prefix", [0, 1])
def test_sums_are_taken_before_the_products_of_an_attention(prefix: int) -> None:
    """The cotangents of queries, keys and values are only read in sums over the patch tokens."""

    def run(q: Any, k: Any, v: Any, cotangent: Any) -> Any:
        deltas = [torch.zeros(t.shape[0], HEADS, 1, 3, dtype=t.dtype).requires_grad_() for t in (q, k, v)]
        with torch.enable_grad():
            moved = [
                torch.cat([t[:, :, :prefix], t[:, :, prefix:] + d], 2) for t, d in zip((q, k, v), deltas, strict=True)
            ]
            result = (moved[0] @ moved[1].transpose(-2, -1)).softmax(-1) @ moved[2]
        return torch.autograd.grad(result, deltas, cotangent)

    torch.manual_seed(0)
    arguments = [torch.randn(4, HEADS, LENGTH, 3, dtype=torch.float64) for _ in range(4)]
    traced = _traced(run, *arguments)
    traced.graph.eliminate_dead_code()
    before = _count(traced, arguments)[1]
    rewritten, report = sum_early(traced)
    assert report == ("early sums: 3 products with the sum of their rows",)
    got, after = _count(rewritten, arguments)
    assert before - after == 3 * 4 * HEADS * LENGTH * LENGTH * 3  # one row is multiplied element by element
    for a, b in zip(run(*arguments), got, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


_X = torch.randn(4, 1, WIDTH, dtype=torch.float64)
_WEIGHT = torch.randn(WIDTH, 8, dtype=torch.float64)


def _narrow(x: Any) -> Any:
    return x.expand(-1, LENGTH, -1)


def _padded(x: Any) -> Any:
    return F.pad(_narrow(x), (0, 0, 2, 1))


def _matmul(x: Any) -> Any:
    return (x.reshape(-1, x.shape[-1]) @ _WEIGHT).reshape(-1, x.shape[1], 8)


CASES: dict[str, tuple[Any, int]] = {
    "kept narrow to the end": (lambda x: _matmul(-_narrow(x) / 3), 1),
    "a mask through a product": (lambda x: _matmul(_padded(x) * 2), 1),
    "twice": (lambda x: _matmul(_matmul(_narrow(x))[..., :6].contiguous()), 1),
    "added to what varies": (lambda x: _matmul(_narrow(x) + torch.arange(LENGTH)[:, None]), 0),
    "a mask, added to a number": (lambda x: _matmul(_padded(x) + 1), 0),
    "a mask, added to another": (lambda x: _matmul(_padded(x) + F.pad(_narrow(x), (0, 0, 1, 2))), 0),
    "a mask, added to itself": (lambda x: _matmul(_padded(x) * 0.5 - _padded(x) / 4), 1),
    "a mask, times what is narrow too": (lambda x: _matmul(_padded(x) * (x.expand(-1, LENGTH + 3, -1) / 2).exp()), 1),
    "a mask, times itself": (lambda x: _matmul(F.pad(_narrow(x), (0, 0, 2, 1), value=3.0) * _padded(x)), 0),
    "a mask is divided by": (lambda x: _matmul(1 / (1 + _padded(x) * _padded(x))), 0),
    "where without a mask": (lambda x: _matmul(torch.where(_narrow(x) > 0, _narrow(x), 0.1)), 0),
    "sum over channels": (lambda x: _matmul(_padded(x) - _padded(x).mean(2, keepdim=True)), 1),
    "sum over positions": (lambda x: _matmul(_padded(x) - _padded(x).sum(1, keepdim=True)), 0),
    "positions last": (lambda x: _matmul(_padded(x).transpose(1, 2).transpose(1, 2) * 2), 1),
    "positions contracted": (lambda x: _narrow(x).transpose(1, 2) @ torch.ones(LENGTH, 2, dtype=x.dtype), 0),
    "positions merged with channels": (lambda x: _narrow(x).reshape(-1, LENGTH * WIDTH) * 2, 0),
    "positions split": (lambda x: _matmul(_narrow(x).reshape(-1, 5, 2, WIDTH)[:, :, 1]), 0),
    "another axis in front": (lambda x: _matmul(_narrow(x).expand(3, -1, -1, -1).flatten(0, 1)), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_values_are_kept_whatever_comes_after(name: str) -> None:
    function, products = CASES[name]
    traced = _traced(function, _X)
    traced.graph.eliminate_dead_code()
    rewritten, report = delay_broadcasts(traced)
    found = int(report[0].split(":")[1].split()[0]) if report else 0
    assert found == products
    for batch in (1, 4, 5):
        x = torch.randn(batch, 1, WIDTH, dtype=torch.float64)
        assert torch.allclose(rewritten(x), function(x), rtol=0, atol=1e-12)


def test_a_graph_without_broadcasts_is_left_alone() -> None:
    traced = _traced(lambda x: _matmul(x).relu().sum(1), _X)
    before = Counter(node.target for node in traced.graph.nodes)
    rewritten, report = _both(traced)
    assert report == ()
    assert Counter(node.target for node in rewritten.graph.nodes) == before


def test_the_batch_has_a_size_of_its_own() -> None:
    traced = _traced(lambda x: (x.reshape(-1, WIDTH), x.shape[0] * 2), _X)
    shapes = [shape_of(node) for node in traced.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    assert shapes == [(1_000_003, 1, WIDTH), (1_000_003, WIDTH)]
    node = fx.Graph().placeholder("x")
    with FakeTensorMode():
        node.meta["val"] = torch.empty(2, 3)
    assert shape_of(node) == (2, 3)
    assert len(set(itertools.chain(*filter(None, shapes)))) == 3


def test_an_engine_says_what_was_saved(tmp_path: Any) -> None:
    """Through the whole export, with a class token that the mean does not read."""
    import onnx

    from finercam_rt.export import export_model
    from finercam_rt.manifest import InputSpec

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.tap = nn.Conv2d(3, WIDTH, 8, 8), nn.Identity()
            self.cls = nn.Parameter(torch.randn(1, 1, WIDTH))
            self.block, self.fc = Block(1), nn.Linear(WIDTH, 5)

        def forward(self, images: Any) -> Any:
            x = self.stem(images).flatten(2).transpose(1, 2)
            return self.fc(self.block(self.tap(torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1))))

    torch.manual_seed(0)
    path = tmp_path / "engine.onnx"
    spec = InputSpec((32, 48), (0.0,) * 3, (1.0,) * 3)  # type: ignore[arg-type]
    manifest = export_model(Tokens().eval(), path, target_layer="tap", input=spec)
    assert manifest.passes[-3:] == (
        "early sums: 3 products with the sum of their rows",
        "sums of softmax rows: 2 taken from the keys that they leave out",
        "delayed broadcast: 1 products with one row an image in place of one a position",
    )
    expanded = [node for node in onnx.load(path).graph.node if node.op_type == "Expand"]
    assert len(expanded) == 1  # the class token's, in the trunk
