"""A module around the user's that does not change the names of its layers."""

from __future__ import annotations

from typing import Any

from torch import nn


class SharedNames(nn.Module):
    """Has the children, parameters and buffers of `model`: the same dictionaries, so the same names.

    A child holding the model would put its own name before all others. What else the model has is found here too.
    """

    def __init__(self, model: nn.Module) -> None:
        """Share what `model` has; `forward` finds it in `self.__dict__["_shared_model"]`, out of the way of layers."""
        super().__init__()
        self.__dict__["_shared_model"] = model
        self.__dict__.update(_modules=model._modules, _parameters=model._parameters, _buffers=model._buffers)
        self.__dict__["_non_persistent_buffers_set"] = model._non_persistent_buffers_set
        self.__dict__["training"] = model.training

    def __getattr__(self, name: str) -> Any:
        """What nn.Module does not find, the model may have."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("_shared_model")
            if model is None:  # while it is being copied
                raise
            return getattr(model, name)
