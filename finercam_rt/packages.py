"""Which Python packages are installed, without importing them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable


def can_be_imported(module: str) -> bool:
    """Whether a module of this name is there."""
    try:
        spec = importlib.util.find_spec(module)
        return spec is not None and spec.origin is not None  # else a folder of that name
    except ValueError:  # importing it has been blocked
        return False


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
