"""Which photographs are meant, and what they are called in the output."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from finercam_rt.errors import InputError
from finercam_rt.files import files_below, kind_of
from finercam_rt.images import ARRAY_SUFFIXES, IMAGE_SUFFIXES

OUTPUT_SUFFIXES = (".overlay.png", ".heatmap.png", ".contrasts.png")
"""Our own pictures, left out when a folder is searched, so that a second run does not explain the first one's."""
_PART = re.compile(r"\.(?:contrast-\d|frame-\d|layer-)")
"""What follows NAME in the names of a contrast's, a frame's or a layer's files."""


def find_photographs(
    paths: Sequence[Path], out: Path | None, suffixes: frozenset[str] = IMAGE_SUFFIXES
) -> dict[Path, Path]:
    """The files meant by `paths`, files and folders, to the name of each in the output: relative, without suffix.

    Folders are searched with their sub-folders, in sorted order, for `suffixes`, and where there are none for arrays;
    `out`, what is hidden, and our own pictures and maps in them are left out. A file is named by its path within the
    folder given, or by its own name; where two would share a name, all are named by their paths from the folder common
    to all, where that is not enough those two with suffix, and where files would still be shared all of them.

    Raises:
        InputError: no such file or folder, one that cannot be read, or a folder without images.
    """
    names: dict[Path, Path] = {}
    outside = None if out is None else out.resolve()
    for path in paths:
        kind = kind_of(path)
        if kind == "folder":
            inner = outside if outside is not None and path.resolve() in outside.parents else None
            files = sorted(files_below(path))
            found = [file for file in files if _is_photograph(file, inner, suffixes)] or [
                file for file in files if _is_photograph(file, inner, ARRAY_SUFFIXES)
            ]
            if not found:
                raise InputError(f"{path}: there is no image in this folder.")
            names.update((file, file.relative_to(path)) for file in found)
        elif kind == "file":
            names.setdefault(path, Path(path.name))
        else:
            raise InputError(f"{path}: no such file.")
    names = {file: name for file, name in {file.resolve(): (file, name) for file, name in names.items()}.values()}
    if _shared(names):
        common = Path(os.path.commonpath([file.resolve().parent for file in names]))
        names = {file: file.resolve().relative_to(common) for file in names}
    shared = _shared(names)
    short = {file: name if name.with_suffix("") in shared else name.with_suffix("") for file, name in names.items()}
    return names if _meet(short.values()) else short


def _shared(names: dict[Path, Path]) -> set[Path]:
    """The names without suffix that more than one file has."""
    counts = Counter(name.with_suffix("") for name in names.values())
    return {name for name, count in counts.items() if count > 1}


def _meet(names: Collection[Path]) -> bool:
    """Whether two names are one, or one is what the parts of another are called."""
    texts = {str(name) for name in names}
    parts = (_PART.split(text, maxsplit=1)[0] for text in texts)
    return len(texts) < len(names) or any(
        part != text and part in texts for part, text in zip(parts, texts, strict=True)
    )


def _is_photograph(file: Path, outside: Path | None, suffixes: frozenset[str]) -> bool:
    if file.suffix.lower() not in suffixes or file.name.endswith(OUTPUT_SUFFIXES) or not file.is_file():
        return False
    beside = (file.parent / f"{file.stem}{suffix}" for suffix in OUTPUT_SUFFIXES if file.suffix == ".npy")
    if any(map(os.path.exists, beside)):
        return False  # the raw map beside our own pictures
    return outside is None or outside not in file.resolve().parents
