"""Sums of softmax rows from the keys that they leave out, and scales in weights: equal in float64, with less work."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="the export needs PyTorch")
pytest.importorskip("onnx", reason="the export needs onnx")

from torch import nn  # noqa: E402

from finercam_rt.export.fold_scale import fold_scale  # noqa: E402
from finercam_rt.export.softmax_sums import FEW, sum_by_the_rest  # noqa: E402

from .test_broadcast import _count, _traced  # noqa: E402

aten = torch.ops.aten
LENGTH, WIDTH, HEADS = 14, 6, 2
SIZE = WIDTH // HEADS


def _attention(prefix: slice, rows: int = 1, mask: Any = None) -> Any:
    """The gradient with respect to what is added to keys and values at all positions but `prefix`."""
    kept = torch.ones(LENGTH, 1, dtype=torch.float64)
    kept[prefix] = 0

    def run(q: Any, x: Any, weight: Any, cotangent: Any) -> Any:
        delta = torch.zeros(x.shape[0], 1, x.shape[2], dtype=x.dtype).requires_grad_()
        with torch.enable_grad():
            lifted = x @ weight + (delta @ weight) * kept
            k, v = lifted.reshape(x.shape[0], LENGTH, 2, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
            scores = q @ k.transpose(-2, -1)
            result = (scores if mask is None else scores + mask).softmax(-1) @ v
        return torch.autograd.grad(result, delta, cotangent)

    torch.manual_seed(0)
    of_queries = (3, HEADS, rows, SIZE)
    shapes = (of_queries, (3, LENGTH, WIDTH), (WIDTH, 2 * WIDTH), of_queries)
    return run, [torch.randn(*shape, dtype=torch.float64) for shape in shapes]


def _sliced(function: Any, arguments: Any, prefix: slice) -> Any:
    """As the export makes them: the mask is a slice by then."""
    first, last, _ = prefix.indices(LENGTH)
    begin, end = (last, LENGTH) if first == 0 else (0, first)

    def run(q: Any, x: Any, weight: Any, cotangent: Any) -> Any:
        k, v = (x @ weight).reshape(x.shape[0], LENGTH, 2, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
        k, v = k.reshape(-1, LENGTH, SIZE), v.reshape(-1, LENGTH, SIZE)
        q, a = q.reshape(-1, q.shape[2], SIZE), cotangent.reshape(-1, q.shape[2], SIZE)
        p = torch.bmm(q, k.permute(0, 2, 1)).reshape(x.shape[0], HEADS, -1, LENGTH).softmax(-1)
        rows = p.reshape(-1, q.shape[1], LENGTH)
        attended = torch.bmm(rows, v)
        product = torch.bmm(a, v.permute(0, 2, 1)).reshape(p.shape) * p
        scores = (product - p * product.sum(-1, keepdim=True)).reshape(rows.shape)
        of_values = rows[:, :, begin:end].sum(2, keepdim=True)
        of_keys = scores[:, :, begin:end].sum(2, keepdim=True)
        found = [
            torch.bmm(q.permute(0, 2, 1), of_keys).reshape(x.shape[0], 1, WIDTH),
            torch.bmm(of_values.permute(0, 2, 1), a).reshape(x.shape[0], 1, WIDTH),
        ]
        return attended, torch.cat(found, 2) @ weight.T

    return run


CASES = {
    "one in front": slice(0, 1),
    "several in front": slice(0, 5),
    "at the end": slice(LENGTH - 2, LENGTH),
    "as many as it takes": slice(0, FEW),
}


@pytest.mark.parametrize("name", CASES)
def test_sums_are_those_of_autograd_with_less_work(name: str) -> None:
    function, arguments = _attention(CASES[name])
    q, x, weight, cotangent = arguments
    traced = _traced(_sliced(function, arguments, CASES[name]), q, x, weight, cotangent, batch=(0, 0, -1, 0))
    before = _count(traced, arguments)[1]
    rewritten, report = sum_by_the_rest(traced)
    assert report == ("sums of softmax rows: 2 taken from the keys that they leave out",)
    (_, got), after = _count(rewritten, arguments)
    (wanted,) = function(*arguments)
    assert torch.allclose(got, wanted, rtol=0, atol=1e-12)
    few = len(range(LENGTH)[CASES[name]])
    rest = 0 if few == 1 else few
    assert before - after == 3 * HEADS * SIZE * (LENGTH - rest)


def _variant(begin: int, end: int, *, read: bool = False, other: bool = False, dim: int = 2) -> Any:
    """A sum that has another end, whose terms something else reads, of other values, or along the queries."""

    def run(q: Any, k: Any, v: Any, a: Any) -> Any:
        p = torch.bmm(q, k.permute(0, 2, 1)).softmax(-1)
        attended = torch.bmm(p, v + 1 if other else v)
        product = torch.bmm(a, v.permute(0, 2, 1)) * p
        scores = product - p * product.sum(-1, keepdim=True)
        part = scores[:, :, begin:end] if dim == 2 else scores[:, begin:end]
        total = part.sum(dim, keepdim=True)
        return (attended, total, scores) if read else (attended, total)

    return run


@pytest.mark.parametrize(
    ("name", "made", "count"),
    [
        ("all but the first", _variant(1, LENGTH), 1),
        ("neighbours in the middle", _variant(2, LENGTH - 2), 0),
        ("all", _variant(0, LENGTH), 0),
        ("too few", _variant(FEW + 1, LENGTH), 0),
        ("read elsewhere too", _variant(1, LENGTH, read=True), 1),
        ("all but the last three, read elsewhere too", _variant(0, LENGTH - 3, read=True), 1),
        ("of values that were not attended to", _variant(1, LENGTH, other=True), 0),
        ("along the queries", _variant(1, LENGTH, dim=1), 0),
    ],
)
def test_which_sums_are_taken_by_the_rest(name: str, made: Any, count: int) -> None:
    torch.manual_seed(0)
    arguments = [torch.randn(4, LENGTH, SIZE, dtype=torch.float64) for _ in range(4)]
    traced = _traced(made, *arguments)
    targets = Counter(node.target for node in traced.graph.nodes)
    rewritten, report = sum_by_the_rest(traced)
    assert len(report) == count
    if not count:
        assert Counter(node.target for node in rewritten.graph.nodes) == targets
    for a, b in zip(made(*arguments), rewritten(*arguments), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def _whole(join: Any, *, of: Any = lambda p: p) -> Any:
    """The sums over all keys, times what the gradient is; `join` puts those of values and keys together."""

    def run(q: Any, k: Any, v: Any, a: Any) -> Any:
        p = torch.bmm(q, k.permute(0, 2, 1)).softmax(-1)
        attended = torch.bmm(p, v)
        product = torch.bmm(a, v.permute(0, 2, 1)) * p
        scores = product - p * product.sum(-1, keepdim=True)
        of_values = (of(p).sum(2, keepdim=True).permute(0, 2, 1).permute(0, 2, 1) * a).sum(1)
        of_keys = (q * of(scores).sum(2, keepdim=True)).sum(1).neg()
        return attended, join(of_values, of_keys)

    return run


def _side_by_side(of_values: Any, of_keys: Any) -> Any:
    return torch.constant_pad_nd(of_values, (0, SIZE)) + torch.constant_pad_nd(of_keys, (SIZE, 0))


@pytest.mark.parametrize(
    ("name", "made", "known"),
    [
        ("padded and added", _whole(_side_by_side), 2),
        ("the other way round", _whole(lambda values, keys: keys + values), 2),
        ("given as they are", _whole(lambda values, keys: torch.cat([values, keys], 1)), 1),
        ("padded with ones", _whole(lambda values, keys: values[:, :1] + torch.constant_pad_nd(keys, (1, 0), 1)), 1),
        ("added to one row", _whole(lambda values, keys: values[:1] + keys), 1),
        ("subtracted twice", _whole(lambda values, keys: torch.add(values, keys, alpha=-2)), 1),
        ("of other values", _whole(_side_by_side, of=torch.exp), 0),
    ],
)
def test_sums_over_all_keys_are_known(name: str, made: Any, known: int) -> None:
    torch.manual_seed(0)
    arguments = [torch.randn(4, LENGTH, SIZE, dtype=torch.float64) for _ in range(4)]
    traced = _traced(made, *arguments)
    before = _count(traced, arguments)[1]
    rewritten, report = sum_by_the_rest(traced)
    assert report == ((f"sums of softmax rows: {known} over all keys, known beforehand",) if known else ())
    found, after = _count(rewritten, arguments)
    for a, b in zip(made(*arguments), found, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
    assert (after < before) == (known == 2)


def test_what_is_not_finite_stays_so() -> None:
    made = _variant(1, LENGTH)
    arguments = [torch.randn(2, LENGTH, SIZE, dtype=torch.float64) for _ in range(4)]
    rewritten, _ = sum_by_the_rest(_traced(made, *arguments))
    arguments[1][0, 5, 1] = torch.nan
    _, total = rewritten(*arguments)
    assert total[0].isnan().all()
    assert total[1].isfinite().all()


class Scaled(nn.Module):
    """A linear layer whose result is scaled behind a reshape; `twice`: or read before it as well."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.layer, self.twice = nn.Linear(WIDTH, WIDTH), twice

    def forward(self, x: Any) -> Any:
        y = self.layer(x)
        scaled = (y.reshape(-1, HEADS, SIZE).permute(1, 0, 2) * 0.3).exp()
        return scaled.sum() + y.sum() if self.twice else scaled.sum()


