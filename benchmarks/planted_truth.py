"""Measure whether maps find the one part in which look-alike classes differ, where that part is known.

Pictures of twelve classes are drawn (planted/generator.py): three bodies by four marks, so that look-alikes differ in
the mark alone. A small residual network and a small vision transformer are trained on them, minutes each on one CPU
core, exported, and evaluated on other pictures: which share of the map lies in the mark, for every method and seed.

FILE.md (tables) and FILE.png (samples) are written beside FILE.json, which is rewritten after every classifier. One
that is in it is left out the next time, unless a source, a version or what is asked has changed. Trained weights are
kept in build/planted, by what they were made from.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparison.engines import digest_of
from comparison.environment import describe
from comparison.script import RESULTS, make_parser, refuse, write_text
from numpy.typing import NDArray
from planted import measuring, records, tables
from planted.dataset import HELD_OUT, pictures, write_dataset
from planted.models import RECIPES
from planted.picture import draw_samples
from planted.training import BATCH, accuracy, train
from torch import nn

from finercam_rt.cli.progress import progress

SCRATCH = Path(__file__).resolve().parent.parent / "build" / "planted"
TRAINING_SOURCES = (
    *(f"planted.{name}" for name in ("bodies", "dataset", "generator", "models", "shapes", "training")),
)
"""What the weights depend on."""
SOURCES = (*TRAINING_SOURCES, "planted.measuring", "finercam_rt", "finercam_rt.export")
"""What the figures depend on."""
TRAINING_PACKAGES = ("numpy", "torch", "timm")
PACKAGES = ("finercam-rt", *TRAINING_PACKAGES, "onnx", "onnxscript", "onnxruntime")
_EPILOG = """\
examples:
  python benchmarks/planted_truth.py                                # two classifiers, three training seeds each
  python benchmarks/planted_truth.py --models vit --layers auto blocks.2.norm1 --training-seeds 0
