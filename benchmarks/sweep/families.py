"""The families of timm, torchvision and transformers, and which of their members stand for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from comparison.script import write_text

PICKS = Path(__file__).with_name("picks.json")
LIBRARIES = ("timm", "torchvision", "transformers")
TOYS = "timm:test_"
"""What the names of timm's own toys begin with: nobody uses them, so they stand for no family."""

SHORTENED: dict[str, dict[str, Any]] = {"timm:deepseek_vit_412m": {"depth": 2}}
"""Arguments of models that are the smallest of a family and too large: fewer of the same blocks."""

NOT_COVERED: dict[str, str] = {
    "transformers/dinat": "it needs the package natten",
    "transformers/imagegpt": "it takes indices of colours, no images",
    "transformers/perceiver": "its latents have no places in the image",
    "transformers/shieldgemma2": "it answers questions in words",
    "transformers/siglip2": "it takes patches and their places, no images",
}
"""Families without a classifier of images that has a spatial target layer, or that cannot be built, and why."""


@dataclass(frozen=True)
class Member:
    """One architecture: its specification for `finercam export`, and its parameters as the library builds it."""

    family: str
    specification: str
    parameters: int


def families(on_family: Callable[[str], None] = lambda family: None) -> dict[str, list[Member]]:
    """Each family's members, smallest first: out of picks.json, which is made anew for other versions.

    A family is a module of timm.models or torchvision.models, or a model type of transformers, whose members are
    what its configuration is by default. Making it builds every architecture without memory, which
    takes two minutes.
    """
    versions = {library: metadata.version(library) for library in LIBRARIES}
    try:
        kept = json.loads(PICKS.read_text())
    except (OSError, ValueError):
        kept = {}
    if kept.get("versions") != versions:
        kept = {"versions": versions, "families": {}}
        for family, names in architectures():
            on_family(family)
            used = [name for name in names if not name.startswith(TOYS)]
            sizes = sorted((count, name) for name in used if (count := _count(name)) is not None)
            kept["families"][family] = [[name, count] for count, name in sizes]
        _write(kept)
    return {family: [Member(family, *row) for row in rows] for family, rows in kept["families"].items()}


def architectures() -> Iterator[tuple[str, list[str]]]:
    """(family, specifications) of every classifier of the libraries."""
    import timm
    from torchvision import models
    from transformers.models.auto import modeling_auto

    for module in timm.list_modules():
        yield f"timm/{module}", [f"timm:{name}" for name in timm.list_models(module=module)]
    by_module: dict[str, list[str]] = {}
    for name in models.list_models(module=models):
        module = models.get_model_builder(name).__module__.rpartition(".")[2]
        by_module.setdefault(f"torchvision/{module}", []).append(f"torchvision:{name}")
    yield from by_module.items()
    for kind, names in modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.items():
        classes = [names] if isinstance(names, str) else names
        yield f"transformers/{kind}", [f"transformers:{name}" for name in classes]


def as_given(specification: str, folder: Path) -> str:
    """What `finercam export` is given: the specification, or the folder, with a configuration of transformers in it."""
    library, _, name = specification.partition(":")
    if library != "transformers":
        return specification
    _configuration(name).save_pretrained(folder)
    return f"hf:{folder}"


def _configuration(name: str) -> Any:
    """Of a class of transformers, as it is by default."""
    import transformers

    return getattr(transformers, name).config_class(architectures=[name])


def choose(
    table: dict[str, list[Member]], members: int, most_parameters: int, only: Sequence[str] | None
) -> tuple[list[Member], dict[str, str]]:
    """The members to export, and the families left out with the reason.

    Args:
        table: what `families` returned.
        members: how many of each family, the smallest.
        most_parameters: larger ones are left out.
        only: names of families ("timm/beit", or "beit" of whatever library) or specifications of single models.

    Raises:
        ValueError: an unknown name, or a count below one.
    """
    if members < 1:
        raise ValueError(f"members is {members}; give 1 at least.")
    found: list[Member] = []
    for name in only or ():
        if ":" in name:
            count = _count(name)
            if count is None:
                raise ValueError(f"there is no model {name!r}.")
            found.append(Member(_family_of(name), name, count))
    wanted = [name for name in only or () if ":" not in name]
    for name in wanted:
        if not any(_is_family(family, name) for family in table):
            raise ValueError(f"there is no family {name!r}; choose from {', '.join(table)}.")
    left_out: dict[str, str] = {}
    for family, rows in table.items():
        if only and not any(_is_family(family, name) for name in wanted):
            continue
        small = [member for member in rows if member.parameters <= most_parameters]
        if family in NOT_COVERED:
            left_out[family] = NOT_COVERED[family]
        elif not small:
            smallest = f"{rows[0].parameters / 1e6:.0f} M parameters" if rows else "nothing that can be built"
            left_out[family] = f"its smallest member has {smallest}"
        found += small[:members] if family not in NOT_COVERED else []
    return found, left_out


def named(member: Member, names: Sequence[str]) -> bool:
    """Whether one of these names is that of the model or of its family."""
    return any(name == member.specification or _is_family(member.family, name) for name in names)


def _is_family(family: str, name: str) -> bool:
    return name in (family, family.partition("/")[2])


def _family_of(specification: str) -> str:
    return next(family for family, names in architectures() if specification in names)


def _count(specification: str) -> int | None:
    """Parameters of an architecture; None where the library has no such one, or cannot build it as it is."""
    import torch

    build = _builder(specification)
    try:
        try:
            with torch.device("meta"):
                model = build()
        except Exception:  # some compute with their weights while they are built
            model = build()
    except Exception:
        return None
    return sum(parameter.numel() for parameter in model.parameters())


def _builder(specification: str) -> Callable[[], Any]:
    library, _, name = specification.partition(":")
    if library == "timm":
        import timm

        return lambda: timm.create_model(name, **SHORTENED.get(specification, {}))
    if library == "transformers":
        import transformers

        return lambda: getattr(transformers, name)(_configuration(name))
    from torchvision import models

    return lambda: models.get_model(name, weights=None)


def _write(content: dict[str, Any]) -> None:
    rows = ",\n".join(f'  "{family}": {json.dumps(rows)}' for family, rows in content["families"].items())
    write_text(f'{{\n "versions": {json.dumps(content["versions"])},\n "families": {{\n{rows}\n }}\n}}\n', PICKS)
