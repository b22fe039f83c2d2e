"""Which photographs are meant, and what they are called in the output."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from finercam_rt.errors import InputError
from finercam_rt.images import ARRAY_SUFFIXES, IMAGE_SUFFIXES

OUTPUT_SUFFIXES = (".overlay.png", ".heatmap.png")
"""Our own pictures, left out when a folder is searched, so that a second run does not explain the first one's."""


def find_photographs(
    paths: Sequence[Path], out: Path | None, suffixes: frozenset[str] = IMAGE_SUFFIXES
) -> dict[Path, Path]:
    """The files meant by `paths`, files and folders, to the name of each in the output: relative, without suffix.

    Folders are searched with their sub-folders, in sorted order, for `suffixes`, and where there are none for arrays;
    `out` and our own pictures and maps in them are left out. A file is named by its path within the folder given, or by
    its own name; where two would share a name, all are named by their paths from the folder common to all, and where
    that is not enough, with suffix.

    Raises:
        InputError: no such file or folder, or a folder without images.
    """
    names: dict[Path, Path] = {}
    outside = None if out is None else out.resolve()
    for path in paths:
        if path.is_dir():
            inner = outside if outside is not None and path.resolve() in outside.parents else None
            files = sorted(path.rglob("*"))
            found = [file for file in files if _is_photograph(file, inner, suffixes)] or [
                file for file in files if _is_photograph(file, inner, ARRAY_SUFFIXES)
            ]
            if not found:
                raise InputError(f"{path}: there is no image in this folder.")
            names.update((file, file.relative_to(path)) for file in found)
        elif path.exists():
            names.setdefault(path, Path(path.name))
        else:
            raise InputError(f"{path}: no such file.")
    names = {file: name for file, name in {file.resolve(): (file, name) for file, name in names.items()}.values()}
    if _shared(names):
        common = Path(os.path.commonpath([file.resolve().parent for file in names]))
        names = {file: file.resolve().relative_to(common) for file in names}
    shared = _shared(names)
    return {file: name if name.with_suffix("") in shared else name.with_suffix("") for file, name in names.items()}


def _shared(names: dict[Path, Path]) -> set[Path]:
    """The names without suffix that more than one file has."""
    counts = Counter(name.with_suffix("") for name in names.values())
    return {name for name, count in counts.items() if count > 1}


def _is_photograph(file: Path, outside: Path | None, suffixes: frozenset[str]) -> bool:
    if file.suffix.lower() not in suffixes or file.name.endswith(OUTPUT_SUFFIXES) or not file.is_file():
        return False
    if any(file.with_name(f"{file.stem}{suffix}").exists() for suffix in OUTPUT_SUFFIXES if file.suffix == ".npy"):
        return False  # the raw map beside our own pictures
    return outside is None or outside not in file.resolve().parents
