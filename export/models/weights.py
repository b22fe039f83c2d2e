"""Checkpoints: read, found to fit, and put into a model."""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from finercam_rt.errors import ExportError
from finercam_rt.export.channels import first_convolution
from finercam_rt.export.models.request import ModelRequest
from finercam_rt.export.refusal import first_line

STATE_DICT_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net"),
    *("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema"),
)
PREFIXES = ("module.", "model.", "_orig_mod.")
ADAPTED = (".lora_", ".ia3_", ".hada_", ".base_layer.")
"""What peft's adapters put into the names of weights, until they are merged."""
MOST = 0.8
"""The share of a model's weights that makes what lies below a prefix that model."""


@dataclass(frozen=True)
class Weights:
    """A state dict, and the file that it came from."""

    state: dict[str, torch.Tensor]
    path: Path


Convert: TypeAlias = Callable[[nn.Module, dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def requested_weights(request: ModelRequest) -> Weights | None:
    """The checkpoint that was asked for, if one was."""
    return None if request.checkpoint is None else Weights(load_state_dict(request.checkpoint), request.checkpoint)


def weights_of(folder: Path) -> Path:
    """The file of weights in a folder that timm saved.

    Raises:
        ExportError: there is none.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise ExportError(f"{folder} has no model.safetensors nor pytorch_model.bin; give --checkpoint FILE.")


def load_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .pth, .pt or .safetensors checkpoint by name, on the CPU.

    A state dict inside a training checkpoint is found under its usual keys; masks of pruning are applied.

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
            # the arguments of a training script
            with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # TorchScript is refused below
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ExportError(
            f"{path}: not a checkpoint of tensors alone, but perhaps a whole model; save model.state_dict() and give "
            "that."
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError, zipfile.BadZipFile) as error:
        if "TorchScript" in str(error):
            raise ExportError(
                f"{path}: a program of TorchScript; save model.state_dict() of the model that it was made of, and give "
                "that."
            ) from None
        raise ExportError(f"{path}: the checkpoint cannot be read ({first_line(error)}).") from None
    except Exception as error:
        raise ExportError(f"{path}: not a checkpoint ({type(error).__name__}: {first_line(error)}).") from None
    while found := _state_dicts(content):
        if len(found) > 1:
            raise ExportError(f"{path}: holds several state dicts, {_listed(found)}; save one of them alone.")
        (content,) = found.values()
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise ExportError(f"{path}: holds no state dict of tensors; save model.state_dict() and give that.")
    return _without_masks(content)


def _without_masks(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What torch.nn.utils.prune keeps as NAME_orig and NAME_mask is their product, as its `remove` makes it."""
    pruned = [key[: -len("_orig")] for key in state if key.endswith("_orig")]
    pruned = [key for key in pruned if f"{key}_mask" in state]
    parts = {f"{key}{end}" for key in pruned for end in ("_orig", "_mask")}
    products = {key: state[f"{key}_orig"] * state[f"{key}_mask"] for key in pruned}
    return {key: value for key, value in state.items() if key not in parts} | products


def _state_dicts(content: Any) -> dict[str, Any]:
    """Those that a training checkpoint has under their usual keys, as the weights and their running averages."""
    if not isinstance(content, dict):
        return {}
    inside = {key: content[key] for key in STATE_DICT_KEYS if isinstance(content.get(key), dict)}
    return {
        key: value
        for key, value in inside.items()
        if _state_dicts(value) or any(isinstance(part, torch.Tensor) for part in value.values())
    }


def _listed(names: Iterable[str]) -> str:
    return " and ".join(map(repr, names))


def with_weights(
    make: Callable[[int | None, int | None], nn.Module],
    weights: Weights | None,
    request: ModelRequest,
    convert: Convert = lambda model, state: state,
) -> nn.Module:
    """The model of `make`, for as many classes and channels as its weights have, with them, in evaluation mode.

    make: (classes, channels) to the model, None for the library's own number.
    convert: what makes weights in other names or for another input size fit the model; used where they do not fit.
    """
    classes, channels = request.num_classes, request.channels
    model = make(classes, channels)
    if weights is not None:
        weights = _of_model(model, weights)
        if classes is None and request.linear_head is None:
            classes = _stored_classes(model, weights.state)
        if channels is None:
            channels = _stored_channels(model, weights.state)
        if (classes, channels) != (request.num_classes, request.channels):
            model = make(classes, channels)
        state = weights.state
        if request.linear_head is not None:
            state = _without_head(model, state)
        if not _fits(model, state):
            state = _converted(convert, model, state)
        load_into(model, Weights(state, weights.path))
    if request.random_weights:
        fill_zero_weights(model)
    return model.eval()


def _of_model(model: nn.Module, weights: Weights) -> Weights:
    """Those weights under the model's own names: without the prefixes of wrappers, and of a training module those under
    the one name that it gave the model, such as "net."

    Raises:
        ExportError: it has several models of these layers, as a student and its teacher.
    """
    own = model.state_dict()
    while prefix := _wrapping(weights.state, own):
        weights = _below(prefix, weights)
    needed = [key for key in own if not key.endswith("num_batches_tracked")]
    if not needed or needed[0] in weights.state:
        return weights
    ends = [key.removesuffix(needed[0]) for key in weights.state if key.endswith(f".{needed[0]}")]
    prefixes = [prefix for prefix in ends if all(f"{prefix}{key}" in weights.state for key in needed)]
    if not prefixes:
        return weights
    if len(prefixes) > 1:
        raise ExportError(
            f"{weights.path}: holds several such models, {_listed(prefixes)}; save the state dict of one."
        )
    return _below(prefixes[0], weights)


def _wrapping(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> str:
    """The wrapper's prefix that all keys have, where the model has no such names itself; else nothing."""
    if not state or any(key in own for key in state):
        return ""
    return next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in state)), "")


