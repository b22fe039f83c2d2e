"""What is asked of a model specification, and what comes of it."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from finercam_rt.errors import ExportError
from finercam_rt.export.quiet import quiet
from finercam_rt.export.refusal import first_line, memory_asked
from finercam_rt.manifest import InputSpec

POOLS = ("mean", "cls", "cls+mean")
"""What a linear head reads of a backbone's normalised tokens."""

SIZED = "interpolate_pos_encoding"
"""The input by which transformers takes another image size than the model was trained with."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, its name, how photographs become its input, and its class names if known.

    inputs: constants for the model's other inputs, as export_model takes them. channels: of its images, where that is
    known; the mean and std of `input` may be those of another number, see channels.fitted.
    """

    model: nn.Module
    name: str
    input: InputSpec
    classes: tuple[str, ...] | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    channels: int | None = None


@dataclass(frozen=True)
class ModelRequest:
    """What the caller asks of a specification.

    Exactly one source of weights is needed for timm: and torchvision: a checkpoint, pretrained (downloads), or
    random_weights (for tests and benchmarks). num_classes None is read from the checkpoint's last layer, and channels
    None, of the images, from its first. linear_head is a checkpoint of one linear layer to put on a backbone, on what
    `pool`, one of POOLS, makes of its tokens.
    """

    specification: str
    checkpoint: Path | None = None
    pretrained: bool = False
    random_weights: bool = False
    num_classes: int | None = None
    channels: int | None = None
    input_size: tuple[int, int] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    linear_head: Path | None = None
    pool: str = "mean"


def build(function: Callable[[], Any], specification: str) -> nn.Module:
    """What a constructor returns.

    Raises:
        ExportError: it raises anything, or gives no module.
    """
    try:
        with quiet():
            model = function()
    except ExportError:
        raise
    except Exception as error:
        if (asked := memory_asked(error)) is not None:
            raise ExportError(
                f"{specification} does not fit into memory, of which it asked for {asked} at once; give smaller "
                "arguments, or take a machine with more."
            ) from error
        raise ExportError(f"{specification} cannot be built ({type(error).__name__}: {first_line(error)}).") from error
    if not isinstance(model, nn.Module):
        raise ExportError(f"{specification} gave a {type(model).__name__}; it must give a torch.nn.Module.")
    return model


def check_known(name: str, names: Iterable[str], library: str) -> None:
    """Refuse a name that a library has not, with the nearest that it has."""
    known = list(names)
    if name.split(".")[0] not in known:
        raise ExportError(f"{library} has no model {name!r}{nearest(name, known)}.")


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a sentence: the names that are spelt most like `name`, if there are."""
    close = difflib.get_close_matches(name, list(names), n=3)
    return f"; the nearest {'is' if len(close) == 1 else 'are'} {', '.join(close)}" if close else ""


def import_or_refuse(name: str, advice: str) -> Any:
    """A module.

    Raises:
        ExportError: it cannot be imported; where it is not found, the sentence ends with `advice`.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(f"{name} cannot be imported ({first_line(error)}); {advice}.".replace("?.", "?")) from None
    except Exception as error:  # of the module's own code
        raise ExportError(
            f"{name} cannot be imported ({type(error).__name__}: {first_line(error)}); correct what fails when it "
            "is imported."
        ) from error


def crop_share(crop: int, resize: int) -> float:
    """crop / resize, such that floor(crop / share) is `resize` again in floating point."""
    share = crop / resize
    return share if math.floor(crop / share) == resize else math.nextafter(share, 0.0)
