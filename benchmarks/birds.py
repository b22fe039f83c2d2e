"""The paper's table on real photographs: maps of two bird classifiers, measured by `evaluate`, in parts.

rd: Grad-CAM and Layer-CAM, of the CNN Score-CAM too, with six seeds, RD@5 and RD@10, all 235 photographs. sweep: one
reference, alpha 0 to 2. shape: also deletion and the grid pointing game, for all three methods, on a random subset of
the photographs, the same for all rows. Each part is one evaluation of two engines, of objective weighted and mean; it
goes on where these sources and versions were stopped, in build/birds, and its summary is put into --output when it is
done. The weights and photographs are the shared assets, which are looked for at ../shared/assets.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparison.engines import digest_of
from comparison.environment import describe
from comparison.script import RESULTS, make_parser, read_document, refuse, write_text

from finercam_rt.cli.main import main as finercam
from finercam_rt.cli.progress import progress
from finercam_rt.errors import FinerCAMError
from finercam_rt.evaluation import Question, Results, evaluate
from finercam_rt.evaluation.metrics import MetricOptions
from finercam_rt.evaluation.writing import summary_record

SCHEMA = 1
ROOT = Path(__file__).resolve().parents[1]
ASSETS, SCRATCH = ROOT.parent / "shared" / "assets", ROOT / "build" / "birds"
PACKAGES = ("finercam-rt", "onnxruntime", "openvino", "torch", "timm", "numpy", "pillow")
SOURCES = ("finercam_rt", "finercam_rt.export", "birds")
"""What engines and measurements that are gone on with depend on."""
SEEDS = ("plain", "one:1", "one:0.6", "mean3:0.6", "mean3:1", "weighted3:1")
ALPHAS = tuple(step / 5 for step in range(11))
OBJECTIVES = ("weighted", "mean")
CONTRASTS = 6
"""Seeds that one run of an engine computes."""
STEPS = 10
"""Of deletion."""
METHODS = ("gradcam", "layercam", "scorecam")
PARTS = ("rd", "sweep", "shape")
_HALF = [str(128 / 255)] * 3


@dataclass(frozen=True)
class Bird:
    """A model of the assets: its specification, files, options of the export and labels.

    channels: of Score-CAM, None for all; subset: photographs of the part shape; methods: of rd, and of sweep.
    """

    name: str
    specification: str
    checkpoint: str
    arguments: Sequence[str]
    label_column: str
    channels: int | None
    subset: int
    methods: tuple[Sequence[str], Sequence[str]]
    classes: str | None = None


BIRDS = (
    Bird(
        "mobilenetv2",
        "timm:mobilenetv2_100",
        "mobilenetv2_100_inat_birds965.pth",
        ("--model-arg", "pad_type=same", "--mean", *_HALF, "--std", *_HALF),
        "inat_birds965_index",
        None,
        24,
        (METHODS, METHODS[:2]),
        "inat_bird_labels.txt",
    ),
    Bird(
        "dinov2_small",
        "timm:vit_small_patch14_dinov2",
        "vit_small_patch14_dinov2_birds47_ft_224_fp16.pth",
        (),
        "label",
        32,
        24,
        (METHODS[:2], METHODS[:2]),
    ),
)


def main(argv: list[str] | None = None) -> int:
    """0: done. 2: the assets are not there, or a wrong argument."""
    parser = make_parser("birds.py", __doc__, "example: python benchmarks/birds.py --models mobilenetv2 --parts rd")
    parser.add_argument("--models", nargs="+", choices=[b.name for b in BIRDS], default=[b.name for b in BIRDS])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--threads", type=int, default=1, help="(default: 1)")
    parser.add_argument("--output", type=Path, default=RESULTS / "birds.json", metavar="FILE")
    args = parser.parse_args(argv)
    if not ASSETS.is_dir():
        return refuse("birds.py", ValueError("the shared assets (../shared/assets) are not on this machine."))
    try:
        for part in args.parts:
            for bird in (bird for bird in BIRDS if bird.name in args.models):
                results, took = _evaluated(bird, part, args.threads)
                _store(args.output, bird, part, results, took)
                print(f"{bird.name}, {part}: {took[0]:.0f} s of CPU, {took[1]:.0f} s")
    except (ValueError, FinerCAMError) as error:
        return refuse("birds.py", ValueError(error))
    return 0


def question(bird: Bird, part: str) -> Question:
    """What a part asks of a model's maps."""
    seeds = ["plain", *(f"one:{alpha:g}" for alpha in ALPHAS[1:])] if part == "sweep" else list(SEEDS)
    methods = {"rd": bird.methods[0], "sweep": bird.methods[1], "shape": METHODS}[part]
    metrics = ["rd@5", "rd@10"] + (["deletion", "grid_pointing_game"] if part == "shape" else [])
    return Question(
        methods=methods,
        seeds=seeds,
        metrics=metrics,
        options=MetricOptions(steps=STEPS),
        channels=bird.channels,
        label_column=bird.label_column,
        limit=bird.subset if part == "shape" else None,
    )