def _below(prefix: str, weights: Weights) -> Weights:
    state = {key[len(prefix) :]: value for key, value in weights.state.items() if key.startswith(prefix)}
    return Weights(state, weights.path)


def _fits(model: nn.Module, state: Mapping[str, torch.Tensor]) -> bool:
    own = model.state_dict()
    needed = {key for key in own if not key.endswith("num_batches_tracked")}
    return needed <= set(state) <= set(own) and all(state[key].shape == own[key].shape for key in state)


def _converted(convert: Convert, model: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By the library's own rule; what it cannot make anything of stays, to be refused with its own names."""
    try:
        converted = convert(model, state)
    except Exception:
        return state
    return converted if all(isinstance(value, torch.Tensor) for value in converted.values()) else state


def _without_head(model: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A backbone has no use for the classifier that it was published with."""
    prefixes = tuple(f"{head}." for head in _heads(model))
    return {key: value for key, value in state.items() if not (prefixes and key.startswith(prefixes))}


def _heads(model: nn.Module) -> tuple[str, ...]:
    """The classifier's layers, where timm says them: of a distilled model there are two."""
    config: Any = getattr(model, "pretrained_cfg", {})
    heads = config.get("classifier") or ()
    return (heads,) if isinstance(heads, str) else tuple(heads)


def fill_zero_weights(model: nn.Module) -> None:
    """Some libraries begin with a head of zeros, whose logits depend on nothing and could not be explained."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.02, generator=generator)


def _stored_classes(model: nn.Module, state: dict[str, torch.Tensor]) -> int | None:
    """The checkpoint's number of classes, where it is another one than the model's."""
    # where nobody says which layer it is, the last one: of SqueezeNet a convolution
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    head = next(iter((*_heads(model), *layers[-1:])), None)
    weight = state.get(f"{head}.weight")
    own = model.state_dict().get(f"{head}.weight")
    if weight is None or (own is not None and own.shape[0] == weight.shape[0]):
        return None
    return weight.shape[0]


def _stored_channels(model: nn.Module, state: dict[str, torch.Tensor]) -> int | None:
    """The checkpoint's number of channels, where the first convolution has another one than the model's."""
    first = first_convolution(model)
    weight = None if first is None else state.get(f"{first[0]}.weight")
    if first is None or weight is None or weight.ndim != 4 or weight.shape == first[1].weight.shape:
        return None
    return weight.shape[1] * first[1].groups


def _misfit(own: Mapping[str, torch.Tensor], missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """What is wrong with weights of which some are missing or unexpected, and what to do."""
    adapter = next((key for key in unexpected if any(part in key for part in ADAPTED)), None)
    if adapter is not None:
        return (
            f"holds an adapter that is not merged with its model ({adapter!r}), as peft's LoRA; save "
            "merge_and_unload().state_dict(), and give that"
        )
    for prefix in sorted({f"{key.partition('.')[0]}." for key in unexpected}):
        left = [key for key in missing if f"{prefix}{key}" not in unexpected]
        if left and len(missing) - len(left) >= MOST * len(own):
            return (
                f"has the model's weights under {prefix!r}, but for {left[0]!r} and {len(left) - 1} more; save all "
                "under the model's own names"
            )
    first = f"first missing {missing[0]!r}" if missing else f"first unexpected {unexpected[0]!r}"
    return (
        f"belongs to another architecture ({len(missing)} weights missing, {len(unexpected)} unexpected, {first}); "
        "give the model that it was trained with"
    )


def load_into(model: nn.Module, weights: Weights) -> None:
    """Put all weights of a checkpoint into the model, whatever wrapped it when they were saved.

    Raises:
        ExportError: they are of several such models, or there are others, or some are missing, or of another shape; the
            message names the first.
    """
    state, path = _of_model(model, weights).state, weights.path
    own = model.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    if missing or unexpected:
        raise ExportError(f"{path}: {_misfit(own, missing, unexpected)}.")
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise ExportError(
                f"{path}: weight {key!r} has shape {tuple(value.shape)}, the model's has {tuple(own[key].shape)}; give "
                "the num_classes, channels, input size and model arguments that it was trained with."
            )
    model.load_state_dict(state, strict=False)
