"""Where to look: the target layer's name, the layout of its output, and whether the map can be drawn there."""

from __future__ import annotations

import difflib

import torch
from torch import nn

from finercam_rt.errors import ExportError
from finercam_rt.export.adapter import Adapter
from finercam_rt.export.candidates import find_places
from finercam_rt.export.choose import choose, class_gradients
from finercam_rt.export.eager import run_with_gradients
from finercam_rt.export.grids import ImageGrids, image_grids
from finercam_rt.export.method import positions
from finercam_rt.export.outputs import feature_map
from finercam_rt.export.probe import Looker
from finercam_rt.export.prove import UNPINNED, LayerError, LayoutRequest, prove
from finercam_rt.export.refusal import check_finite, running
from finercam_rt.export.seen import cropped
from finercam_rt.manifest import LAYOUTS, LayerInfo

STOPPED = 1e-3
"""By how much of its length a gradient differs, at least, where a part of it is stopped."""

CANCELLED = 1e-5
"""The sum of a gradient over the positions, at most, of that of its magnitudes, where nothing but rounding is left."""

TRIED = 24
"""Layers that "auto" tries at most."""

NEAREST = 4
"""Layers that are tried at most, the nearest first, for a refusal to name one that can be used."""


def find_target_layer(
    model: nn.Module,
    name: str,
    example: torch.Tensor,
    request: LayoutRequest = UNPINNED,
    *,
    pooled: bool = False,
) -> LayerInfo:
    """Resolve `name` ("auto", or a module's name) to a layer with a feature map and a gradient that is not zero.

    "auto" takes the first normalisation of a ViT's last block (what Finer-CAM's authors use), and for any other model
    the last feature map that everything the logits know of the image passes through. The layout is proved by images
    that fade into one another, see export/probe.py.

    Args:
        model: images (N,C,H,W) -> logits (N,K), in evaluation mode.
        name: "auto", or a name out of model.named_modules().
        example: (N,C,H,W) float32.
        request: layout, grid and prefix tokens where the caller knows them.
        pooled: whether the gradient's sum over the positions must not be zero either.

    Raises:
        ExportError: no such layer (with the nearest names), not a feature map, a layout that is not seen in where the
            layer looks, a part of the image alone that is, or a gradient that is zero.
    """
    if request.layout is not None and request.layout not in LAYOUTS:
        raise ExportError(f"layout {request.layout!r} is unknown; give one of {', '.join(LAYOUTS)}.")
    if min(request.grid or (1,)) < 1 or (request.prefix_tokens or 0) < 0:
        raise ExportError("the grid has at least one row and one column, and there are 0 prefix tokens or more.")
    if next(model.children(), None) is None:
        raise ExportError(
            "the model has no modules inside, and so no layer; let the activations to explain pass through an "
            "nn.Identity() of its own, and name that with target_layer."
        )
    if name != "auto" and (name not in dict(model.named_modules()) or not name):
        raise ExportError(f"the model has no layer {name!r}; the nearest {_nearest_names(model, name)}.")
    image = image_grids(model, example)
    if name == "auto":
        layer = _automatic(model, example, image, request, pooled)
    else:
        layer = _pinned(model, name, example, image, request, pooled)
    _check_stopped(model, layer, example)
    return layer


def _pinned(
    model: nn.Module, name: str, example: torch.Tensor, image: ImageGrids, request: LayoutRequest, pooled: bool
) -> LayerInfo:
    """The named layer; a refusal names the nearest one that can be used."""
    try:
        return _usable(model, name, example, image, request, pooled)
    except LayerError as error:
        nearest = _nearest_usable(model, name, example, image, pooled)
        advice = error.advice if nearest is None else f"{error.advice}, such as {nearest!r}"
        raise ExportError(f"{error.reason}; {advice}.") from None


def _automatic(
    model: nn.Module, example: torch.Tensor, image: ImageGrids, request: LayoutRequest, pooled: bool
) -> LayerInfo:
    reasons = []
    choices = choose(model, example, image, find_places(model, example, image))[:TRIED]
    looker = Looker(model, [place.name for place, _ in choices], example)
    for place, reached in choices:
        try:
            layer = prove(looker, place.name, place.shape, image, request)
            _check_whole(model, layer, example)
            if pooled or not reached:
                _check_gradient(layer, _run(model, place.name, example)[1], pooled)
            return layer
        except ExportError as error:
            reasons.append(str(error).rstrip("."))
    reasons = reasons or [
        "no output with positions was seen that a module gives once and everything the logits know passes through, as "
        "where a model runs twice or its branches meet behind their poolings"
    ]
    raise ExportError(f"no target layer was found by itself ({reasons[0]}); name one with target_layer.")


