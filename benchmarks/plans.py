"""What TensorRT-RTX makes of engines and of the models alone: kernels, plan sizes, build times. No GPU is needed.

Nothing is run. `pip install -e ".[export,bench]"`, then `python benchmarks/plans.py`; the weights are random, which
changes none of the figures. The record goes to results/tensorrt.json.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from comparison.engines import export_plainly
from comparison.environment import describe
from comparison.script import RESULTS, make_parser, refuse, write_document

from finercam_rt.errors import FinerCAMError
from finercam_rt.export import ModelRequest, export_model, load_model
from finercam_rt.tensorrt.builder import BATCH, CLASSES, BuildOptions, build
from finercam_rt.tensorrt.kernels import behind
from finercam_rt.tensorrt.library import RTX, Library, import_flavour

MODELS = ("timm:resnet50", "timm:vit_base_patch16_224")
PRECISIONS = ("fp32", "fp16")
CAPABILITIES = ("SM86", "SM89", "SM120")
OUTPUT = RESULTS / "tensorrt.json"
PACKAGES = ("finercam-rt", "torch", "timm", "onnx", "onnxscript", "tensorrt-rtx-cu13-libs")
SEED = 1


def main(argv: list[str] | None = None) -> int:
    """0: written. 2: a wrong argument, or no TensorRT-RTX."""
    parser = make_parser("plans.py", __doc__)
    parser.add_argument("--models", metavar="MODEL", nargs="+", default=list(MODELS), help="default: %(default)s")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "fp16", "bf16"), default=list(PRECISIONS))
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, default=OUTPUT, help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        library = import_flavour(RTX)
        rows = [row for model in args.models for row in measure(model, args.precisions, library)]
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


def measure(specification: str, precisions: list[str], library: Library) -> list[dict[str, Any]]:
    """One row for the model alone, and one for its engine in each precision."""
    torch.manual_seed(SEED)
    loaded = load_model(ModelRequest(specification, random_weights=True))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.onnx"
        export_plainly(loaded.model, loaded.input.size, plain)
        rows.append(_row({"model": specification, "graph": "the model alone", "precision": "fp32"}, plain, library))
        for precision in precisions:
            engine = Path(folder) / "engine.onnx"
            # weights without training: how far the maps of two precisions agree is no matter here
            force = precision != "fp32"
            export_model(loaded.model, engine, input=loaded.input, precision=precision, force=force)
            about = {"model": specification, "graph": "engine, head graph", "precision": precision}
            rows.append(_row(about, engine, library))
    return rows


def _row(about: dict[str, str], graph: Path, library: Library) -> dict[str, Any]:
    before = time.process_time()
    built = build(graph, library, BuildOptions(BATCH, CLASSES, CAPABILITIES))
    row = {
        **about,
        "onnx_bytes": graph.stat().st_size,
        "plan_bytes": len(built.plan),
        "kernels": len(built.kernels),
        "kernels_behind_logits": len(behind(built.kernels, "logits")),
        "build_seconds": round(built.seconds, 2),
        "build_cpu_seconds": round(time.process_time() - before, 2),
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load_average": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
