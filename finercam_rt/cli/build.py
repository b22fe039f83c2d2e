"""`finercam build`: an engine file into a TensorRT plan with its explanation inside."""

from __future__ import annotations

import argparse
import re
import threading
from dataclasses import replace
from pathlib import Path

from finercam_rt.cli.progress import Progress, progress
from finercam_rt.errors import InputError
from finercam_rt.onnx_metadata import read_manifest
from finercam_rt.tensorrt.build import Written, build_plan
from finercam_rt.tensorrt.builder import BATCH, CLASSES, BuildOptions, Range
from finercam_rt.tensorrt.library import RUNTIMES, load_library, targets
from finercam_rt.tensorrt.plan import SUFFIX, sidecar_of
from finercam_rt.tensorrt.plugin import AUTO, MAP_KERNELS, PLUGIN
from finercam_rt.tensorrt.script import write_script

_EPILOG = """\
NAME.plan is exactly what TensorRT wrote; NAME.json beside it says what it is: the manifest, what it was built from, by
and for. A plan of TensorRT runs with that version on the kind of GPU that it was built on. A plan of TensorRT-RTX is
built on any machine, with or without a GPU, and runs on the RTX GPUs that it was built for.

examples:
  finercam build birds.onnx -o birds.plan --max-batch 64
  finercam build birds.onnx -o birds.plan --runtime tensorrt-rtx --compute-capability SM89,SM120
  finercam build birds.onnx --script birds.sh --max-batch 4     # on the device: sh birds.sh
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "build",
        help="build an engine file into a TensorRT plan",
        description="Build an engine file into a TensorRT plan, with its explanation inside.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("engine", metavar="ENGINE", type=Path, help="the .onnx file that `finercam export` wrote")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help=f"NAME{SUFFIX} (default: beside ENGINE)")
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="auto",
        help="what builds and runs it (default: tensorrt where it and a GPU are here, else tensorrt-rtx)",
    )
    shapes = parser.add_argument_group("images a run")
    shapes.add_argument("--min-batch", metavar="N", type=int, help=f"at least (default: {BATCH[0]})")
    shapes.add_argument("--opt-batch", metavar="N", type=int, help=f"what it is tuned for (default: {BATCH[1]})")
    shapes.add_argument("--max-batch", metavar="N", type=int, help=f"at most (default: {BATCH[2]})")
    shapes.add_argument("--max-classes", metavar="K", type=int, help=f"of a zero-shot model (default: {CLASSES[2]})")
    parser.add_argument(
        "--compute-capability",
        metavar="SM,...",
        help="GPUs that it runs on, such as SM89,SM120, of tensorrt-rtx (default: all from SM80 on)",
    )
    parser.add_argument("--workspace", metavar="MIB", type=int, help="GPU memory that a kernel may take (default: all)")
    parser.add_argument(
        "--tf32", action="store_true", help="let float32 products round their inputs: faster, not what was verified"
    )
    parser.add_argument(
        "--optimization-level", metavar="N", type=int, choices=range(6), help="0 to 5: quick build to quick plan"
    )
    parser.add_argument(
        "--version-compatible", action="store_true", help="later versions can run it too, of tensorrt alone"
    )
    parser.add_argument(
        "--map-kernel",
        choices=MAP_KERNELS,
        default=AUTO,
        help="plugin: a kernel inside the plan draws the map, of tensorrt and head taps (default: as the head says)",
    )
    parser.add_argument(
        "--timing-cache", metavar="FILE", type=Path, help="keeps what builds measure, for the next, of tensorrt alone"
    )
    parser.add_argument(
        "--script",
        metavar="FILE",
        type=Path,
        help="build nothing; write a shell script that builds it with trtexec, on a device without this package",
    )
    parser.add_argument("--force", action="store_true", help="build it even where it is up to date")
    parser.add_argument("--json", action="store_true", help="print the sidecar")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build and write; see build_plan."""
    plan = args.engine.with_suffix(SUFFIX) if args.output is None else args.output
    asked = _capabilities(args.compute_capability)
    if args.workspace is not None and args.workspace < 1:
        raise InputError(f"--workspace is {args.workspace}; give at least 1 MiB.")
    batch = _range("batch", BATCH, args.min_batch, args.opt_batch, args.max_batch)
    classes = _range("classes", CLASSES, None, None, args.max_classes)
    if args.max_classes is not None and read_manifest(args.engine).zero_shot is None:
        raise InputError(
            f"--max-classes is of zero-shot models, whose classes come with each run, and {args.engine} has classes of "
            "its own; leave it out."
        )
    options = BuildOptions(
        batch=batch,
        classes=classes,
        capabilities=(),
        workspace_mib=args.workspace,
        tf32=args.tf32,
        optimization_level=args.optimization_level,
        version_compatible=args.version_compatible,
        map_kernel=args.map_kernel,
    )
    if args.script is not None:
        return _write_script(args, options)
    library = load_library(args.runtime, cross=bool(asked))
    options = replace(options, capabilities=targets(library, asked))
    with progress(100, "%", "building") as bar:
        written = build_plan(
            args.engine,
            plan,
            library,
            options,
            timing_cache=args.timing_cache,
            force=args.force,
            on_progress=_Percent(bar),
        )
    print(written.info.to_json() if args.json else summary(written, plan))
    return 0


