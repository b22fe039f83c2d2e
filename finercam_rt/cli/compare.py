"""`finercam compare`: do two engines give the same classes and the same maps for the same photographs?"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from finercam_rt.cli.files import find_photographs
from finercam_rt.cli.progress import progress
from finercam_rt.cli.runtime import add_runtime, runtime_of
from finercam_rt.comparison import OK, Agreement, compare_explained, mean_agreement
from finercam_rt.contrast import Contrast
from finercam_rt.embeddings import embeddings_for, no_classes
from finercam_rt.engine import DEFAULT_BATCH_SIZE, Engine
from finercam_rt.engine_file import read_manifest
from finercam_rt.errors import InputError
from finercam_rt.evaluation.fidelity import Fidelity, differences
from finercam_rt.explanation import Explanation
from finercam_rt.images import load_image
from finercam_rt.manifest import METHODS, RGB, Manifest
from finercam_rt.outputs import checked_method
from finercam_rt.pixels import MODES

_ALL_DONE, _SOME_FAILED = 0, 1
_MEASURES = Agreement._fields
_LIMITED = (*_MEASURES, "class_agreement")
"""What has a --min."""

_EPILOG = """\
map error and logit error are |B - A| / |A|. --metrics says what B's deviation costs: both maps are measured as
explanations of A, so that they differ by the map alone, and the difference comes with its 95 % interval. Any metric of
`finercam evaluate` that needs nothing but a map: rd@X, cd@X, deletion, insertion, average_drop, complexity, road.

The maps compared are those of the class that A predicts against the references that A chooses, so that they differ by
the engines alone. An image without a map in one of the engines (its status is not "ok") has a line on stderr and is not
averaged; where the other engine has one, the engines disagree, and every --min fails.

