"""Layers whose output comes in an order of its own, exported: the batch second, windows, suffix tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from finercam_rt import Engine, Tail
from finercam_rt.export import export_model
from finercam_rt.manifest import InputSpec

from .oracle import RELATIVE_L2, Oracle, noise, perturb, relative_l2

SIZE, GRID = (48, 80), (6, 10)
SPEC = InputSpec(SIZE, (0.5,) * 3, (0.5,) * 3)


class _Block(nn.Module):
    """Attention over (L,N,C), as PyTorch's own modules have it by default."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn, self.ln_1 = nn.MultiheadAttention(width, 4), nn.LayerNorm(width)
        self.mlp, self.ln_2 = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width)), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class SequenceFirst(nn.Module):
    """A vision transformer as CLIP's authors wrote theirs: (N,L,C) around the blocks, (L,N,C) in them.

    Its class token is the first, or the last.
    """

    def __init__(self, *, last: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.cls, self.last = nn.Conv2d(3, 32, 8, 8), nn.Parameter(torch.randn(1, 1, 32)), last
        self.positions = nn.Parameter(0.3 * torch.randn(1 + GRID[0] * GRID[1], 32))
        self.ln_pre, self.blocks = nn.LayerNorm(32), nn.Sequential(*(_Block(32) for _ in range(2)))
        self.ln_post, self.head = nn.LayerNorm(32), nn.Linear(32, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x, cls = self.patch(images).flatten(2).mT, self.cls.expand(len(images), 1, -1)
        x = self.ln_pre(torch.cat([x, cls] if self.last else [cls, x], 1) + self.positions)
        x = self.blocks(x.permute(1, 0, 2)).permute(1, 0, 2)
        return self.head(self.ln_post(x[:, -1 if self.last else 0]))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(24, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mix(x, x, x, need_weights=False)[0]


class Windowed(nn.Module):
    """Attention in windows of 3x5, shifted or not, that are folded into the batch."""

    def __init__(self, shift: tuple[int, int] = (0, 0)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.attn, self.shift = nn.Conv2d(3, 24, 8, 8), _Attention(), shift
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images).movedim(1, -1).roll([-step for step in self.shift], (1, 2))
        x = x.reshape(-1, 2, 3, 2, 5, 24).transpose(2, 3).reshape(-1, 15, 24)
        return self.head(self.norm(_window_reverse(self.attn(x), self.shift)).mean((1, 2)))


def _window_reverse(x: torch.Tensor, shift: tuple[int, int]) -> torch.Tensor:
    return x.reshape(-1, 2, 2, 3, 5, 24).transpose(2, 3).reshape(-1, *GRID, 24).roll(shift, (1, 2))


class _Raw(Oracle):
    """An oracle that is told how the output of the layer is read."""

    def __init__(self, read: Callable[[torch.Tensor], torch.Tensor], *given: Any) -> None:
        super().__init__(*given)
        self._read = read

    def _as_nchw(self, values: torch.Tensor, grid: tuple[int, int], layout: str) -> torch.Tensor:
        return self._read(values)


CASES = {
    "batch second": (SequenceFirst, "blocks.1.ln_1", lambda x: x[1:].permute(1, 2, 0).unflatten(2, GRID)),
    "batch second, class token last": (
        lambda: SequenceFirst(last=True),
        "blocks.1.ln_1",
        lambda x: x[:-1].permute(1, 2, 0).unflatten(2, GRID),
    ),
    "windows": (Windowed, "attn", lambda x: _window_reverse(x, (0, 0)).movedim(-1, 1)),
    "shifted windows": (lambda: Windowed((1, 2)), "attn", lambda x: _window_reverse(x, (1, 2)).movedim(-1, 1)),
}


@pytest.mark.parametrize(
    ("case", "head"), [*((case, "graph") for case in CASES), ("batch second", "taps"), ("shifted windows", "taps")]
)
def test_the_map_is_autograds(case: str, head: str, tmp_path: Path) -> None:
    make, layer, read = CASES[case]
    model = perturb(make()).eval()
    path, images = tmp_path / "model.onnx", noise(3, SIZE)
    found = export_model(model, path, target_layer=layer, input=SPEC, head=head).layers[0]
    assert (found.name, found.grid) == (layer, GRID)
    assert found.arrangement is not None
    with Engine(path, backend="onnxruntime") as engine:
        assert engine.manifest.layers[0] == found
        outputs = engine(images.numpy(), alpha=0.7)
    answer = _Raw(read, model, layer, images).explain(GRID, "", alpha=[0.7] * 3, objective="weighted")
    assert relative_l2(outputs.saliency_map, answer).max() < RELATIVE_L2
    np.testing.assert_array_equal(outputs.target, answer.targets)


def test_auto_takes_the_norm_of_the_last_block(tmp_path: Path) -> None:
    """The positions' gradient is nowhere behind it, as in any vision transformer with a class token."""
    for last in (False, True):
        manifest = export_model(perturb(SequenceFirst(last=last)).eval(), tmp_path / "model.onnx", input=SPEC)
        layer = manifest.layers[0]
        assert (layer.name, layer.layout, layer.grid, layer.prefix_tokens) == ("blocks.1.ln_1", "tokens", GRID, 1)


@pytest.mark.parametrize("case", ["batch second", "shifted windows"])
def test_half_precision(case: str, tmp_path: Path) -> None:
    """ONNX Runtime's layouts for convolutions end the process where a transposed value of float16 meets a matrix."""
    make, layer, _ = CASES[case]
    path = tmp_path / "model.onnx"
    export_model(perturb(make()).eval(), path, target_layer=layer, input=SPEC, precision="fp16")
    with Engine(path, backend="onnxruntime") as engine:
        assert not engine(noise(2, SIZE).numpy()).status.any()


def test_several_layers_contrasts_and_a_tail(tmp_path: Path) -> None:
    """A layer with windows beside one without; masked activations in the layer's layout through the tail."""
    model = perturb(Windowed((1, 2))).eval()
    manifest = export_model(
        model, tmp_path / "both.onnx", target_layer=["attn", "norm"], input=SPEC, contrasts=2, method="layercam"
    )
    assert [layer.arrangement is None for layer in manifest.layers] == [False, True]
    export_model(
        model, tmp_path / "taps.onnx", target_layer="attn", input=SPEC, head="taps", tail=tmp_path / "tail.onnx"
    )
    images = noise(2, SIZE)
    with Engine(tmp_path / "taps.onnx", backend="onnxruntime") as engine:
        outputs = engine(images.numpy())
        tail = Tail(tmp_path / "tail.onnx", engine.manifest, backend="onnxruntime")
    mask = np.ones((2, *GRID, 24), np.float32)
    mask[:, :2, 3:] = 0
    with torch.no_grad():
        x = model.stem(images).movedim(1, -1).roll((-1, -2), (1, 2))
        x = model.attn(x.reshape(-1, 2, 3, 2, 5, 24).transpose(2, 3).reshape(-1, 15, 24))
        masked = _window_reverse(x, (1, 2)) * torch.from_numpy(mask)
        expected = model.head(model.norm(masked).mean((1, 2)))
    found = tail.logits(outputs.activations * mask, outputs.carried)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)
