"""Stage 3: the seed, what is fed to the VJP, from the logits and the contrast that the caller asks for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

AUTOMATIC = -1
UNUSED = -2


class Contrast(NamedTuple):
    """target (N,) and references (N,R) as used (UNUSED where a reference takes no part), and the sparse seed.

    The seed has the value cotangents[n,j] at class classes[n,j], both (N,1+R), and 0 elsewhere.
    """

    target: torch.Tensor
    references: torch.Tensor
    classes: torch.Tensor
    cotangents: torch.Tensor


def contrast(
    logits: torch.Tensor, target: torch.Tensor, references: torch.Tensor, alpha: torch.Tensor, objective: str
) -> Contrast:
    """The seed v = dT/dy of T = y_c - alpha * (weighted) mean of y_i over the references i.

    "weighted": v_i = -alpha q_i (1 + y_i - sum q y), q = softmax over the references alone, without the epsilon of
    the public code, which flips the map's sign for confident classifiers. "mean": v_i = -alpha / (references used).
    A pinned reference that is the target, or repeats an earlier one, is left unused. Automatic references are the
    classes whose logits are nearest to y_c, neither c nor pinned.

    Args:
        logits: (N,K) float32.
        target: (N,) int64; negative is the predicted class.
        references: (N,R) int64, R < K; AUTOMATIC is chosen here, UNUSED takes no part.
        alpha: (N,) float32, >= 0.
        objective: "weighted" or "mean".

    Source: Finer-CAM (CVPR 2025), pytorch-grad-cam and torch-cam; DESIGN, section 2.
    """
    chosen = torch.where(target < 0, logits.argmax(1), target)
    resolved = _resolve(logits, chosen, references)

    used = resolved >= 0
    index = resolved.clamp(min=0)
    scores = logits.gather(1, index)
    if objective == "weighted":
        weights = torch.where(used, torch.where(used, scores, -1e30).softmax(1), 0.0)
        mean = (weights * scores).sum(1, keepdim=True)
        cotangents = weights * (1 + scores - mean)
    else:
        cotangents = used.to(logits.dtype) / used.sum(1, keepdim=True).clamp(min=1)
    cotangents = (-alpha)[:, None] * cotangents
    return Contrast(
        chosen, resolved, torch.cat([chosen[:, None], index], 1), functional.pad(cotangents, (1, 0), value=1.0)
    )


def dense_seed(chosen: Contrast, num_classes: int) -> torch.Tensor:
    """The seed as (N,K), for a tail that does not end in a linear layer."""
    hits = chosen.classes[:, :, None] == torch.arange(num_classes)
    return (hits * chosen.cotangents[:, :, None]).sum(1)


def _resolve(logits: torch.Tensor, chosen: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    num_references = references.shape[1]
    every = torch.cat([chosen[:, None], references], 1)
    earlier = torch.ones(num_references, 1 + num_references, dtype=torch.bool).tril()
    repeats = ((references[:, :, None] == every[:, None, :]) & earlier).any(2)
    pinned = torch.where(repeats | (references < 0), UNUSED, references)

    taken = (torch.arange(logits.shape[1]) == every[:, :, None]).any(1)
    distance = torch.where(taken, torch.inf, (logits - logits.gather(1, chosen[:, None])).abs())
    nearest = distance.topk(num_references, dim=1, largest=False).indices
    automatic = references == AUTOMATIC
    one = automatic.to(torch.int64)
    rank = one.cumsum(1) - one  # how many automatic references come before
    return torch.where(automatic, nearest.gather(1, rank), pinned)
