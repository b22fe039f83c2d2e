"""`finercam inspect`: an engine's manifest, for reading or as JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from finercam_rt.backends import describe_auto
from finercam_rt.engine_file import is_plan, read_manifest
from finercam_rt.errors import FinerCAMError, InputError
from finercam_rt.manifest import DEFAULT_ALPHA, GREY, RGB, Manifest
from finercam_rt.tensorrt.plan import read_checked_plan
from finercam_rt.tensorrt.serve import serve

_NAMES_SHOWN = 5


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "inspect",
        help="print what an engine is: model, input, classes, layer, method, verification",
        description="Print the manifest of an engine: its model, input, classes, layer, method and verification.",
    )
    parser.add_argument(
        "engine", metavar="ENGINE", type=Path, help="an .onnx file of `finercam export`, or a .plan of `build`"
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--classes", action="store_true", help="print every class, one a line: index, tab, name")
    shown.add_argument("--passes", action="store_true", help="print what the compiler did to the graph, a line a pass")
    shown.add_argument("--json", action="store_true", help="print the manifest as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the manifest; the graph is not loaded."""
    manifest = read_manifest(args.engine)
    if args.json:
        print(manifest.to_json())
    elif args.passes:
        print("\n".join(manifest.passes))
    elif args.classes:
        if manifest.num_classes is None:
            raise InputError(f"{args.engine} is a zero-shot model, whose classes are given when it runs.")
        for index in range(manifest.num_classes):
            print(f"{index}\t{manifest.classes[index] if manifest.classes else ''}".rstrip())
    else:
        rows = [
            ("engine", f"{args.engine} ({args.engine.stat().st_size / 1e6:.1f} MB)"),
            *_rows(manifest),
            *(_plan_rows(args.engine) if is_plan(args.engine) else [("backend", describe_auto(args.engine, manifest))]),
        ]
        width = max(len(label) for label, _ in rows)
        for label, text in rows:
            print(f"{label:{width}}  {text}")
    return 0


def _plan_rows(plan: Path) -> list[tuple[str, str]]:
    _, info = read_checked_plan(plan)  # whether it is damaged is no matter of this machine
    least, usual, most = info.batch
    counts = info.kernels
    kernels = None if counts is None else f"{counts['total']}, {counts['behind_logits']} for the explanation alone"
    try:
        serve(plan)
        loads = "yes"
    except FinerCAMError as error:
        loads = f"no: {error}"
    return [
        ("plan", f"by {info.flavour} {info.version} for {', '.join(info.capabilities)}"),
        ("batch", f"{least} to {most} images, tuned for {usual}"),
        ("kernels", kernels or "not recorded"),
        ("made from", f"an ONNX file of sha256 {info.onnx_sha256}"),
        ("fits here", loads),
    ]


def _rows(manifest: Manifest) -> list[tuple[str, str]]:
    spec = manifest.input
    rows = [
        ("model", manifest.model.name),
        ("weights", f"sha256 {manifest.model.weights_sha256}"),
        ("input", f"{spec.size[0]} x {spec.size[1]} pixels (height x width), {_channels(spec.channels)}"),
        ("normalise", f"mean {_numbers(spec.mean)}, std {_numbers(spec.std)}, of values from 0 to 1"),
        ("resize", f"{spec.interpolation}, crop {spec.crop_pct:g}, {spec.crop_mode}"),
        ("classes", _classes(manifest)),
    ]
    for layer in manifest.layers:
        before = f", {layer.prefix_tokens} tokens before the map" if layer.prefix_tokens else ""
        arranged = f", out of an output with {layer.arrangement.kind}" if layer.arrangement else ""
        rows.append(("layer", f"{layer.name}, {layer.layout}, map {layer.grid[0]} x {layer.grid[1]}{before}{arranged}"))
    rows += [
        ("method", _method(manifest)),
        ("objective", f"{manifest.objective}, alpha {DEFAULT_ALPHA[manifest.objective]:g} unless given"),
        ("references", f"{manifest.references} a contrast"),
        ("contrasts", f"{manifest.contrasts} an image"),
        ("outputs", ", ".join(manifest.outputs)),
        ("graph", f"head {manifest.head}, {manifest.precision}, opset {manifest.opset}"),
    ]
    rows += [("verified" if i == 0 else "", text) for i, text in enumerate(_flat(manifest.verification) or [""])]
    rows += [("producer", ", ".join(f"{name} {version}" for name, version in sorted(manifest.producer.items())))]
    rows += [("schema", str(manifest.schema))]
    return [(label, text or "not recorded") for label, text in rows]


def _method(manifest: Manifest) -> str:
    others = [name for name in manifest.taps.methods if name != manifest.method] if manifest.taps else []
    return f"{manifest.method} unless given, {', '.join(others)}" if others else manifest.method


def _classes(manifest: Manifest) -> str:
    if manifest.zero_shot is not None:
        given = manifest.zero_shot
        return (
            f"given when it runs, embeddings of {given.embedding_dim} numbers; "
            f"logit scale {given.logit_scale:g}, bias {given.logit_bias:g}"
        )
    assert manifest.num_classes is not None
    if manifest.classes is None:
        return f"{manifest.num_classes}, without names"
    more = "; ..." if manifest.num_classes > _NAMES_SHOWN else ""
    return f"{manifest.num_classes}: {'; '.join(manifest.classes[:_NAMES_SHOWN])}{more}"


def _channels(count: int) -> str:
    return {GREY: "grey", RGB: "RGB"}.get(count, f"{count} channels")


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _flat(value: Any, prefix: str = "") -> list[str]:
    """Nested JSON values as lines "a.b: value"."""
    if not isinstance(value, dict):
        return [f"{prefix}: {value:.3g}" if isinstance(value, float) else f"{prefix}: {value}"]
    return [line for key, item in value.items() for line in _flat(item, f"{prefix}.{key}" if prefix else str(key))]
