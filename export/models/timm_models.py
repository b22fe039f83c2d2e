"""timm:NAME, and folders that timm saved."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finercam_rt.export.models.request import LoadedModel, ModelRequest, build, check_known, import_or_refuse
from finercam_rt.export.models.weights import Weights, load_state_dict, requested_weights, weights_of, with_weights
from finercam_rt.manifest import InputSpec


def load_timm(name: str, request: ModelRequest) -> LoadedModel:
    """Any classifier of timm, prepared for as its published weights are."""
    timm = import_timm()
    check_known(name, timm.list_models(), "timm")
    weights = requested_weights(request)
    fixed = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
    return _load(timm, name, f"timm:{name}", request, weights, request.pretrained, {}, bool(fixed))


def load_timm_folder(folder: Path, config: dict[str, Any], request: ModelRequest) -> LoadedModel:
    """A folder that timm's save_for_hf or push_to_hf_hub wrote: config.json and the weights."""
    timm = import_timm()
    architecture = str(config["architecture"])
    check_known(architecture, timm.list_models(), "timm")
    cfg = {**config, **config.get("pretrained_cfg", {})}
    weights = requested_weights(request)
    if weights is None and not request.random_weights:
        weights = Weights(load_state_dict(weights_of(folder)), folder)
    arguments = {"num_classes": config.get("num_classes"), **config.get("model_args", {})}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    if config.get("global_pool"):
        arguments.setdefault("global_pool", config["global_pool"])
    loaded = _load(
        timm,
        f"local-dir:{folder}",
        f"timm:{architecture}",
        request,
        weights,
        False,
        arguments,
        bool(cfg.get("fixed_input_size")),
    )
    names = cfg.get("label_names")
    described = cfg.get("label_descriptions")
    if isinstance(described, dict) and names:
        names = [described.get(name, name) for name in names]
    classes = tuple(map(str, names)) if names else loaded.classes
    return LoadedModel(loaded.model, loaded.name, loaded.input, classes)


def import_timm() -> Any:
    """Timm itself."""
    return import_or_refuse("timm", 'install it with `pip install "finercam-rt[export]"`')


def _load(
    timm: Any,
    source: str,
    name: str,
    request: ModelRequest,
    weights: Weights | None,
    pretrained: bool,
    defaults: dict[str, Any],
    fixed_size: bool,
) -> LoadedModel:
    """Build it, with the image size for transformers, which are built for one; other networks take any."""
    given = {**defaults, **request.arguments}

    def make(num_classes: int | None, channels: int | None) -> nn.Module:
        arguments = dict(given)
        if channels is not None:
            arguments.setdefault("in_chans", channels)
        if num_classes is not None:
            arguments["num_classes"] = num_classes
        if request.linear_head is not None:
            arguments["num_classes"] = 0
        if request.input_size is not None and "img_size" not in arguments and fixed_size:
            arguments["img_size"] = request.input_size
        return build(lambda: timm.create_model(source, pretrained=pretrained, **arguments), name)

    model = with_weights(make, weights, request, _own_filter)
    config: Any = timm.data.resolve_data_config({}, model=model)
    size = request.input_size or _pair(given.get("img_size")) or tuple(config["input_size"][1:])
    spec = InputSpec(
        size=(size[0], size[1]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
    )
    return LoadedModel(model, name, spec, _imagenet_classes(timm, model))


def _own_filter(model: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint as its authors published it, in timm's names and at the model's input size, by timm's own rule."""
    filter_of = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return state if filter_of is None else dict(filter_of(dict(state), model))


def _imagenet_classes(timm: Any, model: nn.Module) -> tuple[str, ...] | None:
    """The names of ImageNet-1k for a model whose published weights have them and whose head was not replaced."""
    config = getattr(model, "pretrained_cfg", {})
    tag = config.get("tag", "") or ""
    if getattr(model, "num_classes", None) != 1000 or config.get("num_classes") != 1000 or tag == "in12k":
        return None
    info = timm.data.ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(i) for i in range(1000))


def _pair(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    return (value, value) if isinstance(value, int) else (value[0], value[1])
