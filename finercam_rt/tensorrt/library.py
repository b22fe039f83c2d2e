"""Which TensorRT is installed, and which one builds or runs a plan."""

from __future__ import annotations

import importlib
import re
from typing import Any, NamedTuple

from finercam_rt import _core
from finercam_rt.errors import BackendError
from finercam_rt.packages import can_be_imported

TENSORRT, RTX = "tensorrt", "tensorrt-rtx"
FLAVOURS = (TENSORRT, RTX)
RUNTIMES = ("auto", *FLAVOURS)

_MODULES = {TENSORRT: ("tensorrt",), RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings")}
"""Names of the Python module, as the SDK and the packages call it."""
_LIBRARIES = {"tensorrt_rtx_bindings": "tensorrt_rtx_libs"}
"""Modules that bring the shared libraries; the bindings look for what has been loaded."""
_INSTALL = {
    TENSORRT: "install it with `pip install tensorrt`, or take JetPack's",
    RTX: 'install it with `pip install "finercam-rt[tensorrt-rtx]"`',
}
_OLDEST = {TENSORRT: (10, 1), RTX: (1, 7)}
_OLDEST_IN_RTX = 80
"""TensorRT-RTX builds for SM75 where it is asked to; bfloat16 begins with SM80."""


class Library(NamedTuple):
    """A TensorRT that has been imported: "tensorrt" or "tensorrt-rtx", its version, and its Python module."""

    flavour: str
    version: str
    module: Any


def load_library(runtime: str, *, cross: bool = False) -> Library:
    """Import a TensorRT.

    Args:
        runtime: one of RUNTIMES; "auto" is TensorRT where it is installed and there is a GPU, else TensorRT-RTX.
        cross: whether the plan is for GPUs that need not be here, which TensorRT-RTX alone can build.

    Raises:
        BackendError: none is installed, or it does not load, is too old, or cannot do this here.
    """
    if runtime not in RUNTIMES:
        raise BackendError(f"there is no runtime {runtime!r}; choose one of {', '.join(RUNTIMES)}.")
    here = compute_capability() is not None
    if runtime == "auto":
        installed = [flavour for flavour in FLAVOURS if is_installed(flavour)]
        if not installed:
            raise BackendError(f"no TensorRT is installed; for plans of RTX GPUs {_INSTALL[RTX]}.")
        fitting = [flavour for flavour in installed if flavour == RTX or (here and not cross)]
        runtime = (fitting or installed)[0]
    library = import_flavour(runtime)
    if runtime == TENSORRT and cross:
        raise BackendError(
            "TensorRT builds for the GPU of this machine alone; leave the compute capability out, or take "
            "--runtime tensorrt-rtx."
        )
    if runtime == TENSORRT and not here:
        raise BackendError(
            f"TensorRT needs the GPU that it builds for, and there is none here ({_core.cuda_status()[1]}); build on "
            "that machine from the same ONNX file, or take --runtime tensorrt-rtx."
        )
    return library


def import_flavour(flavour: str) -> Library:
    """TensorRT or TensorRT-RTX.

    Raises:
        BackendError: it is not installed, does not load, or is too old.
    """
    names = [name for name in _MODULES[flavour] if can_be_imported(name)]
    if not names:
        raise BackendError(f"{flavour} is not installed; {_INSTALL[flavour]}.")
    name = names[0]
    try:
        if name in _LIBRARIES:
            importlib.import_module(_LIBRARIES[name])
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:  # the latter for shared libraries
        raise BackendError(f"{flavour} is installed and does not load ({error}); {_INSTALL[flavour]}.") from None
    version = str(module.__version__)
    if version_numbers(version)[:2] < _OLDEST[flavour]:
        oldest = ".".join(map(str, _OLDEST[flavour]))
        raise BackendError(f"{flavour} {version} is older than {oldest}; upgrade it.")
    return Library(flavour, version, module)


def is_installed(flavour: str) -> bool:
    """Whether it could be imported, without importing it."""
    return any(can_be_imported(name) for name in _MODULES[flavour])


def version_numbers(version: str) -> tuple[int, ...]:
    """ "11.4.0.106" as (11, 4, 0, 106)."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def compute_capability(device: int = 0) -> str | None:
    """That of a GPU, such as "SM89"; None where there is none of that number."""
    return f"SM{_core.cuda_compute_capability(device)}" if device < _core.cuda_status()[0] else None


def targets(library: Library, asked: tuple[str, ...]) -> tuple[str, ...]:
    """The compute capabilities that a plan is built for: those asked for, or else all that it fits.

    Raises:
        BackendError: one that this version does not build for.
    """
    if library.flavour == TENSORRT:
        here = compute_capability()
        assert here is not None  # load_library has seen it
        return (here,)
    members = library.module.ComputeCapability.__members__
    known = sorted((name for name in members if re.fullmatch(r"SM\d+", name)), key=lambda name: int(name[2:]))
    for name in asked:
        if name not in known:
            raise BackendError(
                f"{library.flavour} {library.version} does not build for {name}; choose among {', '.join(known)}, or "
                "build with TensorRT on a machine with that GPU."
            )
    return tuple(dict.fromkeys(asked)) or tuple(name for name in known if int(name[2:]) >= _OLDEST_IN_RTX)
