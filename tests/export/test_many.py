"""One operation for many seeds: every rule against the operation run seed by seed."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="the export needs PyTorch")

from finercam_rt.export.many import _RULES, Many, for_many  # noqa: E402

aten = torch.ops.aten
P = 3


class Seeded:
    """Stands for a value of each seed in the arguments below."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape


def shared(*shape: int) -> Any:
    return torch.randn(*shape, dtype=torch.float64)


CASES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "add, of lower rank": (aten.add.Tensor, (Seeded(4), shared(2, 5, 4))),
    "add, both": (aten.add.Tensor, (Seeded(5, 4), Seeded(2, 1, 4))),
    "mul, by a number": (aten.mul.Tensor, (Seeded(2, 4), 3.0)),
    "sub, from a shared value": (aten.sub.Tensor, (shared(2, 1, 4), Seeded(2, 5, 1))),
    "where": (aten.where.self, (torch.tensor([[True], [False]]), Seeded(2, 4), Seeded(4))),
    "relu": (aten.relu.default, (Seeded(2, 4),)),
    "clone": (aten.clone.default, (Seeded(2, 4),)),
    "full_like": (aten.full_like.default, (Seeded(2, 4), 1)),
    "pad": (aten.constant_pad_nd.default, (Seeded(2, 4), [1, 2, 0, 1], 0.5)),
    "view": (aten.view.default, (Seeded(2, 6), [-1, 3])),
    "reshape": (aten.reshape.default, (Seeded(2, 3, 4), [2, 12])),
    "expand": (aten.expand.default, (Seeded(2, 1, 4), [2, 5, 4])),
    "expand, to a higher rank": (aten.expand.default, (Seeded(1, 4), [6, 2, -1])),
    "permute": (aten.permute.default, (Seeded(2, 3, 4), [2, 0, -2])),
    "unsqueeze": (aten.unsqueeze.default, (Seeded(2, 3), 1)),
    "unsqueeze, from the last": (aten.unsqueeze.default, (Seeded(2, 3), -1)),
    "squeeze": (aten.squeeze.dim, (Seeded(2, 1, 3), 1)),
    "squeeze, several": (aten.squeeze.dims, (Seeded(1, 2, 1), [0, -1])),
    "select": (aten.select.int, (Seeded(2, 3, 4), -1, 2)),
    "slice": (aten.slice.Tensor, (Seeded(2, 7), 1, 1, 6, 2)),
    "sum": (aten.sum.dim_IntList, (Seeded(2, 3, 4), [-1, 0])),
    "sum, of all": (aten.sum.dim_IntList, (Seeded(2, 3), None)),
    "mean, kept": (aten.mean.dim, (Seeded(2, 3, 4), [1], True)),
    "softmax": (aten._softmax.default, (Seeded(2, 3), -1, False)),
    "cat, with a shared value": (aten.cat.default, ([shared(2, 1), Seeded(2, 3), shared(2, 2)], 1)),
    "mm": (aten.mm.default, (Seeded(5, 4), shared(4, 6))),
    "mm, from the right": (aten.mm.default, (shared(5, 4), Seeded(4, 6))),
    "mm, both": (aten.mm.default, (Seeded(5, 4), Seeded(4, 6))),
    "bmm": (aten.bmm.default, (Seeded(2, 5, 4), shared(2, 4, 6))),
    "bmm, from the right": (aten.bmm.default, (shared(2, 5, 4), Seeded(2, 4, 6))),
    "bmm, both": (aten.bmm.default, (Seeded(2, 5, 4), Seeded(2, 4, 6))),
    "convolution": (
        aten.convolution.default,
        (Seeded(2, 4, 5, 5), shared(4, 3, 3, 3), None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1),
    ),
    "convolution, by a weight of each seed": (
        aten.convolution.default,
        (shared(2, 4, 5, 5), Seeded(3, 4, 1, 1), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
    ),
    "without a rule": (aten.cumsum.default, (Seeded(2, 5), 1)),
    "without a rule, several results": (aten.topk.default, (Seeded(2, 5), 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_as_seed_by_seed(name: str) -> None:
    torch.manual_seed(0)
    target, arguments = CASES[name]
    made: dict[int, Any] = {}

    def stacked(value: Any) -> Any:
        if isinstance(value, list):
            return [stacked(item) for item in value]
        if not isinstance(value, Seeded):
            return value
        return made.setdefault(id(value), Many(torch.randn(P, *value.shape, dtype=torch.float64)))

    def of(value: Any, p: int) -> Any:
        if isinstance(value, list):
            return [of(item, p) for item in value]
        return value.stacked[p] if isinstance(value, Many) else value

    many = tuple(stacked(value) for value in arguments)
    got = for_many(target, many, {})
    wanted = [target(*(of(value, p) for value in many)) for p in range(P)]
    results, expected = (got, zip(*wanted, strict=True)) if isinstance(got, tuple) else ((got,), (wanted,))
    for result, each in zip(results, expected, strict=True):
        assert result.stacked.shape == (P, *each[0].shape)
        assert torch.allclose(result.stacked.to(torch.float64), torch.stack(list(each)).to(torch.float64), atol=1e-12)


def test_sizes_are_those_of_one_seed() -> None:
    assert for_many(aten.sym_size.int, (Many(torch.zeros(P, 2, 7)), 1), {}) == 7


def test_every_rule_is_tested() -> None:
    aliases = {aten._unsafe_view.default, aten.alias.default, aten.detach.default, aten._to_copy.default}
    aliases |= {aten.zeros_like.default, aten.ones_like.default, aten.amax.default, aten.amin.default}
    assert set(_RULES) - aliases - {aten.sym_size.int} <= {target for target, _ in CASES.values()}
