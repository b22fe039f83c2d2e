"""Extensions that tests compile from csrc themselves, beside the installed one."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from types import ModuleType

import nanobind

CSRC = Path(__file__).parents[2] / "csrc"
NANOBIND = Path(nanobind.source_dir())


def flags(domain: str) -> list[str]:
    """Of a file that nanobind is in. The domain is the extension's own, or it would be given the types of _core."""
    folders = [
        CSRC,
        nanobind.include_dir(),
        NANOBIND.parent / "ext" / "robin_map" / "include",
        sysconfig.get_paths()["include"],
    ]
    return ["-std=c++17", "-fPIC", "-fvisibility=hidden", f"-DNB_DOMAIN={domain}", *(f"-I{path}" for path in folders)]


def load(library: Path, name: str) -> ModuleType:
    """The last part of the name is the one that the extension was compiled with."""
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
