"""Training on one CPU core: AdamW in bfloat16, one cycle, mirrored pictures; the same seed gives the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from planted.models import INPUT, Recipe

BATCH = 64
WARM_UP = 0.1
"""Share of the steps in which the learning rate rises; in the others it falls to zero by a cosine."""


def train(
    recipe: Recipe,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    seed: int,
    on_step: Callable[[float], None] = lambda loss: None,
) -> nn.Module:
    """A model of `recipe` trained on images (N,H,W,3) of classes (N,), in evaluation mode; draws on torch's seed."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = recipe.make().train()
    steps = recipe.epochs * (len(images) // BATCH)
    # weight decay for matrices and kernels alone, as is usual
    matrices = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": [p for p in model.parameters() if p.ndim <= 1]}]
    optimizer = torch.optim.AdamW(groups, recipe.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    for step in range(steps):
        at = step % (len(images) // BATCH)
        if at == 0:
            order = rng.permutation(len(images))
        batch = order[at * BATCH : (at + 1) * BATCH]
        x, y = normalised(_mirrored(images[batch], rng)), torch.from_numpy(labels[batch])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        loss = functional.cross_entropy(logits.float(), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(float(loss.detach()))
    return model.eval()


def normalised(images: NDArray[np.uint8]) -> torch.Tensor:
    """(N,3,H,W) float32 as the models take it."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(INPUT.mean), torch.tensor(INPUT.std)
    return (x - mean[:, None, None]) / std[:, None, None]


def _mirrored(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Half of the batch upside down and, whichever those are, half mirrored from left to right."""
    flipped = images.copy()
    for axis in (0, 1):
        chosen = rng.random(len(images)) < 0.5
        flipped[chosen] = np.flip(flipped[chosen], axis + 1)
    return flipped


def _rate(step: int, steps: int) -> float:
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
