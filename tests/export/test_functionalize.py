"""A captured graph without writing in place computes the same, or is left to torch.export."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="the export needs PyTorch")

from torch import nn  # noqa: E402
from torch.export import Dim  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.nn import functional  # noqa: E402

from finercam_rt.export.capture import tap  # noqa: E402
from finercam_rt.export.functionalize import functionalize, purify  # noqa: E402

Forward = Callable[[nn.Module, "torch.Tensor"], "torch.Tensor"]


class _Body(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self._run = forward
        self.norm = nn.BatchNorm2d(4).eval()
        self.weight = nn.Parameter(torch.randn(4, 1, 1))
        self.register_buffer("table", torch.randn(1, 4, 6, 8))
        with torch.no_grad():
            for value in (self.norm.weight, self.norm.bias, self.norm.running_mean, self.norm.running_var):
                value.uniform_(0.5, 1.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._run(self, x)


def _residual(_m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What was read before stays as it was, and what is read later under another name has changed."""
    x = x * 2
    before, same = x + 1, x
    x.relu_().add_(1)
    return before + x * 10 + same * 100


def _copies(_m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Of a copy and of a reshape that copies, the first value knows nothing."""
    y = (x * 2).permute(0, 2, 3, 1)
    copied, folded = y.contiguous(), y.reshape(y.shape[0], 6, 32)
    copied.relu_()
    folded.mul_(3)
    return y + copied * 10 + folded.view_as(y) * 100


def _view_alone(_m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A view of what nothing reads any more is written to."""
    return (x * 2).flatten(1).relu_()


def _dead_view(_m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A view that was read before."""
    y = x * 2
    total = y[:, 0].sum()
    y.relu_()
    return y + total


def _not_by_number(_m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y.masked_fill_(y > 1, 0.5).index_fill_(1, torch.tensor([2]), 3.0)
    return y


def _normed(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = m.norm(x)  # type: ignore[operator]
    y = functional.dropout(y.relu_(), 0.5, training=False)
    return functional.dropout(y, 0.5, training=False, inplace=True)


def _shapes(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, 1)
    y = torch.cat([right, left], 1).movedim(1, -1).swapaxes(1, 2).mT
    y = y.flatten(2).unflatten(2, (4, 6)).reshape(x.shape[0], -1).double().to(torch.float32)
    return y + m.weight.flatten().expand_as(x[:, 0, 0, :4]).repeat(1, 48)


def _by_rows(_m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The batch is in the sizes of a value that has none."""
    return x + x.mean((0, 2, 3)).reshape(1, 4, 1, 1).expand_as(x)


def _standardised(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Weights of mean 0 and variance 1, as NFNets have them."""
    flat = m.table.reshape(1, 4, 48)
    return x * functional.batch_norm(flat, None, None, m.weight.flatten(), training=True).reshape_as(m.table)


def _tapped(_m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    marked = tap(y, 0)
    return marked.relu_() + y


def _padded(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Convolutions whose padding is a word."""
    kernel = m.table[:, :, :3, :5].expand(4, -1, -1, -1)
    y = functional.conv2d(x, kernel, m.weight.flatten(), padding="same", dilation=2)
    return functional.conv2d(y, kernel, stride=(1, 2), padding="valid")


KNOWN: dict[str, Forward] = {
    "residual": _residual,
    "copies": _copies,
    "a view alone": _view_alone,
    "a dead view": _dead_view,
    "not number by number": _not_by_number,
    "a batch norm and dropout": _normed,
    "shapes": _shapes,
    "expanded by the batch": _by_rows,
    "standardised weights": _standardised,
    "a mark": _tapped,
    "padded": _padded,
}


def _base_read(_m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y[:, 1].relu_()
    return y


def _view_read(_m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    part = y[:, 1]
    y.relu_()
    return part + y[:, 0]


def _split_read(_m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    left, right = y.split(2, 1)
    left.relu_()
    return y + torch.cat([right, left], 1)


def _image_written(_m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x.sub_(0.5) * 2


def _image_view_written(_m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).sub_(0.5) * 2


def _buffer_written(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    m.table.add_(1)  # type: ignore[operator]
    return x + m.table


def _other_type(_m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A comparison in place gives numbers, and one that is not gives truth values."""
    return (x * 2).gt_(0.5) + 1


def _trained(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return functional.batch_norm(x, m.norm.running_mean, m.norm.running_var, training=True)


def _without_gradient(_m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        y = x * 2
    return y + 1


UNKNOWN: dict[str, Forward] = {
    "a base that is read": _base_read,
    "a view that is read": _view_read,
    "a part that is read": _split_read,
    "the image": _image_written,
    "a view of the image": _image_view_written,
    "a buffer": _buffer_written,
    "another type": _other_type,
    "statistics of the batch": _trained,
    "a block of another mode": _without_gradient,
}


def _exported(model: nn.Module) -> torch.fx.GraphModule:
    with torch.no_grad():
        program = torch.export.export(
            model, (torch.randn(3, 4, 6, 8),), dynamic_shapes=({0: Dim("batch", min=1, max=64)},)
        )
    module = program.module()
    assert isinstance(module, torch.fx.GraphModule)
    for node in list(module.graph.nodes):
        if node.op == "call_module":
            module.graph.erase_node(node)
    return module


@pytest.mark.parametrize("name", KNOWN)
def test_the_same_values(name: str) -> None:
    model = _Body(KNOWN[name])
    module = _exported(model)
    assert functionalize(module)
    targets = [node.target for node in module.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    assert not [target for target in targets if target._schema.is_mutable or "dropout" in target.name()]
    for batch in (1, 2, 5):
        x = torch.randn(batch, 4, 6, 8)
        torch.testing.assert_close(module(x), model(x))


@pytest.mark.parametrize("name", KNOWN)
def test_shapes_and_types_are_known(name: str) -> None:
    """Those of every value are what the graph's operations give."""
    module = _exported(_Body(KNOWN[name]))
    assert functionalize(module)
    given: dict[torch.fx.Node, object] = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            given[n] = super().run_node(n)
            return given[n]

    Watch(module).run(torch.randn(3, 4, 6, 8))
    for node, value in given.items():
        known = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            assert known.dtype == value.dtype, node
            sizes = [size if isinstance(size, int) else None for size in known.shape]
            assert len(sizes) == value.ndim, node
            assert all(size in (None, real) for size, real in zip(sizes, value.shape, strict=True)), node


def test_a_padding_that_is_not_the_same_on_both_sides_stays() -> None:
    model = _Body(lambda m, x: functional.conv2d(x, m.table[:, :, :2, :5], padding="same"))
    module = _exported(model)
    assert functionalize(module)
    assert torch.ops.aten.conv2d.padding in [node.target for node in module.graph.nodes]


def _traced(function: Callable[[torch.Tensor], torch.Tensor]) -> torch.fx.GraphModule:
    return make_fx(function, tracing_mode="symbolic")(torch.randn(3, 4, 6, 8))


def _writing(module: torch.fx.GraphModule) -> int:
    targets = [node.target for node in module.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    return sum(target._schema.is_mutable for target in targets)


PURE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "what was read before": lambda x: (y := x * 2) + 1 + y.masked_fill_(y > 1, 0.5) * 10 + y * 100,
    "broadcast": lambda x: (x * 2).copy_(x[:, :1]) + x,
    "another type": lambda x: (x * 2).copy_(x.double()) + x,
}
IN_PLACE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a view": lambda x: (y := x * 2)[:, 1] + (part := y[:, 0]) + y.masked_fill_(y > 1, 0.5)[:, 2] + part,
    "the input": lambda x: x.masked_fill_(x > 1, 0.5) * 2,
    "added in another type": lambda x: (x.half() * 2).add_(x) + 1,
}


@pytest.mark.parametrize("name", [*PURE, *IN_PLACE])
def test_a_derivative_is_written_without_writing(name: str) -> None:
    """Where it can be; where not it computes the same."""
    function = (PURE | IN_PLACE)[name]
    module = _traced(function)
    assert _writing(module)
    purify(module)
    assert bool(_writing(module)) == (name in IN_PLACE)
    x = torch.randn(5, 4, 6, 8)
    torch.testing.assert_close(module(x.clone()), function(x.clone()))


@pytest.mark.parametrize("name", UNKNOWN)
def test_left_to_torch(name: str) -> None:
    assert not functionalize(_exported(_Body(UNKNOWN[name])))
