"""Programs of torch.export become modules again, whose layers have the names that they had."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from finercam_rt.errors import ExportError
from finercam_rt.export.refusal import first_line

_TRAIN_FLAG = {"aten.batch_norm.default": 5, "aten.dropout.default": 2, "aten.native_dropout.default": 2}
"""Where the operations that behave differently in training say so."""


def image_size(program: torch.export.ExportedProgram) -> tuple[int, int] | None:
    """(H,W) that a program was exported for, or None where they are dynamic."""
    height, width = _image(program).shape[2:]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def image_channels(program: torch.export.ExportedProgram) -> int:
    """C of the images (N,C,H,W) that a program was exported for."""
    return int(_image(program).shape[1])


def module_of_program(program: torch.export.ExportedProgram) -> nn.Module:
    """A module with the program's layers as submodules, called one by one, so that each can be a target layer.

    Raises:
        ExportError: its batch size is fixed, it was exported in training mode, or it cannot be unflattened.
    """
    batch = _image(program).shape[0]
    if isinstance(batch, int):
        raise ExportError(
            f"the exported program takes batches of {batch} alone; export it again with "
            "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)."
        )
    for node in program.graph.nodes:
        index = _TRAIN_FLAG.get(str(node.target))
        if index is not None and len(node.args) > index and node.args[index] is True:
            raise ExportError(
                "the program was exported in training mode, where dropout and batch norm change the map; call "
                "model.eval() and export it again."
            )
    if program.graph_signature.buffers_to_mutate or program.graph_signature.user_inputs_to_mutate:
        raise ExportError(
            "the exported program changes its own buffers or inputs; call model.eval() and export it again."
        )
    try:
        return torch.export.unflatten(program).eval()
    except Exception as error:
        raise ExportError(
            f"the exported program's layers cannot be told apart ({first_line(error)}); give the model itself."
        ) from error


def _image(program: torch.export.ExportedProgram) -> Any:
    """The one input of four axes, as a value with symbolic sizes."""
    names = set(program.graph_signature.user_inputs)
    values = [n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    found = [value for value in values if isinstance(value, torch.Tensor)]
    if len(values) != 1 or len(found) != 1 or found[0].ndim != 4 or not isinstance(found[0].shape[1], int):
        shapes = ", ".join(str(tuple(v.shape)) if isinstance(v, torch.Tensor) else repr(v) for v in values)
        raise ExportError(
            f"the exported program takes {shapes or 'nothing'}, not images (N,C,H,W) alone; export one that does, C "
            "not dynamic."
        )
    return found[0]
