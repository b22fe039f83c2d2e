"""A result file as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from comparison.script import environments, table

from planted.records import (
    AUTO,
    AUTOMATIC,
    CHOSEN,
    DEFAULT_SEED,
    FEWER,
    GOAL,
    NAMED,
    SEEDS,
    find_row,
    goal_records,
    over_plain,
    reached,
)

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
        "of the raw map that lies in the mark, the mean over the pictures. Intervals: 95 %, percentile bootstrap over "
        "the pictures.",
        headline(document),
        "## Classifiers",
        table(_MODEL_HEAD, map(_model_row, records)),
        "## Grad-CAM",
        _GRADCAM,
        table(_GOAL_HEAD, map(_goal_row, records)),
    ]
    for group in _groups(records):
        first = group[0]
        parts += [f"## {first['model']}, {first['layer']}: all methods", _CELLS.format(seeds=len(group))]
        parts += ["With the look-alikes named:", _energies(group, (NAMED, FEWER))]
        parts += ["With the references that the engine chooses:", _energies(group, (AUTOMATIC,))]
    return "\n\n".join([*parts, environments(records, "records")]) + "\n"


def headline(document: Mapping[str, Any]) -> str:
    """Whether the goal is reached, and by how much, with named references and with those that the engine chooses."""
    records = goal_records(document)
    whose = {NAMED: "the look-alikes as references", AUTOMATIC: "references that the engine chooses"}
    lines = []
    for rows, words in whose.items():
        ratios = [over_plain(record, rows)["ratio"] for record in records]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "an unknown number of"
        verdict = "reached" if reached(document, rows) else "not reached"
        lines.append(f"With {words}: {spread} times, the goal is **{verdict}**.")
    return (
        f"Grad-CAM with the default seed ({DEFAULT_SEED}) against plain Grad-CAM, energy in the part in which "
        f"look-alikes differ; {GOAL} times is asked for, of each of {len(records)} trained classifiers. "
        + " ".join(lines)
    )


_GRADCAM = (
    "`plain` and `look-alikes` (the default seed, those three as references): energy in the mark, then in the body "
    "around it. `chosen`: the default seed, the references that the engine chooses. The last three columns: "
    "energy in what tells the picture from the class that is nearest, mark or body or both, plain and contrasted with "
    "it."
)
_CELLS = (
    "Each cell: the mean energy in the mark over {seeds} training seeds, and in brackets the least and greatest ratio "
    f"to plain Grad-CAM. Bold: at least {GOAL} times with each. No map: pictures without a map, of all seeds."
)
_MODEL_HEAD = (
    *("classifier", "training seed", "layer", "grid", "M par.", "training, CPU s", "accuracy", "mark, of the picture"),
    *("nearest is a look-alike", "all three are"),
)
_GOAL_HEAD = (
    *("classifier", "training seed", "layer", "plain", "look-alikes", "ratio", "chosen", "ratio"),
    *("nearest class: plain", "contrasted", "ratio"),
)


def _model_row(record: Mapping[str, Any]) -> tuple[str, ...]:
    nearest, everyone = (record["look_alikes"][key] for key in ("nearest", "all"))
    return (
        record["model"],
        str(record["training_seed"]),
        _layer(record),
        "x".join(map(str, record["grid"])),
        f"{record['parameters'] / 1e6:.2f}",
        f"{record['training_seconds']:.0f}",
        f"{record['accuracy']:.1%}",
        f"{record['mark_share']:.1%}",
        f"{nearest:.0%}",
        f"{everyone:.0%}",
    )


def _goal_row(record: Mapping[str, Any]) -> tuple[str, ...]:
    plain, contrasted = (find_row(record, NAMED, seed) for seed in ("plain", DEFAULT_SEED))
    chosen = find_row(record, AUTOMATIC, DEFAULT_SEED)
    nearest = [find_row(record, CHOSEN, seed) for seed in ("plain", "one:1")]
    return (
        record["model"],
        str(record["training_seed"]),
        _layer(record),
        *(f"{row['energy']['mean']:.3f}, {row['body']:.3f}" for row in (plain, contrasted)),
        _ratio(contrasted),
        f"{chosen['energy']['mean']:.3f}",
        _ratio(chosen),
        *(f"{row['energy']['mean']:.3f}" for row in nearest),
        _ratio(nearest[1]),
    )


def _layer(record: Mapping[str, Any]) -> str:
    return str(record["layer"]) + (" (auto)" if record["asked_layer"] == AUTO else "")


def _ratio(row: Mapping[str, Any]) -> str:
    return "{ratio:.2f} [{low:.2f}, {high:.2f}]".format(**row["over"])


def _groups(records: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The records of one classifier and layer, which differ in their training seeds."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        found.setdefault((record["model"], record["layer"]), []).append(record)
    return list(found.values())


def _energies(group: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> str:
    lines = []
    for kind in kinds:
        methods = dict.fromkeys(row["method"] for record in group for row in record[kind])
        for method in methods:
            found = [row for record in group for row in record[kind] if row["method"] == method]
            cells = [_cell([row for row in found if row["seed"] == seed]) for seed in SEEDS]
            note = " (fewer pictures)" if kind == FEWER else ""
            lines.append((f"{method}{note}", *cells, str(sum(row["no_map"] for row in found))))
    return table(("method", *SEEDS, "no map"), lines)


def _cell(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return _NONE
    ratios = [row["over"]["ratio"] for row in rows]
    mean = f"{np.mean([row['energy']['mean'] for row in rows]):.3f}"
    shown = f"**{mean}**" if min(ratios) >= GOAL else mean
    low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return f"{shown} ({low})" if low == high else f"{shown} ({low} to {high})"
