"""`finercam explain`: photographs in; overlays, heat maps, raw maps and one JSON file out."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finercam_rt import colormaps
from finercam_rt.classes import Classes, ClassSpec
from finercam_rt.cli.files import find_photographs
from finercam_rt.cli.pictures import Earlier, NotDrawnError, Style, load_original, write_pictures, write_sheet
from finercam_rt.cli.progress import Progress, progress
from finercam_rt.cli.runtime import add_runtime, runtime_of
from finercam_rt.contrast import Contrast, top_classes, why_not
from finercam_rt.engine import DEFAULT_BATCH_SIZE, Engine
from finercam_rt.errors import InputError
from finercam_rt.explanation import Explanation
from finercam_rt.files import atomic_write, check_output_folder, json_bytes
from finercam_rt.geometry import COORDINATES, CROP
from finercam_rt.images import IMAGE_SUFFIXES
from finercam_rt.manifest import METHODS, Manifest
from finercam_rt.photographs import Batch
from finercam_rt.video import VIDEO_SUFFIXES, frames

SCHEMA = 1
"""The version of explanations.json."""
RECORDS = "explanations.json"
_ALL_DONE, _SOME_FAILED = 0, 1

_EPILOG = f"""\
For each image it writes NAME.overlay.png (the crop that the model saw, under its map), NAME.heatmap.png (the map
alone) and NAME.npy (the raw map, float32, comparable between images), and for all of them {RECORDS}. NAME is the
image's path within its folder, without suffix. A map that explains nothing (its status is not "ok") is not drawn.
An engine of several contrasts writes these for each, as NAME.contrast-1, NAME.contrast-2, ..., and all of them in
NAME.contrasts.png; one that gives the maps of several layers writes NAME.layer-LAYER as well.

With --coordinates original all of these show the whole photograph, upright and in its own size: what the model did not
see is dark in the overlay, transparent in the heat map and NaN in NAME.npy. {RECORDS} holds, for each image, the
original's size and the crop's box in it (left, top, right, bottom, in pixels) in any case.

With --frames, the frames of animations (GIF, WebP, PNG, TIFF) and videos (with "finercam-rt[video]") are each written
as NAME.frame-000000 and so on; without, an animation's first frame is explained.

