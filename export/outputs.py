"""What modules return: the tensors inside tuples, dictionaries and dataclasses, by name, and one of them replaced."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from finercam_rt.arrangement import Arrangement
from finercam_rt.errors import ExportError
from finercam_rt.manifest import LayerInfo

FEATURES = "last_hidden_state"
"""The name that transformers gives to a backbone's features among its other outputs."""


def named_tensors(output: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of an output with its name: keys, field names or positions, joined by dots where they are nested.

    A tensor by itself has the name "".
    """
    if isinstance(output, torch.Tensor):
        yield name, output
        return
    for key, value in _fields(output):
        yield from named_tensors(value, f"{name}.{key}" if name else key)


def feature_map(output: object, layer: str | LayerInfo) -> torch.Tensor:
    """The tensor of a target layer's output: itself, or the first of a tuple, list, dictionary or dataclass.

    Blocks of transformers return their hidden state first and attention weights behind it; where there is a
    `last_hidden_state`, it is that. Of a layer that is known it is in that layer's layout, arranged where it must be;
    of one that has only a name yet it is as it comes.

    Raises:
        ExportError: there is none.
    """
    key = _feature_key(output)
    found = output if key is None else dict(_fields(output))[key]
    if not isinstance(found, torch.Tensor):
        first = "" if key is None else f" whose first value is a {type(found).__name__}"
        raise ExportError(
            f"target layer {layer_name(layer)!r} gives a {type(output).__name__}{first}, not a tensor; choose a layer "
            "that gives one."
        )
    arrangement = _arrangement(layer)
    return found if arrangement is None else _arranged(found, arrangement)


def with_feature_map(output: Any, value: torch.Tensor, layer: str | LayerInfo) -> Any:
    """The same output with another tensor in the place of its feature map, which `feature_map` gave of that layer."""
    arrangement = _arrangement(layer)
    if arrangement is not None:
        value = _restored(value, arrangement)
    key = _feature_key(output)
    if key is None:
        return value
    if dataclasses.is_dataclass(output) and not isinstance(output, type):  # transformers' ModelOutput is a mapping too
        return dataclasses.replace(output, **{key: value})
    if isinstance(output, Mapping):
        mapping: Any = type(output)
        return mapping({name: value if str(name) == key else other for name, other in output.items()})
    if hasattr(output, "_replace"):
        return output._replace(**{key: value})
    return type(output)([value, *output[1:]])


def layer_name(layer: str | LayerInfo) -> str:
    """The name of a layer's module."""
    return layer if isinstance(layer, str) else layer.name


def _arrangement(layer: str | LayerInfo) -> Arrangement | None:
    return None if isinstance(layer, str) else layer.arrangement


def _arranged(output: torch.Tensor, how: Arrangement) -> torch.Tensor:
    values = output.reshape(how.split).permute(how.axes).reshape(how.merged)
    moved = [axis for axis, shift in enumerate(how.shifts, 1) if shift]
    return values.roll([how.shifts[axis - 1] for axis in moved], moved) if moved else values


def _restored(values: torch.Tensor, how: Arrangement) -> torch.Tensor:
    moved = [axis for axis, shift in enumerate(how.shifts, 1) if shift]
    if moved:
        values = values.roll([-how.shifts[axis - 1] for axis in moved], moved)
    back = sorted(range(len(how.axes)), key=how.axes.__getitem__)
    return values.reshape([how.split[axis] for axis in how.axes]).permute(back).reshape(how.given)


def _fields(output: object) -> list[tuple[str, Any]]:
    if isinstance(output, Mapping):
        return [(str(key), value) for key, value in output.items()]
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return [(field.name, getattr(output, field.name)) for field in dataclasses.fields(output)]
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return list(zip(output._fields, output, strict=True))
    if isinstance(output, (tuple, list)):
        return [(str(index), value) for index, value in enumerate(output)]
    return []


def _feature_key(output: object) -> str | None:
    """The name of the field that holds the feature map; None where the output has no fields."""
    names = [name for name, _ in _fields(output)]
    if not names:
        return None
    return FEATURES if FEATURES in names else names[0]
