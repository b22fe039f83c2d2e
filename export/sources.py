"""Where each node of an ONNX graph comes from: the exporter's Python stacks, less the machine they were made on."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from finercam_rt.manifest import SOURCE_KEY

if TYPE_CHECKING:
    import onnx_ir

_STACK, _SCOPES = "pkg.torch.onnx.stack_trace", "pkg.torch.onnx.name_scopes"
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_NOT_THE_MODEL = (Path(torch.__file__).parent, Path(__file__).parent)
"""Folders whose lines the model only passes through."""


def keep_sources(model: onnx_ir.Model) -> None:
    """Give each node a line such as "layer4.0.conv1 (timm/models/resnet.py, line 146)", and drop the exporter's traces.

    Those hold paths of the machine that exported, which have no place in an engine.
    """
    for node in model.graph.all_nodes():
        source = source_of(node.metadata_props)
        if source:
            node.metadata_props[SOURCE_KEY] = source
    for holder in (model, model.graph, *model.graph.all_nodes(), *_values(model)):
        for key in [key for key in holder.metadata_props if key.startswith("pkg.torch")]:
            del holder.metadata_props[key]


def source_of(traces: Mapping[str, str]) -> str:
    """The module and the line of the model that an exporter's traces end in; "" where they are those of other code."""
    frames = [(Path(file), line) for file, line in _FRAME.findall(traces.get(_STACK, ""))]
    of_the_model = [(file, line) for file, line in frames if _is_the_model(file)]
    if not of_the_model:
        return ""
    file, line = of_the_model[-1]
    scopes = ast.literal_eval(traces.get(_SCOPES, "[]"))
    module = scopes[-2] if len(scopes) > 1 else ""  # the last is the operation itself
    place = f"{_short(file, tuple(map(os.path.abspath, sys.path)))}, line {line}"
    return f"{module} ({place})" if module else place


@lru_cache
def _is_the_model(file: Path) -> bool:
    return file.suffix == ".py" and not any(folder in file.parents for folder in _NOT_THE_MODEL)


@lru_cache
def _short(file: Path, folders: tuple[str, ...]) -> str:
    """As it is imported: without the folder that Python finds it in."""
    for folder in sorted((Path(folder).resolve() for folder in folders), key=lambda path: -len(path.parts)):
        if folder in file.parents:
            return file.relative_to(folder).as_posix()
    return file.name


def _values(model: onnx_ir.Model) -> Sequence[Any]:
    produced = [value for node in model.graph.all_nodes() for value in node.outputs]
    return [*produced, *model.graph.inputs, *model.graph.initializers.values()]
