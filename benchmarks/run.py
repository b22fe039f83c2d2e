"""Compare our engines with plain forward passes and with other libraries' Finer-CAM, and write every sample.

For each case, batch and number of threads: verify each contender against autograd, then time them interleaved (CPU
time of all threads, and wall time); then the memory of each contender in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from comparison import records
from comparison.cases import Case, find_cases
from comparison.contenders import CONTENDERS
from comparison.engines import FOLDER, Build, build_of

from finercam_rt.cli.bench import environment
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
)
JOB_TIMEOUT = 3600
_EPILOG = """\
A run takes about --seconds for each case, batch and number of threads (two minutes more for batch 16 of a large model),
and a minute for each case besides: all of it some 40 minutes on two idle cores. What was measured is written after each
job, so a run that was stopped goes on with --resume.
example: python benchmarks/run.py --cases resnet50 vit_base --batches 1 4 --threads 1 --output build/mine.json
"""


def main(argv: list[str] | None = None) -> int:
    """0: all measured. 1: some jobs failed, each with a record. 2: a wrong argument."""
    args = _parser().parse_args(argv)
    try:
        cases = find_cases(args.cases)
        if args.rounds < 1 or not args.seconds > 0 or min(args.batches) < 1 or min(args.threads) < 1:
            raise ValueError("rounds, seconds, batches and threads must be above zero.")
        document = _begin(args)
    except ValueError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/run.py",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [contender.name for contender in CONTENDERS]
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="default: all but the toys")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16], metavar="N", help="default: 1 4 16")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N", help="default: 1 2")
    parser.add_argument(
        "--contenders", nargs="+", choices=names, help="besides ours and the plain forward; default: all"
    )
    parser.add_argument("--rounds", type=int, default=40, help="rounds at most (default: 40)")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="for each case, batch and number of threads (default: 20)"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave memory out")
    parser.add_argument("--resume", action="store_true", help="keep the records that --output already has")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "cpu.json", metavar="FILE")
    return parser


def _begin(args: argparse.Namespace) -> dict[str, Any]:
    words = ["python", "benchmarks/run.py", "--threads", *args.threads, "--batches", *args.batches]
    words += ["--cases", *args.cases] if args.cases else []
    words += ["--contenders", *args.contenders] if args.contenders else []
    words += ["--rounds", args.rounds, "--seconds", args.seconds]
    found = records.read(args.output)["records"] if args.resume and args.output.exists() else []
    kept = [record for record in found if record["kind"] != "failure"]
    return {"schema": records.SCHEMA, "command": shlex.join(map(str, words)), "records": kept}


def _jobs(cases: list[Case], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for case in cases:
        # found once, at the start: the sources may be edited while this runs
        common = {"case": case.name, "graphs": build_of(case).folder.name}
        yield {"job": "build", "threads": max(args.threads), **common}
        for threads in args.threads:
            options: dict[str, Any] = {"rounds": args.rounds, "seconds": args.seconds, "only": args.contenders}
            yield {"job": "timing", "threads": threads, "batches": args.batches, **options, **common}
        for contender in CONTENDERS if not args.no_memory else ():
            if not args.contenders or contender.name in args.contenders or not contender.needs_torch:
                asked = {"contender": contender.name, "batches": args.batches}
                yield {"job": "memory", "threads": args.threads[0], **asked, **common}


def _identity(job: Mapping[str, Any]) -> str:
    """What was asked: the graphs' name changes with the sources that make them."""
    return json.dumps({key: job[key] for key in sorted(job)})


def _measure(job: dict[str, Any], document: dict[str, Any], bar: Progress) -> None:
    (case,) = find_cases([job["case"]])
    graphs = Build(FOLDER / job["graphs"])
    request = {**job, "graphs": str(graphs.folder)}
    base: dict[str, Any] = {"kind": job["job"], "asked": job, "case": case.describe(), "environment": _environment()}
    result: dict[str, Any]
    if job["job"] == "build" and graphs.folder.exists():
        result = graphs.record
    elif job["job"] != "build" and not graphs.folder.exists():
        result = {"error": "its graphs were not made"}
    else:
        result = _work(request)
    if "error" in result:
        document["records"].append({**base, "kind": "failure", "job": job["job"], **result})
        bar.write(f"{case.name}, {job['job']}: {result['error']}", sys.stderr)
    elif job["job"] == "timing":
        shared = {"threads": job["threads"], "layer": result["layer"], "left_out": result["left_out"]}
        for batch, found in result["batches"].items():
            record = {**base, **shared, "batch": int(batch), **found}
            document["records"].append(record)
            bar.write(_line(record))
    elif "left_out" not in result:
        asked: dict[str, Any] = {key: job[key] for key in ("threads", "contender") if key in job}
        document["records"].append({**base, **asked, **result})


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


def _environment() -> dict[str, Any]:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", "../finercam_rt", "../export", "../csrc", ".", ":!results")
    return {
        **environment(PACKAGES),
        "commit": git("rev-parse", "HEAD") or None,
        "sources_changed": bool(changed),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _line(record: dict[str, Any]) -> str:
    ratios = ", ".join(f"{name} {value['ratio']:.3f}" for name, value in record["ratios"]["cpu"].items())
    return f"{record['case']['name']}, batch {record['batch']}, threads {record['threads']}: {ratios}"


if __name__ == "__main__":
    sys.exit(main())
