"""Python packages that are not always there: whether they are, in which versions, and what is the matter with them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any

from finercam_rt.errors import BackendError, one_line


def can_be_imported(module: str) -> bool:
    """Whether a module of this name is there; it is not imported."""
    try:
        spec = importlib.util.find_spec(module)
        return spec is not None and spec.origin is not None  # else a folder of that name
    except ValueError:  # importing it has been blocked
        return False


def import_package(module: str, called: str, install: str) -> Any:
    """A module that may be missing, or there and broken: the user is told which.

    Args:
        module: its name.
        called: what users call it.
        install: what to do where it is missing, such as "install onnxruntime-gpu".

    Raises:
        BackendError: it is not installed, or it is and does not load.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise BackendError(f"{called} is not installed; {install}.") from None
        reason: Exception = error
    except (ImportError, OSError, RuntimeError) as error:  # the latter two of its shared libraries
        reason = error
    raise BackendError(f"{called} is installed and does not load ({one_line(reason)}); {install} anew.")


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed, by name."""
    from importlib import metadata  # slow to import, and only records ask

    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
