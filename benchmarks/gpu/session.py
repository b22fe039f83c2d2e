"""Measure the kernels and the engines on a GPU, in as much time as there is, and go on later where it ended.

kernels: each kernel on sizes from one map to several times the L2, beside the same in plain torch and torch.compile.
What a kernel moves, every input and output once, over its time is its bandwidth; it stands beside that of a large copy
within the device, read and written, measured in the same process. Times are of CUDA graphs of many calls, each with
its own inputs, behind a write of 256 MiB that clears the L2; medians of repetitions. What cannot be captured (remove
brings numbers from the host, rank waits) is queued call by call, with its launches in its time.

sharing: one block, two levels of blocks, or a cluster of them: the forms of the kernel of `cam` in turn, on batches of
1 to 256, and which of them is the fastest at each size (docs/cam-on-cuda.md).

calls: what the host pays for engine(batch) beyond the runtime's own run, whether memory is allocated, whether it waits.

models: ResNet-50, ViT-B/16 and DINOv2 ViT-B/14 with random weights, fp32 and fp16, against the plain graph in ONNX
Runtime's CUDA provider and against grad-cam and torch-cam in PyTorch, whose model is converted to half for fp16; the
contenders of a model in turn, in one process. TF32 is off for all, and cuDNN's fastest convolutions are searched for.
Images lie on the device before a call. Latency is until the device is done; throughput of calls one behind the other.

Nothing is timed that is not right: kernels against plain torch in float64, engines and peers against eager autograd.
What fails has an error in the place of its times. GPU clocks are as they are found, and in every record.
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comparison.cases import DEVICE_CASES, find_cases
from comparison.script import RESULTS, make_parser, refuse

from finercam_rt import _core
from finercam_rt.cli.progress import progress
from gpu import calls, documents, goals, models, tables
from gpu.children import Message, run
from gpu.contenders import PRECISIONS
from gpu.measuring import OURS
from gpu.plan import PARTS, Job, jobs_of
from gpu.sharing import BY_SIZE, best

_EPILOG = """\
examples:
  python benchmarks/run.py --device cuda --parts kernels --seconds 500 --resume
  python benchmarks/run.py --device cuda --rehearse --output-folder build/rehearsal    # small, on the CPU
