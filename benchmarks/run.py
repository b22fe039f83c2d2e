"""Compare our engines with plain forward passes and with other libraries' explanations, and write every sample.

How it is measured. Contenders that are compared run in one process, in turn: in each round every one of them once, in
a new random order, after 2 ms of rest; one that takes less than 0.1 s runs once before, uncounted, since the one before
it has left its own data in the caches. A ratio is taken within rounds, so that a slow spell of the machine is in both
of its times. What that leaves is where each model's weights happen to lie in memory: two sessions of one file differ
by up to a percent for as long as their process lives. So our own ratios are of three processes (two with two threads),
which load the contenders in different orders, their intervals are drawn from processes first and rounds then, and the
plain forward pass is there twice: how far that ratio is from 1 is what this method cannot see. Plain passes have the
bindings, buffers and copies of our engine, so that a ratio has the whole of engine(batch) above and nothing idle below.

Two clocks. With one thread CPU time is the figure: it is the wall time of an idle machine and is nearly blind to other
processes. With two it is wall time, for which the machine must be idle: CPU time there hides that one of the threads
waits while the other works alone. Both are in the file. Every contender is held to its threads, idle ones do not spin,
and one that takes more CPU than its threads can is named. Two threads share the caches and the memory's bandwidth;
both sides of a ratio do.

Memory is the peak of resident memory while a contender runs, alone in a process, after loading; what loading freed is
given back to the system first, because how much of it stays differs from process to process (see comparison/memory.py).

Verified before it is timed: logits and maps against eager autograd; for bf16 and int8 by the cosine of the maps; of
openvino-xai, whose method is another, that maps are finite and not constant.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from comparison import records, timing
from comparison.cases import Case, find_cases
from comparison.catalogue import NAMES, variants_of
from comparison.contenders import (
    FIVE_CONTRASTS,
    GRADCAM,
    GROUPS,
    INT8,
    LAYER_CAM,
    OPENVINO,
    OPENVINO_PLAIN,
    OURS,
    PLAIN,
    TORCHCAM,
    Group,
)
from comparison.engines import FOLDER, Build, build_of
from comparison.environment import describe
from comparison.script import RESULTS, make_parser, refuse

from finercam_rt.cli.progress import Progress, progress

HERE = Path(__file__).resolve().parent
PACKAGES = (
    "finercam-rt",
    "onnxruntime",
    "torch",
    "timm",
    "onnx",
    "onnxscript",
    "numpy",
    "grad-cam",
    "torchcam",
    "captum",
    "openvino",
)
DEVICES = ("cpu", "cuda")
JOB_TIMEOUT = 3600
MEMORY_OF = (OURS, PLAIN, FIVE_CONTRASTS, LAYER_CAM, INT8, OPENVINO, OPENVINO_PLAIN, TORCHCAM, GRADCAM)
MEMORY_PROCESSES = 3
OPENVINO_XAI = HERE.parent / "build" / "openvino-xai" / "bin" / "python"
_EPILOG = """\
openvino-xai 1.1.0 needs OpenVINO 2024.4 and NumPy 1, so it lives in an environment of its own (Python 3.8 to 3.12):
  python -m venv build/openvino-xai && build/openvino-xai/bin/pip install openvino-xai==1.1.0 "numpy<2"
Where that is not there it is left out, and the tables say so.

