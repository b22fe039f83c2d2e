"""Refusals in one sentence that more than one stage gives, and what a stage did not foresee: never a traceback."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointError

from finercam_rt.errors import ExportError, FinerCAMError

SAME = 1e-6
"""Logits whose differences are so small a share of them are the same: float32 has no digits for more."""
REPEATED = 1e-5
"""By how much of the largest logit two runs on the same images may differ: sums need not have one order."""
UNTOLD = 1e-3
"""Nats by which an image changes the difference of two logits, at most, where it tells none from another."""
NEIGHBOURS = 1e-2
"""By what share of the difference between two images the logits of one may change with what is beside it."""


_ALLOCATION = re.compile(r"you tried to allocate (\d+) bytes")
"""Of PyTorch's message where the memory does not suffice; its type is RuntimeError."""


def memory_asked(error: BaseException) -> str | None:
    """How much memory PyTorch asked for in vain, such as "1080.0 GB"; None of other errors."""
    found = _ALLOCATION.search(str(error))
    return None if found is None else f"{int(found[1]) / 1e9:.1f} GB"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for a one-sentence report; where memory ran out, how much was asked for."""
    if (asked := memory_asked(error)) is not None:
        return f"there is too little memory for {asked} at once"
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextlib.contextmanager
def refusing(doing: str) -> Iterator[None]:
    """Any exception of the block as an ExportError that says what was being done; ours pass as they are."""
    try:
        yield
    except FinerCAMError:
        raise
    except Exception as error:
        advice = "choose another target layer, or report it"
        if isinstance(error, CheckpointError) or "Checkpointing is not compatible" in str(error):
            advice = "the model's forward checkpoints its activations, which is for training: switch that off"
        if "modified by an inplace operation" in str(error):
            raise ExportError(
                "the model's forward writes in place into a value that its derivative needs, so that PyTorch cannot "
                "differentiate it; make a new tensor there: y = y + x for y += x, torch.stack for y[:, i] = x."
            ) from error
        raise ExportError(f"{doing} failed ({type(error).__name__}: {first_line(error)}); {advice}.") from error


@contextlib.contextmanager
def running(model: str, example: torch.Tensor) -> Iterator[None]:
    """Any exception of the block, in which `model` runs on the example, as an ExportError; ours pass as they are."""
    try:
        yield
    except FinerCAMError:
        raise
    except Exception as error:
        raise ExportError(
            f"{model} does not run on an input of shape {tuple(example.shape)} ({first_line(error)}); "
            f"{_advice(error, example)}."
        ) from error


def _advice(error: Exception, example: torch.Tensor) -> str:
    """What to do about a model that does not run: PyTorch says what a convolution's weights are."""
    weight = re.search(r"weight of size \[([\d, ]+)\]", str(error))
    if weight is not None and weight[1].count(",") == 4:
        return "it takes videos or volumes, and an engine takes single images (N,C,H,W)"
    channels = re.search(r"to have (\d+) channels, but got (\d+) channels", str(error))
    if channels is not None and int(channels[1]) == example.shape[1] and int(channels[2]) in example.shape[2:]:
        return "it takes images (N,H,W,C), and an engine gives it (N,C,H,W): wrap it, and permute them ahead of it"
    if channels is not None:
        return "say how many channels its images have, with --channels (channels in Python)"
    if memory_asked(error) is not None:
        return "give a smaller input size"
    if "register a hook on a tensor" in str(error):
        return "take the hooks on tensors out of its forward, or register them where a tensor requires grad"
    if "multiple values for argument" in str(error):
        return "leave the image out of the constants"
    return "give the input size that it takes"


def check_finite(logits: torch.Tensor) -> None:
    """Refuse logits, of noise, that are not finite.

    Raises:
        ExportError: they are not.
    """
    if not logits.isfinite().all():
        masked = not (logits.isnan() | logits.isposinf()).any()  # minus infinity alone
        advice = "mask classes by a large negative number in its place, such as -1e4" if masked else "check its weights"
        raise ExportError(f"the model's logits are not finite on noise of its input size; {advice}.")


def check_logits(model: nn.Module, images: torch.Tensor) -> None:
    """Refuse a model that nothing of the images comes through, as of one whose weights were never trained, and one
    whose logits are not those of the image alone.

    Args:
        model: images (N,C,H,W) -> logits (N,K).
        images: N >= 2; where they are all the same, nothing is known.

    Raises:
        ExportError: its logits are the same for different images, are others in a second run, or depend on the other
            images of the batch.
    """
    with running("the model", images), torch.no_grad():
        logits = model(images)
        again = model(images)
        alone = model(images[:1].repeat(len(images), 1, 1, 1))
    check_finite(logits)
    largest, spread = float(logits.abs().max()), float((logits - logits[:1]).abs().max())
    if not (again - logits).abs().max() <= REPEATED * largest:
        raise ExportError(
            "the model gives other logits in a second run on the same images: its forward is random, such as dropout "
            "that is not switched off, or keeps a state; take that out."
        )
    if not (alone[0] - logits[0]).abs().max() <= max(NEIGHBOURS * spread, REPEATED * largest):
        raise ExportError(
            "the model's logits of an image depend on the other images of the batch, such as by a norm over all of "
            "them; take that out, or what is explained would depend on its neighbours."
        )
    differ = bool((images != images[:1]).any())
    change = logits - logits[:1]
    moving = logits[:, change.any(0)]  # a masked class is -1e9, say, of every image
    # what is below the smallest normal number may be flushed to zero, and is by some hardware
    nothing = max(SAME * float(moving.abs().max()), torch.finfo(torch.float32).tiny) if moving.numel() else 0.0
    same = bool(change.abs().max() <= nothing)
    if (
        differ
        and not same
        and logits.shape[1] > 1
        and (change.amax(1) - change.amin(1)).max() <= min(REPEATED * spread, UNTOLD)
    ):
        raise ExportError(
            "the model's logits differ from one another by the same numbers whatever the image, as the cumulative ones "
            "of an ordinal head (CORAL) do, so that no class is told from another by it; return the probability of "
            "each class in their place, or its logarithm."
        )
    if differ and same:
        raise ExportError(
            "the model's logits are the same for different images, so that there is nothing to explain; check that its "
            "weights are loaded and trained."
        )
