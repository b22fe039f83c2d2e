"""Files: whether a folder takes new ones, writing that appears whole or not at all, and what a file's hash is."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from finercam_rt.errors import InputError

_BLOCK = 1 << 20


def check_output_folder(folder: Path) -> None:
    """Refuse a folder that could not be written, before any work; it is not made yet.

    Raises:
        InputError: it is a file, or it or the nearest folder above it that exists does not take new files.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise InputError(f"{existing} is a file; give a folder to write to.")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}).") from None


def cache_folder() -> Path | None:
    """XDG_CACHE_HOME/finercam-rt, which need not exist yet; None where there is no home."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    except RuntimeError:
        return None
    return folder / "finercam-rt"


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content appears at `path` in one step, when the block ends without an error; folders are made.

    Raises:
        InputError: the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as stream:
                yield stream
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}).") from None


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
