"""py:PACKAGE.MODULE:CALLABLE and hub:FOLDER:CALLABLE: functions of the user's that return a model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from finercam_rt.errors import ExportError
from finercam_rt.export.models.request import LoadedModel, ModelRequest, build, import_or_refuse, nearest
from finercam_rt.export.models.weights import load_into, requested_weights
from finercam_rt.manifest import IMAGENET_INPUT


def load_python(name: str, request: ModelRequest) -> LoadedModel:
    """A function of a module beside the user, or of an installed one."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise ExportError(f"'py:{name}' names no callable; give py:PACKAGE.MODULE:CALLABLE.")
    if "" not in sys.path:
        # a module beside the user, as `python -m` would find it; it stays, since a model may import when it runs
        sys.path.insert(0, "")
    module = import_or_refuse(module_name, "is it in this folder, or installed?")
    function = getattr(module, attribute, None)
    if function is None:
        raise ExportError(f"{module_name} has no {attribute!r}{nearest(attribute, dir(module))}.")
    if not callable(function):
        raise ExportError(f"{module_name}:{attribute} is not callable; give a function that returns the model.")
    return _of_callable(function, f"py:{name}", f"{module_name}:{attribute}", request)


def load_hub(name: str, request: ModelRequest) -> LoadedModel:
    """An entry point of the hubconf.py in a local folder, as torch.hub finds it; nothing is downloaded."""
    folder, _, attribute = name.rpartition(":")
    if not folder or not attribute:
        raise ExportError(f"'hub:{name}' names no callable; give hub:FOLDER:CALLABLE.")
    path = Path(folder)
    if not (path / "hubconf.py").is_file():
        raise ExportError(f"{folder} has no hubconf.py; clone the repository and give its folder.")

    def function(**arguments: Any) -> Any:
        return torch.hub.load(str(path), attribute, source="local", **arguments)  # type: ignore[no-untyped-call]

    return _of_callable(function, f"hub:{path.resolve().name}:{attribute}", attribute, request)


def _of_callable(function: Callable[..., Any], name: str, attribute: str, request: ModelRequest) -> LoadedModel:
    arguments = dict(request.arguments)
    if request.num_classes is not None:
        arguments["num_classes"] = request.num_classes
    model = build(lambda: function(**arguments), name)
    weights = requested_weights(request)
    if weights is not None:
        load_into(model, weights)
    if model.training:
        raise ExportError(f"{attribute} returned a model in training mode; call .eval() in it.")
    spec = IMAGENET_INPUT if request.input_size is None else replace(IMAGENET_INPUT, size=request.input_size)
    return LoadedModel(model, name, spec)
