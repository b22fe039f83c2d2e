"""Names and prompts become class embeddings, as CLIP and CLIP-ES make them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn import functional

from finercam_rt.embeddings import ClassEmbeddings
from finercam_rt.errors import ExportError
from finercam_rt.export.zero_shot import ZeroShot

DEFAULT_TEMPLATES = ("a photo of a {}.",)
PLACE = "{}"
"""Where a template has the name."""
_BATCH = 64


def embed_text(
    model: ZeroShot,
    names: Sequence[str],
    prompts: Sequence[str] = (),
    *,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    tokenizer: Path | None = None,
    model_name: str | None = None,
    on_class: Callable[[], None] = lambda: None,
) -> ClassEmbeddings:
    """t = u / |u|, u the mean over the templates of e / |e|, e the text tower's features of the name in a template.

    Args:
        model: with a text tower.
        names: classes, which are put into the templates.
        prompts: classes that are texts of their own, embedded as they are and named by themselves; behind the names.
        templates: sentences with one {} each.
        tokenizer: a folder with the tokenizer's files, for models that come without.
        model_name: what the embeddings say of the model.
        on_class: called when a class is done.

    Raises:
        ExportError: a template without a place for the name, or what `ZeroShot.embed` refuses.
        InputError: fewer than two classes, or one twice.

    Source: CLIP (zero-shot classification by ensembles of prompts); CLIP-ES, section 3.2.
    """
    for template in templates:
        if template.count(PLACE) != 1:
            raise ExportError(f"the template {template!r} has not exactly one {PLACE}, where the name goes.")
    if names and not templates:
        raise ExportError("there are no templates to put the names into; give one at least.")
    classes = [*([text.replace(PLACE, name) for text in templates] for name in names), *([text] for text in prompts)]
    if not classes:
        raise ExportError("there is no class to embed; give names or prompts.")
    vectors = []
    for sentences in classes:
        parts = [sentences[start : start + _BATCH] for start in range(0, len(sentences), _BATCH)]
        mean = torch.cat([model.embed(part, tokenizer) for part in parts]).mean(0)
        vectors.append(functional.normalize(mean, dim=0))
        on_class()
    return ClassEmbeddings(
        torch.stack(vectors).numpy(),
        (*names, *prompts),
        tuple(templates) if names else (),
        model_name or type(model).__name__,
        model.text_sha256(),
    )
