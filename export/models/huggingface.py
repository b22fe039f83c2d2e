"""hf:NAME and folders with a config.json: models of transformers, and of timm where timm wrote the folder."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from finercam_rt.errors import ExportError
from finercam_rt.export.channels import configured_size
from finercam_rt.export.models.processors import input_of_processor
from finercam_rt.export.models.request import SIZED, LoadedModel, ModelRequest, build, import_or_refuse
from finercam_rt.export.models.timm_models import load_timm_folder
from finercam_rt.export.models.weights import fill_zero_weights, load_into, requested_weights
from finercam_rt.export.quiet import quiet
from finercam_rt.export.refusal import first_line
from finercam_rt.export.zero_shot import zero_shot_of_transformers


def load_huggingface(name: str, request: ModelRequest) -> LoadedModel:
    """A folder, or with `pretrained` a model of the hub, which is downloaded."""
    if Path(name).is_dir():
        return load_folder(Path(name), request)
    if not request.pretrained:
        raise ExportError(
            f"hf:{name} is no folder here; give the path of one, or --pretrained to download it from the hub."
        )
    hub = import_or_refuse("huggingface_hub", 'install it with `pip install "finercam-rt[hub]"`')
    try:
        with quiet():
            patterns = ["*.json", "*.txt", "*.model", "*.safetensors", "*.bin"]
            folder = hub.snapshot_download(name, allow_patterns=patterns)
    except Exception as error:
        raise ExportError(
            f"hf:{name} cannot be downloaded ({type(error).__name__}: {first_line(error)}); check the name and the "
            "network, or give a folder."
        ) from error
    return replace(load_folder(Path(folder), request), name=f"hf:{name}")


def load_folder(folder: Path, request: ModelRequest) -> LoadedModel:
    """A folder that save_pretrained, a Trainer, or timm wrote."""
    config = _read_config(folder)
    name = f"hf:{folder.resolve().name}"
    if "architecture" in config and "model_type" not in config:
        return replace(load_timm_folder(folder, config, request), name=name)
    return _load_transformers(folder, config, name, request)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (folder / "adapter_config.json").is_file():
            raise ExportError(
                f"{folder} holds an adapter of peft alone; merge it with its model (merge_and_unload), save_pretrained "
                "that, and give its folder."
            ) from None
        raise ExportError(f"{folder} has no config.json; give a folder that transformers or timm saved.") from None
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read ({first_line(error)}); save the model again.") from None
    if not isinstance(config, dict) or not ("model_type" in config or "architecture" in config):
        raise ExportError(f"{path} names no model; give a folder that transformers or timm saved.")
    if "auto_map" in config:
        raise ExportError(
            f"{path}: the model's code is in the folder (auto_map), and is not run; load it in a function of yours and "
            "give py:PACKAGE.MODULE:CALLABLE."
        )
    return config


def _load_transformers(folder: Path, raw: dict[str, Any], name: str, request: ModelRequest) -> LoadedModel:
    transformers = import_or_refuse("transformers", 'install it with `pip install "finercam-rt[hub]"`')
    if request.arguments and not request.random_weights:
        raise ExportError(f"{folder}: config.json holds the model's arguments; leave --model-arg out.")
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **request.arguments)
    except Exception as error:
        raise ExportError(
            f"{folder}: transformers {transformers.__version__} does not know its config.json ({first_line(error)}); "
            "install the version that it needs."
        ) from error
    kind = _kind(transformers, config, request)
    if request.num_classes is not None and request.linear_head is None:
        if not request.random_weights and request.num_classes != config.num_labels:
            raise ExportError(f"{folder}: the model has {config.num_labels} classes; leave --num-classes out.")
        config.num_labels = request.num_classes
    if request.channels is not None and request.random_weights:
        getattr(config, "vision_config", config).num_channels = request.channels
    model = _with_weights(kind, config, folder, name, request)
    if getattr(config, "_attn_implementation", None) not in (None, "eager", "sdpa"):
        chosen: Any = model
        chosen.set_attn_implementation("sdpa")
    spec = input_of_processor(transformers, folder, config, request)
    if kind is transformers.AutoModel and request.linear_head is None:
        return LoadedModel(zero_shot_of_transformers(model.float(), folder), name, spec)
    own_size = configured_size(config)
    resized = own_size is not None and spec.size != own_size and _takes(model, SIZED)
    return LoadedModel(model, name, spec, _classes(config), {SIZED: True} if resized else {})


def _kind(transformers: Any, config: Any, request: ModelRequest) -> Any:
    """The automatic class to load with: a classifier, a backbone for a linear head, or two towers to compare."""
    if request.linear_head is not None:
        return transformers.AutoModel
    architecture = (getattr(config, "architectures", None) or [""])[0]
    classifiers = transformers.AutoModelForImageClassification
    if architecture.endswith("Model") and hasattr(transformers, architecture):
        built = getattr(transformers, architecture)
        if hasattr(built, "get_image_features") and hasattr(built, "get_text_features"):
            return transformers.AutoModel
        if type(config) in classifiers._model_mapping:
            raise ExportError(
                f"the folder holds a {architecture}, a backbone without a classifier; give --linear-head FILE, or the "
                "folder of a classifier."
            )
    if type(config) not in classifiers._model_mapping:
        raise ExportError(
            f"the folder holds a {architecture or config.model_type}, which is no image classifier of transformers; "
            "load it in a function of yours and give py:PACKAGE.MODULE:CALLABLE."
        )
    return classifiers


def _with_weights(kind: Any, config: Any, folder: Path, name: str, request: ModelRequest) -> nn.Module:
    weights = requested_weights(request)
    if weights is not None or request.random_weights:
        model = build(lambda: kind.from_config(config), name)
        if weights is not None:
            load_into(model, weights)
        else:
            fill_zero_weights(model)
        return model.eval()
    missing: list[str] = []

    def load() -> Any:
        loaded, report = kind.from_pretrained(
            folder, config=config, local_files_only=True, output_loading_info=True, dtype="auto"
        )
        missing.extend(sorted(report["missing_keys"]))
        return loaded

    model = build(load, name)
    if missing:
        raise ExportError(
            f"{folder}: its weights lack {missing[0]!r} and {len(missing) - 1} others that a {type(model).__name__} "
            "has; give the folder of a trained classifier, or a backbone's with --linear-head FILE."
        )
    return model.eval()


def _classes(config: Any) -> tuple[str, ...] | None:
    """The names in id2label, unless they are the LABEL_0 that transformers fills in."""
    names = getattr(config, "id2label", None) or {}
    count = len(names)
    if set(names) != set(range(count)) or all(names[i] == f"LABEL_{i}" for i in range(count)):
        return None
    return tuple(str(names[i]) for i in range(count))


def _takes(model: nn.Module, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters
