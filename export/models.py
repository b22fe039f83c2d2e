"""Model specifications: timm:NAME, torchvision:NAME and py:PACKAGE.MODULE:CALLABLE become a model and its input."""

from __future__ import annotations

import difflib
import importlib
import math
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finercam_rt.errors import ExportError
from finercam_rt.export.capture import first_line
from finercam_rt.export.export_model import IMAGENET_INPUT
from finercam_rt.manifest import InputSpec

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net")
PREFIXES = ("module.", "model.", "_orig_mod.")


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, its name, how photographs become its input, and its class names if known."""

    model: nn.Module
    name: str
    input: InputSpec
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ModelRequest:
    """What the caller asks of a specification.

    Exactly one source of weights is needed for timm: and torchvision: a checkpoint, pretrained (downloads), or
    random_weights (for tests and benchmarks). num_classes None is read from the checkpoint's last layer.
    """

    specification: str
    checkpoint: Path | None = None
    pretrained: bool = False
    random_weights: bool = False
    num_classes: int | None = None
    input_size: tuple[int, int] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


def load_model(request: ModelRequest) -> LoadedModel:
    """Build the model of a specification and load its weights.

    Raises:
        ExportError: an unknown scheme, name or callable (with the nearest), or weights that are missing, damaged or
            belong to another architecture.
    """
    scheme, _, name = request.specification.partition(":")
    loaders = {
        "timm": _load_timm,
        "torchvision": _load_torchvision,
        "open_clip": _load_open_clip,
        "py": _load_python,
    }
    if scheme not in loaders or not name:
        raise ExportError(
            f"{request.specification!r} is not a model specification; "
            "give timm:NAME, torchvision:NAME, open_clip:NAME or py:PACKAGE.MODULE:CALLABLE."
        )
    if request.checkpoint is not None and request.pretrained:
        raise ExportError("a checkpoint and pretrained weights were both asked for; give one of the two.")
    sources = (request.checkpoint is not None, request.pretrained, request.random_weights)
    if scheme not in ("py", "open_clip") and not any(sources):
        raise ExportError(
            f"{request.specification} has no weights yet; give --checkpoint FILE, --pretrained (downloads them), "
            "or --random-weights."
        )
    return loaders[scheme](name, request)


def _load_timm(name: str, request: ModelRequest) -> LoadedModel:
    timm: Any = _import("timm", 'install it with `pip install "finercam-rt[export]"`')
    _known(name, timm.list_models(), "timm")
    state = None if request.checkpoint is None else load_state_dict(request.checkpoint)

    def build(num_classes: int | None) -> nn.Module:
        arguments = dict(request.arguments)
        if num_classes is not None:
            arguments["num_classes"] = num_classes
        if request.input_size is not None and "img_size" not in arguments and _takes_image_size(timm, name):
            arguments["img_size"] = request.input_size
        return _build(lambda: timm.create_model(name, pretrained=request.pretrained, **arguments), f"timm:{name}")

    model = _with_weights(build, state, request)
    config: Any = timm.data.resolve_data_config({}, model=model)
    size = request.input_size or _pair(request.arguments.get("img_size")) or tuple(config["input_size"][1:])
    return LoadedModel(
        model,
        f"timm:{name}",
        InputSpec(
            size=(size[0], size[1]),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=config["interpolation"],
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
        ),
        _imagenet_classes(timm, model),
    )


def _takes_image_size(timm: Any, name: str) -> bool:
    """Transformers are built for one input size; convolutional networks take any."""
    fixed = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
    return bool(fixed)


def _imagenet_classes(timm: Any, model: nn.Module) -> tuple[str, ...] | None:
    """The names of ImageNet-1k for a model whose published weights have them and whose head was not replaced."""
    config = getattr(model, "pretrained_cfg", {})
    tag = config.get("tag", "") or ""
    if getattr(model, "num_classes", None) != 1000 or config.get("num_classes") != 1000 or tag == "in12k":
        return None
    info = timm.data.ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(i) for i in range(1000))


def _load_torchvision(name: str, request: ModelRequest) -> LoadedModel:
    models: Any = _import("torchvision.models", 'install it with `pip install "finercam-rt[export]"`')
    _known(name, models.list_models(module=models), "torchvision")
    state = None if request.checkpoint is None else load_state_dict(request.checkpoint)
    weights = models.get_model_weights(name).DEFAULT

    def build(num_classes: int | None) -> nn.Module:
        arguments = dict(request.arguments)
        if num_classes is not None:
            arguments["num_classes"] = num_classes
        chosen = weights if request.pretrained else None
        return _build(lambda: models.get_model(name, weights=chosen, **arguments), f"torchvision:{name}")

    model = _with_weights(build, state, request)
    transform = weights.transforms()
    crop, resize = transform.crop_size[0], transform.resize_size[0]
    size = request.input_size or (crop, crop)
    spec = InputSpec(
        size=size,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=str(transform.interpolation.value),
        crop_pct=_crop_share(crop, resize),
    )
    categories = weights.meta.get("categories")
    with torch.no_grad():
        count = model(torch.zeros(1, 3, *size)).shape[1]
    classes = tuple(categories) if categories and len(categories) == count else None
    return LoadedModel(model, f"torchvision:{name}", spec, classes)


def _load_open_clip(name: str, request: ModelRequest) -> LoadedModel:
    from finercam_rt.export.open_clip_models import load_open_clip

    return load_open_clip(name, request)


def _crop_share(crop: int, resize: int) -> float:
    """crop / resize, such that floor(crop / share) is `resize` again in floating point."""
    share = crop / resize
    return share if math.floor(crop / share) == resize else math.nextafter(share, 0.0)


def _load_python(name: str, request: ModelRequest) -> LoadedModel:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ExportError(f"'py:{name}' names no callable; give py:PACKAGE.MODULE:CALLABLE.")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a module beside the user, as `python -m` would find it
    module = _import(module_name, "is it in this folder, or installed?")
    function = getattr(module, attribute, None)
    if function is None:
        close = difflib.get_close_matches(attribute, dir(module), n=3)
        hint = f"; the nearest are {', '.join(close)}" if close else ""
        raise ExportError(f"{module_name} has no {attribute!r}{hint}.")
    if not callable(function):
        raise ExportError(f"{module_name}:{attribute} is not callable; give a function that returns the model.")

    arguments = dict(request.arguments)
    if request.num_classes is not None:
        arguments["num_classes"] = request.num_classes
    model = _build(lambda: function(**arguments), f"py:{name}")
    if not isinstance(model, nn.Module):
        raise ExportError(
            f"{module_name}:{attribute} returned a {type(model).__name__}; it must return a torch.nn.Module."
        )
    if request.checkpoint is not None:
        _load_into(model, load_state_dict(request.checkpoint), request.checkpoint)
    if model.training:
        raise ExportError(f"{module_name}:{attribute} returned a model in training mode; call .eval() in it.")
    spec = IMAGENET_INPUT if request.input_size is None else replace(IMAGENET_INPUT, size=request.input_size)
    return LoadedModel(model, f"py:{name}", spec)


def load_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .pth, .pt or .safetensors checkpoint by name, on the CPU.

    A state dict inside a training checkpoint is found under its usual keys; wrappers' prefixes are removed.

    Raises:
        ExportError: no such file, not a checkpoint, damaged, or one that holds code instead of tensors.
    """
    if not path.is_file():
        raise ExportError(f"{path}: no such checkpoint file.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ExportError(
            f"{path}: not a checkpoint of tensors alone (it may hold a whole model, or TorchScript); "
            "save model.state_dict() and give that."
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise ExportError(f"{path}: the checkpoint cannot be read ({first_line(error)}).") from None
    except Exception as error:
        raise ExportError(f"{path}: not a checkpoint ({type(error).__name__}: {first_line(error)}).") from None
    for key in STATE_DICT_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise ExportError(f"{path}: holds no state dict of tensors; save model.state_dict() and give that.")
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in content):
            content = {key[len(prefix) :]: value for key, value in content.items()}
    return dict(content)


