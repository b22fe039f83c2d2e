"""Other classifiers on a model of the libraries, put on as users do, and the modules that a layer may be drawn from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

LIBRARY, LINEAR, SEQUENCE, BACKBONE = HEADS = ("library", "linear", "sequence", "backbone")
"""The library's argument num_classes; another last layer; several layers in its place; a linear layer behind a model
without one."""
HIDDEN = 64


def replace_head(model: nn.Module, classes: int, head: str, images: torch.Tensor) -> nn.Module | None:
    """The model with logits (N,classes) of another head, the last layer replaced in place; images (N,3,H,W) find it.

    None: the logits are not the output of one linear or convolution layer.
    """
    name = _last_layer(model, images)
    if name is None:
        return None
    last = model.get_submodule(name)
    if isinstance(last, nn.Conv2d):
        _set(model, name, nn.Conv2d(last.in_channels, classes, 1))
        return model.eval()
    assert isinstance(last, nn.Linear)
    linear = nn.Linear(last.in_features, classes)
    if head == BACKBONE:
        _set(model, name, nn.Identity())
        return nn.Sequential(model, linear).eval()
    if head == SEQUENCE:
        hidden = nn.Linear(last.in_features, HIDDEN)
        _set(model, name, nn.Sequential(nn.Dropout(0.2), hidden, nn.ReLU(), nn.Linear(HIDDEN, classes)))
    else:
        _set(model, name, linear)
    return model.eval()


def feature_modules(model: nn.Module, images: torch.Tensor, deepest: int) -> list[str]:
    """Modules, at most so many names deep, that run once and give one tensor (N,C,h,w), (N,h,w,C) or (N,L,C), in the
    order in which they end. Whether the map may be drawn from them is the export's to say."""
    runs: dict[str, int] = {}
    found: dict[str, None] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def enter(_module: nn.Module, _inputs: Any, output: Any) -> None:
            runs[name] = runs.get(name, 0) + 1
            if isinstance(output, torch.Tensor) and output.ndim in (3, 4) and len(output) == len(images):
                found[name] = None

        return enter

    _run(model, images, hook)
    return [name for name in found if runs[name] == 1 and name.count(".") < deepest]


def _last_layer(model: nn.Module, images: torch.Tensor) -> str | None:
    """The linear layer or convolution whose output the logits are."""
    ended: list[tuple[str, torch.Tensor]] = []

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def enter(module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(module, nn.Linear | nn.Conv2d):
                ended.append((name, output))

        return enter

    logits = _run(model, images, hook)
    for name, output in reversed(ended):
        if output.numel() == logits.numel() and torch.equal(output.flatten(), logits.flatten()):
            return name
    return None


def _run(model: nn.Module, images: torch.Tensor, hook: Callable[[str], Any]) -> torch.Tensor:
    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            logits: torch.Tensor = model(images)
    finally:
        for handle in handles:
            handle.remove()
    return logits


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