"""


def main(argv: list[str] | None = None) -> int:
    """0: the goal is reached. 1: it is not. 2: a wrong argument."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(argv)
    try:
        _check(args)
        document = _begin(args, argv)
    except ValueError as error:
        return refuse("planted_truth.py", error)
    torch.set_num_threads(1)
    kept = {record["identity"]: record for record in document["records"]}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tables_of = write_dataset(Path(folder), args.held_out)
        held_out = pictures(args.held_out, HELD_OUT)
        training: list[tuple[NDArray[np.uint8], NDArray[np.int64]]] = []
        for name in args.models:
            for seed in args.training_seeds:
                digest = _digest(name, seed, args)
                todo = [
                    layer
                    for layer in args.layers
                    if args.again or kept.get(_identity(name, seed, layer), {}).get("key") != digest
                ]
                if not todo:
                    continue
                model, seconds = _trained(name, seed, args, training)
                about = {
                    "key": digest,
                    "model": name,
                    "training_seed": seed,
                    "parameters": sum(p.numel() for p in model.parameters()),
                    "accuracy": accuracy(model, *held_out),
                    "training_seconds": seconds,
                    "look_alikes": measuring.look_alikes(model, *held_out),
                }
                for layer in todo:
                    record = _measure(model, layer, about, tables_of, held_out[0], args)
                    kept[record["identity"]] = record
                    document["records"] = _ordered(kept)
                    records.write(document, args.output)
                    print(_line(record))
        document["records"] = _ordered(kept)
        records.write(document, args.output)
        _draw(document, args)
    write_text(tables.markdown(document), args.output.with_suffix(".md"))
    print(tables.headline(document))
    print(f"{args.output} and its .md and .png: {time.monotonic() - began:.0f} s")
    return 0 if records.reached(document) else 1


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("planted_truth.py", __doc__, _EPILOG)
    parser.add_argument("--models", nargs="+", choices=tuple(RECIPES), default=list(RECIPES), metavar="NAME")
    parser.add_argument(
        "--training-seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="a classifier each (0 1 2)"
    )
    parser.add_argument(
        "--layers", nargs="+", default=[records.AUTO], metavar="NAME", help="target layers to export (auto)"
    )
    parser.add_argument("--pictures", type=int, default=16008, metavar="N", help="to train on (16008)")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over them (each recipe's own)")
    parser.add_argument("--held-out", type=int, default=240, metavar="N", help="to measure on (240)")
    parser.add_argument(
        "--masked", type=int, default=24, metavar="N", help="for methods that mask pictures; 0: leave them out (24)"
    )
    parser.add_argument("--again", action="store_true", help="measure what is done, too")
    parser.add_argument("--output", type=Path, default=RESULTS / "planted.json", metavar="FILE")
    return parser


def _check(args: argparse.Namespace) -> None:
    if args.pictures < BATCH or args.held_out < 12 or args.masked < 0 or (args.epochs or 1) < 1:
        raise ValueError(f"give at least {BATCH} pictures, 12 held out, 1 epoch, and no negative number.")
    if args.output.suffix != ".json":
        raise ValueError(f"{args.output} is not a .json file; tables and samples go into files beside it.")


def _begin(args: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
    """The document with what it already has."""
    found = records.read(args.output)["records"] if args.output.exists() else []
    return {
        "schema": records.SCHEMA,
        "kind": "planted",
        "command": shlex.join(["python", "benchmarks/planted_truth.py", *argv]),
        "pictures": {"training": args.pictures, "held_out": args.held_out, "masked": args.masked},
        "records": found,
    }


def _identity(name: str, seed: int, layer: str) -> str:
    return f"{name} {seed} {layer}"


def _digest(name: str, seed: int, args: argparse.Namespace) -> str:
    asked = f"{_training_digest(name, seed, args)} {args.held_out} {args.masked}"
    return digest_of(asked, PACKAGES, SOURCES)


def _training_digest(name: str, seed: int, args: argparse.Namespace) -> str:
    return digest_of(f"{name} {seed} {args.pictures} {args.epochs}", TRAINING_PACKAGES, TRAINING_SOURCES)


def _trained(
    name: str, seed: int, args: argparse.Namespace, training: list[tuple[NDArray[np.uint8], NDArray[np.int64]]]
) -> tuple[nn.Module, float]:
    """The classifier and how long its training took; `training` gets the pictures, where it is the first to ask."""
    recipe = RECIPES[name] if args.epochs is None else RECIPES[name]._replace(epochs=args.epochs)
    file = SCRATCH / f"{name}-{seed}-{_training_digest(name, seed, args)}.pt"
    model = recipe.make().eval()
    if file.exists():
        found = torch.load(file, weights_only=True)
        model.load_state_dict(found["weights"])
        return model, float(found["seconds"])
    if not training:
        with progress(args.pictures, "pictures", "drawing") as bar:
            training.append(pictures(args.pictures, on_picture=bar.advance))
    steps = recipe.epochs * (args.pictures // BATCH)
    began = time.process_time()
    with progress(steps, "steps", f"training {name}, seed {seed}") as bar:
        model = train(recipe, *training[0], seed, on_step=lambda loss: bar.advance())
    seconds = round(time.process_time() - began, 1)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    torch.save({"weights": model.state_dict(), "seconds": seconds}, part)
    part.replace(file)
    return model, seconds


def _measure(
    model: nn.Module,
    layer: str,
    about: Mapping[str, Any],
    tables_of: tuple[Path, Path],
    images: NDArray[np.uint8],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Everything about one classifier's maps at one layer."""
    marks, bodies = tables_of
    with tempfile.TemporaryDirectory() as scratch:
        engines = measuring.export(model, about["model"], layer, Path(scratch), images)
        with progress(None, "pictures", f"measuring {about['model']}, seed {about['training_seed']}") as bar:
            found = {
                "rows": measuring.rows(engines, marks, on_picture=bar.advance),
                "body_rows": measuring.rows(engines, bodies, (records.BASELINE,), on_picture=bar.advance),
                "masked_rows": [],
            }
            if args.masked:
                asked = measuring.rows(engines, marks, measuring.MASKED, args.masked, on_picture=bar.advance)
                found["masked_rows"] = [row for row in asked if row["method"] in measuring.MASKED]
    return {
        "identity": _identity(about["model"], about["training_seed"], layer),
        **about,
        "asked_layer": layer,
        "layer": engines.layer,
        "grid": list(engines.grid),
        "mark_share": measuring.mask_share(marks),
        **found,
        "environment": describe(PACKAGES),
    }


def _ordered(kept: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """By classifier, then with the automatic layer first, then by seed."""
    names = list(RECIPES)
    return sorted(
        kept.values(),
        key=lambda r: (names.index(r["model"]), r["asked_layer"] != records.AUTO, r["layer"], r["training_seed"]),
    )


def _line(record: Mapping[str, Any]) -> str:
    over = records.goal_ratio(record)
    return (
        f"{record['identity']} ({record['layer']}): accuracy {record['accuracy']:.1%}, energy in the mark "
        f"{over['ratio']:.2f} [{over['low']:.2f}, {over['high']:.2f}] times plain Grad-CAM's"
    )


def _draw(document: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Samples of the first training seed of each classifier, at the automatic layer."""
    columns = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in RECIPES:
            of_model = [r for r in document["records"] if (r["model"], r["asked_layer"]) == (name, records.AUTO)]
            if not of_model or name not in args.models:
                continue
            model, _ = _trained(name, args.training_seeds[0], args, [])
            folder = Path(scratch) / name
            folder.mkdir()
            columns.append((name, measuring.export(model, name, records.AUTO, folder, pictures(5)[0]).files[0]))
        draw_samples(columns, args.output.with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(main())
