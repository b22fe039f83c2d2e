"""Export one small member of every classifier family of timm, torchvision and transformers; hold it to PyTorch.

A sweep of cases, each in a process of its own, so that a crash, a hang or too much memory ends that case alone. A case
is a model with seeded random weights that behave like trained ones (sweep/weights.py); it is exported as a user would,
compared with an oracle that knows nothing of the export (sweep/oracle.py), in ONNX Runtime and OpenVINO, given to the
builder of TensorRT-RTX, and timed against its plain forward pass. What is compared, and what counts as wrong, stands
above the tables that it writes: FILE.md beside FILE.json.

The result file is rewritten after every case. A case that is in it is left out the next time, unless a source of the
package or of the sweep, a version or what is asked has changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from comparison.engines import ENGINE, Build, digest_of
from comparison.environment import describe
from comparison.script import RESULTS, make_parser, refuse, write_text
from sweep import draw_tables, records, tables
from sweep.cases import BASE, VARIANTS, SweepCase, draw_families, find_variant
from sweep.draw import MOST_PARAMETERS, draw_cases
from sweep.families import LIBRARIES, Member, choose, families, named
from sweep.process import supervise
from sweep.records import RUNTIMES

from finercam_rt.cli.progress import progress

HERE = Path(__file__).resolve().parent
SCRATCH = HERE.parent / "build" / "coverage"
SOURCES = (
    "finercam_rt",
    "finercam_rt.export",
    "comparison.engines",
    "comparison.verification",
    "sweep.cases",
    "sweep.check",
    "sweep.draw",
    "sweep.families",
    "sweep.formulas",
    "sweep.heads",
    "sweep.oracle",
    "sweep.outcome",
    "sweep.rtx",
    "sweep.weights",
    "sweep.worker",
)
"""What a case's outcome depends on."""
PACKAGES = (
    "finercam-rt",
    *LIBRARIES,
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "tensorrt-rtx-cu13-bindings",
)
BUILDER = "tensorrt-rtx"
"""The runtime that has a process of its own."""

_EPILOG = """\
TensorRT-RTX's builder needs no GPU: pip install "finercam-rt[bench]". Without it the column says "not installed".

examples:
  python benchmarks/coverage.py                                    # every family; an hour or two on two idle cores
  python benchmarks/coverage.py --variant all                      # sizes, layers, methods, on a dozen drawn families
  python benchmarks/coverage.py --draw 20261121                    # models, sizes, layers, heads that nobody chose
  python benchmarks/coverage.py --only beit torchvision/vgg timm:resnet50 --again
"""


