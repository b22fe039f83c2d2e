"""The result file of the second sweep as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from comparison.script import environments, table

from sweep import outcome
from sweep.draw import MOST_PARAMETERS
from sweep.records import LEAST_PLACEMENT, NOT_ACCEPTED, RIGHT, TOO_SLOW, VERDICTS, reason, verdict
from sweep.tables import built, error, layout

_NONE = "-"
_HEAD = (
    "case",
    "family",
    "model",
    "input",
    "classes, head",
    "asked layer",
    "layer",
    "grid",
    "placed",
    "method, objective",
    "map",
    "logits",
    "map, OpenVINO",
    "TensorRT-RTX",
    "seconds",
    "verdict",
)
_INTRODUCTION = f"""\
Made by `python benchmarks/coverage.py --draw SEED` from the JSON beside it: cases that nobody chose. Of each family \
in turn a member of at most {MOST_PARAMETERS:g} million parameters is drawn, and for it an input size, an `auto` or a \
pinned layer (a stage, or whatever module gives a tensor with positions), a number of classes, a head (the library's \
argument, another last layer, several layers in its place, a linear layer behind the model without its head), a \
method, an objective, the references, and now and then three contrasts an image or head "taps". Of several sizes the \
first that the model accepts. Weights, oracle, errors and tolerances are those of the first sweep \
([coverage.md](coverage.md)): batches of one and three images, {outcome.TOLERANCE:.0e}, and a grid that lies on the \
image with a correlation of {LEAST_PLACEMENT} at least. Not accepted: the PyTorch model itself refuses it. One class \
is the logit of yes against no."""


def headline(document: Mapping[str, Any]) -> str:
    """How many cases of how many families are what."""
    records = document["records"]
    counts = Counter(map(verdict, records))
    found = ", ".join(f"{counts[name]} {name}" for name in (*VERDICTS, NOT_ACCEPTED, TOO_SLOW))
    return f"**{len(records)} cases of {len({record['family'] for record in records})} families: {found}.**"


def markdown(document: Mapping[str, Any]) -> str:
    """The counts, what is not right and why, every case."""
    records = document["records"]
    sections = ["# A second sweep", _INTRODUCTION, headline(document)]
    others = [record for record in records if verdict(record) != RIGHT]
    if others:
        rows = [(_number(r), _model(r), _asked(r), verdict(r), reason(r)) for r in others]
        sections += ["## Not right", table(("case", "model", "asked", "verdict", "why"), rows)]
    sections += ["## Cases", table(_HEAD, map(_row, records))]
    return "\n\n".join([*sections, environments(records, "cases")]) + "\n"


def _row(record: Mapping[str, Any]) -> tuple[str, ...]:
    stages = record["stages"]
    model, export, oracle = (stages.get(name, {}) for name in ("model", "export", "oracle"))
    layers = export.get("layers", [])
    return (
        _number(record),
        record["family"],
        _model(record),
        _size(model),
        f"{model['classes']}, {model['head']}" if "classes" in model else _NONE,
        model.get("asked_layer", _NONE),
        ", ".join(f"{layer['name']} ({layout(layer)})" for layer in layers) or _NONE,
        ", ".join("x".join(map(str, layer["grid"])) for layer in layers) or _NONE,
        f"{oracle['placement']:.2f}" if "placement" in oracle else _NONE,
        _method(model),
        error(stages.get("onnxruntime"), "map_error"),
        error(stages.get("onnxruntime"), "logit_error"),
        error(stages.get("openvino"), "map_error"),
        built(stages.get("tensorrt-rtx")),
        f"{record['seconds']:.0f}",
        verdict(record),
    )


def _number(record: Mapping[str, Any]) -> str:
    return str(record["variant"]).removeprefix("draw ")


def _model(record: Mapping[str, Any]) -> str:
    return str(record["specification"]).partition(":")[2]


def _size(model: Mapping[str, Any]) -> str:
    return "x".join(map(str, model.get("size", ()))) or _NONE


def _method(model: Mapping[str, Any]) -> str:
    """The options that were drawn, in short."""
    options = model.get("options")
    if options is None:
        return _NONE
    more = [f"{options['contrasts']} contrasts"] if options["contrasts"] > 1 else []
    more += ["taps"] if options["head"] == "taps" else []
    return ", ".join([options["method"], f"{options['objective']} {options['references']}", *more])


def _asked(record: Mapping[str, Any]) -> str:
    model = record["stages"].get("model", {})
    if "classes" not in model:
        return _NONE
    return f"{_size(model)}, {model['classes']} classes ({model['head']}), {model['asked_layer']}, {_method(model)}"
