"""Stage 3: the seed, what is fed to the VJP, from the logits and the contrasts that the caller asks for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

AUTOMATIC = -1
UNUSED = -2
SMALLEST_SEED = 1e-30
"""Of the objective "softmax": that of a classifier that is 69 nats sure."""


class Contrast(NamedTuple):
    """target (N,) and references (N,R) as used (UNUSED where a reference takes no part), and the sparse seed.

    The seed has the value cotangents[n,j] at class classes[n,j], both (N,1+R), and 0 elsewhere; of the objective
    "softmax" it is the seed of the probabilities, which `softmax_seed` takes back to the logits. With several contrasts
    an axis P follows N on all of them.
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
        target: (N,) or (N,P) int64; -1 is the predicted class, and with P contrasts -k is the class with the k-th
            largest logit, k <= P.
        references: (N,R) or (N,P,R) int64, R < K; AUTOMATIC is chosen here, UNUSED takes no part.
        alpha: (N,) or (N,P) float32, >= 0.
        objective: "weighted" or "mean".

    Source: Finer-CAM (CVPR 2025), pytorch-grad-cam and torch-cam; DESIGN, section 2.
    """
    chosen = torch.where(target < 0, _ranked(logits, target), target)
    resolved = _resolve(logits, chosen, references)

    used = resolved >= 0
    index = resolved.clamp(min=0)
    scores = _at(logits, index)
    if objective == "weighted":
        # y_i - sum q y is log q_i - sum q log q, of which large logits lose nothing
        shares = torch.where(used, scores, -1e30).log_softmax(-1)
        weights = torch.where(used, shares.exp(), 0.0)
        cotangents = weights * (1 + shares - (weights * shares).sum(-1, keepdim=True))
    else:
        cotangents = used.to(logits.dtype) / used.sum(-1, keepdim=True).clamp(min=1)
    cotangents = (-alpha)[..., None] * cotangents
    return Contrast(
        chosen, resolved, torch.cat([chosen[..., None], index], -1), functional.pad(cotangents, (1, 0), value=1.0)
    )


def dense_seed(chosen: Contrast, num_classes: int) -> torch.Tensor:
    """The seed as (N,K) or (N,P,K), for a tail that does not end in a linear layer."""
    hits = chosen.classes[..., None] == torch.arange(num_classes)
    return (hits * chosen.cotangents[..., None]).sum(-2)


def softmax_seed(chosen: Contrast, logits: torch.Tensor) -> torch.Tensor:
    """The seed of the logits, (N,K) or (N,P,K), from that of their softmax: v_j = p_j sum_i p_i (w_j - w_i).

    w is 1 at the target, -b at the references and 0 elsewhere, so that the sums over the three groups are enough, and
    classes of one weight are left out of each other's: w_j less the mean of w would be nothing but rounding once the
    classifier is sure. A seed that is so small that float32 loses parts of it becomes zero, so that the map says that
    it explains nothing.
    """
    p = _beside(logits.softmax(1), chosen.target)
    numbers = torch.arange(logits.shape[1])
    is_target = chosen.target[..., None] == numbers
    is_reference = (chosen.references[..., None] == numbers).any(-2)
    b = -chosen.cotangents[..., 1:].amin(-1, keepdim=True)
    target, references, rest = (
        torch.where(group, p, 0.0).sum(-1, keepdim=True)
        for group in (is_target, is_reference, ~(is_target | is_reference))
    )
    of_reference = torch.where(is_reference, -(1 + b) * target - b * rest, b * references - target)
    seed = p * torch.where(is_target, (1 + b) * references + rest, of_reference)
    return torch.where(seed.abs().amax(-1, keepdim=True) < SMALLEST_SEED, 0.0, seed)


def _ranked(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The classes that negative targets stand for."""
    if target.ndim == 1:
        return logits.argmax(1)
    count = int(target.shape[1])
    rank = (-1 - target).clamp(0, count - 1)
    if _may_lack(logits, count):
        # the K-th is the last that there is
        rank = torch.minimum(rank, torch.full_like(rank, logits.shape[1] - 1))
        logits = functional.pad(logits, (0, count), value=-torch.inf)
    return logits.topk(count, dim=1).indices.gather(1, rank)


def _may_lack(logits: torch.Tensor, count: int) -> bool:
    """Whether there may be fewer classes than `count`: their number may be known only when the graph runs."""
    return not isinstance(logits.shape[1], int) or logits.shape[1] < count


def _beside(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The logits (N,K), as (N,1,K) where the targets are (N,P)."""
    return logits if target.ndim == 1 else logits[:, None]


def _at(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """logits[n, index[n, ...]]."""
    return logits.gather(1, index) if index.ndim == 2 else logits.gather(1, index.flatten(1)).view_as(index)


def _resolve(logits: torch.Tensor, chosen: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """The references as used; without a scatter or a running sum, each of which takes TensorRT two kernels."""
    num_references = references.shape[-1]
    taken = torch.cat([chosen[..., None], references], -1)
    repeats = ((references[..., :, None] == taken[..., None, :]) & _earlier(num_references, 1)).any(-1)
    pinned = torch.where(repeats | (references < 0), UNUSED, references)

    distance = (_beside(logits, chosen) - _at(logits, chosen[..., None])).abs()
    is_taken = (taken[..., None] == torch.arange(logits.shape[1])).any(-2)
    distance = torch.where(is_taken, torch.inf, distance)
    lacking = _may_lack(logits, num_references + 1)
    if lacking:
        distance = functional.pad(distance, (0, num_references), value=torch.inf)
    distances, nearest = distance.topk(num_references, dim=-1, largest=False)
    if lacking:
        nearest = torch.where(distances == torch.inf, UNUSED, nearest)
    automatic = references == AUTOMATIC
    rank = (automatic[..., None, :] & _earlier(num_references, 0)).sum(-1)  # how many automatic references come before
    return torch.where(automatic, nearest.gather(-1, rank), pinned)


def _earlier(count: int, before: int) -> torch.Tensor:
    """(count, before + count) bool: true in the columns before a row's own, which is `before` to the right."""
    return torch.ones(count, before + count, dtype=torch.bool).tril(before - 1)
