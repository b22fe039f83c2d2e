"""--linear-head: one linear layer on what a backbone's tokens pool to, as with DINOv2 and in Finer-CAM's own models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from finercam_rt.errors import ExportError
from finercam_rt.export.channels import configured_size, found_channels
from finercam_rt.export.models.request import POOLS, SIZED, LoadedModel, ModelRequest
from finercam_rt.export.models.weights import load_state_dict
from finercam_rt.export.refusal import running
from finercam_rt.export.shared_names import SharedNames

Tokens: TypeAlias = "tuple[torch.Tensor | None, torch.Tensor]"
"""The class token (N,C), None where there is none, and the normalised patches (N,L,C)."""
Features: TypeAlias = Callable[[nn.Module, torch.Tensor], Tokens]
"""Of a backbone, from images; it gets the backbone, so that a copy of both is a copy."""


class LinearProbe(SharedNames):
    """logits = linear_head(pool(tokens)); the backbone's layers keep their names, and `linear_head` joins them.

    pool "mean" is the mean of the normalised patch tokens, "cls" the class token, "cls+mean" both in that order
    (transformers' Dinov2ForImageClassification).
    """

    def __init__(self, backbone: nn.Module, features: Features, pool: str, head: nn.Linear) -> None:
        """Put `head` on `backbone`."""
        super().__init__(backbone)
        self.__dict__["_modules"] = {**backbone._modules, "linear_head": head}
        self.__dict__["_probe"] = (features, pool)
        self.__dict__["num_classes"] = head.out_features  # the backbone's own is 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N,C,H,W) -> (N,K)."""
        features, pool = self.__dict__["_probe"]
        logits: torch.Tensor = self.linear_head(_pooled(features(self.__dict__["_shared_model"], images), pool))
        return logits


def with_linear_head(loaded: LoadedModel, request: ModelRequest) -> LoadedModel:
    """The backbone of `loaded` with the layer of `request.linear_head` on it.

    Raises:
        ExportError: the file holds no linear layer, or one for another width; or the backbone has no class token, or no
            tokens at all.
    """
    assert request.linear_head is not None
    if request.pool not in POOLS:
        raise ExportError(f"pool {request.pool!r} is unknown; give one of {', '.join(POOLS)}.")
    head = _read_head(request.linear_head)
    backbone = loaded.model
    features = _features_of(backbone, loaded.name)

    def run(channels: int) -> torch.Tensor:
        example = torch.zeros(2, channels, *loaded.input.size)
        with running(loaded.name, example), torch.no_grad():
            return _pooled(features(backbone, example), request.pool)

    _, pooled = found_channels(backbone, run, request.channels)
    if pooled.shape[1] != head.in_features:
        raise ExportError(
            f"{request.linear_head}: takes {head.in_features} numbers, and pool {request.pool!r} of {loaded.name} "
            f"gives {pooled.shape[1]}; give another --pool, or the backbone that it was trained on."
        )
    if request.num_classes not in (None, head.out_features):
        raise ExportError(f"{request.linear_head}: has {head.out_features} classes; leave --num-classes out.")
    classes = loaded.classes if loaded.classes and len(loaded.classes) == head.out_features else None
    probe = LinearProbe(backbone, features, request.pool, head).eval()
    return replace(loaded, model=probe, classes=classes, inputs={})


def _read_head(path: Path) -> nn.Linear:
    state = load_state_dict(path)
    weights = [key for key, value in state.items() if key.split(".")[-1] == "weight" and value.ndim == 2]
    if len(weights) != 1:
        raise ExportError(
            f"{path}: holds {len(weights)} weights of linear layers, and a linear head is one; save that layer's "
            "state_dict() alone."
        )
    (key,) = weights
    weight, bias = state[key], state.get(f"{key[: -len('weight')]}bias")
    others = [name for name in state if name not in (key, f"{key[: -len('weight')]}bias")]
    if others:
        raise ExportError(f"{path}: holds {others[0]!r} besides a linear layer; save that layer's state_dict() alone.")
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    head.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return head.eval()


def _pooled(found: Tokens, pool: str) -> torch.Tensor:
    token, patches = found
    if pool == "mean":
        return patches.mean(1)
    if token is None:
        raise ExportError(f"the backbone has no class token for pool {pool!r}; give --pool mean.")
    return token if pool == "cls" else torch.cat([token, patches.mean(1)], 1)


def _features_of(backbone: nn.Module, name: str) -> Features:
    """How tokens are had of timm and DINOv2's own code (forward_features), or of transformers (last_hidden_state)."""
    if callable(getattr(backbone, "forward_features", None)):
        return _by_forward_features
    if getattr(backbone, "config", None) is not None:
        return _by_last_hidden_state
    raise ExportError(f"{name} has no forward_features, which gives a backbone's tokens; give timm:, hf: or hub:.")


def _by_forward_features(backbone: nn.Module, images: torch.Tensor) -> Tokens:
    model: Any = backbone
    output = model.forward_features(images)
    if isinstance(output, Mapping):  # DINOv2's own code
        return output["x_norm_clstoken"], output["x_norm_patchtokens"]
    prefix = getattr(model, "num_prefix_tokens", 0)
    has_token = getattr(model, "cls_token", None) is not None
    return _split(output, prefix, has_token, getattr(model, "output_fmt", "NCHW") == "NHWC")


def _by_last_hidden_state(backbone: nn.Module, images: torch.Tensor) -> Tokens:
    config: Any = backbone.config
    own = configured_size(config)
    takes_size = SIZED in inspect.signature(backbone.forward).parameters
    sized = {SIZED: True} if takes_size and own is not None and tuple(images.shape[2:]) != own else {}
    output = backbone(images, **sized).last_hidden_state
    patch = getattr(config, "patch_size", None)
    prefix = 0
    if output.ndim == 3 and isinstance(patch, int):  # fewer than one a patch: it merges patches, and has no others
        prefix = max(0, output.shape[1] - (images.shape[2] // patch) * (images.shape[3] // patch))
    return _split(output, prefix, prefix > 0, channels_last=False)


def _split(output: object, prefix: int, has_token: bool, channels_last: bool) -> Tokens:
    if not isinstance(output, torch.Tensor) or output.ndim not in (3, 4):
        raise ExportError("the backbone's features are no tokens and no map; give a backbone that has them.")
    if output.ndim == 4:
        return None, output.flatten(1, 2) if channels_last else output.flatten(2).transpose(1, 2)
    return output[:, 0] if prefix and has_token else None, output[:, prefix:]
