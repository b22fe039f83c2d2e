"""`finercam export`: a model specification in, a verified engine out. It and the demo need PyTorch, nothing else."""

from __future__ import annotations

import argparse
import ast
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finercam_rt.cli.exported import summary
from finercam_rt.cli.files import find_photographs
from finercam_rt.cli.progress import progress
from finercam_rt.embeddings import ClassEmbeddings
from finercam_rt.errors import ExportError, one_line
from finercam_rt.manifest import HEADS, INTERPOLATIONS, LAYOUTS, METHODS, OBJECTIVES, PRECISIONS, InputSpec, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable

    from finercam_rt.export import LoadedModel

STAGES = 6
"""Loading, and the five that export_model names; a reduced precision and a check have one more each."""

_EPILOG = """\
model specifications:
  timm:NAME                    any classifier of timm
  torchvision:NAME             any classifier of torchvision
  open_clip:NAME[@TAG]         a zero-shot model of open_clip, prepared as the weights TAG want it; or its FOLDER
  FOLDER, hf:NAME              what transformers or timm saved (config.json and weights); NAME with --pretrained
  PROGRAM.pt2                  what torch.export.save wrote, with a dynamic batch; open only what you trust
  py:PACKAGE.MODULE:CALLABLE   a function of yours that returns a torch.nn.Module in evaluation mode
  hub:FOLDER:CALLABLE          an entry point of the hubconf.py in a local folder

examples:
  finercam export timm:resnet50 -o r50.onnx --checkpoint weights.pth --classes labels.txt
  finercam export py:birds.model:load -o birds.onnx --input-size 224 --classes birds.txt
  finercam export timm:vit_base_patch14_dinov2 -o birds.onnx --pretrained --input-size 448 --linear-head birds.pth
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "export",
        help="compile a PyTorch classifier and its explanation into one ONNX file (needs PyTorch)",
        description="Compile a PyTorch classifier and its Finer-CAM explanation into one ONNX file.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a model specification, see below")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, required=True, help="the engine, usually NAME.onnx"
    )
    weights = parser.add_argument_group(
        "weights (timm: and torchvision: need one of these)"
    ).add_mutually_exclusive_group()
    weights.add_argument("--checkpoint", metavar="FILE", type=Path, help="a state dict: .pth, .pt or .safetensors")
    weights.add_argument("--pretrained", action="store_true", help="the library's own weights, downloaded")
    weights.add_argument("--random-weights", action="store_true", help="random ones, to measure speed")
    model = parser.add_argument_group("model")
    model.add_argument("--num-classes", metavar="K", type=int, help="number of classes (default: the checkpoint's)")
    model.add_argument(
        "--model-arg", metavar="NAME=VALUE", action="append", default=[], help="an argument of the model's constructor"
    )
    model.add_argument("--classes", metavar="FILE", type=Path, help="class names, one a line")
    model.add_argument(
        "--linear-head",
        metavar="FILE",
        type=Path,
        help="a state dict of one linear layer, put on the backbone's tokens",
    )
    model.add_argument(
        "--pool",
        choices=("mean", "cls", "cls+mean"),
        help="what the linear head reads: the mean of the normalised patch tokens (default), the class token, or both",
    )
    model.add_argument("--logits", metavar="NAME", help="name or position of the logits among several outputs")
    model.add_argument(
        "--binary", action="store_true", help="the one logit is a sigmoid's: two classes, no and yes, are made of it"
    )
    model.add_argument(
        "--input",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a constant for an input besides the image; a list is one image's row",
    )
    layer = parser.add_argument_group("target layer")
    layer.add_argument(
        "--target-layer",
        metavar="NAME",
        nargs="+",
        default=["auto"],
        help="module to explain at; of several, the mean of their normalised maps (default: auto)",
    )
    layer.add_argument(
        "--layer-maps", action="store_true", help="the raw map of each of several target layers is an output as well"
    )
    layer.add_argument("--layout", choices=LAYOUTS, help="layout of its output (default: from its shape)")
    layer.add_argument("--grid", metavar=("H", "W"), type=int, nargs=2, help="positions of the map, for tokens")
    layer.add_argument("--prefix-tokens", metavar="N", type=int, help="tokens before the patches (CLS, registers)")
    layer.add_argument("--method", choices=METHODS, default="gradcam", help="how the map is made (default: gradcam)")
    layer.add_argument(
        "--head",
        choices=HEADS,
        default="graph",
        help="what the graph gives: the map (default), or taps: the activations and what the method needs of their "
        "gradients, from which the runtime makes it",
    )
    layer.add_argument(
        "--gradients",
        action="store_true",
        help="with --head taps: the gradients at every position, so that one engine draws every method",
    )
    layer.add_argument(
        "--tail",
        metavar="FILE",
        type=Path,
        help="with --head taps: also write the graph from the activations to the logits, for Ablation-CAM",
    )
    contrast = parser.add_argument_group("contrast")
    contrast.add_argument(
        "--objective",
        choices=OBJECTIVES,
        default="weighted",
        help="how references count: by their softmax (default), equally, as in the paper, or as shares of the softmax "
        "over all classes",
    )
    contrast.add_argument(
        "--references",
        metavar="R",
        type=int,
        help="reference classes an image, fewer than the model has classes (default: 3, or as many as there are)",
    )
    contrast.add_argument(
        "--contrasts",
        metavar="P",
        type=int,
        default=1,
        help="contrasts an image in one run: the top P classes, why A and not B, a sweep of alpha (default: 1)",
    )
    image = parser.add_argument_group("input (default: the library's for this model; ImageNet's for py:)")
    image.add_argument("--input-size", metavar="PIXELS", type=int, nargs="+", help="one number, or height and width")
    image.add_argument(
        "--channels", metavar="C", type=int, help="of an image: 1 is grey, 3 RGB (default: found from the model)"
    )
    image.add_argument(
        "--mean", metavar="V", type=float, nargs="+", help="of values from 0 to 1: one, or one a channel"
    )
    image.add_argument("--std", metavar="V", type=float, nargs="+", help="of values from 0 to 1: one, or one a channel")
    image.add_argument("--interpolation", choices=INTERPOLATIONS, help="resizing of photographs")
    image.add_argument("--crop-pct", metavar="SHARE", type=float, help="input size / resized shorter edge")
    precision = parser.add_argument_group("precision")
    precision.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="of the part before the target layer (default: fp32); int8 is for CPUs, int8-symmetric for TensorRT; the "
        "result is compared with fp32",
    )
    precision.add_argument(
        "--calibration",
        metavar="PATH",
        type=Path,
        nargs="+",
        default=[],
        help="typical photographs, or folders: int8 takes its ranges from them; the comparison uses others of them",
    )
    precision.add_argument(
        "--force",
        action="store_true",
        help="write it even where its maps differ from fp32's, or where float32 cannot hold them (rounding moves "
        "PyTorch's own as far then)",
    )
    parser.add_argument(
        "--class-embeddings",
        metavar="FILE",
        type=Path,
        help="of a zero-shot model: verify, and compare precisions, on these classes (default: random directions)",
    )
    parser.add_argument(
        "--check",
        choices=("tensorrt",),
        help="build it with TensorRT as well, to see that it can (TensorRT-RTX needs no GPU for that)",
    )
    parser.add_argument("--opset", type=int, default=20, help="ONNX opset, 18 to 20 (default: 20)")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load, compile, verify and write; see export_model."""
    began = time.perf_counter()
    request = {
        "specification": args.model,
        "checkpoint": args.checkpoint,
        "pretrained": args.pretrained,
        "random_weights": args.random_weights,
        "num_classes": args.num_classes,
        "channels": args.channels,
        "input_size": _size(args.input_size),
        "arguments": dict(assignment("--model-arg", text) for text in args.model_arg),
        "linear_head": args.linear_head,
        "pool": args.pool or "mean",
    }
    if args.pool is not None and args.linear_head is None:
        raise ExportError("--pool says what a --linear-head reads; give that too, or leave it out.")
    inputs = dict(assignment("--input", text) for text in args.input)
    classes = None if args.classes is None else read_class_names(args.classes)
    photographs = list(find_photographs(args.calibration, None))
    if args.precision == "fp32" and photographs:
        raise ExportError("--calibration belongs to a reduced --precision; name one, or leave it out.")
    embeddings = None if args.class_embeddings is None else ClassEmbeddings.load(args.class_embeddings)
    export = import_export()

    def load() -> LoadedModel:
        loaded: LoadedModel = export.load_model(export.ModelRequest(**request))
        spec = _input_spec(loaded.input, args)
        channels = loaded.channels if args.channels is None else args.channels
        return replace(
            loaded,
            input=spec,
            classes=classes or loaded.classes,
            inputs={**loaded.inputs, **inputs},
            channels=channels,
        )

    grid = None if args.grid is None else (args.grid[0], args.grid[1])
    manifest = export_with_progress(
        export,
        load,
        args.output,
        target_layer=args.target_layer,
        method=args.method,
        objective=args.objective,
        references=args.references,
        contrasts=args.contrasts,
        layer_maps=args.layer_maps,
        head=args.head,
        gradients=args.gradients,
        tail=args.tail,
        layout=export.LayoutRequest(args.layout, grid, args.prefix_tokens),
        output=args.logits,
        binary=args.binary,
        opset=args.opset,
        precision=args.precision,
        calibration=photographs,
        force=args.force,
        class_embeddings=embeddings,
        check=args.check,
    )
    print(manifest.to_json() if args.json else summary(manifest, args.output, time.perf_counter() - began))
    return 0


