"""Models of open_clip: open_clip:NAME, open_clip:NAME@TAG and open_clip:FOLDER become zero-shot models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from finercam_rt.errors import ExportError
from finercam_rt.export.models.request import LoadedModel, ModelRequest, nearest
from finercam_rt.export.quiet import quiet
from finercam_rt.export.refusal import first_line
from finercam_rt.export.zero_shot import ZeroShot, check_lengths
from finercam_rt.manifest import INTERPOLATIONS, InputSpec

_CONFIG = "open_clip_config.json"
_CROP_MODES = {"shortest": "center", "squash": "squash", "longest": "border"}
"""What open_clip calls a way to resize, and what the manifest does."""
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


def load_open_clip(name: str, request: ModelRequest) -> LoadedModel:
    """A model of open_clip, with the preprocessing that its weights were trained with.

    Args:
        name: an architecture, such as ViT-B-16; with @TAG one of its published weights, which says how photographs are
            prepared, and which request.pretrained downloads; or a folder with open_clip_config.json and weights.
        request: its checkpoint is a file in any form that open_clip reads without running code from it.

    Raises:
        ExportError: open_clip is missing, an unknown name or tag, no weights, or weights of another architecture.
    """
    try:
        import open_clip
    except ImportError as error:
        raise ExportError(
            f"open_clip cannot be imported ({first_line(error)}); install it with `pip install open_clip_torch`."
        ) from None
    folder = Path(name) if (Path(name) / _CONFIG).is_file() else None
    architecture, _, tag = (name, "", "") if folder else name.partition("@")
    settings, preprocessing = (
        _folder_settings(folder) if folder else _named_settings(open_clip, architecture, tag, request)
    )
    stored = request.checkpoint is None and not request.random_weights
    options: dict[str, Any] = dict(request.arguments)
    if request.input_size is not None:
        options["force_image_size"] = request.input_size
    if folder is None:
        options["pretrained"] = tag if request.pretrained else None
    try:
        with quiet(), torch.random.fork_rng():
            torch.manual_seed(0)  # random weights are the same ones each time, for the text tower too
            model: Any = open_clip.create_model(
                f"local-dir:{folder}" if folder else architecture,
                pretrained_image=False,
                pretrained_text=False,
                load_weights=stored,
                require_pretrained=stored,  # or it would go on with random ones
                **options,
            )
            if request.checkpoint is not None:
                open_clip.load_checkpoint(model, str(request.checkpoint), strict=True)
    except Exception as error:
        weights = f" with the weights of {request.checkpoint}" if request.checkpoint else ""
        raise ExportError(
            f"open_clip:{name}{weights} cannot be built ({type(error).__name__}: {first_line(error)})."
        ) from error
    model.eval()

    def text(prompts: Sequence[str], tokenizer: Path | None) -> torch.Tensor:
        ours = not settings["text_cfg"].get("hf_tokenizer_name") and (folder or "siglip" not in architecture.lower())
        files = tokenizer or folder
        if not ours and files is None and not request.pretrained:
            raise ExportError(
                f"the tokenizer of {architecture} does not come with open_clip; give a folder with its files as "
                "--tokenizer, or --pretrained to download it."
            )
        reader = _tokenizer(settings["text_cfg"], architecture, None if ours else files, bool(ours))
        check_lengths(prompts, [_length(reader, prompt) for prompt in prompts], reader.context_length)
        features: torch.Tensor = model.encode_text(reader(list(prompts)))
        return features

    bias = getattr(model, "logit_bias", None)
    zero_shot = ZeroShot(
        model,
        model.encode_image,
        logit_scale=float(model.logit_scale.detach().exp()),
        logit_bias=0.0 if bias is None else float(bias.detach()),
        image_tower=("visual",),
        text=text,
    )
    size = model.visual.image_size
    spec = _input_spec(preprocessing, (size, size) if isinstance(size, int) else (size[0], size[1]))
    return LoadedModel(zero_shot, f"open_clip:{folder.name if folder else name}", spec)


def _folder_settings(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    try:
        stored = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        return stored["model_cfg"], stored.get("preprocess_cfg", {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{folder / _CONFIG} is not a configuration of open_clip ({first_line(error)}).") from None


def _named_settings(
    open_clip: Any, architecture: str, tag: str, request: ModelRequest
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The architecture's configuration, and how its weights want photographs prepared."""
    names = open_clip.list_models()
    if architecture not in names:
        hint = nearest(architecture, names)
        raise ExportError(f"open_clip has no model {architecture!r}, nor is it a folder with {_CONFIG}{hint}.")
    settings = open_clip.get_model_config(architecture)
    if not (request.checkpoint or request.pretrained or request.random_weights):
        raise ExportError(
            f"open_clip:{architecture} has no weights yet; give --checkpoint FILE, --pretrained (downloads those of "
            "open_clip:NAME@TAG), or --random-weights."
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    published = {name: open_clip.get_pretrained_cfg(architecture, name) for name in tags}
    if tag and tag not in published:
        raise ExportError(f"open_clip has no weights {tag!r} of {architecture}; it has {', '.join(tags) or 'none'}.")
    if tag:
        quick = bool(published[tag].get("quick_gelu", False))
        if quick != bool(settings.get("quick_gelu", False)):
            other = f"{architecture}-quickgelu" if quick else architecture.replace("-quickgelu", "")
            raise ExportError(f"the weights {tag!r} were trained with another GELU; give open_clip:{other}@{tag}.")
        return settings, published[tag]
    ways = {json.dumps({key: config.get(key) for key in _PREPROCESSING}): config for config in published.values()}
    if request.pretrained or (len(ways) > 1 and not request.random_weights):
        raise ExportError(
            f"open_clip has several weights of {architecture}, for which photographs are prepared in different ways; "
            f"say which as open_clip:{architecture}@TAG, one of {', '.join(tags)}."
        )
    return settings, next(iter(ways.values()), {})


def _input_spec(preprocessing: Mapping[str, Any], size: tuple[int, int]) -> InputSpec:
    import open_clip

    interpolation = preprocessing.get("interpolation") or "bicubic"
    mode = preprocessing.get("resize_mode") or "shortest"
    if interpolation not in INTERPOLATIONS or mode not in _CROP_MODES:
        raise ExportError(f"photographs are resized by {interpolation!r}, {mode!r}, which the runtime cannot do.")
    mean = preprocessing.get("mean") or open_clip.OPENAI_DATASET_MEAN
    std = preprocessing.get("std") or open_clip.OPENAI_DATASET_STD
    return InputSpec(
        size=size,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        interpolation=interpolation,
        crop_pct=1.0,
        crop_mode=_CROP_MODES[mode],
    )


def _tokenizer(settings: Mapping[str, Any], architecture: str, files: Path | None, ours: bool) -> Any:
    """What open_clip reads texts with: CLIP's vocabulary, which comes with it, or another one's files."""
    import open_clip

    length = int(settings.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH))
    options = dict(settings.get("tokenizer_kwargs", {}))
    try:
        with quiet():
            if ours:
                return open_clip.SimpleTokenizer(context_length=length, **options)
            if files is None:
                return open_clip.get_tokenizer(architecture)
            mode = settings.get("tokenizer_mode")
            return open_clip.tokenizer.HFTokenizer(str(files), length, tokenizer_mode=mode, **options)
    except Exception as error:
        raise ExportError(f"the tokenizer of {architecture} cannot be loaded ({first_line(error)}).") from error


def _length(reader: Any, prompt: str) -> int:
    """The number of tokens, those at the ends too, before a tokenizer cuts them off."""
    if hasattr(reader, "encode"):
        return len(reader.encode(prompt)) + 2
    return len(reader.tokenizer(reader.clean_fn(prompt))["input_ids"])
