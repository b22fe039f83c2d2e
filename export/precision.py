"""Between cut and emit: the trunk in fp16 or bf16, with the images and what crosses the cut in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import Argument, Target
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

_CONVERSIONS = {aten.to.dtype, aten.to.dtype_layout, aten._to_copy.default, aten.type_as.default}


def with_precision(trunk: fx.GraphModule, precision: str) -> nn.Module:
    """The trunk with weights and arithmetic of a precision: images float32 -> boundary, its floating values float32.

    Args:
        trunk: images -> boundary, its weights buffers of its own, as `cut` makes it. It is not changed.
        precision: "fp16" or "bf16".
    """
    return _Reduced(trunk, DTYPES[precision])


class _Reduced(nn.Module):
    def __init__(self, trunk: fx.GraphModule, dtype: torch.dtype) -> None:
        super().__init__()
        # `to` gives this module new buffers and leaves those of the source alone
        self.body = fx.GraphModule(trunk, trunk.graph).to(dtype)
        self.dtype = dtype

    def forward(self, images: torch.Tensor) -> tuple[Any, ...]:
        boundary = _Interpreter(self.body, self.dtype).run(images.to(self.dtype))
        return tuple(value.float() if _is_floating(value) else value for value in boundary)


class _Interpreter(fx.Interpreter):
    """Runs the trunk. What it converts or makes in float32 stays so until it meets a value of the reduced precision."""

    def __init__(self, module: fx.GraphModule, dtype: torch.dtype) -> None:
        super().__init__(module)
        self._dtype = dtype

    def call_function(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]) -> Any:
        """One operation; its floating arguments get one type, since few operations take two."""
        types = {value.dtype for value in tree_leaves((args, kwargs)) if _is_floating(value)}
        if len(types) > 1 and target not in _CONVERSIONS:
            args, kwargs = tree_map(self._reduced, (args, kwargs))
        return super().call_function(target, args, kwargs)

    def _reduced(self, value: Any) -> Any:
        return value.to(self._dtype) if _is_floating(value) else value


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