@pytest.mark.parametrize("twice", [False, True])
def test_a_scale_becomes_a_part_of_the_layer(twice: bool) -> None:
    torch.manual_seed(0)
    module = Scaled(twice).double()
    weight = module.layer.weight.detach().clone()
    x = torch.randn(4, WIDTH, dtype=torch.float64)
    wanted = module(x)
    traced = _traced(lambda x: module(x).detach(), x)
    folded = fold_scale(traced)
    muls = sum(node.target is aten.mul.Tensor for node in folded.graph.nodes)
    assert muls == (1 if twice else 0)
    assert torch.allclose(folded(x), wanted, rtol=0, atol=1e-12)
    assert torch.equal(module.layer.weight, weight), "the model is not changed"


def test_a_weight_that_the_derivative_reads_is_left_alone() -> None:
    torch.manual_seed(0)
    module = nn.Linear(WIDTH, WIDTH).double()

    def run(x: Any) -> Any:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            result = (module(x) * 0.3).exp().sum()
        return torch.autograd.grad(result, x)[0]

    x = torch.randn(4, WIDTH, dtype=torch.float64)
    traced = _traced(run, x)
    traced.graph.eliminate_dead_code()
    assert torch.allclose(fold_scale(traced)(x), run(x), rtol=0, atol=1e-12)


