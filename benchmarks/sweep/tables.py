"""A result file of coverage.py as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from comparison.script import environments, table

from sweep import outcome, rtx
from sweep.cases import BARS, BASE, CLASSES, LARGEST_DEFAULT, REDUCED, VARIANTS
from sweep.families import SHORTENED
from sweep.records import GOAL_SHARE, LEAST_PLACEMENT, NOT_ACCEPTED, RIGHT, TOO_SLOW, VERDICTS, reason, summary, verdict

_NONE = "-"
_PASSES = (
    ("batch norm: folded ", "fold"),
    ("select sinking: ", "sink"),
    ("pooled perturbation: merged at nowhere", "closed form"),
    ("pooled perturbation: ", "lift"),
    ("seed: sparse", "sparse"),
    ("early sums: ", "sums"),
    ("delayed broadcast: ", "broadcast"),
)
"""The beginning of a line of manifest.passes, and its name in the table; the first that fits."""

_INTRODUCTION = f"""\
Made by `python benchmarks/coverage.py` from the JSON beside it. One member of each module of `timm.models` and \
`torchvision.models`, the smallest but for timm's own toys, and of each type of image classifier in transformers, as \
its configuration is by default, with seeded random weights, {CLASSES} classes, and `--target-layer \
auto`. Inputs are the library's own; where that is above \
{LARGEST_DEFAULT} pixels, {REDUCED[0]}x{REDUCED[0]} or {REDUCED[1]}x{REDUCED[1]}.

Errors are the largest of several contrasts, chosen by the engine and given, in batches of one and three images, \
against a hook and `torch.autograd.grad` on the PyTorch model: `map` is ||map - right|| / ||right before the ReLU||, \
`logits` the largest difference over the largest logit. Wrong is what differs by more than {outcome.TOLERANCE:.0e} \
and lies further from float64 than {outcome.ROUNDING:g} times what rounding moves PyTorch's own (on any image so \
far, or with weights and images that are rounded to float32 once more); what chooses other classes; \
and a grid that does not lie on the image as the layer was read (noise is added to a bar of the image at {BARS} \
places along each axis, and the centre of the activation's change must go with the place: `placed` is the lesser \
correlation of the two axes, and {LEAST_PLACEMENT} is asked for, of an image twice as large where the first leaves a \
doubt and the model takes it). Cost is the CPU time of a prediction with its map \
over the plain forward pass's, in ONNX Runtime, one image, one thread, interleaved, one process. TensorRT-RTX: whether \
its builder takes the graph ({rtx.CAPABILITY}, batches {rtx.BATCHES[0]} to {rtx.BATCHES[-1]}), and in how many \
seconds; nothing is run there."""


def markdown(document: Mapping[str, Any]) -> str:
    """The summary, what is not right and why, every family, the variants, what was not swept or left out, with what."""
    records = document["records"]
    base = [record for record in records if record["variant"] == BASE]
    other = [record for record in records if record["variant"] != BASE]
    sections = ["# Coverage", _INTRODUCTION, headline(document)]
    if any(verdict(record) != RIGHT for record in base):
        sections += ["## Not right", table(("family", "verdict", "why"), _reasons(base))]
    sections += ["## Families", table(_HEAD, map(_row, base))]
    if other:
        head = ("variant", "what", *_counted(other))
        asked = {record["variant"] for record in other}
        rows = [
            (variant.name, variant.what, *(str(count) for count in _counts(other, variant.name)))
            for variant in VARIANTS
            if variant.name in asked
        ]
        sections += ["## Variants", _VARIANTS, table(head, rows)]
        if any(verdict(record) not in (RIGHT, NOT_ACCEPTED) for record in other):
            sections.append(table(("family", "verdict", "why"), _reasons(other)))
        sections.append(table(("variant", *_HEAD), ((record["variant"], *_row(record)) for record in other)))
    not_swept = summary(document)["not_swept"]
    if not_swept:
        sections += ["## Not swept", ", ".join(not_swept)]
    if document["left_out"]:
        sections += ["## Left out", table(("family", "why"), document["left_out"].items())]
    return "\n\n".join([*sections, environments(records, "cases")]) + "\n"


_VARIANTS = "The same for families that a seeded draw chose. Not accepted: the PyTorch model itself refuses it."


