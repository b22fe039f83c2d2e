"""Options of the commands that load an engine: which runtime, where, and how."""

from __future__ import annotations

import argparse
from typing import Any

from finercam_rt.backends import BACKENDS, COMPUTES, DEVICES, OF_GPUS

_COMPUTE = "arithmetic; bf16 needs OpenVINO (default: f32)"


def add_runtime(parser: argparse.ArgumentParser, *, compute: str = _COMPUTE) -> None:
    """Declare them; `compute` is what --compute says of itself."""
    parser.add_argument(
        "--backend", metavar="NAME", default="auto", help=f"runtime: {', '.join((*BACKENDS, *OF_GPUS))} (default: auto)"
    )
    parser.add_argument(
        "--device", metavar="NAME", default="auto", help=f"{', '.join(DEVICES)} (default: auto, a GPU for plans alone)"
    )
    parser.add_argument("--threads", metavar="N", type=int, help="threads (default: the physical cores granted)")
    parser.add_argument("--compute", choices=COMPUTES, default="f32", help=compute)


def runtime_of(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `Engine` that they say, but for compute."""
    return {"backend": args.backend, "device": args.device, "threads": args.threads}
