"""A result file as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from comparison.script import environments, table

from planted.records import AUTO, BASELINE, DEFAULT_SEED, GOAL, SEEDS, find_row, goal_ratio, reached

_NONE = "-"


def markdown(document: Mapping[str, Any]) -> str:
    """The whole report."""
    records = document["records"]
    counts = document["pictures"]
    parts = [
        "# The planted truth",
        f"Made by `{document['command']}` from the JSON beside it; what it is: `docs/planted-truth.md`. "
        f"{counts['training']} pictures to train on, {counts['held_out']} others to measure on, "
        f"{counts['masked']} of these for the methods that ask the classifier about masked pictures. Energy: the share "
        "of the raw map that lies in the mark, the mean over the pictures; chance is the mark's share of the picture. "
        "Intervals: 95 %, percentile bootstrap over the pictures.",
        headline(document),
        "## The goal",
        table(_GOAL_HEAD, map(_goal_row, records)),
    ]
    for group in _groups(records):
        first = group[0]
        parts += [f"## {first['model']}, {first['layer']}", _intro(group), _energies(group)]
    return "\n\n".join([*parts, environments(records, "records")]) + "\n"


def headline(document: Mapping[str, Any]) -> str:
    """Whether the goal is reached, and by how much."""
    ratios = [goal_ratio(r)["ratio"] for r in document["records"] if r["asked_layer"] == AUTO]
    verdict = "reached" if reached(document) else "not reached"
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "not measured"
    return (
        f"**The goal is {verdict}**: Grad-CAM with the default seed ({DEFAULT_SEED}) puts {spread} times the energy of "
        f"plain Grad-CAM into the part that differs ({GOAL} is asked for, of every classifier and training seed)."
    )


_GOAL_HEAD = (
    "classifier",
    "training seed",
    "layer",
    "accuracy",
    "chance",
    "plain Grad-CAM",
    DEFAULT_SEED,
    "ratio",
    "in the body: plain",
    DEFAULT_SEED,
)


def _goal_row(record: Mapping[str, Any]) -> tuple[str, ...]:
    over = goal_ratio(record)
    pair = [find_row(record, BASELINE, seed)["energy"]["mean"] for seed in ("plain", DEFAULT_SEED)]
    body = [find_row(record, BASELINE, seed, "body_rows")["energy"]["mean"] for seed in ("plain", DEFAULT_SEED)]
    return (
        record["model"],
        str(record["training_seed"]),
        record["layer"] + (" (auto)" if record["asked_layer"] == AUTO else ""),
        f"{record['accuracy']:.1%}",
        f"{record['mark_share']:.3f}",
        *(f"{value:.3f}" for value in pair),
        f"{over['ratio']:.2f} [{over['low']:.2f}, {over['high']:.2f}]",
        *(f"{value:.3f}" for value in body),
    )


def _groups(records: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The records of one classifier and layer, which differ in their training seeds."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        found.setdefault((record["model"], record["layer"]), []).append(record)
    return list(found.values())


def _intro(group: Sequence[Mapping[str, Any]]) -> str:
    first = group[0]
    nearest, everyone = (np.mean([record["look_alikes"][key] for record in group]) for key in ("nearest", "all"))
    grid = "x".join(map(str, first["grid"]))
    return (
        f"{first['parameters'] / 1e6:.2f} M parameters, maps {grid}, {len(group)} training seeds. The nearest class is "
        f"a look-alike for {nearest:.1%} of the pictures, all three nearest for {everyone:.1%}. Each cell: the mean "
        "energy over the training seeds, and in brackets the least and greatest ratio to plain Grad-CAM. Bold: at "
        f"least {GOAL} times in each. No map: pictures without a map, of all seeds."
    )


def _energies(group: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for kind, note in (("rows", ""), ("masked_rows", " (fewer pictures)")):
        methods = dict.fromkeys(row["method"] for record in group for row in record[kind])
        for method in methods:
            found = [row for record in group for row in record[kind] if row["method"] == method]
            cells = [_cell([row for row in found if row["seed"] == seed]) for seed in SEEDS]
            missing = sum(row["no_map"] for row in found)
            lines.append((f"{method}{note}", *cells, str(missing), f"{np.mean([row['ms'] for row in found]):.1f}"))
    return table(("method", *SEEDS, "no map", "ms"), lines)


def _cell(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return _NONE
    ratios = [row["over"]["ratio"] for row in rows]
    mean = f"{np.mean([row['energy']['mean'] for row in rows]):.3f}"
    shown = f"**{mean}**" if min(ratios) >= GOAL else mean
    low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return f"{shown} ({low})" if low == high else f"{shown} ({low} to {high})"
