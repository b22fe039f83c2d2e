"""A user's model called as images (N,C,H,W) -> logits (N,K), under the names of its own layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from finercam_rt.errors import ExportError
from finercam_rt.export.outputs import named_tensors
from finercam_rt.export.shared_names import SharedNames

_SIGMOIDS = {
    *(torch.sigmoid, torch.sigmoid_, torch.special.expit, torch.Tensor.sigmoid, torch.Tensor.sigmoid_),
    *(functional.sigmoid, torch.ops.aten.sigmoid.default),
}


class _ForwardMode(TorchFunctionMode):
    """Inside, torch.no_grad and torch.enable_grad are without effect, so that a forward under no_grad has gradients.

    They change no value, only what autograd records; where they are obeyed, that too. What the last sigmoid gave is
    kept.
    """

    def __init__(self, obeys: bool) -> None:
        super().__init__()
        self._obeys = obeys
        self.switched_off = False
        self.sigmoid: torch.Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled:
            self.switched_off |= not args[0]
            if not self._obeys:
                return None
        result = func(*args, **(kwargs or {}))
        if func in _SIGMOIDS:
            self.sigmoid = result
        return result


@dataclass
class _Call:
    """How the user's model is called, and which of its outputs is read."""

    image: str | None
    constants: Mapping[str, Any]
    output: str | None = None
    binary: bool = False
    switched_off: bool = False
    obeys: bool = False
    sigmoid: torch.Tensor | None = None


class Adapter(SharedNames):
    """Calls the user's model; all of its own is in one attribute, whose name no layer has."""

    def __init__(self, model: nn.Module, image: str | None, constants: Mapping[str, Any]) -> None:
        """Take the model, the name of its images, None for its first argument, and its other inputs."""
        super().__init__(model)
        self.__dict__["_adapter_call"] = _Call(image, constants)

    def read_from(self, name: str, logits: torch.Tensor, *, binary: bool = False) -> None:
        """Make the output of this name the logits, or the one from which those of two classes are made.

        Raises:
            ExportError: that one is a sigmoid's already.
        """
        call = self.call()
        sigmoid, call.sigmoid = call.sigmoid, None
        memory = logits.untyped_storage().data_ptr()
        if binary and sigmoid is not None and sigmoid.untyped_storage().data_ptr() == memory:
            raise ExportError(
                "the model's one output is a sigmoid's already, and --binary takes the logit before it: give the model "
                "without its last sigmoid."
            )
        call.output, call.binary = name, binary

    @contextmanager
    def obeying(self) -> Iterator[None]:
        """Inside, the forward's own torch.no_grad() is obeyed."""
        self.call().obeys = True
        try:
            yield
        finally:
            self.call().obeys = False

    def call(self) -> _Call:
        """What is the adapter's own."""
        found: _Call = self.__dict__["_adapter_call"]
        return found

    def forward(self, images: torch.Tensor) -> Any:
        """The logits (N,K) float32; until `read_from`, whatever the model returns."""
        call, model = self.call(), self.__dict__["_shared_model"]
        constants = {key: _for_each(value, images) for key, value in call.constants.items()}
        own = images.clone()  # which a forward may change
        arguments = ((own,), constants) if call.image is None else ((), {call.image: own, **constants})
        if torch.compiler.is_dynamo_compiling():  # which follows no such modes
            output = model(*arguments[0], **arguments[1])
        else:
            with _ForwardMode(call.obeys) as mode, torch.compiler.set_stance("force_eager"):
                output = model(*arguments[0], **arguments[1])
            call.switched_off |= mode.switched_off
            call.sigmoid = mode.sigmoid if call.output is None else None
        if call.output is None:
            return output
        logits = dict(named_tensors(output))[call.output]
        logits = logits if logits.dtype == torch.float32 else logits.float()
        if call.binary:
            half = 0.5 * logits.reshape(-1, 1)
            return torch.cat([-half, half], 1)
        return logits if logits.ndim == 2 else logits.flatten(1)


def _for_each(value: Any, images: torch.Tensor) -> Any:
    return value.expand(images.shape[0], *value.shape) if isinstance(value, torch.Tensor) else value