def _evaluated(bird: Bird, part: str, threads: int) -> tuple[Results, tuple[float, float]]:
    """The results, and CPU and wall seconds of this process for them."""
    # one reference is the same for both objectives
    engines = [_engine(bird, objective) for objective in (OBJECTIVES[:1] if part == "sweep" else OBJECTIVES)]
    cpu, wall = time.process_time(), time.perf_counter()
    with progress(None, "images", f"{bird.name}, {part}") as bar:
        done = 0

        def on_progress(images: int, total: int) -> None:
            nonlocal done
            bar.advance(images - done)
            done = images

        def on_step(method: str, runs: int, total: int) -> None:
            bar.detail(f"{method} {runs} of {total} runs")

        results = evaluate(
            engines,
            ASSETS / "birds47" / "labels.csv",
            question(bird, part),
            out=_folder() / f"{bird.name}-{part}",
            threads=threads,
            on_progress=on_progress,
            on_step=on_step,
        )
    return results, (time.process_time() - cpu, time.perf_counter() - wall)


def _engine(bird: Bird, objective: str) -> Path:
    """The model as an engine of head "taps" with the gradients, of several contrasts."""
    words = ("--gradients", "--objective", objective, "--contrasts", str(CONTRASTS))
    return exported(bird, f"{objective}_{bird.name}", words)


def exported(bird: Bird, name: str, words: Sequence[str]) -> Path:
    """An engine of head "taps" in build/birds, exported where it is not there yet, and NAME_tail.onnx beside it.

    Raises:
        ValueError: the export failed.
    """
    path = _folder() / f"{name}.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        tail = path.with_name(f"{name}_tail.onnx")
        command = ["export", bird.specification, "-o", path, "--checkpoint", ASSETS / bird.checkpoint, *bird.arguments]
        command += ["--crop-pct", "1", "--input-size", "224", "--head", "taps", "--tail", tail, *words]
        command += ["--classes", ASSETS / bird.classes] if bird.classes else []
        if finercam(list(map(str, command))) != 0:
            raise ValueError(f"{bird.name} could not be exported.")
    return path


def _folder() -> Path:
    """In build/birds, of these sources and versions alone: the record says that it was made with them."""
    return SCRATCH / digest_of("", PACKAGES, SOURCES)


def _store(output: Path, bird: Bird, part: str, results: Results, took: tuple[float, float]) -> None:
    """Put a part's summary into the result file, beside the others."""
    document = read_document(output, check) if output.exists() else {"schema": SCHEMA, "parts": {}}
    record = {
        **summary_record(results),
        "asked": {"photographs": len(results.names), "channels": bird.channels, "steps": STEPS},
        "cpu_seconds": round(took[0], 1),
        "environment": describe(PACKAGES),
    }
    for row in record["rows"]:
        del row["curves"]
    document["parts"][f"{bird.name}-{part}"] = record
    write_text(json.dumps(document, indent=1) + "\n", output)


def check(document: dict[str, Any]) -> None:
    """Hold a document to this schema.

    Raises:
        ValueError: what is wrong.
    """
    if document.get("schema") != SCHEMA:
        raise ValueError(f"its schema is {document.get('schema')}, and this is {SCHEMA}; measure again.")
    for name, part in document["parts"].items():
        missing = [key for key in ("rows", "recommendation", "environment", "asked") if key not in part]
        if missing:
            raise ValueError(f"{name} lacks {', '.join(missing)}; measure again.")


if __name__ == "__main__":
    sys.exit(main())
