"""Who is compared on the GPU, in which precision, and against whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from comparison import graphs, peers
from comparison.contenders import GRADCAM, OURS, PLAIN, TORCH, TORCHCAM, Bind, Contender, Setting
from comparison.engines import ENGINE, FORWARD, FP16, FP16_FORWARD
from comparison.verification import REDUCED, Tolerance

from gpu.sessions import forward

PRECISIONS = ("fp32", "fp16")
PLAN = "finercam-rt plan"
COMPILED = " compiled"
"""What a peer's name ends in where its model went through torch.compile."""
ON_GPU = Tolerance(1e-3, map_l2=1e-2)
"""Convolutions by other algorithms, in fp32 all the same: TF32 is off everywhere."""
OWN = (OURS, PLAIN)
PEERS = (TORCH, TORCHCAM, GRADCAM)
RATIOS = ((OURS, PLAIN), (PLAN, PLAIN), *((peer + ending, OURS) for ending in ("", COMPILED) for peer in PEERS))
"""(numerator, denominator), where both were measured."""
_ORT = ("onnxruntime",)
_GRAPHS = {"fp32": (ENGINE, FORWARD), "fp16": (FP16, FP16_FORWARD)}


def contenders_of(precision: str) -> dict[str, Contender]:
    """All of them by name; the peers' models are expected in that precision."""
    tolerance = ON_GPU if precision == "fp32" else REDUCED
    own, plain = _GRAPHS[precision]
    table = [
        Contender(OURS, graphs.engine(own), "weighted", _ORT),
        Contender(PLAIN, forward(plain), None, _ORT),
        Contender(PLAN, _plan(own), "weighted", ("tensorrt",)),
        Contender(TORCH, peers.torch_forward, None, ("torch",)),
        Contender(TORCHCAM, peers.torchcam, "mean", ("torch", "torchcam")),
        Contender(GRADCAM, peers.gradcam, "weighted", ("torch", "pytorch_grad_cam")),
    ]
    table += [
        replace(found, name=found.name + COMPILED, make=_compiled(found.make)) for found in table if found.name in PEERS
    ]
    return {found.name: replace(found, tolerance=tolerance) for found in table}


def _compiled(make: Callable[[Setting], Bind]) -> Callable[[Setting], Bind]:
    return lambda setting: make(replace(setting, compiled=True))


def _plan(graph: str) -> Callable[[Setting], Bind]:
    """The engine as a plan of TensorRT, built here."""

    def make(setting: Setting) -> Bind:
        from finercam_rt import Engine, _core
        from finercam_rt.tensorrt.build import build_plan
        from finercam_rt.tensorrt.builder import BuildOptions
        from finercam_rt.tensorrt.library import load_library

        source = setting.graphs.graph(graph)
        plan = source.with_suffix(".plan")
        if not plan.exists():
            here = f"SM{_core.cuda_compute_capability(0)}"
            build_plan(source, plan, load_library("auto"), BuildOptions((1, 8, 64), (1, 10, 100), (here,)), force=True)
        return graphs.answers_of(Engine(plan), setting)

    return make
