"""A module around the user's that does not change the names of its layers."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

_SHARED = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")


class SharedNames(nn.Module):
    """Has the children, parameters and buffers of `model`: the same dictionaries, so the same names.

    A child holding the model would put its own name before all others. What else the model has is found here too.
    """

    def __init__(self, model: nn.Module) -> None:
        """Share what `model` has; `forward` finds it in `self.__dict__["_shared_model"]`, out of the way of layers."""
        super().__init__()
        self.__dict__["_shared_model"] = model
        self.__dict__.update({key: model.__dict__[key] for key in _SHARED})
        self.__dict__["training"] = model.training

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedNames:
        """The same of a copy of the model, which may have a way of its own to make one.

        An fx.GraphModule's comes in training mode.
        """
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        model = self.__dict__["_shared_model"]
        own = copy.deepcopy(model, memo)
        modes = {name: module.training for name, module in model.named_modules()}
        for name, module in own.named_modules():
            module.training = modes.get(name, model.training)
        for key, value in self.__dict__.items():
            shared = key in _SHARED and value is model.__dict__[key]
            copied.__dict__[key] = own.__dict__[key] if shared else copy.deepcopy(value, memo)
        return copied

    def __getattr__(self, name: str) -> Any:
        """What nn.Module does not find, the model may have."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("_shared_model")
            if model is None or name.startswith("__"):  # how it is copied is not the model's affair
                raise
            return getattr(model, name)
