"""TensorRT and TensorRT-RTX: a plan on an NVIDIA GPU."""

from __future__ import annotations

from pathlib import Path

from finercam_rt import cuda
from finercam_rt.backends.gpu import GpuBackend
from finercam_rt.cuda import Device
from finercam_rt.files import cache_folder
from finercam_rt.manifest import Manifest
from finercam_rt.tensorrt.library import RTX
from finercam_rt.tensorrt.runtime import LoadedPlan
from finercam_rt.tensorrt.serve import Served, serve


def open_plan(path: Path, manifest: Manifest, *, device: str, cuda_graphs: bool) -> GpuBackend:
    """Check, load and refuse; see open_backend for the errors."""
    served = serve(path, cuda.device_index(device) or 0)
    opened = cuda.open_device(device)

    def load() -> LoadedPlan:
        return LoadedPlan(path, served, opened, _runtime_cache(served, opened))

    return GpuBackend(served.library.flavour, path, manifest, opened, load, cuda_graphs=cuda_graphs)


def _runtime_cache(served: Served, device: Device) -> Path | None:
    """Where the kernels that TensorRT-RTX compiles for this plan on this GPU are kept: in the user's cache folder."""
    folder = cache_folder()
    if served.library.flavour != RTX or folder is None:
        return None
    return folder / "tensorrt-rtx" / f"{served.info.plan_sha256[:32]}-{served.library.version}-{device.index}.cache"