def main(argv: list[str] | None = None) -> int:
    """0: every case is right. 1: some are not; the tables say which and why. 2: a wrong argument. 130: interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(argv)
    args.output = args.output or RESULTS / ("coverage.json" if args.draw is None else "drawn.json")
    args.max_parameters = args.max_parameters or (200.0 if args.draw is None else MOST_PARAMETERS)
    try:
        table = families(lambda family: print(f"counting parameters: {family}", file=sys.stderr))
        cases, left_out = _cases(args, table)
        document = _begin(args, argv, sorted(table), left_out)
    except ValueError as error:
        return refuse("coverage.py", error)
    if args.list:
        for case in cases:
            print(f"{case.identity} {case.member.parameters / 1e6:.1f} M")
        return 0
    began = time.monotonic()
    kept = {record["identity"]: record for record in document["records"]}
    digest = digest_of("", PACKAGES, SOURCES)
    todo = [case for case in cases if args.again or not _done(kept.get(case.identity), digest, args)]
    # small models first, which say most in least time; a variant may ask for the layer that the base case took
    todo.sort(key=lambda case: case.member.parameters)
    rounds = [[case for case in todo if (case.variant.name == BASE) is first] for first in (True, False)]
    stop = threading.Event()
    interrupted = False
    SCRATCH.mkdir(parents=True, exist_ok=True)
    with progress(len(todo), "cases", "sweeping") as bar, ThreadPoolExecutor(args.jobs) as pool:
        try:
            for part in rounds:
                futures = [pool.submit(_sweep, case, digest, _base_layer(case, kept), args, stop) for case in part]
                for future in as_completed(futures):
                    record = future.result()
                    kept[record["identity"]] = record
                    document["records"] = _ordered(kept)
                    records.write(document, args.output)
                    bar.write(_line(record))
                    bar.advance()
        except BaseException as error:
            stop.set()
            pool.shutdown(cancel_futures=True)
            interrupted = isinstance(error, KeyboardInterrupt)
            if not interrupted:
                raise
    records.write(document, args.output)
    written = args.output.with_suffix(".md")
    report = tables if args.draw is None else draw_tables
    write_text(report.markdown(document), written)
    print(report.headline(document))
    if interrupted:
        print(
            f"coverage.py: interrupted; what ended is in {args.output}, and the same command goes on.", file=sys.stderr
        )
        return 130
    print(f"{args.output}, {written}: {len(todo)} cases, {time.monotonic() - began:.0f} s")
    asked = {case.identity for case in cases}
    verdicts = {records.verdict(kept[identity]) for identity in asked if identity in kept}
    return 0 if verdicts <= {records.RIGHT, records.NOT_ACCEPTED} else 1


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("coverage.py", __doc__, _EPILOG)
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="families (beit, timm/beit) or models (timm:resnet50); default: all"
    )
    parser.add_argument(
        "--draw", type=int, metavar="SEED", help="in place of it all: cases of a seeded draw, into drawn.json"
    )
    parser.add_argument("--cases", type=int, default=70, metavar="N", help="of --draw (default: 70)")
    parser.add_argument("--members", type=int, default=1, metavar="N", help="of each family, the smallest (default: 1)")
    parser.add_argument(
        "--max-parameters",
        type=float,
        metavar="M",
        help=f"millions; larger models are left out (200; {MOST_PARAMETERS:g} with --draw)",
    )
    parser.add_argument(
        "--variant",
        nargs="+",
        default=[BASE],
        choices=("all", *(variant.name for variant in VARIANTS)),
        metavar="NAME",
        help="; ".join(f"{variant.name}: {variant.what}" for variant in VARIANTS) + "; all: all but base",
    )
    parser.add_argument(
        "--variant-families", type=int, default=12, metavar="N", help="drawn for variants, unless --only (default: 12)"
    )
    parser.add_argument("--seed", type=int, default=6, help="of that draw (default: 6)")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES), metavar="NAME")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 2), metavar="N", help="at a time")
    parser.add_argument("--timeout", type=float, default=1800, metavar="S", help="seconds of a process (default: 1800)")
    parser.add_argument("--memory", type=float, default=10, metavar="GIB", help="of a process (default: 10)")
    parser.add_argument("--seconds", type=float, default=2, metavar="S", help="of timing a case; 0: none (default: 2)")
    parser.add_argument("--again", action="store_true", help="sweep cases that are done, too")
    parser.add_argument(
        "--keep-right", action="store_true", help="leave out cases that were right with sources since changed, too"
    )
    parser.add_argument("--list", action="store_true", help="say which cases there are, and sweep none")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: coverage.json or drawn.json")
    return parser


def _cases(args: argparse.Namespace, table: dict[str, list[Member]]) -> tuple[list[SweepCase], dict[str, str]]:
    if (
        min(args.jobs, args.variant_families, args.cases) < 1
        or not min(args.timeout, args.memory, args.max_parameters) > 0
    ):
        raise ValueError("jobs, variant-families, cases, timeout, memory and max-parameters must be above zero.")
    if args.output.suffix != ".json":
        raise ValueError(f"{args.output} is not a .json file; the tables go into an .md file beside it.")
    most = round(1e6 * args.max_parameters)
    members, left_out = choose(table, args.members, most, args.only)
    if args.draw is not None:
        drawn_cases = draw_cases(table, args.cases, args.draw, most)
        return [case for case in drawn_cases if not args.only or named(case.member, args.only)], {}
    names = [variant.name for variant in VARIANTS if variant.name in args.variant]
    if "all" in args.variant:
        names += [variant.name for variant in VARIANTS if variant.name not in (BASE, *names)]
    drawn = {member.family for member in members}
    if not args.only:
        drawn = set(draw_families(drawn, args.variant_families, args.seed))
    found = [SweepCase(member, find_variant(BASE)) for member in members if BASE in names]
    for name in names:
        variant = find_variant(name)
        found += [SweepCase(member, variant) for member in members if name != BASE and member.family in drawn]
    return found, left_out


def _begin(args: argparse.Namespace, argv: list[str], every: list[str], left_out: dict[str, str]) -> dict[str, Any]:
    """The document with what it already has: this sweep replaces cases and adds to them."""
    found = records.read(args.output) if args.output.exists() else {"records": [], "left_out": {}}
    kept = found["left_out"] if args.only else left_out
    return {
        "schema": records.SCHEMA,
        "kind": "coverage",
        "command": shlex.join(["python", "benchmarks/coverage.py", *argv]),
        "families": every,
        "left_out": kept,
        "records": found["records"],
    }


def _done(record: Mapping[str, Any] | None, digest: str, args: argparse.Namespace) -> bool:
    """Whether the case need not be swept again."""
    if record is None:
        return False
    if args.keep_right and records.verdict(record) == records.RIGHT:
        return True
    return record["key"] == digest and set(args.runtimes) <= set(record["runtimes"])


def _base_layer(case: SweepCase, kept: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The layer that "auto" took for this model, where a base case has said so."""
    base = kept.get(SweepCase(case.member, find_variant(BASE)).identity, {"stages": {}})
    layers = base["stages"].get("export", {}).get("layers")
    return layers[0]["name"] if layers else None


