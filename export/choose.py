"""Which layer "auto" is: the last feature map that all passes through, or the usual one of a vision transformer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from finercam_rt.export.candidates import Place
from finercam_rt.export.eager import run_with_gradients
from finercam_rt.export.grids import ImageGrids, channel_counts, has_positions, position_count
from finercam_rt.export.hooks import hooked
from finercam_rt.export.outputs import feature_map, with_feature_map

GROUP = 6
"""Maps whose gradients are taken in one run."""

_ATTENTION = re.compile(r"(?<!fl)(?<!sc)att")
"""Parts of the names of what attends, and not of what flattens or scatters."""

DENSE = 0.5
"""The least share of the positions that must have a gradient: a maximum over positions gives it to few of them."""

MOVED = 1e-5
"""By how much of the largest number a token must change for another one's sake; float32 alone changes a tenth of it."""

OTHERS = 16
"""How many more tokens than positions a model of one resolution may have."""


def choose(
    model: nn.Module, example: torch.Tensor, image: ImageGrids, places: Sequence[Place]
) -> list[tuple[Place, bool]]:
    """The places to try, best first, and whether the gradient was seen to reach its positions.

    Only outputs that every path from the image to the logits passes through are feature maps of the whole model; of
    these the last one whose gradient reaches the patches is the best. Where it is a vision transformer's, the first
    normalisation of the block behind it (or, of a model of one resolution, of its last block) goes before it: it is
    what Finer-CAM's authors use, and behind it the patches reach a class token through the attention alone. Of branches
    that never meet in a feature map it is the normalisation that runs last.

    Args:
        model: images (N,C,H,W) -> logits (N,K), in evaluation mode.
        example: (N,C,H,W) float32.
        image: its grids.
        places: what `find_places` found.
    """
    positioned = [place for place in places if has_positions(place.shape, image)]
    maps = [place for place in positioned if place.cut and not _is_projection(model, place)]
    norms = [place for place in positioned if _is_block_norm(model, place)]
    sparse: list[Place] = []
    classes = 0
    for end in range(len(maps), 0, -GROUP):
        group = maps[max(0, end - GROUP) : end]
        # of blocks whose outputs are sums outside of any module, the norms read nothing that has a name
        unnamed = [norm for norm in norms if norm.reads < 0 and norm.step > group[0].step][-GROUP:]
        beside = [norm for norm in norms if norm.reads in {place.step for place in group}] + unnamed
        shares, classes = _gradient_shares(model, [*group, *beside], example)
        dense = [place for place in reversed(group) if shares[place] >= DENSE]
        if dense:
            sparse += [place for place in group if place.step > dense[0].step]
            dense.sort(key=lambda place: _are_scores(place, classes, image))
            reached = [norm for norm in beside if shares[norm] >= DENSE]
            usual = _block_norm(dense[0], reached, maps, image, bool(sparse))
            # class attention's blocks read the patches again and again as they are
            usual = [norm for norm in usual if norm.reads >= 0 or _mixed(model, dense[0], norm, example)]
            # streams that never meet again leave only a shallow map to all of them; a deep block's says more
            count = position_count(dense[0].shape, image)
            deep = [norm for norm in reversed(norms) if 4 * position_count(norm.shape, image) <= count][:GROUP]
            earlier = [place for place in reversed(maps) if place.step < group[0].step]
            seen = [(place, True) for place in (*usual, *dense)]
            return [(place, False) for place in deep] + seen + [(place, False) for place in earlier]
        sparse += group
    last = sorted(reversed(maps), key=lambda place: _are_scores(place, classes, image))
    return [(place, False) for place in (*last, *reversed(norms))]