def test_an_engine_says_what_was_summed(tmp_path: Any) -> None:
    """Through the whole export: a class token and two registers, or none; one contrast and two."""
    from finercam_rt import Engine
    from finercam_rt.export import export_model
    from finercam_rt.manifest import InputSpec
    from finercam_rt.ops import Status

    class Tokens(nn.Module):
        def __init__(self, prefix: int) -> None:
            super().__init__()
            self.stem, self.tap = nn.Conv2d(3, WIDTH, 8, 8), nn.Identity()
            self.prefix = nn.Parameter(torch.randn(1, prefix, WIDTH))
            self.qkv, self.fc = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 5)

        def forward(self, images: Any) -> Any:
            x = self.stem(images).flatten(2).transpose(1, 2)
            x = self.tap(torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], 1))
            n, length, _ = x.shape
            q, k, v = self.qkv(x).reshape(n, length, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            y = y.transpose(1, 2).reshape(n, length, WIDTH)
            return self.fc(y[:, 0] if self.prefix.shape[1] else y.square().mean(1))

    torch.manual_seed(0)
    spec = InputSpec((32, 48), (0.0,) * 3, (1.0,) * 3)  # type: ignore[arg-type]
    for prefix, what in ((3, "taken from the keys that they leave out"), (0, "over all keys, known beforehand")):
        model, path = Tokens(prefix).eval(), tmp_path / "engine.onnx"
        for contrasts in (1, 2):
            manifest = export_model(model, path, target_layer="tap", input=spec, contrasts=contrasts)
            assert f"sums of softmax rows: 2 {what}" in manifest.passes
            assert manifest.verification["map_relative_l2"] < 1e-5
        images = torch.randn(2, 3, 32, 48)
        images[1, 0, 9, 9] = torch.nan
        assert Engine(path)(images.numpy()).status[:, 0].tolist() == [Status.OK, Status.NON_FINITE]
