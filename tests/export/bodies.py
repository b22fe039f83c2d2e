"""One small network in the forms that users bring."""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .oracle import perturb

SIZE = (32, 48)
CLASSES = 7


class Body(nn.Module):
    """A map at `features`, and logits by `form` of (x, logits)."""

    def __init__(self, form: Callable[[torch.Tensor, torch.Tensor], Any] = lambda x, y: y) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 8, 8)
        self.features = nn.Sequential(nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(12, CLASSES)
        self.form = form

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(self.stem(x)).mean((2, 3)))

    def forward(self, x: torch.Tensor) -> Any:
        return self.form(x, self.logits(x))


def body(form: Callable[[torch.Tensor, torch.Tensor], Any] = lambda x, y: y) -> Body:
    torch.manual_seed(0)
    return perturb(Body(form), scale=0.3)


@dataclasses.dataclass
class Output:
    loss: torch.Tensor | None
    logits: torch.Tensor
    embedding: torch.Tensor


Pair = namedtuple("Pair", ["embedding", "scores"])


class Unclear(Body):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.logits(left) + right


class NoGrad(Body):
    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits(x)


def frozen(kind: type[Body]) -> Callable[[], nn.Module]:
    """Makes a body of this kind whose weights need no gradients."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        return perturb(kind(), scale=0.3).requires_grad_(False)

    return make
