"""A result file as Markdown: the headline for the README, and everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comparison.cases import find_cases
from comparison.contenders import (
    AGAIN,
    BF16,
    FIVE_CONTRASTS,
    GRADCAM,
    GROUPS,
    INT8,
    LAYER_CAM,
    OURS,
    PLAIN,
    TORCHCAM,
    XAI,
    Goal,
    goals_of,
)
from comparison.script import table
from comparison.timing import headline as headline_clock

_NONE = "-"


def headline(document: dict[str, Any]) -> str:
    """Two small tables: what an explanation costs, and what it costs elsewhere. Bold: the goal is reached."""
    timings = of_kind(document, "timing")
    names = list(dict.fromkeys(record["case"]["name"] for record in timings))
    cells = sorted({(r["threads"], r["batch"]) for r in timings if r["group"] == "engine"})

    def figure(name: str, over: str, under: str, threads: int, batch: int, digits: int) -> str:
        found = find(timings, name, over, under, threads, batch)
        if found is None:
            return _NONE
        goal = next((g for g in _goals(name) if (g.over, g.under) == (over, under)), None)
        return _marked(found["ratio"], goal, digits)

    def milliseconds(name: str) -> str:
        found = [r for r in timings if r["case"]["name"] == name and (r["group"], r["threads"]) == ("engine", 1)]
        return f"{min(found, key=lambda r: r['batch'])['cpu_ms'][OURS]['median']:.1f}" if found else _NONE

    head = ["model", "ours, ms", *(f"/ plain forward, {_cell(*cell)}" for cell in cells)]
    head += [f"{name.removeprefix('finercam-rt ')} / {_short(under)}" for name, under in _EXTRAS]
    own = [
        [
            name,
            milliseconds(name),
            *(figure(name, OURS, PLAIN, *cell, 2) for cell in cells),
            *(figure(name, over, under, 1, 1, 2) for over, under in _EXTRAS),
        ]
        for name in names
    ]
    pairs = [(TORCHCAM, OURS), (TORCHCAM, BF16), (TORCHCAM, INT8)]
    pairs += [(GRADCAM, OURS), (GRADCAM, BF16), (GRADCAM, INT8), (XAI, OURS)]
    others = [[name, *(figure(name, *pair, 1, 1, 1) for pair in pairs)] for name in names]
    other_head = ["model", *(f"{over} / {_short(under)}" for over, under in pairs)]
    return f"{table(head, own)}\n\n{table(other_head, others)}"


_EXTRAS = ((LAYER_CAM, PLAIN), (FIVE_CONTRASTS, OURS))


def markdown(document: dict[str, Any]) -> str:
    """The headline, the goals, all times by group and threads, exports, memory, what was left out, the environment."""
    timings = of_kind(document, "timing")
    sections = ["# Comparison on the CPU", _INTRODUCTION, headline(document), _goal_section(timings)]
    for group in GROUPS:
        for threads in sorted({record["threads"] for record in timings}):
            found = [r for r in timings if (r["group"], r["threads"]) == (group.name, threads)]
            sections.append(_times(found, group.name, threads))
    sections += [_builds(of_kind(document, "build")), _memory(of_kind(document, "memory")), _notes(document)]
    return "\n\n".join(section for section in sections if section) + "\n"


_INTRODUCTION = f"""\
Made by `report.py` from the result file beside it; how it was measured is in the docstring of `run.py`. Ratios are
medians of rounds, averaged over processes, with a 95 % interval; bold ones reach the goal of their kind. They are of
CPU time with one thread and of wall time with two. `{AGAIN} / {PLAIN}` is one graph against itself:
what this method cannot see."""


def of_kind(document: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The records of one kind, in order."""
    return [record for record in document["records"] if record["kind"] == kind]


def find(
    timings: Sequence[dict[str, Any]], case: str, over: str, under: str, threads: int, batch: int
) -> dict[str, Any] | None:
    """The ratio of the clock that counts, from the first group that has it."""
    for record in timings:
        if (record["case"]["name"], record["threads"], record["batch"]) == (case, threads, batch):
            found: dict[str, Any] | None = record["ratios"][headline_clock(threads)].get(f"{over} / {under}")
            if found:
                return found
    return None


def _goals(case: str) -> list[Goal]:
    return goals_of(find_cases([case])[0])


def _reached(value: float, goal: Goal) -> bool:
    """As printed in `_times`: a figure that is shown as the goal reaches it."""
    if goal.at_most is not None:
        return round(value, 3) <= goal.at_most
    return goal.at_least is not None and value >= goal.at_least


