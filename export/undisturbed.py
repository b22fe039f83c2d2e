"""What the caller has set is neither obeyed nor changed: the modes of autograd and autocast, and a model's buffers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import ParamSpec, TypeVar

import torch
from torch import nn

_P = ParamSpec("_P")
_R = TypeVar("_R")


def undisturbed(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function with autograd on and autocast off; the buffers of its first argument, `model`, stay as they were."""

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        model = args[0] if args else kwargs.get("model")
        with torch.enable_grad(), torch.autocast("cpu", enabled=False), _buffers_kept(model):
            return function(*args, **kwargs)

    return run


@contextmanager
def _buffers_kept(model: object) -> Iterator[None]:
    """A forward may count its runs, or average what it sees; here it sees noise.

    A buffer that it replaces by one of another shape is a cache, which others of its attributes go with: it stays.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    before = [
        (module, name, buffer, buffer.detach().clone())
        for module in modules
        if not isinstance(module, torch.jit.ScriptModule)
        for name, buffer in module._buffers.items()
        if buffer is not None and _is_plain(buffer)
    ]
    try:
        yield
    finally:
        for module, name, buffer, value in before:
            now = module._buffers.get(name)
            if now is None or not _is_plain(now) or now.shape != value.shape:
                continue
            with suppress(RuntimeError), torch.no_grad():  # memory that cannot be written, as of an expanded tensor
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
                module._buffers[name] = buffer


def _is_plain(buffer: torch.Tensor) -> bool:
    plain = type(buffer) in (torch.Tensor, nn.Buffer) and not buffer.is_quantized
    return plain and buffer.device.type == "cpu" and buffer.layout == torch.strided
