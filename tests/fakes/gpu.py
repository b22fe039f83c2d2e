"""A machine with a GPU and a TensorRT, of which there is neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finercam_rt import backends, cuda, engine
from finercam_rt.engine_file import is_plan
from finercam_rt.tensorrt import library
from finercam_rt.tensorrt.build import build_plan
from finercam_rt.tensorrt.builder import BuildOptions, UnsupportedError
from finercam_rt.tensorrt.library import RTX, TENSORRT, Library

from .cuda import FakeDevice
from .plans import RunningRtx, RunningTensorRT


class Gpu:
    """`device` and `trt` are the stand-ins, and `plan` builds with the second for the first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, flavour: str = TENSORRT) -> None:
        self.device = FakeDevice()
        self.trt = RunningRtx(self.device) if flavour == RTX else RunningTensorRT(self.device)
        self.capability = "SM89" if flavour == RTX else "SM90"
        self.library = Library(flavour, self.trt.__version__, self.trt)
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(library, "import_flavour", lambda name: self.library)
        monkeypatch.setattr(library, "compute_capability", lambda device=0: self.capability if device == 0 else None)
        monkeypatch.setattr(cuda, "open_device", lambda name: self.device)

    def plan(self, graph: Path, batch: tuple[int, int, int] = (1, 4, 16), **options: Any) -> Path:
        """The plan of an engine file, beside it."""
        plan = graph.with_suffix(".plan")
        classes = options.pop("classes", (1, 10, 1000))
        build_plan(graph, plan, self.library, BuildOptions(batch, classes, (self.capability,), **options), force=True)
        return plan

    def serve_graphs(self) -> None:
        """Every engine file that is opened is built and run as a plan."""
        opened = backends.open_backend

        def open_backend(path: Path, manifest: Any, **options: Any) -> Any:
            options["backend"] = "auto"
            if not is_plan(path):
                try:
                    path = self.plan(path)
                except UnsupportedError as error:  # of a fixed batch
                    count = int(str(error).split("exactly ")[1].split()[0])
                    path = self.plan(path, (count,) * 3)
            return opened(path, manifest, **options)

        self._open_by(open_backend)

    def serve_sessions(self) -> None:
        """Every engine file that is opened is run by ONNX Runtime on the GPU."""
        opened = backends.open_backend
        self._open_by(lambda path, manifest, **options: opened(path, manifest, **(options | {"device": "cuda"})))

    def _open_by(self, open_backend: Any) -> None:
        self._monkeypatch.setattr(backends, "open_backend", open_backend)
        self._monkeypatch.setattr(engine, "open_backend", open_backend)
