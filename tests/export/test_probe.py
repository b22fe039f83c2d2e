"""The proof of a layout: every reading that a shape allows, found or refused by where the positions look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from finercam_rt.errors import ExportError
from finercam_rt.export.layers import find_target_layer
from finercam_rt.export.probe import PAIRS, Looker, Reading, fit, map_readings, token_readings
from finercam_rt.export.readings import LayoutRequest

from .oracle import noise

Arrangement = Callable[[torch.Tensor], torch.Tensor]

WIDE = (64, 96)
"""8 x 12 positions of eight pixels, eight channels: the channels are as many as the rows."""


class _Layer(nn.Module):
    def __init__(self, arrange: Arrangement) -> None:
        super().__init__()
        self.arrange = arrange

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.arrange(x)


class Arranged(nn.Module):
    """A convolution's map (N,8,h,w), put in any order by `layer`; each value is read with a weight of its own."""

    def __init__(self, arrange: Arrangement, size: tuple[int, int] = WIDE) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.GELU(), nn.Conv2d(8, 8, 3, padding=1))
        self.layer = _Layer(arrange)
        self.head = nn.Linear(self.layer(torch.zeros(2, 8, size[0] // 8, size[1] // 8)).numel() // 2, 5)
        self.images = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.images += len(x)
        return self.head(self.layer(self.stem(x)).reshape(len(x), -1))


def _tokens(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).transpose(1, 2)


def _with(before: int, after: int = 0) -> Arrangement:
    """Tokens among others that are the same everywhere or the mean of all, as CLS tokens and registers are."""

    def arrange(x: torch.Tensor) -> torch.Tensor:
        others = _tokens(x).mean(1, keepdim=True).expand(-1, before + after, -1)
        return torch.cat([others[:, :before], _tokens(x), others[:, before:]], 1)

    return arrange


def _windows(x: torch.Tensor) -> torch.Tensor:
    """(N, windows, 4x4 positions, channels): window by window."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(n, -1, 16, c)


def _shuffled(x: torch.Tensor) -> torch.Tensor:
    return _tokens(x)[:, torch.randperm(x.shape[2] * x.shape[3], generator=torch.Generator().manual_seed(3))]


def _alike(x: torch.Tensor) -> torch.Tensor:
    """Every position is the mean of all."""
    return x.mean((2, 3), keepdim=True).expand_as(x) * 1.0


def _read(arrange: Arrangement, size: tuple[int, int] = WIDE, **pinned: Any) -> tuple[Any, ...]:
    found = find_target_layer(Arranged(arrange, size).eval(), "layer", noise(2, size), LayoutRequest(**pinned))
    return found.layout, found.grid, found.prefix_tokens


@pytest.mark.parametrize(
    ("arrange", "size", "expected"),
    [
        pytest.param(lambda x: x * 1, WIDE, ("nchw", (8, 12), 0), id="nchw with as many channels as rows"),
        pytest.param(lambda x: x * 1, (96, 64), ("nchw", (12, 8), 0), id="nchw with as many channels as columns"),
        pytest.param(lambda x: x * 1, (64, 64), ("nchw", (8, 8), 0), id="nchw, a cube"),
        pytest.param(lambda x: x.movedim(1, 3), (64, 64), ("nhwc", (8, 8), 0), id="nhwc, a cube"),
        pytest.param(lambda x: x.movedim(1, 3), (96, 64), ("nhwc", (12, 8), 0), id="nhwc"),
        pytest.param(lambda x: x[:, :, :1], (8, 96), ("nchw", (1, 12), 0), id="one row"),
        pytest.param(_tokens, (24, 24), ("tokens", (3, 3), 0), id="nine tokens"),
        pytest.param(_tokens, WIDE, ("tokens", (8, 12), 0), id="no prefix"),
        pytest.param(_with(1), WIDE, ("tokens", (8, 12), 1), id="one prefix token"),
        pytest.param(_with(1), (24, 40), ("tokens", (3, 5), 1), id="a square number with the prefix token"),
        pytest.param(_with(9), (40, 40), ("tokens", (5, 5), 9), id="more prefix tokens than columns"),
        pytest.param(_with(16), WIDE, ("tokens", (8, 12), 16), id="sixteen prefix tokens"),
    ],
)
def test_readings_that_are_found(arrange: Arrangement, size: tuple[int, int], expected: tuple[Any, ...]) -> None:
    assert _read(arrange, size) == expected


@pytest.mark.parametrize(
    ("arrange", "size", "message"),
    [
        (lambda x: _tokens(x.mT), (64, 64), r"shows tokens of a 8x8 grid, column by column"),
        (lambda x: _tokens(x.mT), WIDE, r"shows tokens of a 8x12 grid, column by column"),
        (lambda x: x.mT * 1, (64, 64), r"shows nchw with a 8x8 grid, column by column"),
        (lambda x: _tokens(x.flip(2)), WIDE, r"shows tokens of a 8x12 grid, mirrored upside down"),
        (lambda x: x.flip(3), WIDE, r"shows nchw with a 8x12 grid, mirrored left to right"),
        (lambda x: x.movedim(1, 3).flip(1, 2), (64, 64), r"nhwc .*mirrored upside down and left to right"),
        (_with(0, 1), WIDE, r"shows tokens of a 8x12 grid before 1 suffix token"),
        (_with(1, 1), WIDE, r"shows tokens of a 8x12 grid behind 1 prefix token before 1 suffix token"),
        (lambda x: torch.cat([x, x], 1).flatten(2), (32, 32), r"shows \(N,C,L\) tokens of a 4x4 grid"),
        (_shuffled, WIDE, r"another order than that of tokens of a 8x12 grid"),
        (lambda x: _windows(x).flatten(1, 2), WIDE, r"another order than that of tokens of a 8x12 grid"),
        (lambda x: _windows(x).flatten(0, 1), WIDE, r"of shape \(12, 16, 8\) for 2 images, folds windows or heads"),
        (lambda x: _tokens(x).transpose(0, 1), WIDE, r"of shape \(96, 2, 8\) for 2 images, has the batch in its sec"),
        (lambda x: _windows(x)[:, :, None], WIDE, r"of shape \(2, 6, 1, 16, 8\), is not a feature map"),
    ],
)
def test_orders_that_no_map_is_drawn_from(arrange: Arrangement, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ExportError, match=message + r".*such as 'stem(\.\d)?'\.$"):
        _read(arrange, size)


@pytest.mark.parametrize(
    ("arrange", "pinned", "message"),
    [
        (lambda x: x * 1, {"layout": "nhwc"}, r"shows nchw with a 8x8 grid"),
        (lambda x: x.movedim(1, 3), {"layout": "nchw"}, r"shows nhwc with a 8x8 grid"),
        (_tokens, {"grid": (4, 16)}, r"shows tokens of a 8x8 grid"),
        (_with(1), {"grid": (4, 16), "prefix_tokens": 1, "layout": "tokens"}, r"8x8 grid behind 1 prefix token"),
        (_with(4), {"grid": (8, 8), "prefix_tokens": 3}, r"not a feature map of the layout, grid or prefix"),
        (_with(0, 1), {"layout": "tokens", "grid": (8, 8), "prefix_tokens": 1}, r"8x8 grid before 1 suffix token"),
        (_shuffled, {"layout": "tokens", "grid": (8, 8), "prefix_tokens": 0}, r"another order"),
    ],
)
def test_wrong_pins_are_refused(arrange: Arrangement, pinned: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        _read(arrange, (64, 64), **pinned)


def test_right_pins_are_accepted() -> None:
    assert _read(lambda x: x * 1, (64, 64), layout="nchw") == ("nchw", (8, 8), 0)
    assert _read(_with(2), (64, 64), prefix_tokens=2) == ("tokens", (8, 8), 2)
    assert _read(_with(2), (64, 64), grid=(8, 8)) == ("tokens", (8, 8), 2)
    assert _read(_with(30), (64, 64), grid=(8, 8)) == ("tokens", (8, 8), 30)


def test_positions_that_look_alike_are_taken_as_pinned_or_refused() -> None:
    assert _read(_alike, (24, 96)) == ("nchw", (3, 12), 0)  # its shape has one usual reading
    tokens = lambda x: _with(1)(_alike(x))  # noqa: E731
    assert _read(tokens, layout="tokens", grid=(8, 12), prefix_tokens=1) == ("tokens", (8, 12), 1)
    with pytest.raises(ExportError, match=r"does not show whether it is tokens of a 8x12 grid .*; say what it is with"):
        _read(tokens)
    with pytest.raises(ExportError, match=r"does not show whether it is nchw with a 8x8 grid; say what it is with"):
        _read(_alike, (64, 64))


def test_what_every_position_feels_alike_does_not_hide_where_it_looks() -> None:
    """As behind global attention: a tenth of each token is its own, the rest is the mean of all."""
    mixed = lambda x: _with(1)(x.mean((2, 3), keepdim=True) + 0.1 * x)  # noqa: E731
    assert _read(mixed) == ("tokens", (8, 12), 1)


def test_the_cost_is_six_images_where_they_leave_no_doubt() -> None:
    model = Arranged(_with(1)).eval()
    looker = Looker(model, ["layer"], noise(2, WIDE))
    assert model.images == 0
    sight = looker.sight("layer", 0)
    assert looker.sight("layer", 0) is sight
    assert model.images == 6
    assert not model.layer._forward_hooks
    find_target_layer(model, "layer", noise(2, WIDE))
    assert model.images == 6 + 2 + 6
    for pair in range(PAIRS):
        seen = fit(Reading("tokens", (8, 12), 1), looker.sight("layer", pair))
        assert seen.sure
        assert seen.correlation > 0.9
        assert fit(Reading("tokens", (8, 12), 0), looker.sight("layer", pair)).misfit > 2 * seen.misfit


def test_readings_are_all_ways_to_lay_positions_out() -> None:
    maps = list(map_readings((2, 8, 8, 12)))
    assert len(set(maps)) == len(maps) == 16
    assert sum(reading.supported for reading in maps) == 2
    assert Reading("nchw", (12, 8), columns=True) in maps
    tokens = list(token_readings("tokens", 65, (8, 8)))
    assert len(set(tokens)) == len(tokens) == 16
    assert {(r.prefix_tokens, r.suffix_tokens) for r in tokens} == {(0, 1), (1, 0)}
    assert [str(r) for r in tokens if r.supported] == ["tokens of a 8x8 grid behind 1 prefix token"]
    assert len(list(token_readings("tokens", 7, (1, 7)))) == 2


def test_a_layer_that_is_named_twice_is_looked_at_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU()).eval()
    shape = Looker(model, ["0", "0"], torch.zeros(2, 3, 32, 32)).sight("0", 0).by_channel_axis[1][0].shape
    assert shape == (64,)
