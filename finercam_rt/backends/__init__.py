"""The runtimes that can serve an engine, behind one protocol."""

from __future__ import annotations

from pathlib import Path

from finercam_rt.backends.protocol import Backend as Backend
from finercam_rt.errors import BackendError
from finercam_rt.manifest import Manifest

BACKENDS = ("auto", "onnxruntime")
DEVICES = ("auto", "cpu", "cuda")


def open_backend(
    path: Path, manifest: Manifest, *, backend: str, device: str, threads: int | None, spinning: bool
) -> Backend:
    """Load the engine into a runtime; "auto" takes ONNX Runtime, on the CPU.

    Raises:
        BackendError: an unknown, missing or unsupported runtime or device.
        EngineError: a graph that the runtime cannot load, or whose inputs and outputs differ from the manifest.
    """
    if backend not in BACKENDS:
        raise BackendError(f"there is no backend {backend!r}; choose one of {', '.join(BACKENDS)}.")
    if device not in DEVICES:
        raise BackendError(f"there is no device {device!r}; choose one of {', '.join(DEVICES)}.")
    if device == "cuda":
        raise BackendError("this version runs engines on the CPU only; use device='cpu', or 'auto'.")
    # Here and not above: importing a runtime costs tenths of a second and hundreds of megabytes.
    from finercam_rt.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(path, manifest, threads=threads, spinning=spinning)