def _sweep(
    case: SweepCase, digest: str, layer: str | None, args: argparse.Namespace, stop: threading.Event
) -> dict[str, Any]:
    """All stages of a case, each kept as soon as it ends."""
    began = time.monotonic()
    stages: dict[str, Any] = {}
    ended: dict[str, str] = {}
    current = ["start"]
    record = {
        "identity": case.identity,
        "key": digest,
        "family": case.member.family,
        "specification": case.member.specification,
        "variant": case.variant.name,
        "runtimes": args.runtimes,
        "environment": describe(PACKAGES),
        "stages": stages,
        "ended": ended,
    }

    def on_line(line: str) -> None:
        found = json.loads(line)
        if found["stage"] == "begin":
            current[0] = found["value"]["stage"]
        else:
            stages[found["stage"]] = found["value"]

    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        request = {
            "specification": case.member.specification,
            "variant": dataclasses.asdict(case.variant),
            "layer": layer,
            "folder": folder,
            "runtimes": [name for name in args.runtimes if name != BUILDER],
            "seconds": args.seconds,
        }
        limits = {"seconds": args.timeout, "most_mib": 1024 * args.memory, "stop": stop}
        reason = supervise("sweep.worker", [json.dumps(request)], on_line, **limits)
        if reason is not None:
            ended[current[0]] = reason
        if BUILDER in args.runtimes and "layers" in stages.get("export", {}):
            graph = str(Build(Path(folder)).path(ENGINE))
            reason = supervise("sweep.rtx", [graph], lambda line: stages.update({BUILDER: json.loads(line)}), **limits)
            if reason is not None:
                ended[BUILDER] = reason
    return {**record, "seconds": round(time.monotonic() - began, 1)}


def _ordered(kept: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """By variant, then by family; drawn cases as they were drawn."""
    places = {variant.name: place for place, variant in enumerate(VARIANTS)}

    def key(record: Mapping[str, Any]) -> tuple[int, str, str]:
        name = record["variant"]
        return places.get(name, len(places)), "" if name in places else name, record["identity"]

    return sorted(kept.values(), key=key)


def _line(record: Mapping[str, Any]) -> str:
    found = records.verdict(record)
    why = f": {records.reason(record)}" if found != records.RIGHT else ""
    return f"{record['identity']}, {record['seconds']:.0f} s: {found}{why}"


if __name__ == "__main__":
    # its processes end with it, however it is ended
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
