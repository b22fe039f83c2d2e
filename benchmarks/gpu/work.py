"""One call of a kernel: its inputs and outputs, the formula that it is held to, and whether what it gives is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpu.formulas import Formula

HALF_TOLERANCE = 3e-2
"""Relative L2 error of plain torch that computes in fp16 or bf16; our kernels accumulate in fp32."""


@dataclass(frozen=True)
class Work:
    """inputs: what `formula` takes; outputs: what `ours` writes, in the order of the formula's results.

    tolerance: relative L2 error of each output against the formula in float64, 0 for equal. moved: bytes of all inputs
    read once and all outputs written once. compiled: what torch.compile is given where that is another form.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    ours: Callable[[], object]
    formula: Formula
    moved: int
    tolerance: float
    compiled: Formula | None = None
    capture: bool = True
    """Whether our call can be captured in a CUDA graph."""


@dataclass(frozen=True)
class KernelCase:
    """A kernel on one size; `make` fills a Work with fresh random numbers on a device.

    compiled: whether torch.compile is timed too. Its seconds of compilation are dear.
    """

    kernel: str
    variant: str
    size: str
    make: Callable[[Draw], Work]
    compiled: bool = False

    @property
    def name(self) -> str:
        """Such as "cam gradcam nchw float32, 1x2048x7x7"."""
        return f"{self.kernel} {self.variant}, {self.size}"


class Draw:
    """Random tensors on a device."""

    def __init__(self, device: str, seed: int) -> None:
        """The same ones for the same seed."""
        self.device = device
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Of mean 0.3 and deviation 1, so that sums do not vanish."""
        return torch.randn(shape, generator=self._generator, device=self.device).add_(0.3).to(dtype)

    def bytes(self, *shape: int) -> Tensor:
        """uint8, far enough from the ends that no filter overshoots."""
        drawn = torch.randint(64, 192, shape, generator=self._generator, device=self.device)
        return drawn.to(torch.uint8)

    def order(self, rows: int, columns: int) -> Tensor:
        """(rows, columns) int32, a permutation in each row."""
        drawn = torch.rand(rows, columns, generator=self._generator, device=self.device)
        return drawn.argsort(1).to(torch.int32)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Not set."""
        return torch.empty(shape, dtype=dtype, device=self.device)


def check_ours(work: Work) -> float:
    """Run it once over poisoned outputs; its error against the formula in float64.

    Raises:
        ValueError: the error is above the tolerance.
    """
    for output in work.outputs:
        output.fill_(float("nan") if output.is_floating_point() else 77)
    work.ours()
    return _require(work.outputs, expected_of(work), work.tolerance)


def check_formula(work: Work, call: Callable[..., Sequence[Tensor]]) -> float:
    """The error of plain torch, compiled or not, in the inputs' own precision.

    Raises:
        ValueError: it is wrong.
    """
    half = any(x.dtype in (torch.float16, torch.bfloat16) for x in work.inputs)
    found = call(*work.inputs)
    return _require(found, expected_of(work), max(work.tolerance, HALF_TOLERANCE if half else 1e-4))


def expected_of(work: Work) -> tuple[Tensor, ...]:
    """The formula in float64."""
    return work.formula(*(x.double() if x.is_floating_point() else x for x in work.inputs))


def _require(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> float:
    worst = 0.0
    for got, right in zip(found, expected, strict=True):
        if got.shape != right.shape:
            raise ValueError(f"its result has shape {tuple(got.shape)}, and {tuple(right.shape)} is right")
        # in parts: a difference of gigabytes in float64 is several times them
        squares = [
            ((a.double() - b.double()).square().sum(), b.double().square().sum())
            for a, b in zip(got.flatten().split(_PART), right.flatten().split(_PART), strict=True)
        ]
        error, size = (float(torch.stack(parts).sum()) for parts in zip(*squares, strict=True))
        relative = (error / size) ** 0.5 if size else error**0.5
        if not relative <= tolerance:  # so that NaN is wrong
            raise ValueError(f"its result differs from the formula by {relative:.1e}")
        worst = max(worst, relative)
    return worst


_PART = 1 << 26


def bytes_of(*tensors: Any) -> int:
    """Of all their elements."""
    return sum(t.numel() * t.element_size() for t in tensors)
