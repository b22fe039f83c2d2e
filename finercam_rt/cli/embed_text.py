"""`finercam embed-text`: names and prompts become the classes of a zero-shot engine. It needs PyTorch."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finercam_rt.cli.export import assignment, import_export, read_class_names
from finercam_rt.cli.progress import progress
from finercam_rt.errors import ExportError, InputError
from finercam_rt.files import kind_of

if TYPE_CHECKING:
    from collections.abc import Sequence

PRESETS = {
    "photo": "CLIP's usual one, 'a photo of a {}.' (default)",
    "origami": "that of CLIP-ES, 'a clean origami {}.'",
    "simple": "CLIP's best seven for ImageNet (needs open_clip)",
    "imagenet": "CLIP's eighty for ImageNet (needs open_clip)",
}
_SENTENCES = {"photo": ("a photo of a {}.",), "origami": ("a clean origami {}.",)}
_OF_OPEN_CLIP = {"simple": "SIMPLE_IMAGENET_TEMPLATES", "imagenet": "OPENAI_IMAGENET_TEMPLATES"}

_EPILOG = (
    """\
Each prompt's embedding is normalised, the mean over the templates is taken and normalised again. The file holds the
embeddings, (K,D) float32, their names, and which text tower made them; an engine of another one refuses it.

templates, given to --templates as sentences with one {} each, as files of them, or as
"""
    + "\n".join(f"  {name:10} {what}" for name, what in PRESETS.items())
    + """

examples:
  finercam export open_clip:ViT-B-16@laion2b_s34b_b88k -o clip.onnx --checkpoint clip.pt
  finercam embed-text open_clip:ViT-B-16@laion2b_s34b_b88k --checkpoint clip.pt --class-names birds.txt -o birds.npz
  finercam explain clip.onnx grosbeak.jpg -o OUT/ --class-embeddings birds.npz
  finercam embed-text open_clip:ViT-B-16@laion2b_s34b_b88k --checkpoint clip.pt --prompts "red epaulets" bird -o w.npz
  finercam explain clip.onnx blackbird.jpg -o OUT/ --class-embeddings w.npz --target "red epaulets"
"""
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "embed-text",
        help="turn class names or prompts into the classes of a zero-shot engine (needs PyTorch)",
        description="Turn class names and prompts into the classes of an engine of a zero-shot model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="the model specification that the engine was exported from")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="usually NAME.npz")
    classes = parser.add_argument_group("classes (at least two)")
    classes.add_argument(
        "--class-names", metavar="FILE", type=Path, help="names, one a line, to put into the templates"
    )
    classes.add_argument(
        "--prompts",
        metavar="TEXT",
        nargs="+",
        default=[],
        help="texts that are classes as they are, named by themselves",
    )
    classes.add_argument(
        "--templates", metavar="TEMPLATE", nargs="+", default=["photo"], help="what the names are put into, see below"
    )
    weights = parser.add_argument_group("weights, as for export").add_mutually_exclusive_group()
    weights.add_argument("--checkpoint", metavar="FILE", type=Path, help="the one that the engine was exported from")
    weights.add_argument("--pretrained", action="store_true", help="the library's own weights, downloaded")
    weights.add_argument("--random-weights", action="store_true", help="the random ones that export takes")
    parser.add_argument(
        "--model-arg", metavar="NAME=VALUE", action="append", default=[], help="an argument of the model's constructor"
    )
    parser.add_argument("--tokenizer", metavar="FOLDER", type=Path, help="its files, for models that come without")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load the model, embed, write."""
    if args.class_names is None and not args.prompts:
        raise InputError("there is nothing to embed; give --class-names FILE, --prompts TEXT ..., or both.")
    if args.tokenizer is not None and kind_of(args.tokenizer) != "folder":
        raise InputError(f"{args.tokenizer} is not a folder; --tokenizer is the folder with the tokenizer's files.")
    if kind_of(args.output) == "folder" or kind_of(args.output.parent) != "folder":
        raise InputError(f"{args.output} cannot be written; give a file in a folder that exists, such as birds.npz.")
    names = () if args.class_names is None else read_class_names(args.class_names)
    templates = read_templates(args.templates)
    export = import_export()
    request = export.ModelRequest(
        args.model,
        checkpoint=args.checkpoint,
        pretrained=args.pretrained,
        random_weights=args.random_weights,
        arguments=dict(assignment("--model-arg", text) for text in args.model_arg),
    )
    loaded = export.load_model(request)
    if not isinstance(loaded.model, export.ZeroShot):
        raise ExportError(
            f"{args.model} has classes of its own and no text tower; give a zero-shot model, such as a CLIP."
        )
    with progress(len(names) + len(args.prompts), "classes", "embedding") as bar:
        embeddings = export.embed_text(
            loaded.model,
            names,
            args.prompts,
            templates=templates,
            tokenizer=args.tokenizer,
            model_name=loaded.name,
            on_class=bar.advance,
        )
    embeddings.save(args.output)
    count, size = embeddings.values.shape
    print(
        f"{args.output}: {count} classes, {size} numbers each, by {loaded.name}\n"
        f"next: finercam explain ENGINE PHOTOGRAPHS -o OUT/ --class-embeddings {args.output}"
    )
    return 0


def read_templates(values: Sequence[str]) -> tuple[str, ...]:
    """Presets, sentences and files of them as sentences.

    Raises:
        InputError: a file that cannot be read, or holds no templates.
    """
    templates: list[str] = []
    for value in values:
        if value in _SENTENCES:
            templates += _SENTENCES[value]
        elif value in _OF_OPEN_CLIP:
            templates += _of_open_clip(value)
        elif "{}" in value:
            templates.append(value)
        else:
            templates += _lines(Path(value))
    return tuple(templates)


def _of_open_clip(preset: str) -> list[str]:
    try:
        open_clip: Any = importlib.import_module("open_clip")
    except ImportError:
        raise InputError(
            f"the templates {preset!r} come with open_clip, which is not installed; give them as a file."
        ) from None
    return [template("{}") for template in getattr(open_clip, _OF_OPEN_CLIP[preset])]


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"{str(path)!r} is no template: it has no {{}} for the name, and is neither a text file nor one of "
            f"{', '.join(PRESETS)}."
        ) from None
    if not lines:
        raise InputError(f"{path} is empty; give one template a line.")
    return lines
