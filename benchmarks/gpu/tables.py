"""A result file of the GPU's benchmark as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comparison.script import environments, table

from gpu import goals
from gpu.documents import FAILURE
from gpu.measuring import COMPILED, OURS, TORCH
from gpu.sharing import HEAD, choices

_TITLES = {
    "kernels": "Kernels",
    "sharing": "The forms of cam",
    "calls": "What a call costs the host",
    "models": "Engines and other libraries",
}
_NONE = "-"


def markdown(document: dict[str, Any]) -> str:
    """The goals, every figure, what failed or was left out, and with what it was measured."""
    part = document["part"]
    records = [record for record in document["records"] if record["kind"] == part]
    sections = [f"# {_TITLES[part]} on {document['gpu']}"]
    if document["rehearsal"]:
        sections.append("A rehearsal: its figures mean nothing.")
    sections.append(
        "Made by `report.py` from the result file beside it; how it was measured: `run.py --device cuda --help`."
    )
    rows = [goals.Row(**row) for row in document["goals"]]
    sections += [f"## Goals\n\n{goals.as_table(rows)}"] if rows else []
    sections.append(_FIGURES[part](records) if records else "Nothing was measured.")
    sections += [_notes(document), _with(document)]
    return "\n\n".join(section for section in sections if section) + "\n"


def _kernels(records: Sequence[dict[str, Any]]) -> str:
    rows = []
    for record in records:
        found = record["contenders"]
        speed = f"{record['bytes_per_s'] / 1e9:.0f}" if "bytes_per_s" in record else _NONE
        share = f"{100 * record['share_of_copy']:.0f} %" if "share_of_copy" in record else _NONE
        row = [record["kernel"], record["variant"], record["size"], _micros(found, OURS), speed, share]
        row += [_median(record, "warm_microseconds"), _median(record, "queued_microseconds")]
        rows.append([*row, *(_micros(found, name) for name in (TORCH, COMPILED))])
    head = ["kernel", "variant", "size", "ours, us", "GB/s", "of a copy", "warm, us", "call by call, us"]
    copied = sorted({round(record["copy_bytes_per_s"] / 1e9) for record in records})
    text = f"A copy within the device moves {' to '.join(map(str, (copied[0], copied[-1])[: len(copied)]))} GB/s."
    return f"## Times and bandwidth\n\n{text}\n\n{table([*head, 'torch, us', 'torch.compile, us'], rows)}"


def forms_of_cam(records: Sequence[dict[str, Any]]) -> str:
    """Which form is the fastest at which size."""
    text = (
        "Microseconds in a CUDA graph; with a warm cache where the arrays fit into it, as a network leaves it behind. "
        "The ratio is what choosing the fastest form would gain."
    )
    refused = sorted(
        {
            f"- {name}: {found['error']}"
            for record in records
            for name, found in record["forms"].items()
            if "error" in found
        }
    )
    sections = [f"## Which form\n\n{text}", table(HEAD, choices(records)), "\n".join(refused)]
    return "\n\n".join(section for section in sections if section)


def _calls(records: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            record["case"]["name"],
            f"{record['call_us']['median']:.1f}",
            f"{record['runtime_us']['median']:.1f}",
            f"{record['python_us']:.1f}",
            str(record["allocated_bytes"]),
            _NONE if record["busy_call_ms"] is None else f"{record['busy_call_ms']:.2f} of {record['busy_ms']:.1f}",
        ]
        for record in records
    ]
    head = ["case", "engine(batch), us", "the runtime's own run, us", "difference, us", "bytes allocated"]
    return f"## Calls\n\n{table([*head, 'ms of a call while the device is busy'], rows)}"


def _models(records: Sequence[dict[str, Any]]) -> str:
    rows = []
    for record in records:
        for name, latency in record["latency_ms"].items():
            queued = record["queued_ms"][name]["median"]
            row = [record["case"]["name"], record["precision"], str(record["batch"]), name]
            row += [f"{latency['median']:.2f} ({latency['iqr']:.2f})", f"{queued:.2f}"]
            rows.append([*row, f"{record['images_per_s'][name]:.0f}"])
    head = ["model", "precision", "batch", "contender", "latency, ms (IQR)", "one behind the other, ms", "images/s"]
    ratios = [
        [
            *(record["case"]["name"], record["precision"], str(record["batch"]), pair),
            *(f"{record[f'{kind}_ratios'][pair]['ratio']:.3f}" for kind in ("latency", "queued")),
            "[{low:.3f}, {high:.3f}]".format(**record["queued_ratios"][pair]),
        ]
        for record in records
        for pair in record["queued_ratios"]
    ]
    ratio_head = ["model", "precision", "batch", "A / B", "of latencies", "of throughput times", "95 %"]
    return f"## Times\n\n{table(head, rows)}\n\n## Ratios\n\n{table(ratio_head, ratios)}"


_FIGURES = {"kernels": _kernels, "sharing": forms_of_cam, "calls": _calls, "models": _models}


def _notes(document: dict[str, Any]) -> str:
    notes = [
        f"- {record['name']} failed: {record['error']}" for record in document["records"] if record["kind"] == FAILURE
    ]
    for record in document["records"]:
        for name, found in record.get("contenders", {}).items():
            if "error" in found:
                notes.append(f"- {record['name']}: {name} is left out: {found['error']}")
        for name, reason in record.get("left_out", {}).items():
            notes.append(f"- {record['name']}: {name} is left out: {reason}")
    return "\n".join(["## Left out", "", *dict.fromkeys(notes)]) if notes else ""


def _with(document: dict[str, Any]) -> str:
    found = document["environments"]
    text = environments([{"environment": found[record["environment"]]} for record in document["records"]], "records")
    gpus = {", ".join(f"{key} {value}" for key, value in one["gpu"].items()) for one in found if "gpu" in one}
    return "\n".join([text, *(f"- GPU: {line}" for line in sorted(gpus))])


def _micros(found: dict[str, Any], name: str) -> str:
    if name not in found:
        return _NONE
    return f"{found[name]['microseconds']['median']:.1f}" if "microseconds" in found[name] else "error"


def _median(record: dict[str, Any], key: str) -> str:
    return f"{record[key]['median']:.1f}" if key in record else _NONE
