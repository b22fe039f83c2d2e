"""`finercam bench`: latency percentiles and throughput of one engine on random input, in trtexec's terms."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from finercam_rt import _core
from finercam_rt.backends.protocol import RunTimes
from finercam_rt.cli.runtime import add_runtime, runtime_of
from finercam_rt.cuda import device_index
from finercam_rt.embeddings import ClassEmbeddings, random_embeddings
from finercam_rt.engine import Engine
from finercam_rt.engine_file import read_manifest
from finercam_rt.errors import InputError
from finercam_rt.manifest import METHODS, Manifest
from finercam_rt.packages import versions_of
from finercam_rt.processor import processor
from finercam_rt.threads import physical_cores_granted, threads_granted

SCHEMA = 1
"""The version of the JSON record."""
PERCENTILES = (90, 95, 99)
WARMUP_MS, DURATION, ITERATIONS = 200, 3.0, 10
"""trtexec's defaults: milliseconds of warm-up, then at least so many seconds and so many runs."""
RANDOM_CLASSES = 1000
"""Of an engine of a zero-shot model where no class embeddings are given."""
_GPU_TIMES = {
    "latency": "latency (H2D + compute + D2H)",
    "enqueue": "enqueue time",
    "h2d": "H2D",
    "compute": "GPU compute",
    "d2h": "D2H",
}
"""Fields of RunTimes, and what the report calls them."""
_PACKAGES = ("finercam-rt", "numpy", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx-cu13-bindings")

_EPILOG = """\
A run is engine(batch): prediction, references and map, into arrays of the caller's own. Reading and resizing of
photographs is not in it. Latency is the wall time of one run; throughput is images a second of runs one after another.

Of a plan, as trtexec reports it and by the GPU's clock: the copies to the GPU (H2D) and back (D2H), the compute between
them, the latency of the three, and the host's time to queue the compute.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "bench",
        help="measure the latency and the throughput of an engine on random input",
        description="Measure the latency and the throughput of an engine on random input.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "engine", metavar="ENGINE", type=Path, help="the .onnx file that `finercam export` wrote, or a .plan of `build`"
    )
    parser.add_argument("--batch", metavar="N", type=int, default=1, help="images a run (default: 1)")
    parser.add_argument(
        "--warmup-ms", metavar="MS", type=int, default=WARMUP_MS, help=f"runs before measuring (default: {WARMUP_MS})"
    )
    parser.add_argument(
        "--duration", metavar="S", type=float, default=DURATION, help=f"seconds to measure (default: {DURATION:g})"
    )
    parser.add_argument(
        "--iterations", metavar="N", type=int, default=ITERATIONS, help=f"runs at least (default: {ITERATIONS})"
    )
    add_runtime(parser)
    parser.add_argument(
        "--method", choices=METHODS, help="how maps are drawn, for engines of head taps (default: the engine's own)"
    )
    parser.add_argument(
        "--class-embeddings",
        metavar="FILE",
        type=Path,
        help="classes of a zero-shot model, by `finercam embed-text` (default: random)",
    )
    parser.add_argument("--json", action="store_true", help="print one record with every latency and the environment")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load, warm up, measure, print."""
    for name, value, least in (
        ("batch", args.batch, 1),
        ("warmup-ms", args.warmup_ms, 0),
        ("iterations", args.iterations, 1),
    ):
        if value < least:
            raise InputError(f"--{name} is {value}; give at least {least}.")
    if not 0 <= args.duration < float("inf"):
        raise InputError(f"--duration is {args.duration:g}; give a number of seconds, 0 or more.")
    threads = threads_granted(args.threads)
    began = time.perf_counter()
    embeddings = args.class_embeddings or _random_classes(read_manifest(args.engine))
    with Engine(
        args.engine,
        **(runtime_of(args) | {"threads": threads}),
        compute=args.compute,
        class_embeddings=embeddings,
        method=args.method,
    ) as engine:
        load = time.perf_counter() - began
        shape = (args.batch, *engine.manifest.input.shape)
        try:
            images = np.random.default_rng(0).standard_normal(shape, np.float32)
        except (MemoryError, ValueError):  # the latter of more than NumPy can count
            raise InputError(f"--batch is {args.batch}, which does not fit into memory; give fewer images.") from None
        with engine.device_times() as times:
            seconds, cpu, first = measure(lambda: engine(images), args.warmup_ms / 1e3, args.duration, args.iterations)
        record = {
            "schema": SCHEMA,
            "engine": {
                "path": str(args.engine),
                "bytes": args.engine.stat().st_size,
                "model": engine.manifest.model.name,
                "weights_sha256": engine.manifest.model.weights_sha256,
                "precision": engine.manifest.precision,
                "head": engine.manifest.head,
                "method": engine.method,
                "backend": engine.backend,
                "compute": engine.compute,
                "device": engine.device,
                "classes": engine.classes.count,
            },
            "config": {
                "batch": args.batch,
                "threads": threads,
                "warmup_ms": args.warmup_ms,
                "duration_s": args.duration,
                "iterations": args.iterations,
            },
            "environment": environment(_PACKAGES),
            "load_ms": 1e3 * load,
            "first_run_ms": 1e3 * first,
            "host_walltime_s": sum(seconds),
            "throughput": {"runs_per_s": len(seconds) / sum(seconds), "images_per_s": args.batch / np.mean(seconds)},
            "latency_ms": {key: 1e3 * value for key, value in summary(seconds).items()},
            "cpu_ms": 1e3 * cpu / len(seconds),
            "latencies_ms": [round(1e3 * value, 4) for value in seconds],
        }
        if times:
            record["gpu"] = _gpu(engine.device, times, len(seconds))
    print(json.dumps(record, indent=1) if args.json else _text(record))
    return 0


def _random_classes(manifest: Manifest) -> ClassEmbeddings | None:
    """As many as ImageNet has, for an engine of a zero-shot model."""
    if manifest.zero_shot is None:
        return None
    values = random_embeddings(RANDOM_CLASSES, manifest.zero_shot.embedding_dim)
    return ClassEmbeddings(values, tuple(f"random {index}" for index in range(len(values))))


def _gpu(device: str, times: Sequence[RunTimes], runs: int) -> dict[str, Any]:
    """What the GPU itself was measured to take, of the last `runs` runs, and which one it is."""
    index = device_index(device) or 0
    free, total = _core.cuda_memory_info(index)
    return {
        "name": _core.cuda_device_name(index),
        "compute_capability": _core.cuda_compute_capability(index),
        "memory_mib": {"total": total >> 20, "free": free >> 20},
        "graph_nodes": times[-1].graph_nodes,
        "ms": {name: summary([getattr(run, name) for run in times[-runs:]]) for name in _GPU_TIMES},
    }


def measure(
    call: Callable[[], object], warmup: float, duration: float, iterations: int
) -> tuple[list[float], float, float]:
    """Wall seconds of each call, CPU seconds of all of them, and wall seconds of the very first one.

    After `warmup` seconds of calls that do not count (one at least), calls go on for `duration` seconds and at least
    `iterations` times.
    """
    clock = time.perf_counter
    began = clock()
    call()
    first = clock() - began
    while clock() - began < warmup:
        call()
    seconds: list[float] = []
    start, cpu = clock(), time.process_time()
    while len(seconds) < iterations or clock() - start < duration:
        before = clock()
        call()
        seconds.append(clock() - before)
    return seconds, time.process_time() - cpu, first


def summary(values: Sequence[float]) -> dict[str, float]:
    """min, max, mean, median and percentiles p90, p95, p99 (linear between samples), in the unit of `values`."""
    array = np.asarray(values, np.float64)
    percentiles = {f"p{p}": float(np.percentile(array, p)) for p in PERCENTILES}
    return {
        "min": float(array.min()),
        "max": float(array.max()),
        "mean": float(array.mean()),
        "median": float(np.median(array)),
        **percentiles,
    }


def environment(packages: Sequence[str]) -> dict[str, Any]:
    """When and where a figure was measured: UTC time, processor, cores, memory, system, versions of `packages`."""
    return {
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": processor(),
        "logical_cpus": os.cpu_count(),
        "physical_cores_granted": physical_cores_granted(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "versions": {"python": platform.python_version(), **versions_of(packages)},
    }


def _text(record: dict[str, Any]) -> str:
    engine, config, host = record["engine"], record["config"], record["environment"]
    count = len(record["latencies_ms"])
    runs = f"{count} run{'s' if count != 1 else ''}"
    rows = [
        ("engine", f"{engine['path']}: {engine['model']}, {engine['precision']}, {engine['bytes'] / 1e6:.1f} MB"),
        (
            "runs on",
            f"{engine['backend']}, {engine['device']}, {engine['compute']}, {config['threads']} threads; {host['cpu']}",
        ),
        ("batch", str(config["batch"])),
        ("throughput", "{images_per_s:.2f} images/s, {runs_per_s:.2f} runs/s".format(**record["throughput"])),
        ("latency", _percentiles(record["latency_ms"])),
        ("CPU time", f"{record['cpu_ms']:.3f} ms a run"),
        ("load", f"{record['load_ms']:.1f} ms, first run {record['first_run_ms']:.3f} ms"),
        ("walltime", f"{record['host_walltime_s']:.2f} s, {runs} after {config['warmup_ms']} ms of warm-up"),
    ]
    if "gpu" in record:
        gpu = record["gpu"]
        graph = "no CUDA graph" if gpu["graph_nodes"] is None else f"a CUDA graph of {gpu['graph_nodes']} nodes"
        rows.append(("GPU", f"{gpu['name']}, {graph}; by its own clock:"))
        rows += [(f"  {title}", _percentiles(gpu["ms"][name])) for name, title in _GPU_TIMES.items()]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:{width}}  {text}" for label, text in rows)


def _percentiles(values: dict[str, float]) -> str:
    return ", ".join(
        f"{key if not key.startswith('p') else f'percentile({key[1:]}%)'} = {value:.3f} ms"
        for key, value in values.items()
    )
