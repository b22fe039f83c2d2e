"""What TensorRT-RTX makes of engines and of the models alone: kernels, plan sizes, build times. No GPU is needed.

No plan is run. `pip install -e ".[export,bench]"`, then `python benchmarks/plans.py`; the weights are random, which
changes none of the figures. Each graph is built in a process of its own, so that the memory it takes is that of the
build. The record goes to results/tensorrt.json.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from comparison.environment import describe
from comparison.memory import high_water_mib
from comparison.script import RESULTS, make_parser, refuse, write_document

from finercam_rt.errors import FinerCAMError
from finercam_rt.manifest import PRECISIONS as ALL_PRECISIONS
from finercam_rt.tensorrt.builder import BATCH, CLASSES, BuildOptions, build
from finercam_rt.tensorrt.kernels import behind
from finercam_rt.tensorrt.library import RTX, import_flavour

MODELS = ("timm:resnet50", "timm:vit_base_patch16_224")
PRECISIONS = tuple(name for name in ALL_PRECISIONS if name != "int8")
"""All that TensorRT takes."""
CAPABILITIES = ("SM86", "SM89", "SM120")
OUTPUT = RESULTS / "tensorrt.json"
PACKAGES = ("finercam-rt", "torch", "timm", "onnx", "onnxscript", "tensorrt-rtx-cu13-libs")
SEED = 1
CALIBRATION_IMAGES = 12


def main(argv: list[str] | None = None) -> int:
    """0: written. 2: a wrong argument, or no TensorRT-RTX."""
    parser = make_parser("plans.py", __doc__)
    parser.add_argument("--models", metavar="MODEL", nargs="+", default=list(MODELS), help="default: %(default)s")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, default=OUTPUT, help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        library = import_flavour(RTX)
        rows = [row for model in args.models for row in measure(model, args.precisions)]
        document = {
            "schema": 1,
            "environment": describe(PACKAGES),
            "builder": f"{library.flavour} {library.version}",
            "capabilities": CAPABILITIES,
            "batch": BATCH,
            "records": rows,
        }
        write_document(document, args.output)
    except FinerCAMError as error:
        return refuse("plans.py", ValueError(str(error)))
    return 0


def measure(specification: str, precisions: list[str]) -> list[dict[str, Any]]:
    """For each precision a row for the model alone and one for its engine.

    The model alone is PyTorch's own export in fp32; in the others the part of the engine that predicts.
    """
    import torch
    from comparison.engines import export_plainly, logits_alone

    from finercam_rt.export import ModelRequest, export_model, load_model

    torch.manual_seed(SEED)
    loaded = load_model(ModelRequest(specification, random_weights=True))
    noise = np.random.default_rng(SEED).integers(0, 256, (CALIBRATION_IMAGES, *loaded.input.size, 3), np.uint8)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plain, engine = Path(folder) / "plain.onnx", Path(folder) / "engine.onnx"
        for precision in precisions:
            options: dict[str, Any] = {}
            if precision != "fp32":
                # weights without training: how far the maps of two precisions agree is no matter here
                options = {"precision": precision, "calibration": list(noise), "force": True}
            export_model(loaded.model, engine, input=loaded.input, **options)
            if precision == "fp32":
                export_plainly(loaded.model, loaded.input.size, plain)
            else:
                logits_alone(engine, plain)
            for graph, path in (("the model alone", plain), ("engine, head graph", engine)):
                rows.append(_row({"model": specification, "graph": graph, "precision": precision}, path))
    return rows


def _row(about: dict[str, str], graph: Path) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        built = pool.apply(_built, (graph,))
    row = {
        **about,
        "onnx_bytes": graph.stat().st_size,
        **built,
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load_average": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(row), flush=True)
    return row


def _built(graph: Path) -> dict[str, Any]:
    """In a process that has done nothing else."""
    library = import_flavour(RTX)
    before, started = time.process_time(), high_water_mib()
    built = build(graph, library, BuildOptions(BATCH, CLASSES, CAPABILITIES))
    return {
        "plan_bytes": len(built.plan),
        "kernels": len(built.kernels),
        "kernels_behind_logits": len(behind(built.kernels, "logits")),
        "build_seconds": round(built.seconds, 2),
        "build_cpu_seconds": round(time.process_time() - before, 2),
        "peak_mib": round(high_water_mib()),
        "peak_mib_before": round(started),
    }


if __name__ == "__main__":
    sys.exit(main())
