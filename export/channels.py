"""What a model's images are: their size as it says it, their channels as it says or runs on; their mean and std."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from finercam_rt.errors import ExportError
from finercam_rt.export.programs import image_channels
from finercam_rt.manifest import RGB, InputSpec

_Ran = TypeVar("_Ran")

_LINEAR = r"shapes cannot be multiplied \(\d+x(?P<got>\d+) and (?P<takes>\d+)x\d+\)"
_COMPLAINTS = (
    r"to have (?P<takes>\d+) channels, but got (?P<got>\d+) channels",  # a convolution
    r"Expected (?P<takes>\d+) but got (?P<got>\d+)",  # transformers' own check
    r"tensor a \((?P<got>\d+)\) must match the size of tensor b \((?P<takes>\d+)\) at non-singleton dimension 1",
    r"running_mean should contain (?P<got>\d+) elements not (?P<takes>\d+)",
    _LINEAR,  # patches through a linear layer; a linear head says the same of another input size
)
"""What PyTorch and transformers say of an image with other channels than the weights have."""


def found_channels(model: object, run: Callable[[int], _Ran], wanted: int | None = None) -> tuple[int, _Ran]:
    """C, and what `run` gives for it: the first number of channels that the model is said to have and runs on.

    In order: what a torch.export program or a configuration of transformers says; three, since models that make grey of
    RGB, or RGB of grey, run on that; what the first convolution has; what the errors say.

    Args:
        model: the user's.
        run: of a number of channels, runs the model on images that have so many.
        wanted: what the user says; no other is taken.

    Raises:
        ExportError: the model does not run on the number wanted, or on any, with what it said of the likeliest.
    """
    if wanted is not None and wanted < 1:
        raise ExportError(f"the number of channels is {wanted}; give at least 1.")
    if wanted is not None:
        try:
            return wanted, run(wanted)
        except ExportError as error:
            if not _is_about_channels(error):
                raise
            try:
                channels, _ = found_channels(model, run)
            except ExportError:
                raise error from None
            raise ExportError(
                f"the model takes images of {counted(channels)} and not of {wanted}; leave --channels (channels in "
                f"Python) out, or give {channels}."
            ) from error
    tried: dict[int, ExportError] = {}
    for channels in _likely(model, tried):
        try:
            return channels, run(channels)
        except ExportError as error:
            tried[channels] = error
    raise _furthest(list(tried.values()))


def _likely(model: object, tried: dict[int, ExportError]) -> Iterator[int]:
    """Numbers of channels, each once; those that errors suggest come last."""
    given: set[int] = set()
    if isinstance(model, torch.export.ExportedProgram):
        declared: int | None = image_channels(model)
    else:
        declared = configured_channels(getattr(model, "config", None))
    for found in (declared, RGB, _of_first_convolution(model)):
        if found is not None and found not in given:
            given.add(found)
            yield found
    for channels, error in list(tried.items()):
        for pattern in _COMPLAINTS:
            said = re.search(pattern, _cause(error))
            if said is None:
                continue
            takes, got = int(said["takes"]), int(said["got"])
            # behind a layer that joins or repeats channels the numbers are not the image's own
            for found in (takes, channels * takes // max(got, 1), channels + takes - got):
                if 0 < found <= _MOST and found not in given:
                    given.add(found)
                    yield found


_MOST = 1024
"""Channels that an error may suggest: a number of features is no number of channels."""


def configured_channels(config: Any) -> int | None:
    """What a configuration of transformers says, where it does."""
    found = getattr(getattr(config, "vision_config", config), "num_channels", None)
    return found if isinstance(found, int) and found > 0 else None


def configured_size(config: Any) -> tuple[int, int] | None:
    """The image size (H,W) of a configuration of transformers, for which position embeddings were made."""
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if size else None


def _of_first_convolution(model: object) -> int | None:
    if not isinstance(model, nn.Module):
        return None
    first = first_convolution(model)
    return None if first is None else first[1].in_channels


def first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """The first Conv2d among a model's modules, with its name; of most classifiers the one that reads the image."""
    return next(((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)), None)


def fitted(spec: InputSpec, channels: int) -> InputSpec:
    """The specification with a mean and a std for each of so many channels; values that are all equal are those of any.

    Raises:
        ExportError: there are other numbers of values. What ImageNet's three, which timm leaves in the configuration
            of a model of one channel, mean there, only the training knows: timm's own takes their average, others one
            of them, or a half.
    """
    values = []
    for name, given in (("mean", spec.mean), ("std", spec.std)):
        if len(given) != channels and len(set(given)) != 1:
            raise ExportError(
                f"the model takes images of {counted(channels)}, and the {name} {_listed(given)} is of {len(given)}; "
                "give --mean and --std (input in Python) as it was trained with, one value for all channels or one "
                "each."
            )
        values.append(given if len(given) == channels else (given[0],) * channels)
    return replace(spec, mean=values[0], std=values[1])


def counted(channels: int) -> str:
    """So many channels, in words."""
    return "1 channel" if channels == 1 else f"{channels} channels"


def _listed(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _cause(error: BaseException) -> str:
    """All that was said, from the sentence to the exception that it came from."""
    return f"{error} {error.__cause__ or ''}"


def _is_about_channels(error: ExportError) -> bool:
    return any(re.search(pattern, _cause(error)) for pattern in _COMPLAINTS)


def _furthest(errors: list[ExportError]) -> ExportError:
    """That of the run that got past the channels, else the first."""
    by_linear = (error for error in errors if re.search(_LINEAR, _cause(error)))
    return next((error for error in errors if not _is_about_channels(error)), next(by_linear, errors[0]))
