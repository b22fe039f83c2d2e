"""Files: what a path is, whether a folder takes new ones, writing that appears whole or not at all, hashes."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from finercam_rt.errors import EngineError, InputError

_BLOCK = 1 << 20


def kind_of(path: Path) -> Literal["file", "folder"] | None:
    """What lies at a path, links followed; None where nothing does.

    Raises:
        InputError: it cannot be found out: a folder above it that may not be entered, a name that is too long.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # the latter of a name with a NUL
        raise InputError(f"{path!s} cannot be read ({system_reason(error)}).") from None
    return "folder" if stat.S_ISDIR(mode) else "file"


def system_reason(error: Exception) -> str:
    """What the system says, without the number and the path."""
    return str(getattr(error, "strerror", None) or error)


@contextmanager
def opened(path: Path, made_by: str) -> Iterator[BinaryIO]:
    """What an engine is read from; made_by says what to give in its place.

    Raises:
        EngineError: no such file, a folder, or it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            yield stream
    except FileNotFoundError:
        raise EngineError(f"{path}: no such file; give {made_by}.") from None
    except IsADirectoryError:
        raise EngineError(f"{path} is a folder; give {made_by}.") from None
    except (OSError, ValueError) as error:  # the latter of a name with a NUL
        raise EngineError(f"{path} cannot be read ({system_reason(error)}).") from None


def files_below(folder: Path) -> Iterator[Path]:
    """All in a folder and below it, through links to folders too, but for what is hidden: ._1.jpg, .Trash.

    Raises:
        InputError: one of the folders cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read ({system_reason(error)}); name the folders that can.")

    above = {folder.resolve()}
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        # a link to a folder that was seen goes in circles, or gives its files twice
        shown = sorted((name for name in folders if not name.startswith(".")), reverse=True)
        real = {(Path(place) / name).resolve(): name for name in shown}
        folders[:] = sorted(name for path, name in real.items() if path not in above)
        above |= set(real)
        yield from (Path(place) / name for name in files if not name.startswith("."))


def check_output_folder(folder: Path) -> None:
    """Refuse a folder that could not be written, before any work; it is not made yet.

    Raises:
        InputError: it is a file, or it or the nearest folder above it that exists does not take new files.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if kind_of(parent))
    if kind_of(existing) == "file":
        raise InputError(f"{existing} is a file; give a folder to write to.")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({system_reason(error)}).") from None


def cache_folder() -> Path | None:
    """XDG_CACHE_HOME/finercam-rt, which need not exist yet; None where there is no home."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    except RuntimeError:
        return None
    return folder / "finercam-rt"


def json_bytes(text: str) -> bytes:
    """JSON text in UTF-8; of a file name that is not UTF-8 the other bytes as JSON writes them, such as \\udce9."""
    return text.encode(errors="backslashreplace")


def file_to_write(path: Path) -> Path:
    """What a link there points to, or the path itself.

    Raises:
        InputError: it is a folder, a device or a pipe.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} cannot be written: it is not a regular file; give the name of one.")
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content appears at `path` in one step, when the block ends without an error; folders are made.

    A link stays one: what it points to is written.

    Raises:
        InputError: the file cannot be written, or what is there is a folder, a device or a pipe.
    """
    try:
        file = file_to_write(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        # a name of its own: other threads, and other machines, whose processes may have the same number, write too
        part = file.with_name(f".finercam-{secrets.token_hex(8)}.part")
        try:
            with part.open("xb") as stream:
                yield stream
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({system_reason(error)}).") from None


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
