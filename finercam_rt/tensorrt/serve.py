"""Before a plan is loaded: whether it is whole, and whether it was built for this library and this GPU."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from finercam_rt import _core
from finercam_rt.errors import BackendError
from finercam_rt.tensorrt import library as libraries
from finercam_rt.tensorrt.library import TENSORRT, Library, version_numbers
from finercam_rt.tensorrt.plan import PlanInfo, read_checked_plan, read_plan_info

_VERSION_NUMBERS = 3
"""Of a version, those that a plan is bound to: the fourth counts builds of one version."""


class Served(NamedTuple):
    """The bytes of a plan that can run here, its sidecar, and the library for it."""

    data: bytes
    info: PlanInfo
    library: Library


def serve(plan: Path, device: int = 0) -> Served:
    """A plan that can run on a GPU of this number; the library has not seen it yet, since it would crash on some that
    it does not take.

    Raises:
        EngineError: what `plan.read_checked_plan` refuses.
        BackendError: a plan of another library, version or GPU, or a machine without one.
    """
    info = read_plan_info(plan)
    library = libraries.import_flavour(info.flavour)
    _check_version(plan, info, library)
    _check_device(plan, info, device)
    data, info = read_checked_plan(plan)
    return Served(data, info, library)


def _check_version(plan: Path, info: PlanInfo, library: Library) -> None:
    built, here = version_numbers(info.version), version_numbers(library.version)
    if built[:_VERSION_NUMBERS] == here[:_VERSION_NUMBERS]:
        return
    if info.options.get("version_compatible") and here >= built:
        return
    raise BackendError(
        f"{plan} was built by {info.flavour} {info.version}, and {library.version} is installed; build it again with "
        f"`finercam build` from its ONNX file, or install {info.version}."
    )


def _check_device(plan: Path, info: PlanInfo, device: int) -> None:
    here = libraries.compute_capability(device)
    if here is None:
        reason = _core.cuda_status()[1] or f"no cuda:{device}"
        raise BackendError(
            f"{plan} runs on an NVIDIA GPU, and there is none here ({reason}); run its ONNX file, which needs no GPU."
        )
    if here not in info.capabilities:
        way = "on this machine" if info.flavour == TENSORRT else f"with --compute-capability {here}"
        raise BackendError(
            f"{plan} was built for {', '.join(info.capabilities)}, and this GPU is {here}; build it again {way}."
        )
