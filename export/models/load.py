"""Which loader a specification belongs to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from finercam_rt.errors import ExportError
from finercam_rt.export.models.huggingface import load_folder, load_huggingface
from finercam_rt.export.models.linear_head import with_linear_head
from finercam_rt.export.models.open_clip_models import load_open_clip
from finercam_rt.export.models.program_files import load_program
from finercam_rt.export.models.python_models import load_hub, load_python
from finercam_rt.export.models.request import LoadedModel, ModelRequest
from finercam_rt.export.models.timm_models import load_timm
from finercam_rt.export.models.torchvision_models import load_torchvision

Loader: TypeAlias = Callable[[str, ModelRequest], LoadedModel]

_NEED_WEIGHTS: dict[str, Loader] = {"timm": load_timm, "torchvision": load_torchvision}
"""Libraries whose names say an architecture alone."""


_BRING_WEIGHTS: dict[str, Loader] = {
    "open_clip": load_open_clip,
    "hf": load_huggingface,
    "py": load_python,
    "hub": load_hub,
}


def load_model(request: ModelRequest) -> LoadedModel:
    """Build the model of a specification and load its weights.

    Raises:
        ExportError: an unknown scheme, name or callable (with the nearest), no classes, or weights that are missing,
            damaged or belong to another architecture.
    """
    if request.num_classes is not None and request.num_classes < 1:
        raise ExportError(f"the number of classes is {request.num_classes}; a contrast needs at least two.")
    if request.channels is not None and request.channels < 1:
        raise ExportError(f"the number of channels is {request.channels}; give at least 1.")
    scheme, _, name = request.specification.partition(":")
    if request.checkpoint is not None and request.pretrained:
        raise ExportError("a checkpoint and pretrained weights were both asked for; give one of the two.")
    if scheme in _NEED_WEIGHTS and name:
        if not (request.checkpoint is not None or request.pretrained or request.random_weights):
            raise ExportError(
                f"{request.specification} has no weights yet; give --checkpoint FILE, --pretrained (downloads them), "
                "or --random-weights."
            )
        loaded = _NEED_WEIGHTS[scheme](name, request)
    elif scheme in _BRING_WEIGHTS and name:
        loaded = _BRING_WEIGHTS[scheme](name, request)
    elif Path(request.specification).is_dir():
        loaded = load_folder(Path(request.specification), request)
    elif Path(request.specification).suffix == ".pt2" or Path(request.specification).is_file():
        loaded = load_program(Path(request.specification), request)
    else:
        raise ExportError(
            f"{request.specification!r} is not a model specification; give timm:NAME, torchvision:NAME, hf:NAME, "
            "open_clip:NAME, py:PACKAGE.MODULE:CALLABLE, hub:FOLDER:CALLABLE, or the path of a folder or of a .pt2 "
            "file that exists."
        )
    return loaded if request.linear_head is None else with_linear_head(loaded, request)
