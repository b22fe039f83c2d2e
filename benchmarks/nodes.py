"""Where an engine's time goes beyond the plain forward's: ONNX Runtime's profile of both graphs of a case.

The two are run in turn, and each node's least time counts. Nodes are summed by operation; the names are those after
ONNX Runtime's own fusions. Export the graphs first: run.py does.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from comparison.cases import find_cases, images_of
from comparison.engines import ENGINE, FORWARD, build_of
from comparison.script import make_parser, refuse

from finercam_rt.onnx_metadata import read_manifest

Times = dict[tuple[str, str], float]
"""(operation, node) to milliseconds."""


def main(argv: list[str] | None = None) -> int:
    """0: printed. 2: a wrong argument, or graphs that were not exported."""
    parser = make_parser("nodes.py", __doc__)
    parser.add_argument("case", metavar="CASE", help="a case of run.py")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--runs", type=int, default=15, metavar="N", help="default: 15")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="rows printed (default: 20)")
    args = parser.parse_args(argv)
    try:
        (case,) = find_cases([args.case])
        graphs = build_of(case)
        if not graphs.folder.exists():
            raise ValueError(f"{args.case} is not exported; run benchmarks/run.py --cases {args.case} first.")
        if min(args.batch, args.threads, args.runs, args.top) < 1:
            raise ValueError("batch, threads, runs and top must be above zero.")
    except ValueError as error:
        return refuse("nodes.py", error)
    engine_file, forward_file = graphs.graph(ENGINE), graphs.graph(FORWARD)
    manifest = read_manifest(engine_file)
    images = images_of(args.batch, manifest.input.size)
    contrast = {
        "target": np.full(args.batch, -1),
        "references": np.full((args.batch, manifest.references), -1),
        "alpha": np.ones(args.batch, np.float32),
    }
    feeds = {engine_file: {"images": images, **contrast}, forward_file: {"images": images}}
    engine, forward = _profile(feeds, args.threads, args.runs)
    print(_table(engine, forward, args.top))
    return 0


def _profile(feeds: dict[Path, dict[str, Any]], threads: int, runs: int) -> list[Times]:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        sessions = []
        for number, path in enumerate(feeds):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / str(number))
            sessions.append(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))
        for _ in range(runs):
            for session, feed in zip(sessions, feeds.values(), strict=True):
                session.run(None, feed)
        return [_least(json.loads(Path(session.end_profiling()).read_text())) for session in sessions]


def _least(events: list[dict[str, Any]]) -> Times:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = event["args"]["op_name"], event["name"].removesuffix("_kernel_time")
            found[key].append(event["dur"] / 1e3)
    return {key: min(values) for key, values in found.items()}


def _table(engine: Times, forward: Times, top: int) -> str:
    """Operations by how much more the engine spends in them, then its dearest nodes that the forward has not."""

    def row(title: str, ours: list[float], plain: list[float]) -> tuple[float, str]:
        more = sum(ours) - sum(plain)
        times_and_nodes = f"{sum(ours):9.3f} {sum(plain):9.3f} {more:+9.3f}   {len(ours)}/{len(plain)}"
        return more, f"{title:28} {times_and_nodes}"

    def of(operation: str, times: Times) -> list[float]:
        return [value for (found, _), value in times.items() if found == operation]

    operations = {operation for operation, _ in (*engine, *forward)}
    rows = [row(operation, of(operation, engine), of(operation, forward)) for operation in operations]
    rows.sort(key=lambda found: -abs(found[0]))
    lines = [f"{'operation':28} {'engine ms':>9} {'plain ms':>9} {'more':>9}   nodes"]
    lines.append(row("all", list(engine.values()), list(forward.values()))[1])
    lines += [text for _, text in rows[:top]]
    names = {name for _, name in forward}
    own = sorted(((v, o, n) for (o, n), v in engine.items() if n not in names), reverse=True)[:top]
    lines += ["", "nodes of the engine whose name the plain graph does not have, ms"]
    return "\n".join([*lines, *(f"{value:9.3f}  {operation:20} {name}" for value, operation, name in own)])


if __name__ == "__main__":
    sys.exit(main())
