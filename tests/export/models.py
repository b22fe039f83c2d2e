"""Small models of known structure, quick to export."""

from __future__ import annotations

import torch
from torch import nn


class SmallCNN(nn.Module):
    """Two convolutions, a pooling and a linear head, with every width and stride to choose."""

    def __init__(self, channels: int = 24, stride: int = 8, classes: int = 7) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, stride, stride)
        self.features = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.features(self.stem(x))).flatten(1))


class TokenModel(nn.Module):
    """Patch tokens behind `prefix` others, one attention block, and a head on the first token or on the mean."""

    def __init__(self, size: tuple[int, int], prefix: int, pool: str = "first", patch: int = 16) -> None:
        super().__init__()
        cells = (size[0] // patch) * (size[1] // patch)
        self.patch = nn.Conv2d(3, 32, patch, patch)
        self.prefix = nn.Parameter(torch.randn(1, prefix, 32))
        self.position = nn.Parameter(torch.randn(1, prefix + cells, 32))
        self.norm = nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.block = nn.Identity()
        self.head = nn.Linear(32, 9)
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), tokens], 1) + self.position
        normed = self.norm(tokens)
        tokens = self.block(tokens + self.attention(normed, normed, normed, need_weights=False)[0])
        return self.head(tokens[:, 0] if self.pool == "first" else tokens.mean(1))


class Several(nn.Module):
    """A layer that returns a tuple."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


class Odd(SmallCNN):
    """Layers that run twice, never, beside the logits, or give no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never, self.beside = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.several = Several()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.several(self.twice(self.twice(self.stem(x))))[0]
        self.beside(x)
        return self.head(self.pool(self.features(x)).flatten(1))


class Pooled(nn.Module):
    """A tail with every operation that has a derivative of our own, and a ReLU whose zeros tie in the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 4, 4)
        self.layer = nn.ReLU()
        self.tail = nn.Sequential(
            nn.MaxPool2d(3, 2, 1, ceil_mode=True),
            nn.Conv2d(32, 12, 3, 2, 1, groups=4),
            nn.ReLU(),
            nn.ConvTranspose2d(12, 8, 3, 2, 1, output_padding=1),
            nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
            nn.Conv2d(8, 8, 3, 1, 2, dilation=2),
            nn.ReLU(),
            nn.MaxPool2d(2, 1),
            nn.Flatten(1),
            nn.LazyLinear(10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.layer(self.stem(x)))
