"""Models that compare an image with texts: the classes are vectors that are given when the engine runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from finercam_rt.errors import ExportError
from finercam_rt.export.channels import configured_size
from finercam_rt.export.refusal import first_line
from finercam_rt.export.shared_names import SharedNames
from finercam_rt.export.weights_hash import weights_sha256

TextTower = Callable[[Sequence[str], "Path | None"], torch.Tensor]
"""Prompts, and the folder of a tokenizer where it is not beside the weights, to (M,D) features of any length."""


class ZeroShot(SharedNames):
    """logit_scale * z, z = f / |f|, of images (N,C,H,W) with features f (N,D): what class embeddings are held against.

    The logits of an engine made of it are forward(images) @ class_embeddings.T + logit_bias, with class embeddings
    (K,D) of length 1. It shares the model's layers and weights under their names.

    Args:
        model: where the weights are, such as a CLIP; in evaluation mode.
        image: images (N,C,H,W) float32 to features (N,D), such as model.encode_image.
        logit_scale, logit_bias: numbers, the scale itself and not its logarithm.
        image_tower: names of the modules and weights that `image` uses and `text` does not.
        text: prompts to features (M,D), for `embed`, see TextTower; None where there is no text tower.
    """

    def __init__(
        self,
        model: nn.Module,
        image: Callable[[torch.Tensor], torch.Tensor],
        *,
        logit_scale: float,
        logit_bias: float = 0.0,
        image_tower: Sequence[str] = (),
        text: TextTower | None = None,
    ) -> None:
        """Take over the model's layers."""
        super().__init__(model)
        self.logit_constants = (logit_scale, logit_bias)
        self._image_tower = tuple(image_tower)
        self._towers = (image, text)  # in a tuple, where a module would not be taken for a layer of this one

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N,C,H,W) -> logit_scale * z, (N,D)."""
        return self.logit_constants[0] * functional.normalize(self._towers[0](images), dim=-1)

    def logits_of(self, scaled: torch.Tensor, class_embeddings: torch.Tensor) -> torch.Tensor:
        """The logits (N,K), of what forward gave, (N,D), and class embeddings (K,D)."""
        return functional.linear(scaled, class_embeddings) + self.logit_constants[1]

    def text_sha256(self) -> str:
        """The hash of all weights but the image tower's: what makes text embeddings what they are."""
        image = tuple(f"{name}." for name in self._image_tower)
        return weights_sha256({key: v for key, v in self.state_dict().items() if not f"{key}.".startswith(image)})

    def embed(self, prompts: Sequence[str], tokenizer: Path | None = None) -> torch.Tensor:
        """Prompts to text embeddings (M,D) float32 of length 1; `tokenizer` is a folder, for models that lack one.

        Raises:
            ExportError: there is no text tower, its tokenizer is missing, or a prompt is too long for it.
        """
        text = self._towers[1]
        if text is None:
            raise ExportError("this model has no text tower; make ClassEmbeddings of your own vectors.")
        with torch.no_grad():
            return functional.normalize(text(prompts, tokenizer).float(), dim=-1)


def zero_shot_of_transformers(model: nn.Module, folder: Path) -> ZeroShot:
    """A model of transformers with two towers, such as CLIP or SigLIP; `folder` has the files of its tokenizer.

    The tokenizer is loaded when prompts are embedded.

    Raises:
        ExportError: a model that does not compare images (N,C,H,W) with texts by a scaled cosine.
    """
    towers: Any = model
    kind = str(towers.config.model_type)
    if kind not in _TRANSFORMERS:
        raise ExportError(
            f"{type(model).__name__} is not known to compare an image with texts by a scaled cosine, as "
            f"{', '.join(_TRANSFORMERS)} do; wrap it as finercam_rt.export.ZeroShot."
        )
    scale = 1 / towers.temperature if kind == "align" else towers.logit_scale.exp()
    bias = getattr(towers, "logit_bias", None)
    return ZeroShot(
        model,
        functools.partial(_image_features, model),  # a copy of it is one of the model, which a closure's would not be
        logit_scale=float(scale.detach()),
        logit_bias=0.0 if bias is None else float(bias.detach()),
        image_tower=("vision_model", "visual_projection"),
        text=functools.partial(_text_features, model, folder),
    )


_TRANSFORMERS = ("clip", "siglip", "metaclip_2", "altclip", "chinese_clip", "align")
"""The values of model_type in config.json."""


def _image_features(model: Any, images: torch.Tensor) -> torch.Tensor:
    """(N,D) of a model of transformers.

    Of convolutions any size is right; of transformers the positions are resized as transformers does it.
    """
    resized = model.config.model_type != "align" and tuple(images.shape[2:]) != configured_size(model.config)
    options = {"interpolate_pos_encoding": True} if resized else {}
    return _features(model.get_image_features(pixel_values=images, **options))


def _text_features(model: Any, folder: Path, prompts: Sequence[str], tokenizer: Path | None) -> torch.Tensor:
    """(M,D) of a model of transformers; `folder` has its tokenizer where none is given."""
    return _features(model.get_text_features(**_tokens(tokenizer or folder, model.config, prompts)))


def _features(output: Any) -> torch.Tensor:
    """The features out of what get_image_features or get_text_features gives, which depends on the version."""
    features: torch.Tensor = output if isinstance(output, torch.Tensor) else output.pooler_output
    return features


def _tokens(folder: Path, config: Any, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """The prompts as the text tower was trained to read them."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # OSError, ValueError, ImportError and what tokenizers have of their own
        raise ExportError(
            f"{folder}: its tokenizer cannot be loaded ({first_line(error)}); put the tokenizer's files beside the "
            "weights, or give their folder as --tokenizer."
        ) from None
    most = int(config.text_config.max_position_embeddings)
    check_lengths(prompts, [len(tokenizer(prompt)["input_ids"]) for prompt in prompts], most)
    if config.model_type == "siglip":  # trained on padded texts, without a mask
        tokens = tokenizer(list(prompts), padding="max_length", max_length=most, return_tensors="pt")
        return {"input_ids": tokens["input_ids"]}
    tokens = tokenizer(list(prompts), padding=True, return_tensors="pt")
    return {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}


def check_lengths(prompts: Sequence[str], lengths: Sequence[int], most: int) -> None:
    """Refuse prompts that the text tower would cut off, and embed as another text than the one that was asked for."""
    for prompt, length in zip(prompts, lengths, strict=True):
        if length > most:
            raise ExportError(
                f"the prompt {prompt[:40]!r}... has {length} tokens, and the text tower reads {most}; shorten it."
            )