Other libraries and other precisions are measured at one thread with batches 1 and 4 and at two threads with batch 1:
they are far enough from ours that the rest would say the same. All of it takes some 35 minutes on two idle cores, 8 of
them for the exports, which are kept in build/benchmarks until the sources change. What was measured is written after
each job, so a run that was stopped goes on with --resume.
example: python benchmarks/run.py --cases resnet50 vit_base --batches 1 4 --threads 1 --output build/mine.json
"""


def main(argv: list[str] | None = None) -> int:
    """0: all measured. 1: some jobs failed, each with a record. 2: a wrong argument."""
    given = sys.argv[1:] if argv is None else argv
    device, rest = _device_of(given)
    if device == "cuda":
        from gpu import session

        return session.main(rest)
    args = _parser().parse_args(rest)
    try:
        cases = find_cases(args.cases)
        if args.rounds < 2 or not args.seconds > 0 or min(args.batches) < 1 or min(args.threads) < 1:
            raise ValueError("seconds, batches and threads must be above zero, and rounds above one.")
        if args.openvino_xai_python and not args.openvino_xai_python.exists():
            raise ValueError(f"there is no {args.openvino_xai_python}; run.py --help says how to make one.")
        document = _begin(args)
    except ValueError as error:
        return refuse("run.py", error)
    began = time.monotonic()
    every = {_identity(job): job for job in _jobs(cases, args)}
    # records of other graphs or options would stand in the same table
    document["records"] = [record for record in document["records"] if _identity(record["asked"]) in every]
    done = {_identity(record["asked"]) for record in document["records"]}
    jobs = [job for identity, job in every.items() if identity not in done]
    with progress(len(jobs), "jobs", "measuring") as bar:
        for job in jobs:
            _measure(job, document, bar)
            records.write(document, args.output)
            bar.advance()
    failed = [record for record in document["records"] if record["kind"] == "failure"]
    print(f"{args.output}: {len(document['records'])} records, {len(failed)} failed, {time.monotonic() - began:.0f} s")
    print(f"next: python benchmarks/report.py {args.output}")
    return 1 if failed else 0


def _device_of(argv: list[str]) -> tuple[str, list[str]]:
    """The device, which decides what is measured, and the other arguments."""
    parser = argparse.ArgumentParser(prog="python benchmarks/run.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--device", choices=DEVICES, default=DEVICES[0])
    args, rest = parser.parse_known_args(argv)
    return args.device, rest


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("run.py", __doc__, _EPILOG)
    parser.add_argument("--device", choices=DEVICES, default=DEVICES[0], help="cuda has a --help of its own")
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="default: all but the toys")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16], metavar="N", help="default: 1 4 16")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N", help="default: 1 2")
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=NAMES,
        metavar="NAME",
        help=f"besides ours and the plain forward; default: all of {', '.join(NAMES)}",
    )
    parser.add_argument("--rounds", type=int, default=12, help="rounds in a process at most (default: 12)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=3.0,
        help="of rounds in a process for each batch (default: 3); two rounds at least",
    )
    parser.add_argument(
        "--openvino-xai-python",
        type=Path,
        metavar="PATH",
        help="the Python of an environment that has openvino-xai (default: build/openvino-xai/bin/python)",
    )
    parser.add_argument("--no-memory", action="store_true", help="leave memory out")
    parser.add_argument("--resume", action="store_true", help="keep the records that --output already has")
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu.json", metavar="FILE")
    return parser


def _begin(args: argparse.Namespace) -> dict[str, Any]:
    words = ["python", "benchmarks/run.py", "--threads", *args.threads, "--batches", *args.batches]
    words += ["--cases", *args.cases] if args.cases else []
    words += ["--contenders", *args.contenders] if args.contenders else []
    words += ["--rounds", args.rounds, "--seconds", args.seconds]
    words += ["--no-memory"] if args.no_memory else []
    found = records.read(args.output)["records"] if args.resume and args.output.exists() else []
    kept = [record for record in found if record["kind"] != "failure"]
    return {"schema": records.SCHEMA, "command": shlex.join(map(str, words)), "records": kept}


def _jobs(cases: list[Case], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    python = args.openvino_xai_python or (OPENVINO_XAI if OPENVINO_XAI.exists() else None)
    for case in cases:
        # found once, at the start: the sources may be edited while this runs
        common = {"case": case.name, "graphs": build_of(case).folder.name}
        variants = variants_of(case, args.contenders or NAMES)
        yield {"job": "build", "threads": max(args.threads), "variants": variants, **common}
        for group in GROUPS:
            contenders = _chosen(group, args.contenders)
            for threads in args.threads if contenders else ():
                batches = group.batches(threads, args.batches)
                asked = {"group": group.name, "contenders": contenders, "processes": group.repeats(threads)}
                options = {
                    "rounds": args.rounds,
                    "seconds": args.seconds,
                    # relative: the record is for others too, and resolved it would not be a virtual environment
                    "openvino_xai": os.path.relpath(python, HERE.parent) if python else None,
                }
                if batches:
                    yield {"job": "timing", "threads": threads, "batches": batches, **asked, **options, **common}
        for name in MEMORY_OF if not args.no_memory else ():
            own = name in (OURS, PLAIN)
            if own or not args.contenders or name in args.contenders:
                asked = {"contender": name, "batches": sorted(args.batches) if own else [min(args.batches)]}
                processes = MEMORY_PROCESSES if own else 1
                yield {"job": "memory", "threads": args.threads[0], "processes": processes, **asked, **common}


def _chosen(group: Group, names: list[str] | None) -> list[str]:
    """The group's contenders that were asked for, with its anchors; none where only the anchors are left."""
    if names is None:
        return list(group.contenders)
    chosen = [name for name in group.contenders if name in names or name in group.anchors]
    return chosen if len(chosen) > 1 else []