def _write_script(args: argparse.Namespace, options: BuildOptions) -> int:
    for name in ("output", "compute_capability", "force", "json"):
        if getattr(args, name):
            raise InputError(
                f"--{name.replace('_', '-')} does not go with --script, which builds NAME{SUFFIX} beside NAME.onnx "
                "for the device that it runs on; leave it out."
            )
    write_script(args.engine, args.script, options, args.timing_cache)
    print(f"{args.script}: copy it and {args.engine.name} to the device, into one folder; there: sh {args.script.name}")
    return 0


class _Percent:
    """Shares of the work, which come from several threads, as steps of a bar of 100."""

    def __init__(self, bar: Progress) -> None:
        self._bar, self._done, self._lock = bar, 0, threading.Lock()

    def __call__(self, share: float, _phase: str) -> None:
        with self._lock:
            steps = int(100 * share) - self._done
            if steps > 0:
                self._done += steps
                self._bar.advance(steps)


def summary(written: Written, plan: Path) -> str:
    """What was made, in a few lines."""
    info = written.info
    built = "is up to date; --force builds it again" if written.seconds is None else f"in {written.seconds:.1f} s"
    least, usual, most = info.batch
    lines = [
        f"{plan}: {info.manifest.model.name}, {info.plan_bytes / 1e6:.1f} MB, {built}",
        f"  {info.flavour} {info.version} for {', '.join(info.capabilities)}; {info.manifest.precision}, "
        f"{least} to {most} images a run, tuned for {usual}",
    ]
    if info.options["map_kernel"] == PLUGIN:
        lines.append("  the map is drawn by a kernel inside the plan")
    if info.kernels is not None:
        lines.append(
            f"  {info.kernels['total']} kernels, {info.kernels['behind_logits']} of them for the explanation alone"
        )
    return "\n".join([*lines, f"  {sidecar_of(plan)} says what it is, and belongs beside it"])


def _range(what: str, default: Range, least: int | None, usual: int | None, most: int | None) -> Range:
    """The values that are given, and defaults that fit them."""
    for name, value in (("min", least), ("opt", usual), ("max", most)):
        if value is not None and value < 1:
            raise InputError(f"--{name}-{what} is {value}; give at least 1.")
    first = least if least is not None else min(default[0], *(v for v in (usual, most) if v is not None), default[0])
    last = most if most is not None else max(default[2], usual or 0, first)
    middle = usual if usual is not None else min(max(default[1], first), last)
    if not first <= middle <= last:
        raise InputError(
            f"the numbers of {what} {first}, {middle}, {last} (min, opt, max) fall; give none below the one before."
        )
    return first, middle, last


def _capabilities(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    names = tuple(name.strip().upper() for name in text.split(","))
    for name in names:
        if not re.fullmatch(r"SM\d{2,3}", name):
            raise InputError(f"--compute-capability {text!r} is not a list such as SM89,SM120.")
    return names
