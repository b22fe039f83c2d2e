"""The proof of a layout: every reading that a shape allows, found or refused by where the positions look."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from finercam_rt.arrangement import arrangement
from finercam_rt.errors import ExportError
from finercam_rt.export.evidence import fit
from finercam_rt.export.grids import ImageGrids
from finercam_rt.export.layers import find_target_layer
from finercam_rt.export.outputs import feature_map, with_feature_map
from finercam_rt.export.probe import PAIRS, Looker, Sight
from finercam_rt.export.prove import LayoutRequest, prove
from finercam_rt.export.reading import Reading, map_readings, token_readings

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
        (lambda x: _with(1)(x.mT), WIDE, r"shows tokens of a 8x12 grid behind 1 prefix token, column by column"),
        (lambda x: _tokens(x.flip(2)), WIDE, r"shows tokens of a 8x12 grid, mirrored upside down"),
        (lambda x: x.flip(3), WIDE, r"shows nchw with a 8x12 grid, mirrored left to right"),
        (lambda x: x.movedim(1, 3).flip(1, 2), (64, 64), r"nhwc .*mirrored upside down and left to right"),
        (_shuffled, WIDE, r"another order than that of tokens of a 8x12 grid"),
        (lambda x: _shuffled(x).reshape(12, 16, 8), WIDE, r"\(12, 16, 8\) for 2 images, folds windows or heads"),
        (lambda x: _windows(x)[:, :, None], WIDE, r"of shape \(2, 6, 1, 16, 8\), is not a feature map"),
    ],
)
def test_orders_that_no_map_is_drawn_from(arrange: Arrangement, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ExportError, match=message + r".*such as 'stem(\.\d)?'\.$"):
        _read(arrange, size)


def _channels_first_windows(x: torch.Tensor) -> torch.Tensor:
    """(N * windows, channels, 4, 4)."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 4, 4)


def _strides(x: torch.Tensor) -> torch.Tensor:
    """(N * 16, positions, channels): the positions of every fourth row and column, as MobileViT's patches."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 4, 4, w // 4, 4).permute(0, 3, 5, 2, 4, 1).reshape(n * 16, -1, c)


def _units(x: torch.Tensor) -> torch.Tensor:
    """(N, positions, channels): the offsets in units of 2x2, then those of units in units of 4x4, as Hiera's tokens."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 4, 2, 2, w // 4, 2, 2).permute(0, 4, 7, 3, 6, 2, 5, 1).reshape(n, -1, c)


ARRANGED = {
    "the batch in its second axis": (lambda x: _tokens(x).transpose(0, 1), "tokens", 0),
    "the batch in its second axis, prefix tokens": (lambda x: _with(2)(x).transpose(0, 1), "tokens", 2),
    "the batch in its second axis, a suffix token": (lambda x: _with(0, 1)(x).transpose(0, 1), "tokens", 1),
    "(C,N,L)": (lambda x: torch.cat([x, x], 1).flatten(2).transpose(0, 1), "tokens", 0),
    "(N,C,L)": (lambda x: torch.cat([x, x], 1).flatten(2), "tokens", 0),
    "(N,C,1+L)": (lambda x: _with(1)(x).mT, "tokens", 1),
    "a suffix token": (_with(0, 1), "tokens", 1),
    "prefix and suffix tokens": (_with(1, 3), "tokens", 4),
    "tokens down the columns": (lambda x: _tokens(x.mT), "nhwc", 0),
    "a map down the columns": (lambda x: x.mT * 1, "nchw", 0),
    "channels last, down the columns": (lambda x: x.permute(0, 3, 2, 1), "nhwc", 0),
    "windows": (_windows, "nhwc", 0),
    "windows in one axis": (lambda x: _windows(x).flatten(1, 2), "nhwc", 0),
    "windows in the batch": (lambda x: _windows(x).flatten(0, 1), "nhwc", 0),
    "windows in the batch, two axes": (lambda x: _windows(x).reshape(-1, 4, 4, 8), "nhwc", 0),
    "windows in the batch, channels first": (_channels_first_windows, "nchw", 0),
    "windows in the batch, tokens (N,C,L)": (lambda x: _channels_first_windows(x).flatten(2), "nchw", 0),
    "shifted windows": (lambda x: _windows(x.roll((-2, -2), (2, 3))).flatten(0, 1), "nhwc", 0),
    "a map that is rolled": (lambda x: x.roll((-1, -2), (2, 3)), "nchw", 0),
    "a map that is rolled down, channels last": (lambda x: x.roll(3, 2).movedim(1, 3), "nhwc", 0),
    "windows shifted across": (lambda x: _windows(x.roll(-2, 3)).flatten(0, 1), "nhwc", 0),
    "rows in the batch": (lambda x: x.permute(0, 2, 3, 1).flatten(0, 1), "nhwc", 0),
    "columns in the batch": (lambda x: x.permute(0, 3, 2, 1).flatten(0, 1), "nhwc", 0),
    "strides in the batch": (_strides, "nhwc", 0),
    "units of units": (_units, "nhwc", 0),
}


