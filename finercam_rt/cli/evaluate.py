"""`finercam evaluate`: is an explanation any good, and which engine, method and seed gives the best?"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path

from finercam_rt.cli.progress import Progress, progress
from finercam_rt.cli.runtime import add_runtime, runtime_of
from finercam_rt.engine import DEFAULT_BATCH_SIZE
from finercam_rt.methods.rise import DEFAULT_MASKS

_SOME_LEFT_OUT = 1

_EPILOG = """\
OUT/ gets results.json (every figure of every image, and in all), results.csv (a line a row and metric) and report.html,
one page with the table, the curves, the best and the worst images with their maps, and what produced it. What was
measured is kept in OUT/unfinished.jsonl until it is done: the same command goes on after an interruption.

seeds: plain; one:ALPHA, one reference; OBJECTIVE[R][:ALPHA] of the engine's objective with at most its references, such
as mean3:0.6 or weighted3:1. The first row, of the first engine, method and seed, is the baseline.

methods: an engine of head taps draws all that `finercam export --method` has. Where they are named also
scorecam, scorecam-paper and ablationcam (a run of the classifier, or of its tail, a channel), rise (a run a mask),
micam, migradcam, and metacam, the consensus of all that the engine draws.

metrics: rd@X, cd@X (relative and plain confidence drop, X per cent of the pixels), deletion, insertion, average_drop,
increase_in_confidence, complexity, coherency, adcc, road and others; energy and pointing_game need boxes or masks.
deletion and insertion take --steps times the work of rd@X.

table: a .csv file with the columns path, label, and optionally x0, y0, x1, y1 (a box in pixels of the upright
photograph, one a row, or several in boxes as "x0 y0 x1 y1; ...") or mask (an image of the photograph's size). Paths are
absolute, or relative to the table. A column references ("one class; another") names the classes that the label is
contrasted with, which needs --target label; a seed of one reference takes the nearest of them.

docs/evaluate.md says how to read what comes out, docs/metrics.md what is computed.

exit codes: 0 all images measured; 1 done, but some images were left out (they are listed); 2 nothing done: a wrong
argument, a missing file, no image that could be read.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure and compare the explanations of engines, methods and seeds on photographs",
        description="Measure how good the explanations of engines are, by which method and seed they are best.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("engines", metavar="ENGINE", type=Path, nargs="+", help="files that `finercam export` wrote")
    parser.add_argument(
        "--data", metavar="PATH", type=Path, required=True, help="a folder of images by class, or a .csv file"
    )
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="folder for the results")
    rows = parser.add_argument_group("what is compared")
    rows.add_argument("--methods", metavar="METHOD", nargs="+", help="methods (default: all that the engine draws)")
    rows.add_argument("--seeds", metavar="SEED", nargs="+", help="seeds (default: plain and the engine's own)")
    rows.add_argument(
        "--target", choices=("predicted", "label"), default="predicted", help="class explained (default: predicted)"
    )
    rows.add_argument("--channels", metavar="N", type=int, help="of an image, for scorecam, ablationcam (default: all)")
    rows.add_argument("--masks", metavar="N", type=int, default=DEFAULT_MASKS, help="of rise (default: %(default)s)")
    rows.add_argument(
        "--tail", metavar="FILE", type=Path, nargs="+", default=(), help="of `finercam export --tail`, for ablationcam"
    )
    measured = parser.add_argument_group("how it is measured")
    measured.add_argument(
        "--metrics", metavar="METRIC", nargs="+", help="(default: rd@5 rd@10, and energy pointing_game with boxes)"
    )
    measured.add_argument("--rank-by", metavar="METRIC", help="what the recommendation goes by (default: the first)")
    measured.add_argument("--fill", default="zero", help="what removed pixels become: zero, blur, mean (default: zero)")
    measured.add_argument("--insertion-fill", default="blur", help="what insertion starts from (default: blur)")
    measured.add_argument(
        "--ties", default="index", help="of equal pixels the first ones go (index), or all (threshold) (default: index)"
    )
    measured.add_argument(
        "--steps",
        metavar="N",
        type=int,
        default=50,
        help="of deletion and insertion, at most one a pixel (default: 50)",
    )
    data = parser.add_argument_group("data")
    data.add_argument("--labels", metavar="FILE", type=Path, help="label to class, as JSON or lines of label,class")
    data.add_argument("--label-column", metavar="NAME", default="label", help="of a table (default: label)")
    data.add_argument("--unlabelled", action="store_true", help="take no folder or column for a class")
    data.add_argument("--limit", metavar="N", type=int, help="at most N images, drawn at random")
    data.add_argument("--seed", metavar="N", type=int, default=0, help="of all that is drawn by chance (default: 0)")
    parser.add_argument(
        "--class-embeddings", metavar="FILE", type=Path, help="classes of a zero-shot model, by `finercam embed-text`"
    )
    parser.add_argument(
        "--batch-size", metavar="N", type=int, default=DEFAULT_BATCH_SIZE, help="(default: %(default)s)"
    )
    add_runtime(parser)
    parser.add_argument("--fresh", action="store_true", help="drop what an interrupted evaluation left in OUT")
    parser.add_argument("--json", action="store_true", help="print what results.json holds but for the images")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate, write, print the table and the recommendation."""
    from finercam_rt.evaluation import Question, evaluate
    from finercam_rt.evaluation.dataset import read_label_mapping
    from finercam_rt.evaluation.metrics import MetricOptions
    from finercam_rt.evaluation.records import summary_record

    question = Question(
        methods=args.methods,
        seeds=args.seeds,
        metrics=args.metrics,
        target=args.target,
        rank_by=args.rank_by,
        options=MetricOptions(fill=args.fill, insertion_fill=args.insertion_fill, ties=args.ties, steps=args.steps),
        channels=args.channels,
        masks=args.masks,
        labels=None if args.labels is None else read_label_mapping(args.labels),
        label_column=args.label_column,
        unlabelled=args.unlabelled,
        limit=args.limit,
        seed=args.seed,
    )
    with ExitStack() as stack:
        bars: list[Progress] = []
        done = 0

        def on_progress(maps: int, total: int) -> None:
            nonlocal done
            if not bars:
                bars.append(stack.enter_context(progress(total, "maps", "evaluating")))
            bars[0].advance(maps - done)
            done = maps

        def on_step(method: str, runs: int, total: int) -> None:
            if bars:
                bars[0].detail(f"{method} {runs} of {total} runs")

        results = evaluate(
            args.engines,
            args.data,
            question,
            out=args.output,
            fresh=args.fresh,
            batch_size=args.batch_size,
            **runtime_of(args),
            compute=args.compute,
            class_embeddings=args.class_embeddings,
            tails=args.tail,
            command=_command(args.arguments),
            on_progress=on_progress,
            on_step=on_step,
        )
    if args.json:
        print(json.dumps(summary_record(results), indent=1, allow_nan=False))
    else:
        print(results)
        images = int(results.read.sum())
        taken = f"{images} image{'s' if images != 1 else ''} in {results.run['seconds']:.1f} s"
        print(f"{taken}; {args.output}/ has the report and the results.")
    for kind, count in results.left_out_counts().items():
        first = next(item for item in results.left_out if item.kind == kind)
        print(f"finercam: left out: {count} {kind}; the first is {first.sentence}", file=sys.stderr)
    return _SOME_LEFT_OUT if results.left_out else 0


def _command(arguments: list[str]) -> str:
    """The command as typed, of paths the last part alone: a report is passed on."""
    return shlex.join(["finercam", *(Path(text).name if "/" in text else text for text in arguments)])