def _marked(value: float, goal: Goal | None, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return f"**{text}**" if goal and _reached(value, goal) else text


def _goal_section(timings: Sequence[dict[str, Any]]) -> str:
    """For each kind of goal how many figures reach it, and those that do not."""
    reached: dict[str, list[bool]] = {}
    missed = []
    for record in timings:
        clock = headline_clock(record["threads"])
        for goal in _goals(record["case"]["name"]):
            found = record["ratios"][clock].get(f"{goal.over} / {goal.under}")
            if found is None:
                continue
            bound = f"<= {goal.at_most:.2f}" if goal.at_most is not None else f">= {goal.at_least:g}"
            kind = f"{goal.over} / {goal.under} {bound}"
            reached.setdefault(kind, []).append(_reached(found["ratio"], goal))
            if not reached[kind][-1]:
                where = [record["case"]["name"], _cell(record["threads"], record["batch"])]
                missed.append([*where, kind, _interval(found)])
    if not reached:
        return ""
    rows = [[kind, f"{sum(flags)} of {len(flags)}"] for kind, flags in sorted(reached.items())]
    text = f"## Goals\n\n{table(['goal', 'reached by'], rows)}"
    return f"{text}\n\nNot reached:\n\n{table(['model', 'measured at', 'goal', 'figure'], missed)}" if missed else text


def _times(timings: Sequence[dict[str, Any]], group: str, threads: int) -> str:
    """One row a ratio: both times, and the ratio by both clocks."""
    clock, other = ("cpu", "wall") if headline_clock(threads) == "cpu" else ("wall", "cpu")
    rows = []
    for record in timings:
        goals = {f"{goal.over} / {goal.under}": goal for goal in _goals(record["case"]["name"])}
        times = record[f"{clock}_ms"]
        for pair, found in record["ratios"][clock].items():
            over, under = pair.split(" / ")
            goal = goals.get(pair)
            row = [record["case"]["name"], str(record["batch"]), over, _milliseconds(times[over]), under]
            row += [_milliseconds(times[under]), f"{_marked(found['ratio'], goal, 3)} {_bounds(found)}"]
            row += [f"{found['of_minima']:.3f}", f"{record['ratios'][other][pair]['ratio']:.3f}"]
            rows.append([*row, str(found["rounds"]), ", ".join(f"{value:.3f}" for value in found["by_process"])])
    head = ["model", "batch", "A", f"A, {clock} ms: median (min; IQR)", "B", f"B, {clock} ms", "A / B [95 %]"]
    head += ["of minima", f"by {other}", "rounds", "by process"]
    return f"## {group}, {threads} thread{'s' if threads > 1 else ''}\n\n{table(head, rows)}" if rows else ""


def _milliseconds(spread: dict[str, float]) -> str:
    return f"{spread['median']:.1f} ({spread['min']:.1f}; {spread['iqr']:.1f})"


def _interval(ratio: dict[str, Any]) -> str:
    return f"{ratio['ratio']:.3f} {_bounds(ratio)}"


def _bounds(ratio: dict[str, Any]) -> str:
    return f"[{ratio['low']:.3f}, {ratio['high']:.3f}]"


def _cell(threads: int, batch: int) -> str:
    return f"batch {batch}" + (f", {threads} threads" if threads > 1 else "")


def _short(name: str) -> str:
    return {OURS: "ours", BF16: "ours bf16", INT8: "ours int8", PLAIN: "plain forward"}.get(name, name)


def _builds(builds: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            record["case"]["name"],
            record["layer"],
            f"{record['export_s']:.1f} ({record['export_cpu_s']:.1f})",
            f"{record['plain_export_s']:.1f}",
            f"{record['export_peak_mib']:.0f}",
            f"{record['weights_mib']:.1f}",
            f"{record['engine_bytes'] / 2**20:.1f}",
            f"{record['forward_bytes'] / 2**20:.1f}",
            f"{record['verification']['map_relative_l2']:.0e}",
        ]
        for record in builds
    ]
    head = ["model", "layer", "export, s wall (CPU)", "plain export, s", "peak of the export, MiB", "weights, MiB"]
    head += ["engine, MiB", "plain ONNX, MiB", "map error"]
    return f"## Export\n\n{table(head, rows)}" if rows else ""


def _memory(memory: Sequence[dict[str, Any]]) -> str:
    """Peaks of whole processes; the ratio to the plain forward is what the explanation costs."""
    rows = []
    plain = {record["case"]["name"]: record for record in memory if record["contender"] == PLAIN}
    for record in memory:
        other = plain.get(record["case"]["name"])
        peaks = []
        for batch, value in record["run_peak_mib"].items():
            share = f" ({value / other['run_peak_mib'][batch]:.3f})" if other else ""
            peaks.append(f"batch {batch}: {value:.0f}{share}")
        row = [record["case"]["name"], record["contender"], f"{record['imported_mib']:.0f}"]
        rows.append([*row, f"{record['load_peak_mib']:.0f}", f"{record['loaded_mib']:.0f}", ", ".join(peaks)])
    head = ["model", "contender", "imported, MiB", "peak of loading, MiB", "loaded, MiB"]
    head += [f"peak of runs, MiB (of {PLAIN}'s)"]
    return f"## Resident memory\n\n{table(head, rows)}" if rows else ""


def _notes(document: dict[str, Any]) -> str:
    notes = [f"- measured by `{document['command']}`"]
    notes += [f"- {line}" for line in sorted({_environment(record) for record in document["records"]})]
    cells = "; ".join(
        f"{group.name}: {', '.join(_cell(*cell) for cell in group.cells)}" for group in GROUPS if group.cells
    )
    notes.append(f"- measured at fewer batches and threads, because the rest would say the same: {cells}")
    left_out = {
        f"- {record['case']['name']}: {name} is left out: {reason}"
        for record in of_kind(document, "timing")
        for name, reason in record["left_out"].items()
    }
    busy = {
        f"- {record['case']['name']}, {_cell(record['threads'], record['batch'])}: {name} took more CPU than "
        f"{record['threads']} threads can"
        for record in of_kind(document, "timing")
        for name in record["not_held_to_threads"]
    }
    failed = [f"- {r['case']['name']}, {r['job']} failed: {r['error']}" for r in of_kind(document, "failure")]
    return "\n".join(["## Notes\n", *notes, *sorted(left_out), *sorted(busy), *failed])


def _environment(record: dict[str, Any]) -> str:
    found = record["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    changed = ", with changes" if found["sources_changed"] else ""
    return f"{found['cpu']}, {found['logical_cpus']} cores, {found['memory_gib']} GiB; {versions}; commit " + (
        f"{(found['commit'] or 'unknown')[:10]}{changed}"
    )
