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
import itertools
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
from planted.dataset import HeldOut, pictures, write_held_out
from planted.measuring import MASKED
from planted.models import RECIPES
from planted.picture import draw_samples
from planted.training import BATCH, train
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
  python benchmarks/planted_truth.py --models resnet-39 resnet-71   # networks whose last map sees more of the picture
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
        held_out = write_held_out(Path(folder), args.held_out)
        training: list[tuple[NDArray[np.uint8], NDArray[np.int64]]] = []
        for name, seed in itertools.product(args.models, args.training_seeds):
            key = _digest(name, seed, args)
            done = {identity for identity, record in kept.items() if record["key"] == key and not args.again}
            layers = [layer for layer in args.layers if _identity(name, seed, layer) not in done]
            if layers:
                model, seconds = _trained(name, seed, args, training)
            for layer in layers:
                found = _measure(model, name, seed, layer, held_out, args)
                record = {"identity": _identity(name, seed, layer), "key": key, "training_seconds": seconds, **found}
                kept[record["identity"]] = record
                document["records"] = _ordered(kept)
                records.write(document, args.output)
                print(_line(record))
        document["records"] = _ordered(kept)
        records.write(document, args.output)
        if not args.no_samples:
            _draw(document, held_out, args)
    write_text(tables.markdown(document), args.output.with_suffix(".md"))
    print(tables.headline(document))
    print(f"{args.output} and the .md beside it: {time.monotonic() - began:.0f} s")
    return 0 if records.reached(document) else 1


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("planted_truth.py", __doc__, _EPILOG)
    parser.add_argument(
        "--models", nargs="+", choices=tuple(RECIPES), default=list(records.GOAL_MODELS), metavar="NAME"
    )
    parser.add_argument(
        "--training-seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="a classifier each (0 1 2)"
    )
    parser.add_argument(
        "--layers", nargs="+", default=[records.AUTO], metavar="NAME", help="target layers to export (auto)"
    )
    parser.add_argument("--pictures", type=int, default=16008, metavar="N", help="to train on (16008)")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over them (each recipe's own)")
    parser.add_argument("--held-out", type=int, default=120, metavar="N", help="to measure on (120)")
    parser.add_argument(
        "--masked", type=int, default=6, metavar="N", help="for methods that mask pictures, first seed; 0: none (6)"
    )
    parser.add_argument("--no-samples", action="store_true", help="draw no FILE.png")
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
    model: nn.Module, name: str, seed: int, layer: str, held_out: HeldOut, args: argparse.Namespace
) -> dict[str, Any]:
    """Everything about one classifier's maps at one layer."""
    masked = args.masked if seed == args.training_seeds[0] else 0
    fewer = HeldOut(*(values[:masked] for values in held_out[:4]), held_out.table)
    with (
        tempfile.TemporaryDirectory() as scratch,
        progress(2 * args.held_out + masked, "pictures", f"measuring {name}, seed {seed}") as bar,
    ):
        engines = measuring.export(model, name, layer, Path(scratch), held_out.images)
        found = {
            records.NAMED: measuring.named_rows(engines, held_out, on_picture=bar.advance),
            records.AUTOMATIC: measuring.automatic_rows(engines, held_out.table, bar.advance),
            records.CHOSEN: measuring.chosen_rows(engines, held_out),
            records.FEWER: measuring.named_rows(engines, fewer, MASKED, bar.advance) if masked else [],
        }
        logits = measuring.logits_of(engines, held_out.images)
    return {
        "model": name,
        "training_seed": seed,
        "asked_layer": layer,
        "layer": engines.layer,
        "grid": list(engines.grid),
        "parameters": sum(p.numel() for p in model.parameters()),
        "accuracy": float((logits.argmax(axis=1) == held_out.labels).mean()),
        "look_alikes": measuring.automatic_look_alikes(logits, held_out.labels),
        "mark_share": float(held_out.marks.mean()),
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
    named, chosen = (records.over_plain(record, rows)["ratio"] for rows in (records.NAMED, records.AUTOMATIC))
    return (
        f"{record['identity']} ({record['layer']}): accuracy {record['accuracy']:.1%}, energy in the mark {named:.2f} "
        f"times plain Grad-CAM's with named look-alikes, {chosen:.2f} times with chosen references"
    )


def _draw(document: Mapping[str, Any], held_out: HeldOut, args: argparse.Namespace) -> None:
    """Samples of each classifier with the first of these training seeds, at the automatic layer."""
    seed = args.training_seeds[0]
    with tempfile.TemporaryDirectory() as scratch:
        columns = []
        for name in RECIPES:
            if _identity(name, seed, records.AUTO) in {record["identity"] for record in document["records"]}:
                folder = Path(scratch) / name
                folder.mkdir()
                model, _ = _trained(name, seed, args, [])
                columns.append((name, measuring.export(model, name, records.AUTO, folder, held_out.images).files[0]))
        draw_samples(columns, held_out, args.output.with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(main())
