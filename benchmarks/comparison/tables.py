"""A result file as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from comparison.contenders import CONTENDERS, OURS, PLAIN

PEERS = tuple(c.name for c in CONTENDERS if c.name not in (OURS, PLAIN))
_FAILED = "-"


def markdown(document: dict[str, Any]) -> str:
    """Time by number of threads, then exports, memory, what failed or was left out, and the environment."""
    timings = of_kind(document, "timing")
    sections = [_times(timings, threads) for threads in sorted({record["threads"] for record in timings})]
    sections += [_builds(of_kind(document, "build")), _memory(of_kind(document, "memory")), _notes(document)]
    return "\n\n".join(section for section in sections if section)


def of_kind(document: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The records of one kind, in order."""
    return [record for record in document["records"] if record["kind"] == kind]


def _times(timings: Sequence[dict[str, Any]], threads: int) -> str:
    rows = []
    for record in timings:
        if record["threads"] != threads:
            continue
        ratios, cpu = record["ratios"]["cpu"], record["cpu_ms"]
        own = ratios[f"{OURS} / {PLAIN}"]
        rows.append(
            [
                record["case"]["name"],
                str(record["batch"]),
                *(
                    f"{cpu[name]['median']:.1f} ({cpu[name]['min']:.1f}; {cpu[name]['iqr']:.1f})"
                    for name in (OURS, PLAIN)
                ),
                f"**{own['ratio']:.3f}** [{own['low']:.3f}, {own['high']:.3f}]",
                f"{own['of_minima']:.3f}",
                f"{record['ratios']['wall'][f'{OURS} / {PLAIN}']['ratio']:.3f}",
                f"{record['case']['goal']:.2f}",
                *(_times_ours(ratios.get(f"{name} / {OURS}")) for name in PEERS),
            ]
        )
    head = ["model", "batch", "explain, CPU ms: median (min; IQR)", "forward, CPU ms", "explain / forward [95 %]"]
    head += ["of minima", "wall", "goal", *(f"{name} / explain" for name in PEERS)]
    return f"### {threads} thread{'s' if threads > 1 else ''}\n\n{_table(head, rows)}" if rows else ""


def _milliseconds(spread: dict[str, float]) -> str:
    return f"{spread['median']:.1f} ({spread['min']:.1f}; {spread['iqr']:.1f})"


def _times_ours(ratio: dict[str, Any] | None) -> str:
    return f"{ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else _FAILED


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
    return f"### Export\n\n{_table(head, rows)}" if rows else ""


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
        loading = f"{record['load_peak_mib']:.0f}"
        rows.append(
            [record["case"]["name"], record["contender"], f"{record['imported_mib']:.0f}", loading, ", ".join(peaks)]
        )
    head = ["model", "contender", "imported, MiB", "peak of loading, MiB", f"peak of runs, MiB (of {PLAIN}'s)"]
    return f"### Resident memory\n\n{_table(head, rows)}" if rows else ""


def _notes(document: dict[str, Any]) -> str:
    notes = [f"- measured by `{document['command']}`"]
    notes += [f"- {line}" for line in sorted({_environment(record) for record in document["records"]})]
    left_out = {
        f"- {record['case']['name']}: {name} is left out: {reason}"
        for record in of_kind(document, "timing")
        for name, reason in record["left_out"].items()
    }
    failed = [f"- {r['case']['name']}, {r['job']} failed: {r['error']}" for r in of_kind(document, "failure")]
    return "\n".join([*notes, *sorted(left_out), *failed])


def _environment(record: dict[str, Any]) -> str:
    found = record["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    changed = ", with changes" if found["sources_changed"] else ""
    return f"{found['cpu']}, {found['logical_cpus']} cores, {found['memory_gib']} GiB; {versions}; commit " + (
        f"{(found['commit'] or 'unknown')[:10]}{changed}"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