"""
DAY = 86400.0
REHEARSAL = Path(__file__).resolve().parents[2] / "build" / "rehearsal"


def main(argv: list[str]) -> int:
    """0: all measured. 1: some jobs failed or were not begun, each named. 2: a wrong argument, or no GPU."""
    args = _parser().parse_args(argv)
    try:
        gpu = _gpu(rehearsal=args.rehearse or args.export or args.list)
        if not 0 < args.seconds <= DAY:
            raise ValueError(f"seconds must be above zero, and {DAY:.0f} at most.")
        folder = args.output_folder or (REHEARSAL if args.rehearse else RESULTS)
        every = [job for job in jobs_of(args.parts, rehearsal=args.rehearse) if _wanted(job["name"], args.only)]
        if not every:
            raise ValueError(f"no case has {' and '.join(args.only)} in its name; run with --list to see them.")
        if args.export:
            return _export()
        if args.list:
            print("\n".join(job["name"] for job in every))
            return 0
        folder.mkdir(parents=True, exist_ok=True)
        return _measure(every, gpu, folder, args, ["--device", "cuda", *argv])
    except ValueError as error:
        return refuse("run.py", error)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("run.py --device cuda", __doc__, _EPILOG)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all four")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="cases whose names hold all of these")
    parser.add_argument("--seconds", type=float, default=DAY, metavar="S", help="begin no case after this time")
    parser.add_argument(
        "--resume", action="store_true", help="keep the records that are there; failures are tried again"
    )
    parser.add_argument("--output-folder", type=Path, metavar="DIR", help="default: benchmarks/results")
    parser.add_argument("--rehearse", action="store_true", help="small, on the CPU, where the figures mean nothing")
    parser.add_argument("--list", action="store_true", help="name the cases and measure nothing")
    parser.add_argument(
        "--export", action="store_true", help="make the models' graphs and measure nothing; no GPU needed"
    )
    return parser


def _export() -> int:
    """Those of the calls first: they take a second."""
    jobs = [(calls.CASE, "fp32"), *((case.name, precision) for case in DEVICE_CASES for precision in PRECISIONS)]
    failed = 0
    with progress(len(jobs), "graphs", "exporting") as bar:
        for name, precision in jobs:
            began = time.monotonic()
            try:
                models.export(find_cases([name])[0], precision)
                bar.write(f"{name} {precision}: {time.monotonic() - began:.0f} s")
            except Exception as error:  # of any library: the other models can be measured all the same
                failed += 1
                bar.write(f"{name} {precision}: {type(error).__name__}: {error}")
            bar.advance()
    return 1 if failed else 0


def _gpu(*, rehearsal: bool) -> str:
    if rehearsal:
        return "cpu"
    devices, reason = _core.cuda_status()
    if not devices:
        raise ValueError(f"there is no GPU here ({reason}); add --rehearse to try all of it on the CPU.")
    return _core.cuda_device_name(0)


def _wanted(name: str, texts: Sequence[str]) -> bool:
    return all(text in name for text in texts)


def _measure(every: list[Job], gpu: str, folder: Path, args: argparse.Namespace, words: list[str]) -> int:
    began = time.time()
    found = {part: _open(part, gpu, folder, args) for part in args.parts}
    for document, _ in found.values():
        document["commands"].append(shlex.join(["python", "benchmarks/run.py", *words]))
    jobs = [left for job in every if (left := _left(job, found[job["part"]][0])) is not None]
    environments: dict[str, int] = {}
    current: dict[str, Any] | None = None
    ended = 0
    with progress(len(jobs), "cases", "measuring") as bar:
        for message in run(jobs, "cpu" if args.rehearse else "cuda", began + args.seconds, rehearsal=args.rehearse):
            if message.environment is not None:
                current, environments = message.environment, {}
                continue
            job = message.job
            assert job is not None
            if message.ended:
                ended += 1
                bar.advance()
                continue
            document, path = found[job["part"]]
            if job["part"] not in environments:
                environments[job["part"]] = len(document["environments"])
                document["environments"].append(current)
            document["records"].append(_record(message, job, environments[job["part"]]))
            documents.write(document, path)
            bar.write(_line(document["records"][-1]))
    rows, failed = [], []
    for document, path in found.values():
        documents.write(document, path)
        rows += [goals.Row(**row) for row in document["goals"]]
        failed += [record for record in document["records"] if _failed(record)]
        print(f"{path}: {len(document['records'])} records")
    print("A rehearsal: its figures mean nothing." if args.rehearse else goals.as_table(rows))
    if "sharing" in found and not args.rehearse:
        print(tables.forms_of_cam([r for r in found["sharing"][0]["records"] if r["kind"] == "sharing"]))
    not_begun = len(jobs) - ended
    left = f", {not_begun} not begun: run it again with --resume" if not_begun else ""
    print(f"{ended} cases in {time.time() - began:.0f} s, {len(failed)} failed{left}")
    return 1 if failed or not_begun else 0


def _open(part: str, gpu: str, folder: Path, args: argparse.Namespace) -> tuple[dict[str, Any], Path]:
    path = documents.path_of(folder, gpu, part)
    if not args.resume or not path.exists():
        return documents.new(part, gpu, rehearsal=args.rehearse), path
    document = documents.read(path)
    document["records"] = [record for record in document["records"] if not _failed(record)]
    return document, path


def _failed(record: dict[str, Any]) -> bool:
    """Whether there are no figures, or none of our own kernel, which was wrong or did not run."""
    own = {"kernels": ("contenders", OURS), "sharing": ("forms", BY_SIZE)}
    if record["kind"] not in own:
        return bool(record["kind"] == documents.FAILURE)
    key, name = own[record["kind"]]
    return "error" in record[key].get(name, {})


def _left(job: Job, document: dict[str, Any]) -> Job | None:
    """What of a job has no record yet."""
    done = [record for record in document["records"] if record["name"] == job["name"]]
    if "batches" not in job:
        return None if done else job
    batches = [batch for batch in job["batches"] if batch not in {record["batch"] for record in done}]
    return {**job, "batches": batches} if batches else None


def _record(message: Message, job: Job, environment: int) -> dict[str, Any]:
    about = {"name": job["name"], "environment": environment}
    if message.record is None:
        return {"kind": documents.FAILURE, **about, "error": message.error}
    return {"kind": job["part"], **about, **message.record}


def _line(record: dict[str, Any]) -> str:
    """What a record says, in one line."""
    if record["kind"] == documents.FAILURE:
        return f"{record['name']}: {record['error']}"
    if record["kind"] == "kernels":
        times = {
            name: f"{found['microseconds']['median']:.1f} us" if "microseconds" in found else found["error"]
            for name, found in record["contenders"].items()
        }
        share = f", {100 * record['share_of_copy']:.0f} % of a copy" if "share_of_copy" in record else ""
        return f"{record['name']}: {', '.join(f'{name} {text}' for name, text in times.items())}{share}"
    if record["kind"] == "sharing":
        found = best(record["forms"])
        text = "no form has a time" if found is None else "{} is the fastest, {:.2f} us; now {:.2f} us".format(*found)
        return f"{record['name']}: {text}"
    if record["kind"] == "calls":
        return f"calls: {record['call_us']['median']:.1f} us, the runtime's own {record['runtime_us']['median']:.1f} us"
    times = {name: f"{found['median']:.2f}" for name, found in record["queued_ms"].items()}
    ratios = {pair: f"{found['ratio']:.3f}" for pair, found in record["queued_ratios"].items()}
    listed = [f"{name} {text} ms" for name, text in times.items()] + [f"{pair} {text}" for pair, text in ratios.items()]
    return f"{record['name']}, batch {record['batch']}: {', '.join(listed)}"
