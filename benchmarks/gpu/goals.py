"""What issue 4 asks of a GPU, beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from comparison.contenders import GRADCAM, OURS, PLAIN, TORCHCAM
from comparison.script import table

from gpu.measuring import COMPILED, TORCH
from gpu.measuring import OURS as KERNEL

Record = dict[str, Any]


class Row(NamedTuple):
    """measured, met and at are None where nothing was measured; at: where, of several the worst."""

    part: str
    goal: str
    bound: str
    measured: float | None
    met: bool | None
    at: str | None


class Figure(NamedTuple):
    """One figure of one record."""

    value: float
    at: str


def rows(part: str, records: Sequence[Record]) -> list[Row]:
    """The goals of a part of the benchmark, held to its records."""
    found = [record for record in records if record["kind"] == part]
    if part == "kernels":
        return _kernels(found)
    if part == "sharing":  # it serves a decision, not a goal
        return []
    return _calls(found) if part == "calls" else _models(found)


def _kernels(records: Sequence[Record]) -> list[Row]:
    found = []
    for kernel in ("cam", "render"):
        own = [r for r in records if r["kernel"] == kernel and r["several_caches"] and "share_of_copy" in r]
        shares = [Figure(r["share_of_copy"], _kernel_at(r)) for r in own]
        goal = f"{kernel}, inputs several times the L2: share of the copy bandwidth"
        found.append(_row("kernels", goal, ">=", 0.85, shares))
    first = ("gradcam nchw float32", "1x2048x7x7")
    times = [Figure(_micros(r, KERNEL), "cold cache") for r in records if (r["variant"], r["size"]) == first]
    found.append(_row("kernels", "cam of one 2048 x 7 x 7 map, us", "<=", 6.0, _known(times)))
    times = [
        Figure(_micros(r, KERNEL), f"{r['variant']}, cold cache")
        for r in records
        if r["kernel"] == "render" and r["size"].startswith("1x7x7 ")
    ]
    found.append(_row("kernels", "render of one 7 x 7 map, us", "<=", 6.0, _known(times)))
    for other, word in (
        (TORCH, "plain torch / ours, at every size"),
        (COMPILED, "torch.compile / ours, median of sizes"),
    ):
        pairs = [r for r in records if r["kernel"] in ("cam", "render")]
        ratios = _known(Figure(_micros(r, other) / _micros(r, KERNEL), _kernel_at(r)) for r in pairs)
        found.append(_row("kernels", f"cam and render: {word}", ">", 1.0, ratios, median=other == COMPILED))
    return found


def _calls(records: Sequence[Record]) -> list[Row]:
    def figures(key: str) -> list[Figure]:
        return [Figure(r[key], r["case"]["name"]) for r in records if r[key] is not None]

    waits = [
        Figure(r["busy_call_ms"] / r["busy_ms"], r["case"]["name"]) for r in records if r["busy_call_ms"] is not None
    ]
    return [
        _row("calls", "Python's share of a replayed call, us", "<=", 15.0, figures("python_us")),
        _row("calls", "steady state: bytes of the device that were allocated", "<=", 0.0, figures("allocated_bytes")),
        _row("calls", "time of a call while the device is busy / time it is busy", "<=", 0.1, waits),
    ]


def _models(records: Sequence[Record]) -> list[Row]:
    def ratios(kind: str, over: str, under: str, keep: Callable[[Record], bool]) -> list[Figure]:
        pair = f"{over} / {under}"
        return [
            Figure(r[f"{kind}_ratios"][pair]["ratio"], f"{r['case']['name']}, {r['precision']}, batch {r['batch']}")
            for r in records
            if keep(r) and pair in r[f"{kind}_ratios"]
        ]

    def at(batch: int) -> Callable[[Record], bool]:
        return lambda record: bool(record["batch"] == batch)

    whole = ratios("queued", OURS, PLAIN, lambda record: True)
    return [
        _row("models", "throughput: time with explanation / forward only", "<=", 1.03, whole),
        _row(
            "models",
            "latency at batch 1: with explanation / forward only",
            "<=",
            1.05,
            ratios("latency", OURS, PLAIN, at(1)),
        ),
        _row("models", "throughput at batch 64 / grad-cam's", ">=", 100.0, ratios("queued", GRADCAM, OURS, at(64))),
        _row("models", "throughput at batch 64 / torch-cam's", ">=", 5.0, ratios("queued", TORCHCAM, OURS, at(64))),
    ]


def _micros(record: Record, contender: str) -> float:
    """NaN where it was not timed."""
    found = record["contenders"].get(contender, {})
    return float(found["microseconds"]["median"]) if "microseconds" in found else float("nan")


def _known(figures: Iterable[Figure]) -> list[Figure]:
    return [figure for figure in figures if figure.value == figure.value]


def _kernel_at(record: Record) -> str:
    return f"{record['kernel']} {record['variant']}, {record['size']}"


def _row(part: str, goal: str, sign: str, bound: float, figures: Sequence[Figure], *, median: bool = False) -> Row:
    """By the worst of the figures, or their median."""
    words = f"{sign} {bound:g}"
    if not figures:
        return Row(part, goal, words, None, None, None)
    order = sorted(figures, key=lambda figure: figure.value, reverse=sign == "<=")
    worst = order[(len(order) - 1) // 2 if median else 0]
    met = {"<=": worst.value <= bound, ">=": worst.value >= bound, ">": worst.value > bound}[sign]
    return Row(part, goal, words, worst.value, met, f"{worst.at} ({len(figures)} figures)")


def as_table(found: Sequence[Row]) -> str:
    """As Markdown."""
    words = {None: "not measured", True: "yes", False: "no"}
    head = ["goal", "bound", "measured", "met", "worst at"]
    return table(
        head,
        [
            [row.goal, row.bound, "-" if row.measured is None else f"{row.measured:.4g}", words[row.met], row.at or "-"]
            for row in found
        ],
    )
