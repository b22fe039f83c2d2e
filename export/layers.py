"""Where to look: the target layer's name, the layout of its output, and whether the map can be drawn there."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from finercam_rt.errors import ExportError
from finercam_rt.export.capture import first_line
from finercam_rt.export.eager import run_with_gradients
from finercam_rt.manifest import LAYOUTS, LayerInfo

MAX_PREFIX_TOKENS = 16
MAX_CANDIDATES = 8

_Key = tuple[int, torch.Size]


@dataclass(frozen=True)
class LayoutRequest:
    """What the caller pinned of the layout; None is found from the shapes."""

    layout: str | None = None
    grid: tuple[int, int] | None = None
    prefix_tokens: int | None = None


UNPINNED = LayoutRequest()


def find_target_layer(
    model: nn.Module,
    name: str,
    example: torch.Tensor,
    request: LayoutRequest = UNPINNED,
) -> LayerInfo:
    """Resolve `name` ("auto", or a module's name) to a layer with a feature map and a gradient that is not zero.

    "auto" takes the first normalisation of a ViT's last block (what Finer-CAM's authors use), and for any other model
    the last feature map before pooling.

    Args:
        model: in evaluation mode.
        name: "auto", or a name out of model.named_modules().
        example: (N,3,H,W) float32.
        request: layout, grid and prefix tokens where the caller knows them.

    Raises:
        ExportError: no such layer (with the nearest names), not a feature map, or a gradient that is zero.
    """
    if name != "auto":
        if name not in dict(model.named_modules()) or not name:
            raise ExportError(f"the model has no layer {name!r}; the nearest are {_nearest(model, name)}.")
        return _usable(model, name, example, request)
    refusals = []
    for candidate in _candidates(model, example):
        try:
            return _usable(model, candidate, example, request)
        except ExportError as error:
            refusals.append(str(error))
    reason = f" ({refusals[0].rstrip('.')})" if refusals else ""
    raise ExportError(f"no target layer was found by itself{reason}; name one with target_layer.")


def _usable(model: nn.Module, name: str, example: torch.Tensor, request: LayoutRequest) -> LayerInfo:
    try:
        (activations,), logits = run_with_gradients(model, [name], example)
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"the model does not run on an input of shape {tuple(example.shape)} ({first_line(error)}); "
            "give the input size that it takes."
        ) from error
    _check_finite(logits)
    layer = _infer_layout(model, name, activations.shape, example, request)
    top = logits.topk(min(2, logits.shape[1]), dim=1).values
    objective = top[:, 0].sum() - 0.5 * top[:, 1:].sum()
    gradients = None
    if objective.requires_grad:
        (gradients,) = torch.autograd.grad(objective, activations, allow_unused=True)
    if gradients is None:
        raise ExportError(f"the logits do not depend on layer {name!r}; choose a layer before the head.")
    if layer.layout == "tokens":
        gradients = gradients[:, layer.prefix_tokens :]
    if not gradients.abs().max() > 0:
        advice = _vit_layer(model)
        raise ExportError(
            f"the gradient at layer {name!r} is zero at every position of its map, so nothing can be explained there; "
            + (f"use {advice!r}." if advice and advice != name else "choose an earlier layer.")
        )
    return layer


def _check_finite(logits: torch.Tensor) -> None:
    if not logits.isfinite().all():
        raise ExportError("the model's logits are not finite on noise of its input size; check its weights.")


def _infer_layout(
    model: nn.Module, name: str, shape: torch.Size, example: torch.Tensor, request: LayoutRequest
) -> LayerInfo:
    if request.layout is not None and request.layout not in LAYOUTS:
        raise ExportError(f"layout {request.layout!r} is unknown; give one of {', '.join(LAYOUTS)}.")
    found = [
        layer
        for layer in _readings(model, name, tuple(shape), example.shape)
        if request.layout in (None, layer.layout)
        and request.grid in (None, layer.grid)
        and request.prefix_tokens in (None, layer.prefix_tokens)
    ]
    if not found and len(shape) == 3 and request.grid is not None:
        height, width = request.grid
        prefix = shape[1] - height * width
        if prefix >= 0 and request.prefix_tokens in (None, prefix):
            found = [LayerInfo(name, "tokens", (height, width), prefix)]
    if not found:
        pinned = " of the layout, grid or prefix tokens given" if request != UNPINNED else ""
        others = [repr(other) for other in _candidates(model, example) if other != name][:3]
        raise ExportError(
            f"the output of layer {name!r}, of shape {tuple(shape)}, is not a feature map{pinned}; choose a layer "
            f"whose output has positions, such as {', '.join(others) or 'the last convolution'}."
        )
    if len(found) > 1:
        raise ExportError(
            f"the output of layer {name!r}, of shape {tuple(shape)}, can be read as "
            + " or ".join(f"{v.layout} with a {v.grid[0]}x{v.grid[1]} grid" for v in found)
            + "; say which with layout."
        )
    return found[0]


def _readings(model: nn.Module, name: str, shape: tuple[int, ...], input_shape: torch.Size) -> Iterator[LayerInfo]:
    """Every way to read a shape as positions whose grid divides the image by one stride."""
    if not shape or shape[0] != input_shape[0]:  # windows, folded into the batch
        return
    image = tuple(input_shape[2:])
    if len(shape) == 4:
        if _grid_fits(shape[2:], image):
            yield LayerInfo(name, "nchw", (shape[2], shape[3]))
        if _grid_fits(shape[1:3], image):
            yield LayerInfo(name, "nhwc", (shape[1], shape[2]))
    if len(shape) == 3:
        known = getattr(model, "num_prefix_tokens", None)
        allowed = [known] if isinstance(known, int) else range(MAX_PREFIX_TOKENS + 1)
        for prefix in allowed:
            grid = _token_grid(shape[1] - prefix, image)
            if grid is not None:
                yield LayerInfo(name, "tokens", grid, prefix)
                return


def _grid_fits(grid: tuple[int, ...], image: tuple[int, ...]) -> bool:
    """Whether a grid of more than one position is the image divided by one stride, up to borders."""
    if grid[0] * grid[1] < 2 or any(g > s for g, s in zip(grid, image, strict=True)):
        return False
    # up to two cells may be lost or gained at the borders: unpadded convolutions and pooling do that
    largest = min(size / (cells - 2) if cells > 2 else math.inf for size, cells in zip(image, grid, strict=True))
    smallest = max(size / (cells + 2) for size, cells in zip(image, grid, strict=True))
    return smallest <= largest


def _token_grid(count: int, image: tuple[int, ...]) -> tuple[int, int] | None:
    height, width = image
    for stride in range(2, min(height, width) // 2 + 1):
        if height % stride == 0 and width % stride == 0 and (height // stride) * (width // stride) == count:
            return height // stride, width // stride
    return None


def _vit_layer(model: nn.Module) -> str | None:
    """The first normalisation of the last block of a ViT of timm or torchvision."""
    names = [name for name, _ in model.named_modules()]
    for blocks, norm in (("blocks", "norm1"), ("encoder.layers", "ln_1")):
        inside = [name for name in names if name.startswith(f"{blocks}.") and name.count(".") == blocks.count(".") + 1]
        if inside and f"{inside[-1]}.{norm}" in names:
            return f"{inside[-1]}.{norm}"
    return None


def _candidates(model: nn.Module, example: torch.Tensor) -> list[str]:
    """Layers to try, best first: a ViT's usual one, then the feature maps from the last to earlier ones."""
    vit = _vit_layer(model)
    seen: dict[_Key, list[str]] = {}
    outputs: list[torch.Tensor] = []  # kept alive, so that an address names one tensor
    handles = []

    def record(name: str, module: nn.Module) -> None:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor) and output.ndim in (3, 4) and not isinstance(module, nn.Identity):
                outputs.append(output)
                key = (output.data_ptr(), output.shape)
                seen[key] = [*seen.pop(key, []), name]  # at the end: what works in place is as late as its last write

        handles.append(module.register_forward_hook(hook))

    for name, module in model.named_modules():
        if name:
            record(name, module)
    try:
        with torch.no_grad():
            logits = model(example)
    except Exception as error:
        raise ExportError(
            f"the model does not run on an input of shape {tuple(example.shape)} ({first_line(error)}); "
            "give the input size that it takes."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if isinstance(logits, torch.Tensor):
        _check_finite(logits)
    containers = {name for names in seen.values() for name in names if _holds_several_resolutions(name, seen)}
    last_first = []
    for (_, shape), names in reversed(seen.items()):
        if any(True for _ in _readings(model, "", tuple(shape), example.shape)):
            fitting = [name for name in names if name not in containers] or names
            last_first.append(min(reversed(fitting), key=lambda name: name.count(".")))
    return ([vit] if vit else []) + last_first[:MAX_CANDIDATES]


def _holds_several_resolutions(name: str, seen: dict[_Key, list[str]]) -> bool:
    """Whether a module is a sequence of stages of several resolutions: its last child is then the better name."""
    grids = {
        tuple(shape[2:]) if len(shape) == 4 else tuple(shape[1:])
        for (_, shape), names in seen.items()
        if any(inner.startswith(f"{name}.") and inner.count(".") == name.count(".") + 1 for inner in names)
    }
    return len(grids) > 1


def _nearest(model: nn.Module, name: str) -> str:
    names = [layer for layer, _ in model.named_modules() if layer]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    ends = [layer for layer in names if "." not in layer]
    return ", ".join(repr(layer) for layer in (close or ends[-3:]))
