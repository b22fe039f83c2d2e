"""The runtimes that can serve an engine, behind one protocol."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from finercam_rt.backends import selection
from finercam_rt.backends.protocol import Backend as Backend
from finercam_rt.backends.protocol import Run as Run
from finercam_rt.cuda import device_index
from finercam_rt.engine_file import is_plan
from finercam_rt.errors import BackendError
from finercam_rt.manifest import Manifest
from finercam_rt.packages import can_be_imported
from finercam_rt.threads import physical_cores_granted, threads_granted

OF_GRAPHS = ("onnxruntime", "openvino")
"""The runtimes of .onnx files; the one that others are held to comes first."""
BACKENDS = ("auto", *OF_GRAPHS)
OF_GPUS = ("onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx")
"""Those of .onnx files that need a GPU; onnxruntime runs on one where the device says so."""
OF_PLANS = "tensorrt"
DEVICES = ("auto", "cpu", "cuda", "cuda:N")
COMPUTES = ("f32", "bf16")
PIN = "FINERCAM_BACKEND"
"""The environment variable that says which runtime "auto" is."""


def open_backend(
    path: Path,
    manifest: Manifest,
    *,
    backend: str,
    device: str,
    threads: int | None,
    spinning: bool,
    compute: str,
    cuda_graphs: bool = True,
) -> Backend:
    """Load the engine into a runtime; a plan goes to the TensorRT that built it, on a GPU.

    Of an ONNX file on a GPU, "auto" is ONNX Runtime with its CUDA provider. On the CPU it is what FINERCAM_BACKEND
    says, else the only runtime that is installed, else the faster one: that is measured the first time an engine meets
    a processor, a number of threads and these versions, and then remembered.

    Raises:
        BackendError: an unknown, missing or unsupported runtime, device, number of threads or way to compute.
        EngineError: a graph that the runtime cannot load, or whose inputs and outputs differ from the manifest.
    """
    for what, value, known in (
        ("backend", backend, (*BACKENDS, *OF_GPUS, OF_PLANS)),
        ("device", "cuda:N" if device_index(device) is not None else device, DEVICES),
        ("compute", compute, COMPUTES),
    ):
        if value not in known:
            raise BackendError(f"there is no {what} {value!r}; choose one of {', '.join(known)}.")
    granted = threads_granted(threads)
    if is_plan(path):
        return _open_plan(path, manifest, backend, device, compute, cuda_graphs)
    if backend == OF_PLANS:
        raise BackendError(f"{path} is no TensorRT plan; make one of it with `finercam build`.")
    if backend in OF_GPUS or device not in ("auto", "cpu"):
        return _open_on_gpu(path, manifest, backend, device, compute, cuda_graphs)

    # Loaded here and not above: importing a runtime costs tenths of a second and hundreds of megabytes.
    def open_onnxruntime() -> Backend:
        from finercam_rt.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(path, manifest, threads=granted, spinning=spinning)

    def open_openvino() -> Backend:
        from finercam_rt.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(path, manifest, threads=granted, compute=compute)

    openers: dict[str, Callable[[], Backend]] = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}
    name = _pinned() if backend == "auto" else backend
    if compute == "bf16":
        if name == "onnxruntime":
            where = "backend" if backend != "auto" else PIN
            raise BackendError(
                f"{where} is 'onnxruntime', which computes in f32 on the CPU; make it 'openvino' for bf16."
            )
        return open_openvino()
    if name != "auto":
        return openers[name]()
    installed = _installed()
    if not installed:
        raise BackendError(
            'no runtime is installed; install one with `pip install "finercam-rt[cpu]"` or "finercam-rt[openvino]".'
        )
    if len(installed) == 1:
        return openers[installed[0]]()
    return selection.choose(path, manifest, {name: openers[name] for name in installed}, granted)


def _open_plan(path: Path, manifest: Manifest, backend: str, device: str, compute: str, cuda_graphs: bool) -> Backend:
    if backend not in ("auto", OF_PLANS):
        raise BackendError(f"{path} is a TensorRT plan, which {backend} does not run; use backend='auto'.")
    if device == "cpu":
        raise BackendError(f"{path} is a TensorRT plan, which runs on a GPU; run its ONNX file on the CPU.")
    if compute != "f32":
        raise BackendError(f"{path} computes in what it was built for; leave compute={compute!r} out.")
    from finercam_rt.backends.tensorrt import open_plan

    return open_plan(path, manifest, device=device, cuda_graphs=cuda_graphs)


def _open_on_gpu(path: Path, manifest: Manifest, backend: str, device: str, compute: str, cuda_graphs: bool) -> Backend:
    if device == "cpu":
        raise BackendError(f"{backend} runs on a GPU; use device='auto', or backend='onnxruntime' on the CPU.")
    if backend == "openvino":
        raise BackendError("openvino runs on the CPU; use device='cpu', or backend='onnxruntime' on the GPU.")
    if compute != "f32":
        raise BackendError(f"compute={compute!r} is OpenVINO's; export the engine with --precision for a GPU.")
    from finercam_rt.backends.onnxruntime_gpu import open_session

    name = "onnxruntime" if backend == "auto" else backend
    return open_session(path, manifest, backend=name, device=device, cuda_graphs=cuda_graphs)


def open_graph(path: Path, *, backend: str, threads: int | None) -> Run:
    """Load a graph that is no engine, of float32 inputs and outputs and one dynamic axis, such as a tail.

    "auto" is what FINERCAM_BACKEND says, else the first runtime that is installed. Any number of threads may call the
    result, which gives arrays of the caller's own.

    Raises:
        BackendError: an unknown or missing runtime, or fewer than one thread; where it is called, the runtime failed.
        EngineError: a graph that the runtime cannot load.
    """
    if backend not in BACKENDS:
        raise BackendError(f"there is no backend {backend!r}; choose one of {', '.join(BACKENDS)}.")
    granted = threads_granted(threads)
    name = _pinned() if backend == "auto" else backend
    if name == "auto":
        name = next(iter(_installed()), "onnxruntime")
    if name == "openvino":
        from finercam_rt.backends import openvino

        return openvino.open_graph(path, granted)
    from finercam_rt.backends import onnxruntime

    return onnxruntime.open_graph(path, granted)


def describe_auto(path: Path, manifest: Manifest) -> str:
    """What "auto" is for this engine here, with the default number of threads, and why; nothing is loaded."""
    pinned, installed = _pinned(), _installed()
    if pinned != "auto":
        return f"{pinned}, as {PIN} says"
    if len(installed) < 2:
        return f"{installed[0]}, the only one installed" if installed else "none is installed"
    threads = physical_cores_granted()
    name = selection.remembered(path, manifest, installed, threads)
    if name is None:
        return f"not chosen yet: the first run measures {' and '.join(installed)}"
    return f"{name}, the one chosen here of {' and '.join(installed)} for {threads} threads"


def _pinned() -> str:
    """What "auto" means by the environment."""
    name = os.environ.get(PIN) or "auto"
    if name not in BACKENDS:
        raise BackendError(f"{PIN} is {name!r}; set it to one of {', '.join(BACKENDS)}.")
    return name


def _installed() -> list[str]:
    """The runtimes of ONNX files that can be imported, without importing them, in the order of OF_GRAPHS."""
    return [name for name in OF_GRAPHS if can_be_imported(name)]