def class_gradients(logits: torch.Tensor, activations: Sequence[torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
    """Of the best class against the second best, at each of the activations; None where the logits do not depend."""
    top = logits.topk(min(2, logits.shape[1]), dim=1).values
    objective = top[:, 0].sum() - 0.5 * top[:, 1:].sum()
    if not objective.requires_grad:
        return tuple(None for _ in activations)
    return torch.autograd.grad(objective, list(activations), allow_unused=True)


def _gradient_shares(
    model: nn.Module, places: Sequence[Place], example: torch.Tensor
) -> tuple[dict[Place, float], int]:
    """The share of each place's positions, or tokens, that the logits' gradient reaches; the number of classes."""
    activations, logits = run_with_gradients(model, [place.name for place in places], example)
    shares = {}
    for place, gradient in zip(places, class_gradients(logits, activations), strict=True):
        channel_axes = (1, 3) if len(place.shape) == 4 else (2,)
        shares[place] = 0.0
        if gradient is not None:
            shares[place] = max(float(gradient.abs().amax(a).gt(0).float().mean()) for a in channel_axes)
    return shares, logits.shape[1]


def _are_scores(place: Place, classes: int, image: ImageGrids) -> bool:
    """Whether a place may be a map of class scores: the logits laid out, not what they were made from."""
    return classes in channel_counts(place.shape, image)


def _block_norm(
    last: Place, norms: Sequence[Place], maps: Sequence[Place], image: ImageGrids, skipped: bool
) -> list[Place]:
    """The first normalisation of a transformer's last block: the one that reads `last`, the last map with a gradient.

    Where the sums between the blocks are no module's output it is the last one behind `last`, which goes first. Where
    no later map was skipped for want of a gradient, the head reads all tokens, and the block is the one before `last`;
    only of a model of one resolution is its normalisation as good as its output.
    """
    if len(last.shape) != 3:
        return []
    reading = [norm for norm in norms if norm.reads == last.step and norm.shape == last.shape and skipped]
    behind = [norm for norm in norms if norm.reads < 0 and norm.step > last.step and _alike(norm, last, image.images)]
    if skipped or behind:
        return [*behind[-1:], *reading[-1:]]
    counts = [position_count(place.shape, image) for place in maps]
    if max(counts) - min(counts) > OTHERS:
        return []
    # a norm behind the last block, beside a pooling by attention, is no block's: it is `last` itself
    return [norm for norm in norms if norm.reads >= 0 and norm.step < last.step and norm.shape == last.shape][-1:]


def _alike(norm: Place, last: Place, images: int) -> bool:
    """Whether both are the tokens of one resolution: a class token may have come between."""
    same = len(norm.shape) == 3 and norm.shape[2] == last.shape[2]
    return same and abs(_tokens(norm, images) - _tokens(last, images)) <= OTHERS


def _tokens(place: Place, images: int) -> int:
    """How many tokens an image has at a place whose output has three axes."""
    return math.prod(place.shape[:2]) // images


def _mixed(model: nn.Module, last: Place, norm: Place, example: torch.Tensor) -> bool:
    """Whether a token of `norm` knows of more than one of `last`, other than a class token: a block is between them."""
    found: list[torch.Tensor] = []

    def change(_module: nn.Module, _inputs: object, output: Any) -> Any:
        value = feature_map(output, last.name).clone()
        by_image(value, last)[1, _tokens(last, len(example)) // 2].neg_()
        return with_feature_map(output, value, last.name)

    def keep(_module: nn.Module, _inputs: object, output: Any) -> None:
        found.append(by_image(feature_map(output, norm.name), norm))

    def by_image(value: torch.Tensor, place: Place) -> torch.Tensor:
        return value if place.shape[0] == len(example) else value.transpose(0, 1)

    hooks = ((model.get_submodule(last.name), change), (model.get_submodule(norm.name), keep))
    with hooked(hooks), torch.no_grad():
        model(example[:1].repeat(2, 1, 1, 1))
    (tokens,) = found
    moved = (tokens[1] - tokens[0]).abs().amax(1) > MOVED * tokens.abs().max()
    return int(moved.sum()) > 1 + abs(_tokens(norm, len(example)) - _tokens(last, len(example)))


def _is_projection(model: nn.Module, place: Place) -> bool:
    """Whether a place is the keys or values of an attention, as of one that pools: what it reads is the feature map."""
    path = place.name.split(".")
    modules = [(part, model.get_submodule(".".join(path[: end + 1]))) for end, part in enumerate(path)]
    inside = any(_attends(part, module) for part, module in modules[:-1])
    return inside and isinstance(modules[-1][1], (nn.Linear, nn.Conv2d))


def _is_block_norm(model: nn.Module, place: Place) -> bool:
    """Whether a place is a normalisation beside an attention, as in a transformer's block."""
    block = model.get_submodule(place.name.rpartition(".")[0])
    beside = any(_attends(name, child) for name, child in block.named_children())
    return "norm" in type(model.get_submodule(place.name)).__name__.lower() and beside


def _attends(name: str, module: nn.Module) -> bool:
    """Whether a module is an attention, by its name or its class's; one's dropout is none."""
    named = f"{name} {type(module).__name__}".lower()
    return not isinstance(module, (nn.Dropout, nn.Identity)) and _ATTENTION.search(named) is not None