def headline(document: Mapping[str, Any]) -> str:
    """How many families are what, the goal, and what each runtime says."""
    found = summary(document)
    swept, not_swept = sum(found["families"].values()), len(found["not_swept"])
    left_out = found["total"] - swept - not_swept
    counts = ", ".join(f"{count} {name}" for name, count in found["families"].items())
    goal = "reached" if found["goal"] else "not reached"
    lines = [
        f"**{swept} of {found['total']} families: {counts}.** Left out with a reason: {left_out}; not swept: "
        f"{not_swept}. Of all but those left out, right in every runtime: {found['share_right']:.1%}; at "
        f"least in ONNX Runtime: {found['share_right_onnxruntime']:.1%}. The goal ({GOAL_SHARE:.0%} right, none wrong "
        f"or crashed) is {goal}.",
        "",
    ]
    statuses = (outcome.RIGHT, rtx.RIGHT, outcome.REFUSED, outcome.WRONG, rtx.MISSING)
    for name, counted in found["runtimes"].items():
        lines.append(f"- {name}: {', '.join(f'{counted[key]} {key}' for key in statuses if key in counted)}")
    return "\n".join(lines)


_HEAD = (
    "family",
    "model",
    "M par.",
    "input",
    "layer",
    "layout",
    "grid",
    "placed",
    "passes",
    "cost",
    "map",
    "logits",
    "map, OpenVINO",
    "logits, OpenVINO",
    "TensorRT-RTX",
    "verdict",
)


def _row(record: Mapping[str, Any]) -> tuple[str, ...]:
    stages = record["stages"]
    model, export, oracle = (stages.get(name, {}) for name in ("model", "export", "oracle"))
    layers = export.get("layers", [])
    cost = stages.get("cost", {})
    return (
        record["family"],
        _model(record["specification"]),
        f"{model['parameters'] / 1e6:.1f}" if "parameters" in model else _NONE,
        "x".join(map(str, model.get("size", ()))) or _NONE,
        ", ".join(layer["name"] for layer in layers) or _NONE,
        ", ".join(layout(layer) for layer in layers) or _NONE,
        ", ".join("x".join(map(str, layer["grid"])) for layer in layers) or _NONE,
        f"{oracle['placement']:.2f}" if "placement" in oracle else _NONE,
        passes(export.get("passes", ())) or _NONE,
        f"{cost['ratio']:.2f}" if "ratio" in cost else _NONE,
        *(error(stages.get(name), key) for name in ("onnxruntime", "openvino") for key in ("map_error", "logit_error")),
        built(stages.get("tensorrt-rtx")),
        verdict(record),
    )


def _model(specification: str) -> str:
    changes = "".join(f", {name} {value}" for name, value in SHORTENED.get(specification, {}).items())
    return f"{specification.partition(':')[2]}{changes}"


def passes(lines: Iterable[str]) -> str:
    """The passes that changed something, each once."""
    names: dict[str, None] = {}
    for line in lines:
        name = next((short for start, short in _PASSES if line.startswith(start)), None)
        if name is not None and not line.startswith("batch norm: folded 0 "):
            names[name] = None
    return ", ".join(names)


def layout(layer: Mapping[str, Any]) -> str:
    prefix = f" +{layer['prefix_tokens']}" if layer["prefix_tokens"] else ""
    return f"{layer['layout']}{prefix}"


def error(stage: Mapping[str, Any] | None, key: str) -> str:
    if stage is None:
        return _NONE
    if key not in stage:
        return str(stage["status"])
    return "not finite" if stage[key] is None else f"{stage[key]:.0e}"


def built(stage: Mapping[str, Any] | None) -> str:
    if stage is None:
        return _NONE
    if stage["status"] == rtx.RIGHT:
        return f"{stage['seconds']:.0f} s"
    return f"refused: {stage['operation'] or 'see above'}" if stage["status"] == rtx.REFUSED else str(stage["status"])


def _reasons(records: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    found = []
    for record in records:
        if verdict(record) not in (RIGHT, NOT_ACCEPTED):
            variant = "" if record["variant"] == BASE else f", {record['variant']}"
            name = f"{record['family']} ({record['specification'].partition(':')[2]}{variant})"
            found.append((name, verdict(record), reason(record)))
    return found


def _counted(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The verdicts that there are."""
    found = {verdict(record) for record in records}
    return [name for name in (*VERDICTS, NOT_ACCEPTED, TOO_SLOW) if name in found]


def _counts(records: Sequence[Mapping[str, Any]], variant: str) -> list[int]:
    of_variant = [verdict(record) for record in records if record["variant"] == variant]
    return [of_variant.count(name) for name in _counted(records)]