@pytest.mark.parametrize("kind", ARRANGED)
@pytest.mark.parametrize("size", [WIDE, (64, 64)])
def test_other_orders_are_arranged(kind: str, size: tuple[int, int]) -> None:
    """The positions where they are in the image, with their channels; put back it is the output as it was."""
    arrange, layout, others = ARRANGED[kind]
    model = Arranged(arrange, size).eval()
    found = find_target_layer(model, "layer", noise(2, size))
    grid = (size[0] // 8, size[1] // 8)
    assert (found.layout, found.grid, found.prefix_tokens) == (layout, grid, others)
    assert found.arrangement is not None
    for count in (1, 2, 5):
        x = torch.rand(count, 8, *grid)
        given = arrange(x)
        values = feature_map(given, found)
        assert torch.equal(with_feature_map(given, values, found), given)
        channels = values.shape[1] if layout == "nchw" else values.shape[-1]
        assert values.shape == (count, *found.shape(channels))
        if layout == "tokens":
            values = values[:, others:].unflatten(1, grid)
        values = values if layout == "nchw" else values.movedim(-1, 1)
        assert torch.equal(values[:, :8], x)


def test_a_small_roll_of_many_rows_is_seen() -> None:
    """Read as if it were none it explains most of what is seen: a correlation of 0.65, and 1."""
    model = Arranged(lambda x: x.roll((-2, 0), (2, 3)), (256, 256)).eval()
    found = find_target_layer(model, "layer", noise(2, (256, 256)))
    assert found.grid == (32, 32)
    assert found.arrangement is not None
    assert found.arrangement.shifts == (0, 2, 0)


@pytest.mark.parametrize(("before", "after"), [(6, 0), (0, 6), (3, 3), (12, 0), (0, 12)])
def test_other_tokens_are_no_row_of_a_border(before: int, after: int) -> None:
    """7 x 6 positions and as many tokens as a row or two has: the image has room for eight rows."""
    assert _read(_with(before, after), (60, 48)) == ("tokens", (7, 6), before + after)


def test_a_row_of_the_border_is_no_other_tokens() -> None:
    """However little both readings leave unexplained: the row looks where the larger grid says."""
    for size, grid in (((64, 48), (8, 6)), ((48, 24), (6, 3)), ((24, 48), (3, 6))):
        for before in (0, 2, 5):
            assert _read(_with(before), size) == ("tokens", grid, before)


def test_windows_beside_channels_are_no_map() -> None:
    """(N,4,196,192), which divides an image of 224 x 224 into 196 x 192 positions as well, and shows nothing."""
    shape = (2, 4, 196, 192)
    looker: Any = SimpleNamespace(sights=lambda name, count=PAIRS: [_blind(shape, pair) for pair in range(count)])
    with pytest.raises(ExportError, match="does not show whether it is nchw with a 196x192 grid"):
        prove(looker, "layer", shape, ImageGrids(2, (224, 224)), LayoutRequest())
    pinned = prove(looker, "layer", shape, ImageGrids(2, (224, 224)), LayoutRequest("nchw"))
    assert (pinned.layout, pinned.arrangement) == ("nchw", None)
    shape = (2, 4, 49, 49)  # an attention between the positions of a map of 7x7
    with pytest.raises(ExportError, match="does not show whether it is nchw with a 49x49 grid"):
        prove(looker, "layer", shape, ImageGrids(2, (200, 200)), LayoutRequest())
    shape = (2, 256, 16, 16)  # 256 windows of 16 would be 64 x 64 positions, and a map of 16 x 16 is likelier
    assert prove(looker, "layer", shape, ImageGrids(2, (256, 256)), LayoutRequest()).grid == (16, 16)


def _blind(shape: tuple[int, ...], pair: int) -> Sight:
    """What a layer shows whose positions look nowhere."""
    generator = np.random.default_rng(pair)
    first, last = math.prod(shape[2:]), math.prod(shape[1:-1])
    return Sight({name: tuple(generator.normal(size=(2, n))) for name, n in (("first", first), ("last", last))})


def test_an_arrangement_is_kept_in_the_manifest() -> None:
    found = find_target_layer(Arranged(_units).eval(), "layer", noise(2, WIDE))
    assert found.arrangement is not None
    assert found.arrangement.kind == "units of 4x4"
    value = json.loads(json.dumps(dataclasses.asdict(found)))["arrangement"]
    assert arrangement(value) == found.arrangement
    with pytest.raises(ValueError, match="axes and shifts"):
        arrangement({**value, "shifts": [0]})


@pytest.mark.parametrize(
    ("arrange", "pinned", "message"),
    [
        (lambda x: x * 1, {"layout": "nhwc"}, r"shows nchw with a 8x8 grid"),
        (lambda x: x.movedim(1, 3), {"layout": "nchw"}, r"shows nhwc with a 8x8 grid"),
        (_tokens, {"grid": (4, 16)}, r"shows tokens of a 8x8 grid"),
        (_with(1), {"grid": (4, 16), "prefix_tokens": 1, "layout": "tokens"}, r"8x8 grid behind 1 prefix token"),
        (_with(4), {"grid": (8, 8), "prefix_tokens": 3}, r"shows tokens of a 8x8 grid behind 4 prefix tokens"),
        (_with(4), {"grid": (8, 8), "prefix_tokens": 5}, r"shows tokens of a 8x8 grid behind 4 prefix tokens"),
        (_with(0, 1), {"layout": "tokens", "grid": (8, 8), "prefix_tokens": 1}, r"8x8 grid before 1 suffix token"),
        (_shuffled, {"layout": "tokens", "grid": (8, 8), "prefix_tokens": 0}, r"another order"),
    ],
)
def test_wrong_pins_are_refused(arrange: Arrangement, pinned: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        _read(arrange, (64, 64), **pinned)


def _with_class_tokens(x: torch.Tensor) -> torch.Tensor:
    """(N * windows, 1 + 8, channels): each window of 2x4 with a token of its own."""
    n, c, h, w = x.shape
    windows = x.reshape(n, c, h // 2, 2, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 8, c)
    return torch.cat([windows.mean(1, keepdim=True), windows], 1)


def _overlapping(step: int) -> Arrangement:
    """(N * windows, 4x4, channels), each so many rows and columns from the next."""

    def arrange(x: torch.Tensor) -> torch.Tensor:
        return x.unfold(2, 4, step).unfold(3, 4, step).permute(0, 2, 3, 4, 5, 1).reshape(-1, 16, x.shape[1])

    return arrange


def _heads(x: torch.Tensor) -> torch.Tensor:
    """(N * 4, positions, 2): the channels of four heads, folded into the batch."""
    n, c, h, w = x.shape
    return x.reshape(n, 4, c // 4, h * w).mT.flatten(0, 1)


def _kept(x: torch.Tensor) -> torch.Tensor:
    """36 of 64 tokens, in their order, as pruning leaves them."""
    return _tokens(x)[:, torch.randperm(64, generator=torch.Generator().manual_seed(1))[:36].sort().values]


@pytest.mark.parametrize(
    ("arrange", "size"),
    [
        pytest.param(_with_class_tokens, (64, 64), id="class tokens of windows"),
        pytest.param(_with_class_tokens, (96, 64), id="class tokens of windows, not square"),
        pytest.param(_overlapping(2), (64, 64), id="windows that overlap by half"),
        pytest.param(_overlapping(3), (80, 80), id="windows that overlap by a quarter"),
        pytest.param(_heads, (64, 64), id="heads in the batch"),
        pytest.param(lambda x: _heads(x).unflatten(0, (-1, 4)), (64, 64), id="heads in an axis of their own"),
        pytest.param(lambda x: _heads(x).unflatten(0, (-1, 4)).transpose(1, 2), (64, 64), id="heads behind tokens"),
        pytest.param(lambda x: _windows(x.roll((-1, -1), (2, 3))).flatten(0, 1), (64, 64), id="another shift"),
        pytest.param(_kept, (64, 64), id="tokens that pruning left"),
    ],
)
def test_what_only_resembles_an_order_is_refused(arrange: Arrangement, size: tuple[int, int]) -> None:
    with pytest.raises(ExportError, match="layer"):
        _read(arrange, size)


def test_chance_and_doubt_show_no_order_of_their_own() -> None:
    """Of four tokens chance shows any order; of many, two pairs of images must agree on it."""
    for side, noise_of_second, doubt in ((2, 0.0, True), (3, 0.0, False), (3, 1.0, True)):
        rows, columns = (np.append(values.ravel(), values.mean()) for values in np.indices((side, side)) * 1.0)
        nowhere = np.random.default_rng(0).normal(size=(2, 8))
        shaken = nowhere.repeat(2, axis=1)[:, : len(rows)] * noise_of_second
        sights = [Sight({"first": (nowhere[0], nowhere[1]), "last": (rows, columns)})]
        sights += [Sight({"first": (nowhere[1], nowhere[0]), "last": (rows + shaken[0], columns + shaken[1])})] * 2
        looker: Any = SimpleNamespace(sights=lambda name, count=PAIRS, sights=sights: sights[:count])
        shape, size = (2, side * side + 1, 8), (8 * side, 8 * side)
        if doubt:
            with pytest.raises(ExportError, match="before 1 suffix token, and does not show it beyond doubt"):
                prove(looker, "layer", shape, ImageGrids(2, size), LayoutRequest())
        else:
            assert prove(looker, "layer", shape, ImageGrids(2, size), LayoutRequest()).prefix_tokens == 1


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
    [sight] = looker.sights("layer", 1)
    assert looker.sights("layer", 1)[0] is sight
    assert model.images == 6
    assert not model.layer._forward_hooks
    find_target_layer(model, "layer", noise(2, WIDE))
    assert model.images == 6 + 2 + 2 + 6 + 6  # the last six for what the layer does not see
    for pair in range(PAIRS):
        seen = fit(Reading("tokens", (8, 12), 1), looker.sights("layer")[pair])
        assert seen.sure
        assert seen.correlation > 0.9
        assert fit(Reading("tokens", (8, 12), 0), looker.sights("layer")[pair]).misfit > 2 * seen.misfit


def test_readings_are_all_ways_to_lay_positions_out() -> None:
    maps = list(map_readings((2, 8, 8, 12)))
    assert len(set(maps)) == len(maps) == 16
    assert sum(reading.plain for reading in maps) == 2
    assert Reading("nchw", (12, 8), columns=True) in maps
    tokens = list(token_readings(65, (8, 8), channels_first=False))
    assert len(set(tokens)) == len(tokens) == 16
    assert {(r.prefix_tokens, r.suffix_tokens) for r in tokens} == {(0, 1), (1, 0)}
    assert [str(r) for r in tokens if r.plain] == ["tokens of a 8x8 grid behind 1 prefix token"]
    assert len(list(token_readings(7, (1, 7), channels_first=False))) == 2


def test_a_layer_that_is_named_twice_is_looked_at_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU()).eval()
    shape = Looker(model, ["0", "0"], torch.zeros(2, 3, 32, 32)).sights("0", 1)[0].by_channels["first"][0].shape
    assert shape == (64,)
