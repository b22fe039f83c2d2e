"""Every contender, by name."""

from __future__ import annotations

from collections.abc import Collection

from comparison import graphs, peers
from comparison.cases import CLS_VIT, Case
from comparison.contenders import (
    AGAIN,
    BF16,
    BF16_PLAIN,
    CAPTUM,
    FIVE_CONTRASTS,
    GRADCAM,
    INT8,
    INT8_PLAIN,
    LAYER_CAM,
    OPENVINO,
    OPENVINO_PLAIN,
    OURS,
    PLAIN,
    TORCH,
    TORCHCAM,
    XAI,
    XAI_BF16,
    Contender,
)
from comparison.engines import ENGINE, FIVE, FORWARD, INT8_FORWARD, LAYERCAM, VARIANTS
from comparison.engines import INT8 as INT8_GRAPH
from comparison.verification import REDUCED, SANE
from comparison.xai_process import openvino_xai

_ORT, _OV = ("onnxruntime",), ("openvino",)

CONTENDERS = (
    Contender(OURS, graphs.engine(ENGINE), "weighted", _ORT),
    Contender(PLAIN, graphs.onnxruntime_forward(FORWARD), None, _ORT),
    # the same as the line above: how far its ratio is from 1 is what the method of measuring cannot see
    Contender(AGAIN, graphs.onnxruntime_forward(FORWARD), None, _ORT, batches=(1, 4)),
    Contender(FIVE_CONTRASTS, graphs.engine(FIVE), "five", _ORT, variant=FIVE),
    Contender(LAYER_CAM, graphs.engine(LAYERCAM), "layercam", _ORT, families=(CLS_VIT,), variant=LAYERCAM),
    Contender(INT8, graphs.engine(INT8_GRAPH), "weighted", _ORT, REDUCED, variant=INT8_GRAPH),
    Contender(INT8_PLAIN, graphs.onnxruntime_forward(INT8_FORWARD), None, _ORT, REDUCED, variant=INT8_FORWARD),
    Contender(OPENVINO, graphs.engine(ENGINE, "openvino"), "weighted", _OV),
    Contender(OPENVINO_PLAIN, graphs.openvino_forward("f32"), None, _OV),
    Contender(BF16, graphs.engine(ENGINE, "openvino", compute="bf16"), "weighted", _OV, REDUCED),
    Contender(BF16_PLAIN, graphs.openvino_forward("bf16"), None, _OV, REDUCED),
    Contender(TORCH, peers.torch_forward, None, ("torch",)),
    Contender(TORCHCAM, peers.torchcam, "mean", ("torch", "torchcam")),
    Contender(GRADCAM, peers.gradcam, "weighted", ("torch", "pytorch_grad_cam")),
    # of tokens it averages the channels, without an error
    Contender(CAPTUM, peers.captum, "mean", ("torch", "captum.attr"), layouts=("nchw",)),
    # its graphs take one image; which precision is its default depends on the processor
    Contender(XAI, openvino_xai("f32"), "other", (), SANE, batches=(1,)),
    Contender(XAI_BF16, openvino_xai("bf16"), "other", (), SANE, batches=(1,)),
)
NAMES = tuple(contender.name for contender in CONTENDERS)


def find_contender(name: str) -> Contender:
    """The contender of this name."""
    return CONTENDERS[NAMES.index(name)]


def variants_of(case: Case, names: Collection[str]) -> list[str]:
    """The graphs that these contenders need for this case besides the engine and the plain forward."""
    chosen = [c for c in CONTENDERS if c.name in names and (c.families is None or case.family in c.families)]
    wanted = {contender.variant for contender in chosen}
    if INT8_FORWARD in wanted:
        wanted.add(INT8_GRAPH)  # it is a part of that
    return [name for name in VARIANTS if name in wanted]