def import_export() -> Any:
    """The export stage.

    Raises:
        ExportError: PyTorch or ONNX are not installed.
    """
    try:
        import finercam_rt.export
    except ImportError as error:
        how = 'with `pip install "finercam-rt[export]"`'
        if isinstance(error, ModuleNotFoundError):
            raise ExportError(f"exporting needs {error.name}, which is not installed; install it {how}.") from None
        raise ExportError(
            f"exporting needs a library that does not load ({one_line(error)}); install it anew {how}."
        ) from None
    return finercam_rt.export


def export_with_progress(export: Any, load: Callable[[], LoadedModel], path: Path, **options: Any) -> Manifest:
    """Load and export with a bar over the stages; options are export_model's."""
    stages = STAGES + (options.get("precision", "fp32") != "fp32") + (options.get("check") is not None)
    with progress(stages, "stages", "exporting") as bar:
        bar.begin("loading the model")
        loaded = load()
        manifest: Manifest = export.export_model(
            loaded.model,
            path,
            input=loaded.input,
            channels=loaded.channels,
            classes=loaded.classes,
            name=loaded.name,
            inputs=loaded.inputs,
            on_stage=bar.begin,
            **options,
        )
    return manifest


def read_class_names(path: Path) -> tuple[str, ...]:
    """The lines of a text file, without empty ones at its end.

    Raises:
        ExportError: no such file, or not UTF-8 text.
    """
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines())
    except OSError as error:
        raise ExportError(f"{path}: the class names cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise ExportError(f"{path}: the class names are not UTF-8 text; give one name a line.") from None


def _size(values: list[int] | None) -> tuple[int, int] | None:
    if values is None:
        return None
    if len(values) > 2 or min(values) < 1:
        raise ExportError(
            f"the input size {' '.join(map(str, values))} is not a size; give one number or height and width."
        )
    return values[0], values[-1]


def assignment(option: str, text: str) -> tuple[str, Any]:
    """NAME=VALUE as a name and a Python value; what is no Python literal is text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ExportError(f"{option} {text!r} is not NAME=VALUE.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _input_spec(spec: InputSpec, args: argparse.Namespace) -> InputSpec:
    """The model's input with what the user pinned."""
    pinned: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name in ("mean", "std", "interpolation", "crop_pct")
        if (value := getattr(args, name)) is not None
    }
    for name in ("mean", "std"):
        if not all(math.isfinite(value) for value in pinned.get(name, ())):
            raise ExportError(f"--{name} has a value that is not finite; give one number, or one a channel.")
    if args.mean is not None and max(args.mean) > 1:
        raise ExportError(f"--mean {max(args.mean):g} is one of values from 0 to 255; divide mean and std by 255.")
    if args.std is not None and not min(args.std) > 0:
        raise ExportError("--std has a value that is not above zero; it is what pixels are divided by.")
    if args.crop_pct is not None and not 0 < args.crop_pct <= 1:
        raise ExportError(f"--crop-pct is {args.crop_pct:g}; give a share above 0, at most 1.")
    return replace(spec, **pinned)
