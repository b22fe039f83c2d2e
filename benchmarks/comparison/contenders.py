"""What is compared: each contender turns a batch into its answer; groups of them are timed together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comparison.cases import CLS_VIT, Case
from comparison.engines import Build
from comparison.timing import Clock
from comparison.verification import EXACT, Tolerance
from finercam_rt.manifest import LayerInfo

if TYPE_CHECKING:
    import torch


class Answer(NamedTuple):
    """logits (N,K) or None; the map (N,h,w), (N,H,W) or (N,5,h,w), raw or normalised, or None: NumPy or torch."""

    logits: Any
    saliency_map: Any


Call = Callable[[], Answer]


@dataclass(frozen=True)
class Setting:
    """What a contender is made from; model is None where it needs no torch.

    openvino_xai: the Python of the environment that has it; scratch: a folder for what is exchanged with that process.
    device: where it runs and where the model lies, "cpu" or "cuda". compiled: whether that goes through torch.compile.
    """

    case: Case
    graphs: Build
    model: torch.nn.Module | None
    layer: LayerInfo
    threads: int
    openvino_xai: Path | None = None
    scratch: Path | None = None
    device: str = "cpu"
    compiled: bool = False


class Bound(NamedTuple):
    """A contender with its batch: call gives the answer; clock, where it has its own, runs it and says the times."""

    call: Call
    clock: Clock | None = None


Bind = Callable[[NDArray[np.float32]], Bound]


@dataclass(frozen=True)
class Contender:
    """A name, how to make it, and which map of the oracle it must give: None for a plain forward, "other" for any.

    modules: what it imports; variant: which graph it needs besides the engine and the plain forward; layouts: those of
    a target layer's output that it reads; families: of the cases it is for, None for all; batches: the sizes it takes,
    None for all.
    """

    name: str
    make: Callable[[Setting], Bind]
    map_of: str | None
    modules: Sequence[str]
    tolerance: Tolerance = EXACT
    layouts: Sequence[str] = ("nchw", "nhwc", "tokens")
    families: Sequence[str] | None = None
    batches: Sequence[int] | None = None
    variant: str | None = None

    @property
    def needs_torch(self) -> bool:
        """Whether it runs the PyTorch model and not one of the graphs."""
        return "torch" in self.modules


OURS, PLAIN, AGAIN = "finercam-rt", "onnxruntime forward", "onnxruntime forward again"
FIVE_CONTRASTS, LAYER_CAM = "finercam-rt five contrasts", "finercam-rt Layer-CAM"
INT8, INT8_PLAIN = "finercam-rt int8", "onnxruntime int8 forward"
OPENVINO, OPENVINO_PLAIN = "finercam-rt openvino", "openvino forward"
BF16, BF16_PLAIN = "finercam-rt openvino bf16", "openvino bf16 forward"
TORCH, TORCHCAM, GRADCAM, CAPTUM = "torch forward", "torch-cam", "grad-cam", "captum"
XAI, XAI_BF16 = "openvino-xai f32", "openvino-xai bf16"
PEERS = (TORCH, TORCHCAM, GRADCAM, CAPTUM, XAI, XAI_BF16)


@dataclass(frozen=True)
class Goal:
    """A ratio of two contenders' times and its bound: at_most for our own cost, at_least for a peer's."""

    over: str
    under: str
    at_most: float | None = None
    at_least: float | None = None


@dataclass(frozen=True)
class Group:
    """Contenders that are timed in turn in one process, and in `processes` of them (two at most with several threads).

    anchors: those without which there is nothing to compare; ratios: (numerator, denominator); cells: the (threads,
    batch) that it is measured at, None for all that are asked for.
    """

    name: str
    contenders: Sequence[str]
    anchors: Sequence[str]
    ratios: Sequence[tuple[str, str]]
    processes: int
    cells: Sequence[tuple[int, int]] | None = None

    def repeats(self, threads: int) -> int:
        """How many processes."""
        return self.processes if threads == 1 else min(self.processes, 2)

    def batches(self, threads: int, asked: Sequence[int]) -> list[int]:
        """The batches of this group among those asked for."""
        return sorted(batch for batch in asked if self.cells is None or (threads, batch) in self.cells)


GROUPS = (
    Group(
        "engine",
        (OURS, PLAIN, AGAIN, FIVE_CONTRASTS, LAYER_CAM),
        (OURS, PLAIN),
        ((OURS, PLAIN), (LAYER_CAM, PLAIN), (FIVE_CONTRASTS, OURS), (AGAIN, PLAIN)),
        processes=3,
    ),
    Group(
        "precision",
        (OURS, INT8, INT8_PLAIN, OPENVINO, OPENVINO_PLAIN, BF16, BF16_PLAIN),
        (OURS,),
        (
            (OPENVINO, OPENVINO_PLAIN),
            (BF16, BF16_PLAIN),
            (INT8, INT8_PLAIN),
            (OPENVINO, OURS),
            (BF16, OURS),
            (INT8, OURS),
        ),
        processes=2,
        cells=((1, 1), (1, 4), (2, 1)),
    ),
    Group(
        "peers",
        (OURS, INT8, BF16, *PEERS),
        (OURS,),
        tuple((peer, own) for own in (OURS, BF16, INT8) for peer in PEERS),
        processes=1,
        cells=((1, 1), (1, 4), (2, 1)),
    ),
)


def goals_of(case: Case) -> list[Goal]:
    """What issue 3 asks for of this case, each by the ratio of the table that shows it."""
    own = [Goal(over, under, at_most=case.goal) for over, under in ((OURS, PLAIN), (OPENVINO, OPENVINO_PLAIN))]
    own += [Goal(over, under, at_most=case.goal) for over, under in ((BF16, BF16_PLAIN), (INT8, INT8_PLAIN))]
    own += [Goal(FIVE_CONTRASTS, OURS, at_most=1.03)]
    if case.family == CLS_VIT:
        own += [Goal(LAYER_CAM, PLAIN, at_most=1.00)]
    peers = [Goal(TORCHCAM, OURS, at_least=1.35), Goal(GRADCAM, OURS, at_least=4)]
    peers += [Goal(TORCHCAM, reduced, at_least=2.5) for reduced in (BF16, INT8)]
    peers += [Goal(GRADCAM, reduced, at_least=8) for reduced in (BF16, INT8)]
    if case.name == "vit_base":
        peers += [Goal(XAI, OURS, at_least=10)]
    return own + peers
