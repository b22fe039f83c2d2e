"""Models that find the batch by dividing: Swin's own code, and rounded quotients of symbols."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch
from torch import nn
from torch.utils._sympy import functions

from finercam_rt.errors import ExportError
from finercam_rt.export.capture import capture
from finercam_rt.export.whole_numbers import whole_quotients

from .oracle import noise

WIDTH, WINDOW = 8, 2
BATCH = sympy.Symbol("s0", integer=True, positive=True)
FloatDivision, IntDivision, ToFloat = functions.FloatTrueDiv, functions.IntTrueDiv, functions.ToFloat


@pytest.mark.parametrize(
    "rounded", [functions.TruncToInt, functions.FloorToInt, functions.CeilToInt, functions.RoundToInt]
)
@pytest.mark.parametrize(
    ("quotient", "expected"),
    [
        (FloatDivision(ToFloat(12 * BATCH), sympy.Float(4.0)), 3 * BATCH),
        (FloatDivision(FloatDivision(ToFloat(12 * BATCH), sympy.Float(2.0)), sympy.Float(3.0)), 2 * BATCH),
        (IntDivision(6 * BATCH, sympy.Integer(2)), 3 * BATCH),
        (ToFloat(BATCH), BATCH),
        (FloatDivision(ToFloat(6 * BATCH), sympy.Float(4.0)), None),
        (FloatDivision(ToFloat(6 * BATCH), sympy.Float(1.5)), None),
        (IntDivision(BATCH, sympy.Integer(2)), None),
        (sympy.Symbol("x", real=True), None),
    ],
)
def test_quotients(rounded: Any, quotient: Any, expected: Any) -> None:
    with whole_quotients():
        assert rounded(quotient) == (rounded(quotient, evaluate=False) if expected is None else expected)
        assert rounded(sympy.Float(2.5)) in (2, 3)
    assert rounded(ToFloat(2 * BATCH)).func is rounded, "nothing is left behind"


class _Block(nn.Module):
    """Attention in windows, put together again as Swin's authors do."""

    def __init__(self, rounded: Any) -> None:
        super().__init__()
        self.rounded, self.norm, self.mix = rounded, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, height, width, channels = x.shape
        rows, columns = height // WINDOW, width // WINDOW
        tiles = self.norm(x).view(-1, rows, WINDOW, columns, WINDOW, channels).permute(0, 1, 3, 2, 4, 5)
        windows = tiles.reshape(-1, WINDOW * WINDOW, channels)
        windows = (windows @ windows.transpose(1, 2)).softmax(-1) @ self.mix(windows)
        batch = self.rounded(windows.shape[0] / (height * width / WINDOW / WINDOW))
        tiles = windows.view(batch, rows, columns, WINDOW, WINDOW, channels).permute(0, 1, 3, 2, 4, 5)
        return x + tiles.reshape(batch, height, width, channels)


class _Windows(nn.Module):
    def __init__(self, depth: int, rounded: Any = int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 4, 4)
        self.blocks, self.head = nn.Sequential(*(_Block(rounded) for _ in range(depth))), nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x).permute(0, 2, 3, 1)).mean((1, 2)))


def test_a_batch_that_every_block_finds_by_dividing() -> None:
    torch.manual_seed(0)
    model = _Windows(12).eval()
    captured = capture(model, ["blocks.11"], noise(2, (16, 24)))
    for count in (1, 3):
        images = noise(count, (16, 24))
        with torch.no_grad():
            torch.testing.assert_close(captured.graph_module(images), model(images))


def test_a_batch_that_is_no_multiple_is_not_taken_for_one() -> None:
    with pytest.raises(ExportError, match="dynamic batch"):
        capture(_Windows(1, lambda number: int(number / 3) * 3 + 2).eval(), ["blocks.0"], noise(2, (16, 24)))
