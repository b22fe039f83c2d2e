"""Reading a caller's reshape_transform: what is a plain layout, and what gets a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from finercam_rt.compat.reshape import read_reshape
from finercam_rt.errors import InputError
from finercam_rt.manifest import LayerInfo

Transform = Callable[[Any], Any]


def _tokens(prefix: int, height: int, width: int) -> Transform:
    """As the examples of pytorch-grad-cam write it."""

    def transform(tensor: Any) -> Any:
        result = tensor[:, prefix:, :].reshape(tensor.size(0), height, width, tensor.size(2))
        return result.transpose(2, 3).transpose(1, 2)

    return transform


@pytest.mark.parametrize(
    ("transform", "shape", "expected"),
    [
        (_tokens(1, 4, 6), (2, 25, 8), LayerInfo("layer", "tokens", (4, 6), 1)),
        (_tokens(5, 4, 4), (2, 21, 8), LayerInfo("layer", "tokens", (4, 4), 5)),
        (lambda t: t[:, -24:].unflatten(1, (4, 6)).movedim(-1, 1), (2, 26, 8), LayerInfo("layer", "tokens", (4, 6), 2)),
        (lambda t: t.permute(0, 3, 1, 2), (2, 4, 6, 8), LayerInfo("layer", "nhwc", (4, 6), 0)),
        (lambda t: t.permute(0, 3, 1, 2).contiguous(), (3, 5, 5, 5), LayerInfo("layer", "nhwc", (5, 5), 0)),
        (lambda t: t, (2, 8, 4, 6), LayerInfo("layer", "nchw", (4, 6), 0)),
    ],
)
def test_plain_readings(transform: Transform, shape: tuple[int, ...], expected: LayerInfo) -> None:
    assert read_reshape(transform, torch.Size(shape), "layer", shape[0]) == expected


def _windows(tensor: Any) -> Any:
    """(N * 4, 4 * 6, C) to (N, C, 8, 12), as users of Swin write it."""
    return tensor.reshape(-1, 2, 2, 4, 6, 8).permute(0, 5, 1, 3, 2, 4).reshape(-1, 8, 8, 12)


@pytest.mark.parametrize(
    ("transform", "shape", "expected", "kind"),
    [
        (lambda t: t[1:].permute(1, 2, 0).unflatten(2, (4, 6)), (25, 2, 8), ("tokens", (4, 6), 1), "the batch in the"),
        (lambda t: t.unflatten(2, (4, 6)), (2, 8, 24), ("tokens", (4, 6), 0), "the channels before the tokens"),
        (lambda t: t[:, :-1].reshape(2, 4, 4, 8).movedim(3, 1), (2, 17, 8), ("tokens", (4, 4), 1), "suffix tokens"),
        (_windows, (8, 24, 8), ("nhwc", (8, 12), 0), "windows of 4x6"),
        (lambda t: _windows(t).roll((2, 3), (2, 3)), (8, 24, 8), ("nhwc", (8, 12), 0), "windows of 4x6 shifted by 2x3"),
        (lambda t: _windows(t.flatten(1, 2)), (2, 4, 24, 8), ("nhwc", (8, 12), 0), "windows of 4x6"),
    ],
)
def test_other_orders_are_read_too(
    transform: Transform, shape: tuple[int, ...], expected: tuple[Any, ...], kind: str
) -> None:
    found = read_reshape(transform, torch.Size(shape), "layer", 2)
    assert (found.layout, found.grid, found.prefix_tokens) == expected
    assert found.arrangement is not None
    assert found.arrangement.kind.startswith(kind)


@pytest.mark.parametrize(
    ("transform", "shape", "sentence"),
    [
        (_tokens(1, 4, 6), (2, 24, 8), "fails"),
        (lambda t: t[:, 2:].reshape(2, 4, 4, 8).permute(0, 3, 2, 1), (2, 18, 8), "turns the map over"),
        (lambda t: t.reshape(2, 4, 4, 8).permute(0, 3, 2, 1), (2, 16, 8), "turns the map over"),
        (lambda t: t[:, 1:].reshape(2, 8, 4, 4), (2, 17, 8), "does more"),
        (lambda t: t[:, 1:].reshape(2, 4, 4, 8).permute(0, 3, 2, 1), (2, 17, 8), "turns the map over"),
        (lambda t: t[:, 1:].reshape(2, 4, 6, 8).permute(0, 3, 2, 1), (2, 25, 8), "turns the map over"),
        (lambda t: t.permute(0, 3, 2, 1), (2, 4, 4, 8), "turns the map over"),
        (lambda t: t.transpose(2, 3), (2, 8, 4, 6), "does more"),
        (lambda t: t.flip(-1), (2, 8, 4, 6), "does more"),
        (lambda t: t * 2, (2, 8, 4, 6), "does more"),
        (lambda t: t.mean(1), (2, 8, 4, 6), "and not"),
        (lambda t: t[:1], (2, 8, 4, 6), "and not"),
        (lambda t: [t], (2, 8, 4, 6), "gives list"),
    ],
)
def test_anything_else_gets_a_sentence(transform: Transform, shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as raised:
        read_reshape(transform, torch.Size(shape), "blocks.1", shape[0])
    assert "'blocks.1'" in str(raised.value)
    assert "leave it out" in str(raised.value)