exit codes: 0 all images explained; 1 some could not be: each has a line on stderr and its error in {RECORDS};
2 nothing done and nothing written: a wrong argument, a missing file, or no image could be explained.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "explain",
        help="classify photographs and show why this class and not the ones that look like it",
        description="Classify photographs, and show why this class and not the ones that look like it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "engine", metavar="ENGINE", type=Path, help="the .onnx file that `finercam export` wrote, or a .plan of `build`"
    )
    parser.add_argument(
        "paths", metavar="PATH", type=Path, nargs="+", help="an image, or a folder with its sub-folders"
    )
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, help="folder to write to; needed without --json")
    parser.add_argument(
        "--class-embeddings", metavar="FILE", type=Path, help="classes of a zero-shot model, by `finercam embed-text`"
    )
    parser.add_argument(
        "--target",
        metavar="CLASS",
        action="append",
        help="class to explain, name or index (default: the predicted one; of an engine of P contrasts, the top P)",
    )
    parser.add_argument(
        "--references",
        metavar="CLASS",
        nargs="+",
        help="classes to contrast it with, names or indices; 'none' for a plain Grad-CAM (default: the nearest ones)",
    )
    parser.add_argument(
        "--alpha",
        type=float,
        action="append",
        help="strength of the contrast, at least 0 (default: the objective's)",
    )
    several = parser.add_argument_group(
        "several contrasts", "for an engine exported with --contrasts P, as are --target or --alpha given repeatedly"
    ).add_mutually_exclusive_group()
    several.add_argument("--top", metavar="N", type=int, help="explain each of the N classes with the largest logits")
    several.add_argument(
        "--why-not", metavar="CLASS", nargs="+", help="explain why A and not B, for each ordered pair of these classes"
    )
    parser.add_argument(
        "--method", choices=METHODS, help="how maps are drawn, for engines of head taps (default: the engine's own)"
    )
    parser.add_argument(
        "--batch-size", metavar="N", type=int, help=f"images a run (default: {DEFAULT_BATCH_SIZE}, or the engine's own)"
    )
    add_runtime(parser)
    parser.add_argument("--colormap", choices=colormaps.NAMES, default="turbo", help="colours (default: turbo)")
    parser.add_argument("--opacity", type=float, default=0.5, help="the map's share of the overlay (default: 0.5)")
    parser.add_argument(
        "--coordinates",
        choices=COORDINATES,
        default=CROP,
        help="of pictures and maps: the crop that the model saw, or all of the original photograph (default: crop)",
    )
    parser.add_argument(
        "--range",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="raw values at the ends of the colours, for pictures to be compared (default: each map's own)",
    )
    parser.add_argument("--frames", action="store_true", help="explain every frame of animations and videos")
    parser.add_argument(
        "--every", metavar="N", type=int, default=1, help="with --frames: every N-th frame (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help=f"print what {RECORDS} holds instead of lines for reading")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Explain the photographs; see the epilog for what is written and the exit codes."""
    began = time.perf_counter()
    if args.output is None and not args.json:
        raise InputError("there is nowhere to write to; give -o OUT, or --json for the records on stdout.")
    if not 0 <= args.opacity <= 1:
        raise InputError(f"the opacity is {args.opacity:g}; give a number from 0 to 1.")
    if args.range is not None and not 0 <= args.range[0] < args.range[1] < math.inf:
        low, high = args.range
        raise InputError(f"the range is {low:g} to {high:g}; give two raw values, 0 <= LOW < HIGH.")
    if args.every < 1 or (args.every > 1 and not args.frames):
        raise InputError("--every N takes every N-th frame, N at least 1, and needs --frames.")
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES if args.frames else IMAGE_SUFFIXES
    if args.output is not None:
        check_output_folder(args.output)
    names = find_photographs(args.paths, args.output, suffixes)
    with Engine(
        args.engine,
        **runtime_of(args),
        compute=args.compute,
        class_embeddings=args.class_embeddings,
        method=args.method,
    ) as engine:
        document = _document(engine, args.class_embeddings)
        total = None if args.frames else len(names)
        with progress(total, "images", "explaining") as bar:
            records, seconds = _explain_all(_batches(engine, names, args), args, bar)
    failed = [record for record in records if record["error"] is not None]
    if len(failed) == len(records):
        one = len(records) == 1
        raise InputError(failed[0]["error"] if one else f"none of the {len(records)} images could be explained.")
    seconds["total"] = time.perf_counter() - began
    document |= {"seconds": {k: round(v, 6) for k, v in seconds.items()}, "images": records}
    if args.output is not None:
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        with atomic_write(args.output / RECORDS) as stream:
            stream.write(json_bytes(text) + b"\n")
    if args.json:
        print(json.dumps(document, indent=1, allow_nan=False))
    else:
        print(_summary(len(records) - len(failed), len(failed), seconds, args.output))
    return _SOME_FAILED if failed else _ALL_DONE


class _Item(NamedTuple):
    """What is explained: a file or one of its frames, and the name of its output."""

    file: Path
    frame: int | None
    stem: str

    def record(self) -> dict[str, Any]:
        return {"image": str(self.file)} | ({} if self.frame is None else {"frame": self.frame})


def _batches(
    engine: Engine, names: dict[Path, Path], args: argparse.Namespace
) -> Iterator[tuple[Batch, Callable[[int], _Item]]]:
    """The batches of all files, or of one file's frames after the other's, and what is at a position of each."""
    options = {**_questions(args, engine.classes), "batch_size": args.batch_size, "skip_errors": True}
    if not args.frames:
        files = list(names)
        for batch in engine.explain_batches(files, **options):
            yield batch, lambda position: _Item(files[position], None, names[files[position]].as_posix())
        return
    for file, name in names.items():

        def item(position: int, file: Path = file, name: Path = name) -> _Item:
            frame = position * args.every
            return _Item(file, frame, f"{name.as_posix()}.frame-{frame:06d}")

        taken = itertools.islice(frames(file), 0, None, args.every)
        for batch in engine.explain_batches(taken, **options):
            yield batch, item


def _explain_all(
    batches: Iterable[tuple[Batch, Callable[[int], _Item]]], args: argparse.Namespace, bar: Progress
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Write and report every batch; the records in the order of the images, and where the time went."""
    records: list[dict[str, Any]] = []
    errors: list[str] = []
    seconds = {"prepare": 0.0, "run": 0.0, "write": 0.0}
    earlier = None if args.output is None else Earlier(args.output)
    for batch, item_at in batches:
        began = time.perf_counter()
        rows = {position: row for row, position in enumerate(batch.indices)}
        for position in sorted({*rows, *batch.failures}):
            item, error = item_at(position), batch.failures.get(position)
            try:
                if error is not None:
                    raise NotDrawnError(str(error))
                assert batch.explanation is not None
                records.append(_one(batch.explanation, rows[position], item, args, bar, earlier))
            except NotDrawnError as failure:
                records.append({**item.record(), "error": str(failure)})
                errors.append(f"finercam: {failure}")
            if len(records) > 1:  # the only image's error is the command's
                for line in errors:
                    bar.write(line, sys.stderr)
                errors.clear()
            bar.advance()
        seconds["prepare"] += batch.prepare_seconds
        seconds["run"] += batch.run_seconds
        seconds["write"] += time.perf_counter() - began
    return records, seconds


def _one(
    explanation: Explanation, row: int, item: _Item, args: argparse.Namespace, bar: Progress, earlier: Earlier | None
) -> dict[str, Any]:
    """Write one image's files, print its line, and return its record."""
    record: dict[str, Any] = {**explanation.record(row), **item.record(), "files": None, "error": None}
    style = Style(args.colormap, args.opacity, args.coordinates, None if args.range is None else tuple(args.range))
    original = None
    if earlier is not None:
        original = load_original(explanation, row, style)
        (args.output / RECORDS).unlink(missing_ok=True)  # of an earlier run, whose pictures are replaced from here on
        earlier.remove(item.stem)
    parts = [(record, explanation, item.stem)]
    if explanation.contrasts is not None:
        parts = [
            (part, explanation.contrast(p), f"{item.stem}.contrast-{p + 1}")
            for p, part in enumerate(record["contrasts"])
        ]
    for part, one, stem in parts:
        if args.output is not None:
            part["files"] = write_pictures(args.output, stem, one, row, style, original)
        if one.status[row] != "ok":
            bar.write(
                f"finercam: warning: {_label(record)}: its map explains nothing "
                f"({one.status[row]}), so the overlay is the photograph alone.",
                sys.stderr,
            )
        if not args.json:
            several = "" if explanation.contrasts is None else f", alpha {part['alpha']:g}"
            bar.write(_line({**record, **part}, explanation.classes, several))
    if explanation.contrasts is not None and args.output is not None:
        record["files"] = {"contrasts": write_sheet(args.output, item.stem, explanation, row, record, style, original)}
    return record


def _label(record: dict[str, Any]) -> str:
    image: str = record["image"]
    return image if record.get("frame") is None else f"{image} frame {record['frame']}"


def _line(record: dict[str, Any], classes: Classes, strength: str) -> str:
    """One image for reading: what it is, what it was contrasted with, and whether the map explains anything."""

    def named(item: dict[str, Any]) -> str:
        share = "?" if item["probability"] is None else f"{100 * item['probability']:.1f}"
        return f"{classes.short_name(item['index'])} {share} %"

    line = f"{_label(record)}: {named(record['target'])}"
    if record["predicted"]["index"] != record["target"]["index"]:
        line = f"{_label(record)}: predicted {named(record['predicted'])}; explained {named(record['target'])}"
    if record["references"]:
        line += f", against {', '.join(named(item) for item in record['references'])}"
    return f"{line}{strength}; map {record['status']}"


def _summary(explained: int, failed: int, seconds: dict[str, float], out: Path) -> str:
    each = {key: f"{1e3 * value / (explained + failed):.1f}" for key, value in seconds.items()}
    failures = f", {failed} could not be" if failed else ""
    return (
        f"explained {explained} image{'s' if explained != 1 else ''}{failures}, in {seconds['total']:.1f} s; an image "
        f"took {each['prepare']} ms to prepare, {each['run']} ms to run, {each['write']} ms to draw and write.\n"
        f"{out}/ has the pictures and {RECORDS}."
    )


def _document(engine: Engine, class_embeddings: Path | None) -> dict[str, Any]:
    manifest: Manifest = engine.manifest
    return {
        "schema": SCHEMA,
        "engine": {
            "path": str(engine.path),
            "model": manifest.model.name,
            "weights_sha256": manifest.model.weights_sha256,
            "layers": [layer.name for layer in manifest.layers],
            "method": engine.method,
            "objective": manifest.objective,
            "references": manifest.references,
            "precision": manifest.precision,
            "backend": engine.backend,
            "compute": engine.compute,
            "device": engine.device,
            **({} if class_embeddings is None else {"class_embeddings": str(class_embeddings)}),
        },
    }


def _class(text: str, classes: Classes) -> ClassSpec:
    """A class as typed: a name where there is one, else an index where it is a number."""
    try:
        return classes.index(text)
    except InputError:
        try:
            number = int(text)
        except ValueError:
            pass
        else:
            return number
        raise


def _questions(args: argparse.Namespace, classes: Classes) -> dict[str, Any]:
    """What is explained, as `Engine.explain` takes it."""
    targets = [_class(text, classes) for text in args.target or ()]
    references, alphas = _references(args.references, classes), args.alpha or []
    if args.why_not is not None or args.top is not None:
        option = "--top" if args.why_not is None else "--why-not"
        if targets or len(alphas) > 1:
            raise InputError(f"{option} says what is explained; leave --target, or a second --alpha, out.")
        if args.why_not is not None and references is not None:
            raise InputError("--why-not says what each class is contrasted with; leave --references out.")
        if args.top is not None and args.top < 1:
            raise InputError(f"--top is {args.top}; give at least 1.")
        if args.top is not None and args.top > classes.count:
            raise InputError(f"--top is {args.top}, and there are {classes.count} classes; give at most as many.")
        alpha = alphas[0] if alphas else None
        if args.why_not is None:
            return {"contrasts": top_classes(args.top, references, alpha)}
        if len(args.why_not) < 2:
            raise InputError("--why-not needs at least two classes.")
        return {"contrasts": why_not([_class(text, classes) for text in args.why_not], alpha)}
    if len(targets) > 1 or len(alphas) > 1:
        wanted: Sequence[ClassSpec | None] = targets or [None]
        pairs = itertools.product(wanted, alphas or [None])
        return {"contrasts": [Contrast(target, references, alpha) for target, alpha in pairs]}
    return {
        "target": targets[0] if targets else None,
        "references": references,
        "alpha": alphas[0] if alphas else None,
    }


def _references(texts: list[str] | None, classes: Classes) -> list[ClassSpec] | None:
    if texts is None:
        return None
    if texts == ["none"]:
        return []
    if "none" in texts and "none" not in (classes.names or ()):
        raise InputError("--references none stands alone; leave it out, or the classes beside it.")
    return [_class(text, classes) for text in texts]