def _usable(
    model: nn.Module, name: str, example: torch.Tensor, image: ImageGrids, request: LayoutRequest, pooled: bool
) -> LayerInfo:
    shape, gradients = _run(model, name, example)
    layer = prove(Looker(model, [name], example), name, shape, image, request)
    _check_whole(model, layer, example)
    _check_gradient(layer, gradients, pooled)
    return layer


def _run(model: nn.Module, name: str, example: torch.Tensor) -> tuple[torch.Size, torch.Tensor]:
    """The shape of a layer's output, and the logits' gradient there."""
    with running("the model", example):
        (activations,), logits = run_with_gradients(model, [name], example)
    check_finite(logits)
    (gradients,) = class_gradients(logits, [activations])
    if gradients is None:
        raise LayerError(f"the logits do not depend on layer {name!r}", "choose a layer before the head")
    return activations.shape, gradients


def _check_whole(model: nn.Module, layer: LayerInfo, example: torch.Tensor) -> None:
    """Refuse a layer whose map would be drawn over a part of the image that it does not see."""
    part = cropped(model, layer, example)
    if part is not None:
        rows, columns = f"rows {part.top} to {part.bottom - 1}", f"columns {part.left} to {part.right - 1}"
        raise LayerError(
            f"the positions of layer {layer.name!r} see {rows} and {columns} of an image of "
            f"{example.shape[2]}x{example.shape[3]} alone, over the whole of which their map would be drawn",
            "crop the images before the model, choose a size of which it sees all, or choose a layer that does",
        )


def _check_gradient(layer: LayerInfo, gradients: torch.Tensor, pooled: bool) -> None:
    found = positions(feature_map(gradients, layer), layer)
    if not found.data.isfinite().all():
        raise LayerError(
            f"the derivative of the logits is not finite at layer {layer.name!r}, as in front of a square root or a "
            "logarithm that is taken of zero",
            "add an epsilon under the root, or choose another layer",
        )
    if not found.data.abs().max() > 0:
        raise LayerError(
            f"the gradient at layer {layer.name!r} is zero at every position of its map, so nothing can be explained "
            "there",
            "choose an earlier layer",
        )
    total, of_magnitudes = (values.sum(found.position).norm() for values in (found.data, found.data.abs()))
    if pooled and total <= CANCELLED * of_magnitudes:
        raise LayerError(
            f"the gradient at layer {layer.name!r} sums to zero over the positions of its map, as in front of an "
            "instance normalisation or a covariance, so that Grad-CAM's channel weights are zero",
            "choose a method that reads the gradient of each position, layercam, or another layer",
        )


def _check_stopped(model: nn.Module, layer: LayerInfo, example: torch.Tensor) -> None:
    """Refuse a forward that stops some of the gradient by torch.no_grad(), which no forward here obeys.

    Where all of it is stopped, as of a frozen backbone, it is clear what is meant.
    """
    if not (isinstance(model, Adapter) and model.call().switched_off):
        return
    ignored = _run(model, layer.name, example)[1]
    with model.obeying():
        (activations,), logits = run_with_gradients(model, [layer.name], example)
    (obeyed,) = class_gradients(logits, [activations])
    if obeyed is not None and (obeyed - ignored).norm() > STOPPED * ignored.norm():
        raise ExportError(
            f"behind layer {layer.name!r} the forward takes a part of itself out of the gradient with "
            "torch.no_grad(), which is not obeyed here, so that the map would not be PyTorch's; write that part with "
            ".detach()."
        )


def _nearest_usable(model: nn.Module, name: str, example: torch.Tensor, image: ImageGrids, pooled: bool) -> str | None:
    """Of the layer that auto takes and those that all of the image passes through, the nearest one that can be used."""
    try:
        places = find_places(model, example, image)
        others = [place for place, _ in choose(model, example, image, places) if name not in place.names]
    except ExportError:  # of the model as a whole, which is no matter of this layer
        return None
    turns = {other: place.step for place in places for other in place.names}
    turn = turns.get(name, len(places))
    for place in sorted(others, key=lambda place: abs(place.step - turn))[:NEAREST]:
        try:
            return _usable(model, place.name, example, image, UNPINNED, pooled).name
        except ExportError:
            continue
    return None


def _nearest_names(model: nn.Module, name: str) -> str:
    names = [layer for layer, _ in model.named_modules() if layer]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    ends = [layer for layer in names if "." not in layer]
    found = [repr(layer) for layer in close or ends[-3:]]
    return f"{'is' if len(found) == 1 else 'are'} {', '.join(found)}"
