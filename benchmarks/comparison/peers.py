"""The other libraries that run in PyTorch, used as their documentation says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from comparison.contenders import Answer, Bind, Bound, Setting
from comparison.graphs import images_on
from comparison.verification import REFERENCES, channels_first

if TYPE_CHECKING:
    import torch


def torch_forward(setting: Setting) -> Bind:
    """The model alone."""
    import torch

    model = _copied(setting) if setting.compiled else _model(setting)

    def bind(batch: NDArray[np.float32]) -> Bound:
        images = _images(setting, batch)

        def call() -> Answer:
            with torch.no_grad():
                return Answer(model(images), None)

        return Bound(call)

    return bind


def torchcam(setting: Setting) -> Bind:
    """Its extractor is made once, on a copy of the model, so that its hooks slow nobody else."""
    from torchcam.methods import FinerCAM

    model = _copied(setting)
    options: dict[str, Any] = {}
    if setting.layer.layout != "nchw":
        options["reshape_transform"] = _reshape_transform(setting)
    extractor = FinerCAM(model, setting.layer.name, gamma=0.6, num_references=REFERENCES, **options)

    def bind(batch: NDArray[np.float32]) -> Bound:
        images = _images(setting, batch)

        def call() -> Answer:
            scores = model(images)
            (saliency_map,) = extractor(scores.argmax(1).tolist(), scores)
            return Answer(scores.detach(), saliency_map)

        return Bound(call)

    return bind


def gradcam(setting: Setting) -> Bind:
    """As torch-cam, made once on a copy of the model."""
    from pytorch_grad_cam import FinerCAM

    model = _copied(setting)
    transform = None if setting.layer.layout == "nchw" else _reshape_transform(setting)
    cam = FinerCAM(model, [model.get_submodule(setting.layer.name)], reshape_transform=transform)

    def bind(batch: NDArray[np.float32]) -> Bound:
        images = _images(setting, batch)
        return Bound(lambda: Answer(None, cam(input_tensor=images, alpha=1.0)))

    return bind


def captum(setting: Setting) -> Bind:
    """LayerGradCam of a function that contrasts the best class with the next; its one forward pass gives the logits."""
    from captum.attr import LayerGradCam

    model = _model(setting)
    seen: list[torch.Tensor] = []

    def finer(images: torch.Tensor) -> torch.Tensor:
        seen[:] = [model(images)]
        ordered = seen[0].sort(1, descending=True).values
        return ordered[:, 0] - 0.6 * ordered[:, 1 : 1 + REFERENCES].mean(1)

    attribution = LayerGradCam(finer, model.get_submodule(setting.layer.name))

    def bind(batch: NDArray[np.float32]) -> Bound:
        images = _images(setting, batch)

        def call() -> Answer:
            saliency_map = attribution.attribute(images, relu_attributions=True)
            return Answer(seen[0].detach(), saliency_map.detach().squeeze(1))

        return Bound(call)

    return bind


def _copied(setting: Setting) -> torch.nn.Module:
    model = copy.deepcopy(_model(setting))
    if setting.compiled:
        import torch._functorch.config

        # or grad-cam's backward pass, which keeps its graph, is refused
        torch._functorch.config.donated_buffer = False
        model.compile(dynamic=False)
    return model


def _images(setting: Setting, batch: NDArray[np.float32]) -> torch.Tensor:
    """The batch on the setting's device, in the precision of the model."""
    return images_on(setting.device, batch).to(next(_model(setting).parameters()).dtype)


def _reshape_transform(setting: Setting) -> Callable[[Any], Any]:
    """What torch-cam and grad-cam need to read tokens or channels-last maps."""
    return lambda tensor: channels_first(tensor, setting.layer)


def _model(setting: Setting) -> torch.nn.Module:
    assert setting.model is not None
    return setting.model