exit codes: 0 compared; 1 compared, and below a --min, or an image could not be read: each has a line on stderr;
2 nothing done: a wrong argument, a missing file, engines that cannot be compared, or no image that both could explain.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "compare",
        help="measure how far two engines agree on photographs",
        description="Measure how far the classes and maps of engine B agree with those of engine A.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", metavar="A", type=Path, help="the engine to hold to, such as the fp32 one")
    parser.add_argument("b", metavar="B", type=Path, help="the engine to compare with it")
    parser.add_argument("--images", metavar="PATH", type=Path, nargs="+", required=True, help="images, or folders")
    parser.add_argument(
        "--class-embeddings", metavar="FILE", type=Path, help="classes of a zero-shot model, by `finercam embed-text`"
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        help="how the maps of both are drawn, for engines of head taps (default: their own)",
    )
    parser.add_argument("--alpha", type=float, help="strength of the contrast, at least 0 (default: A's objective's)")
    add_runtime(parser, compute="arithmetic of B, which may be A's file (default: f32)")
    for name in _LIMITED:
        flag = f"--min-{name.replace('_', '-')}"
        parser.add_argument(flag, metavar="X", type=float, help=f"exit with 1 where the mean {name} is below X")
    parser.add_argument(
        "--metrics", metavar="METRIC", nargs="+", help="also measure both maps on A, such as by rd@5 (default: none)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures of each image and in all as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Explain all photographs with both engines, and print how far they agree."""
    for name in _LIMITED:
        least = getattr(args, f"min_{name}")
        if least is not None and not -1 <= least <= 1:
            raise InputError(f"--min-{name.replace('_', '-')} is {least:g}; give a number from -1 to 1.")
    files = list(find_photographs(args.images, None))
    _check_comparable(args)
    shared = {**runtime_of(args), "class_embeddings": args.class_embeddings, "method": args.method}
    with (
        Engine(args.a, **shared) as a,
        Engine(args.b, compute=args.compute, **shared) as b,
    ):
        fidelity = None if args.metrics is None else Fidelity(a, args.metrics)
        records = _compare_all(a, b, files, args.alpha, fidelity)
    compared = [record for record in records if "cosine" in record]
    if not compared:
        reason = records[0].get("error") or f"status {records[0]['status']}"
        raise InputError(f"none of the {len(records)} images has a map in both engines; the first: {reason}")
    means = mean_agreement(records)
    lowest = {name: min(compared, key=lambda record, name=name: record[name]) for name in _MEASURES}  # type: ignore[misc]
    found = differences([record["metrics"] for record in compared if "metrics" in record])
    if args.json:
        metrics = {name: {**of, "difference": of["difference"]._asdict()} for name, of in found.items()}
        report = {"mean": means, "metrics": metrics, "compared": len(compared), "images": records}
        print(json.dumps(_plain(report), indent=1, allow_nan=False))
    else:
        print(f"{len(compared)} of {len(records)} images compared")
        print(f"{'class agreement':16} {100 * means['class_agreement']:.1f} %")
        for name in _MEASURES:
            worst = lowest[name]
            print(f"{name.replace('_', ' '):16} mean {means[name]:.4f}, least {worst[name]:.4f} ({worst['image']})")
        for name in ("map_error", "logit_error"):
            print(f"{name.replace('_', ' '):16} mean {means[name]:.2e}, relative")
        for name, of in found.items():
            mean, low, high, images = of["difference"]
            interval = f"95 % interval {low:.4f} to {high:.4f}, {images} images"
            if images < 2:
                interval = "one image, so without an interval"
            print(f"{name:16} A {of['a']:.4f}, B {of['b']:.4f}, difference {mean:+.4f} ({interval})")
    unread = any("error" in record for record in records)
    return _SOME_FAILED if _fails(args, means, records) or unread else _ALL_DONE


def _fails(args: argparse.Namespace, means: dict[str, float], records: list[dict[str, Any]]) -> bool:
    """Whether a --min fails; a line for each that does."""
    alone = sum(OK in record["status"] for record in records if "error" not in record and "cosine" not in record)
    failed = False
    for name in _LIMITED:
        least = getattr(args, f"min_{name}")
        if least is None or (means[name] >= least and not alone):
            continue
        failed = True
        reason = f"the mean {name} is {means[name]:.4f}, below {least:g}"
        if means[name] >= least:
            reason = f"the mean {name} is without {alone} of {len(records)} images, of which one engine alone has a map"
        print(f"finercam: {reason}.", file=sys.stderr)
    return failed


def _check_comparable(args: argparse.Namespace) -> None:
    """Refuse engines whose classes or maps have nothing to do with each other, before any is loaded or measured."""
    a, b = (read_manifest(path) for path in (args.a, args.b))
    for what, first, second in (
        ("classes", _number(a), _number(b)),
        ("class names", a.classes, b.classes),
        ("images", _images(a), _images(b)),
        ("grid", a.grid, b.grid),
        ("references", a.references, b.references),
    ):
        if first != second:
            shown = "" if what == "class names" else f" ({first} and {second})"
            raise InputError(
                f"{args.a} and {args.b} differ in their {what}{shown}; compare engines of one model and layer."
            )
    for path, manifest in ((args.a, a), (args.b, b)):
        checked_method(manifest, args.method, path)
        if args.class_embeddings is not None:
            embeddings_for(manifest, path, args.class_embeddings)
        elif manifest.num_classes is None:
            raise no_classes(path)


def _number(manifest: Manifest) -> int | str:
    return "given when it runs" if manifest.num_classes is None else manifest.num_classes


def _images(manifest: Manifest) -> str:
    channels = manifest.input.channels
    return "photographs" if channels in MODES else f"arrays of {channels} channels"


def _plain(value: Any) -> Any:
    """Figures that are not finite as None: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _plain(of) for key, of in value.items()}
    if isinstance(value, list):
        return [_plain(of) for of in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _compare_all(
    a: Engine, b: Engine, files: list[Path], alpha: float | None, fidelity: Fidelity | None
) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    with progress(len(files), "images", "comparing") as bar:
        for start in range(0, len(files), DEFAULT_BATCH_SIZE):
            for record in _compare_batch(a, b, files[start : start + DEFAULT_BATCH_SIZE], alpha, fidelity):
                records.append(record)
                if "error" in record:
                    bar.write(f"finercam: {record['error']}", sys.stderr)
                elif "cosine" not in record:
                    first, second = record["status"]
                    line = f"finercam: {record['image']}: A's map is {first} and B's is {second}: it is not averaged."
                    bar.write(line, sys.stderr)
                bar.advance()
    return records


def _one_contrast(explanation: Explanation) -> Explanation:
    """Of several contrasts the first: why the predicted class."""
    return explanation if explanation.contrasts is None else explanation.contrast(0)


def _same(explanation: Explanation, engine: Engine) -> dict[str, Any]:
    """The arguments that ask an engine for the contrast of each image that was explained."""
    rows = zip(explanation.target.tolist(), explanation.references.tolist(), explanation.alpha.tolist(), strict=True)
    if engine.manifest.contrasts > 1:
        used = [(target, [index for index in references if index >= 0], alpha) for target, references, alpha in rows]
        return {"contrasts": [[Contrast(*row)] for row in used]}
    targets, references, alphas = zip(*rows, strict=True)
    return {"target": list(targets), "references": np.array(references), "alpha": list(alphas)}


def _compare_batch(
    a: Engine, b: Engine, files: list[Path], alpha: float | None, fidelity: Fidelity | None
) -> list[dict[str, Any]]:
    """One record a file: its agreement, or its status, or its error."""
    images, found = [], {}
    own = a.manifest.input.channels
    channels = RGB if own in MODES else own  # A may be of grey images, and B of RGB
    for position, file in enumerate(files):
        try:
            images.append((position, load_image(file, position, channels)))
        except InputError as error:
            found[position] = {"image": str(file), "error": str(error)}
    if images:
        photographs = [image for _, image in images]
        first = _one_contrast(a.explain(photographs, alpha=alpha))
        second = _one_contrast(b.explain(photographs, **_same(first, b)))
        records = compare_explained(first, second, first.size)
        both = [row for row, record in enumerate(records) if "cosine" in record]
        if fidelity is not None and both:
            shown, maps = [photographs[row] for row in both], (first.saliency_map[both], second.saliency_map[both])
            for row, figures in zip(both, fidelity.measure(shown, first.target[both], *maps), strict=True):
                records[row]["metrics"] = figures
        for (position, _), record in zip(images, records, strict=True):
            found[position] = {"image": str(files[position]), **record}
    return [found[position] for position in range(len(files))]
