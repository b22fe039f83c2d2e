"""What an engine must say: logits, maps and taps by eager autograd, in the dtype of the images and in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from finercam_rt.embeddings import ClassEmbeddings
from finercam_rt.export.eager import objective_value, run_with_gradients
from finercam_rt.export.method import mean_of_normalised, positions, raw_map
from finercam_rt.export.zero_shot import ZeroShot
from finercam_rt.manifest import Manifest

IN_FLOAT64 = 2
"""Images at a time in float64, whose derivative takes twice the memory."""
Contrasts = Sequence[tuple[Any, Any, Any]]
"""Of each contrast of an image its target (N,), references (N,R) and alpha (N,)."""


class Expected(NamedTuple):
    """What a map (N,h,w) must be, and the scale (N,) of its rounding: an error is relative to that."""

    values: torch.Tensor
    scale: torch.Tensor


class Run(NamedTuple):
    """logits (N,K), and for each contrast a row of values.

    maps: the saliency map (N,h,w), and of several layers their raw maps after it; the scale of a raw map is its norm
    before the ReLU. taps: of head "taps" the activations and the gradients or the channel weights, as the graph gives
    them; else empty.
    """

    logits: torch.Tensor
    maps: list[list[Expected]]
    taps: list[list[Expected]]


def run_eagerly(
    model: nn.Module,
    manifest: Manifest,
    images: torch.Tensor,
    contrasts: Contrasts,
    class_embeddings: ClassEmbeddings | None = None,
) -> Run:
    """What eager autograd says for these targets, references and alphas."""
    layers, count = manifest.layers, len(images)
    # PyTorch 2.14.1 mixes up the channels in the derivative of a batch norm of one image whose output becomes tokens:
    # the strides of the cotangent, which say nothing where there is one image, are taken for another memory format
    copies = images.repeat(2, 1, 1, 1) if count == 1 else images
    activations, logits = run_with_gradients(model, layers, copies)
    logits = logits[:count]
    if isinstance(model, ZeroShot) and class_embeddings is not None:
        logits = model.logits_of(logits, torch.tensor(class_embeddings.values, dtype=logits.dtype))
    found, taps = [], []
    for target, references, alpha in contrasts:
        value = objective_value(logits, target.tolist(), references.tolist(), alpha.tolist(), manifest.objective)
        gradients = [g[:count] for g in torch.autograd.grad(value, activations, retain_graph=True)]
        maps = []
        for layer, a, g in zip(layers, (a[:count] for a in activations), gradients, strict=True):
            with torch.no_grad():
                raw = raw_map(a, g, layer, manifest.method)
                # what the ReLU hides: A and G of the other sign have the negative part of the same scores, mostly
                hidden = raw_map(a, -g, layer, manifest.method)
            maps.append(Expected(raw, (raw.square() + hidden.square()).flatten(1).sum(1).sqrt()))
        found.append(maps if len(maps) == 1 else [_whole(maps, manifest.grid), *maps])
        taps.append(_taps(manifest, activations[0][:count].detach(), gradients[0]))
    return Run(logits.detach(), found, taps)


def run_in_float64(
    model: nn.Module,
    manifest: Manifest,
    images: torch.Tensor,
    contrasts: Contrasts,
    class_embeddings: ClassEmbeddings | None,
) -> Run:
    """The eager run in float64, of a few images at a time; a model with float32 in its code raises what it raises."""
    runs, double = [], copy.deepcopy(model).double()
    for first in range(0, len(images), IN_FLOAT64):
        rows = slice(first, first + IN_FLOAT64)
        some = [(target[rows], references[rows], alpha[rows]) for target, references, alpha in contrasts]
        runs.append(run_eagerly(double, manifest, images[rows].double(), some, class_embeddings))

    def joined(parts: Sequence[list[list[Expected]]]) -> list[list[Expected]]:
        rows = [zip(*of_contrast, strict=True) for of_contrast in zip(*parts, strict=True)]
        return [[Expected(*map(torch.cat, zip(*pieces, strict=True))) for pieces in row] for row in rows]

    logits, maps, taps = zip(*runs, strict=True)
    return Run(torch.cat(logits), joined(maps), joined(taps))


def _taps(manifest: Manifest, activations: torch.Tensor, gradients: torch.Tensor) -> list[Expected]:
    """What head "taps" gives besides the map, of one contrast."""
    if manifest.taps is None:
        return []
    given = gradients
    if not manifest.taps.gradients:
        values = positions(gradients, manifest.layers[0])
        given = values.data.mean(values.position)
    return [Expected(values, values.flatten(1).norm(dim=1)) for values in (activations, given)]


def _whole(maps: list[Expected], grid: tuple[int, int]) -> Expected:
    """The mean of the normalised maps; normalising divides by what the ReLU left, and rounding grows with that."""
    values = mean_of_normalised([one.values for one in maps], grid)
    growth = torch.stack([one.scale / one.values.flatten(1).norm(dim=1) for one in maps]).amax(0)
    return Expected(values, (values.flatten(1).norm(dim=1) * growth).nan_to_num(nan=torch.inf))
