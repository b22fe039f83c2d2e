"""The classifiers: plain residual networks that see more or less, and timm's vision transformer with a class token."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from finercam_rt.manifest import InputSpec
from planted.generator import CLASSES, SIZE

INPUT = InputSpec((SIZE, SIZE), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), crop_pct=1.0)


class Block(nn.Module):
    """Two convolutions with batch norm, and a path around them."""

    def __init__(self, inputs: int, outputs: int, stride: int, kernels: tuple[int, int]) -> None:
        """Lay it out for so many channels."""
        super().__init__()
        first, second = kernels
        self.conv1 = nn.Conv2d(inputs, outputs, first, stride, first // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, second, 1, second // 2, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """Three blocks at strides 4, 8 and 8, the mean over positions, a linear head.

    `sight` is how many pixels a cell of the last map sees along each side: 23, a mark; 39, a mark and what is around
    it; 71, more than a body. What is not needed for that are kernels of 1.
    """

    def __init__(self, sight: int) -> None:
        """Lay it out."""
        super().__init__()
        wide, wider = 3 if sight >= 39 else 1, 3 if sight >= 71 else 1
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.layer1 = Block(24, 32, 2, (3, 3))
        self.layer2 = Block(32, 64, 2, (3, wide))
        self.layer3 = Block(64, 96, 1, (wider, wider))
        self.head = nn.Linear(96, len(CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.layer3(self.layer2(self.layer1(self.stem(x)))).mean((2, 3)))
        return logits


def _vit() -> nn.Module:
    """Patches of 8 x 8, four blocks of width 96, a class token."""
    model = VisionTransformer(
        img_size=SIZE, patch_size=8, embed_dim=96, depth=4, num_heads=4, mlp_ratio=2, num_classes=len(CLASSES)
    )
    for block in model.blocks:
        block.attn.fused_attn = False  # twice as fast to train on a CPU in bfloat16
    return model


class Recipe(NamedTuple):
    """make: untrained. epochs, rate: passes over the training pictures, the highest learning rate."""

    make: Callable[[], nn.Module]
    epochs: int
    rate: float


RECIPES = {
    "resnet": Recipe(lambda: ResNet(23), epochs=3, rate=4e-3),
    "vit": Recipe(_vit, epochs=6, rate=2e-3),
    "resnet-39": Recipe(lambda: ResNet(39), epochs=3, rate=4e-3),
    "resnet-71": Recipe(lambda: ResNet(71), epochs=3, rate=4e-3),
}
