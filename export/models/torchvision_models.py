"""torchvision:NAME."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from finercam_rt.errors import ExportError
from finercam_rt.export.channels import first_convolution, found_channels
from finercam_rt.export.models.request import (
    LoadedModel,
    ModelRequest,
    build,
    check_known,
    crop_share,
    import_or_refuse,
)
from finercam_rt.export.models.weights import requested_weights, with_weights
from finercam_rt.export.refusal import running
from finercam_rt.manifest import RGB, InputSpec


def load_torchvision(name: str, request: ModelRequest) -> LoadedModel:
    """Any classifier of torchvision, prepared for as its newest weights are."""
    models: Any = import_or_refuse("torchvision.models", 'install it with `pip install "finercam-rt[export]"`')
    classifiers = models.list_models(module=models)
    if name not in classifiers and name in models.list_models():
        kind = models.get_model_builder(name).__module__.split(".")[2]
        raise ExportError(f"torchvision's {name!r} is a model of {kind}, and an engine is made of an image classifier.")
    check_known(name, classifiers, "torchvision")
    weights = models.get_model_weights(name).DEFAULT
    if request.pretrained and request.channels not in (None, RGB):
        raise ExportError(
            f"torchvision's weights of {name} are of RGB images; give --checkpoint FILE, with a first convolution of "
            f"{request.channels} channels, or leave --channels out."
        )

    def make(num_classes: int | None, channels: int | None) -> nn.Module:
        arguments = dict(request.arguments)
        if num_classes is not None:
            arguments["num_classes"] = num_classes
        chosen = weights if request.pretrained else None
        model = build(lambda: models.get_model(name, weights=chosen, **arguments), f"torchvision:{name}")
        return model if channels is None else _with_channels(model, channels)

    model = with_weights(make, requested_weights(request), request)
    transform = weights.transforms()
    crop, resize = transform.crop_size[0], transform.resize_size[0]
    size = request.input_size or (crop, crop)
    spec = InputSpec(
        size=size,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=str(transform.interpolation.value),
        crop_pct=crop_share(crop, resize),
    )
    categories = weights.meta.get("categories")

    def run(channels: int) -> int:
        example = torch.zeros(1, channels, *size)
        with torch.no_grad(), running("the model", example):
            return int(model(example).shape[1])

    channels, count = found_channels(model, run, request.channels)
    classes = tuple(categories) if categories and len(categories) == count else None
    return LoadedModel(model, f"torchvision:{name}", spec, classes, channels=channels)


def _with_channels(model: nn.Module, channels: int) -> nn.Module:
    """The model with a first convolution of so many channels, as people replace it; its weights are random."""
    found = first_convolution(model)
    if found is not None and found[1].in_channels != channels:
        name, old = found
        new = nn.Conv2d(
            channels,
            old.out_channels,
            old.kernel_size,  # type: ignore[arg-type]
            old.stride,  # type: ignore[arg-type]
            old.padding,  # type: ignore[arg-type]
            old.dilation,  # type: ignore[arg-type]
            old.groups,
            old.bias is not None,
            old.padding_mode,
        )
        model.set_submodule(name, new)
    return model