def _identity(job: Mapping[str, Any]) -> str:
    """What was asked: the graphs' name changes with the sources that make them."""
    return json.dumps({key: job[key] for key in sorted(job)})


def _measure(job: dict[str, Any], document: dict[str, Any], bar: Progress) -> None:
    (case,) = find_cases([job["case"]])
    graphs = Build(FOLDER / job["graphs"])
    base: dict[str, Any] = {
        "kind": job["job"],
        "asked": job,
        "case": case.describe(),
        "environment": describe(PACKAGES),
    }
    results: list[dict[str, Any]]
    if job["job"] == "build" and graphs.folder.exists() and not graphs.missing(job["variants"]):
        results = [graphs.record]
    elif job["job"] != "build" and not graphs.folder.exists():
        results = [{"error": "its graphs were not made"}]
    elif job["job"] == "build":
        results = [_work({**job, "graphs": str(graphs.folder)})]
    else:
        request = {key: value for key, value in job.items() if key != "processes"}
        request["graphs"] = str(graphs.folder)
        results = [_work({**request, "process": process}) for process in range(job["processes"])]
    errors = [result["error"] for result in results if "error" in result]
    if errors:
        document["records"].append({**base, "kind": "failure", "job": job["job"], "error": errors[0]})
        bar.write(f"{case.name}, {job['job']}: {errors[0]}", sys.stderr)
    elif job["job"] == "timing":
        for record in _timing_records(base, job, results):
            document["records"].append(record)
            bar.write(_line(record))
    elif job["job"] == "memory":
        if not any("left_out" in result for result in results):
            document["records"].append({**base, **_median_memory(job, results)})
    else:
        document["records"].append({**base, **results[0]})


def _timing_records(
    base: dict[str, Any], job: dict[str, Any], results: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """One record a batch, of all processes together."""
    (group,) = (found for found in GROUPS if found.name == job["group"])
    left_out = {name: reason for result in results for name, reason in result["left_out"].items()}
    for batch in job["batches"]:
        parts = [result["batches"][str(batch)] for result in results]
        runs = [{name: timing.Samples(**found) for name, found in part["samples"].items()} for part in parts]
        samples = timing.pooled(runs)
        pairs = [(over, under) for over, under in group.ratios if over in samples and under in samples]
        yield {
            **base,
            "group": group.name,
            "threads": job["threads"],
            "batch": batch,
            "layer": results[0]["layer"],
            "left_out": left_out,
            "not_held_to_threads": sorted({name for part in parts for name in part["not_held_to_threads"]}),
            "verification": [part["verification"] for part in parts],
            **{
                f"{clock}_ms": {
                    name: timing.spread([1e3 * value for value in getattr(found, clock)])
                    for name, found in samples.items()
                }
                for clock in timing.CLOCKS
            },
            "ratios": {
                clock: {f"{a} / {b}": timing.ratio(samples[a], samples[b], clock) for a, b in pairs}
                for clock in timing.CLOCKS
            },
            "samples": {name: found.as_json() for name, found in samples.items()},
        }


def _median_memory(job: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of the processes, each figure by itself, and every process."""
    keys = ("imported_mib", "load_peak_mib", "loaded_mib")
    return {
        "threads": job["threads"],
        "contender": job["contender"],
        **{key: statistics.median(result[key] for result in results) for key in keys},
        "run_peak_mib": {
            str(batch): statistics.median(result["run_peak_mib"][str(batch)] for result in results)
            for batch in job["batches"]
        },
        "processes": results,
    }


def _work(request: dict[str, Any]) -> dict[str, Any]:
    threads = str(request["threads"])
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    # threads that wait must not burn the CPU time that is measured
    variables = {"PYTHONPATH": path, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "comparison.worker", json.dumps(request)]
    try:
        done = subprocess.run(
            command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=JOB_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return {"error": f"it took more than {JOB_TIMEOUT} s"}
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"error": f"exit code {done.returncode}: {reason}"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _line(record: dict[str, Any]) -> str:
    clock = timing.headline(record["threads"])
    ratios = ", ".join(f"{name} {value['ratio']:.3f}" for name, value in record["ratios"][clock].items())
    return f"{record['case']['name']}, batch {record['batch']}, threads {record['threads']}, {clock}: {ratios}"


if __name__ == "__main__":
    sys.exit(main())