def _with_weights(
    build: Callable[[int | None], nn.Module], state: dict[str, torch.Tensor] | None, request: ModelRequest
) -> nn.Module:
    model = build(request.num_classes)
    if state is not None and request.checkpoint is not None:
        stored = _stored_classes(model, state)
        if request.num_classes is None and stored is not None:
            model = build(stored)
        _load_into(model, state, request.checkpoint)
    if request.random_weights:
        _fill_zero_weights(model)
    return model.eval()


def _fill_zero_weights(model: nn.Module) -> None:
    """Some libraries begin with a head of zeros, whose logits depend on nothing and could not be explained."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.02, generator=generator)


def _stored_classes(model: nn.Module, state: dict[str, torch.Tensor]) -> int | None:
    """The checkpoint's number of classes, where it is another one than the model's."""
    config: Any = getattr(model, "pretrained_cfg", {})
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    head = config.get("classifier") or (linear[-1] if linear else None)  # timm says which layer it is
    weight = state.get(f"{head}.weight")
    own = model.state_dict().get(f"{head}.weight")
    if weight is None or (own is not None and own.shape[0] == weight.shape[0]):
        return None
    return weight.shape[0]


def _load_into(model: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    own = model.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    if missing or unexpected:
        first = f"first missing {missing[0]!r}" if missing else f"first unexpected {unexpected[0]!r}"
        raise ExportError(
            f"{path}: belongs to another architecture ({len(missing)} weights missing, {len(unexpected)} unexpected, "
            f"{first}); give the model that it was trained with."
        )
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise ExportError(
                f"{path}: weight {key!r} has shape {tuple(value.shape)}, the model's has {tuple(own[key].shape)}; give "
                "the num_classes, input size and model arguments that it was trained with."
            )
    model.load_state_dict(state, strict=False)


def _build(function: Callable[[], Any], specification: str) -> nn.Module:
    try:
        model = function()
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"{specification} cannot be built ({type(error).__name__}: {first_line(error)}).") from error
    if not isinstance(model, nn.Module):
        raise ExportError(f"{specification} gave a {type(model).__name__}; it must give a torch.nn.Module.")
    return model


def _known(name: str, names: list[str], library: str) -> None:
    if name.split(".")[0] not in names:
        close = difflib.get_close_matches(name, names, n=3)
        hint = f"; the nearest are {', '.join(close)}" if close else ""
        raise ExportError(f"{library} has no model {name!r}{hint}.")


def _import(name: str, advice: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(f"{name} cannot be imported ({first_line(error)}); {advice}.".replace("?.", "?")) from None


def _pair(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    return (value, value) if isinstance(value, int) else (value[0], value[1])
