"""Whether a model is still the one that was compiled: a map of old weights would be wrong without an error."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator

import torch
from torch import nn

SAMPLES = 32
"""Values of each tensor that are compared, spread evenly: a change through `.data` moves no version counter."""

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""What values are compared as, by their size in bytes, so that NaN equals itself."""


class ModelState:
    """What a model was at one moment: its modules and hooks, and where its weights are, their version and samples.

    It holds no reference to the model or its modules. A change in place of single values through `.data` or NumPy, of
    attributes that are no parameters or buffers, or of a module's code is not seen.
    """

    def __init__(self, model: nn.Module) -> None:
        """Take down the state of `model`."""
        modules = list(model.modules())
        tensors = list(_tensors(modules))
        self._modules = [weakref.ref(module) for module in modules]
        self._hooks = _hooks(modules)
        self._places = [_place(tensor) for tensor in tensors]
        self._windows = _windows(tensors)
        self._samples = [torch.cat(windows) for windows in self._windows]

    def matches(self, model: nn.Module) -> bool:
        """Whether `model` is unchanged."""
        modules = list(model.modules())
        if len(modules) != len(self._modules) or any(
            seen() is not module for seen, module in zip(self._modules, modules, strict=True)
        ):
            return False
        # the windows are of this memory still, if every tensor is where it was
        return (
            _hooks(modules) == self._hooks
            and [_place(tensor) for tensor in _tensors(modules)] == self._places
            and all(map(torch.equal, map(torch.cat, self._windows), self._samples))
        )


def _tensors(modules: Iterable[nn.Module]) -> Iterator[torch.Tensor]:
    for module in modules:
        for store in (module._parameters, module._buffers):
            for tensor in store.values():
                if tensor is not None:
                    yield tensor


def _hooks(modules: Iterable[nn.Module]) -> list[int]:
    """The hooks that may change what a forward pass gives, by the numbers that PyTorch gives them, each only once."""
    stores = (store for module in modules for store in (module._forward_hooks, module._forward_pre_hooks))
    return [key for store in stores for key, hook in store.items() if not getattr(hook, "changes_nothing", False)]


def _place(tensor: torch.Tensor) -> tuple[int, int, torch.Size, torch.dtype]:
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.shape, tensor.dtype


def _windows(tensors: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Views of SAMPLES values of each tensor at most, grouped by the size of a value."""
    groups: dict[int, list[torch.Tensor]] = {}
    for tensor in tensors:
        size = tensor.element_size()
        if size not in _INTEGERS or tensor.numel() == 0 or tensor.device.type == "meta":
            continue
        # over the memory and not over the elements, because reshaping a tensor that is not contiguous copies it
        there = tensor.untyped_storage().nbytes() // size - tensor.storage_offset()
        step = max(1, min(tensor.numel(), there) // SAMPLES)
        count = min(SAMPLES, min(tensor.numel(), there) // step)
        window = tensor.detach().as_strided((count,), (step,), tensor.storage_offset())
        groups.setdefault(size, []).append(window.view(_INTEGERS[size]))
    return list(groups.values())
