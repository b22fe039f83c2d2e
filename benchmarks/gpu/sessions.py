"""A graph in ONNX Runtime with all its inputs and outputs bound to tensors: what a run costs without our engine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparison.contenders import Answer, Bind, Bound, Setting
from comparison.graphs import images_on
from numpy.typing import NDArray
from torch import Tensor

_DTYPES = {"tensor(float)": torch.float32, "tensor(int64)": torch.int64}
_NUMPY = {torch.float32: np.float32, torch.int64: np.int64}


class BoundSession:
    """A session with the options that our engine gives it, on a stream of its own, captured by ONNX Runtime."""

    def __init__(self, path: Path, device: str) -> None:
        """Load it. `graphs`: whether its runs are replayed from a CUDA graph."""
        import onnxruntime

        self._ort, self._device, self._ids = onnxruntime, device, itertools.count(1)
        self.stream = torch.cuda.Stream() if device == "cuda" else None
        self.graphs = device == "cuda"
        try:
            self._session = self._open(path)
        except Exception as error:  # ONNX Runtime raises a dozen types
            if "graph capture" not in str(error).lower():
                raise
            self.graphs = False
            self._session = self._open(path)

    def _open(self, path: Path) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 4
        if self.stream is None:
            return self._ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._ort.preload_dlls()
        asked = {
            "device_id": "0",
            "user_compute_stream": str(self.stream.cuda_stream),
            "use_tf32": "0",
            "enable_cuda_graph": str(int(self.graphs)),
        }
        chain = [("CUDAExecutionProvider", asked), "CPUExecutionProvider"]
        session = self._ort.InferenceSession(str(path), options, providers=chain)
        if "CUDAExecutionProvider" not in session.get_providers():
            raise RuntimeError("the CUDA provider of ONNX Runtime does not start")
        session.disable_fallback()
        return session

    def bind(self, feeds: Mapping[str, Tensor]) -> tuple[Callable[[], None], dict[str, Tensor]]:
        """A call that queues a run of these inputs, and the tensors that it writes; the addresses stay."""
        binding, options = self._session.io_binding(), self._ort.RunOptions()
        if self._device == "cuda":
            options.add_run_config_entry("gpu_graph_id", str(next(self._ids)) if self.graphs else "-1")
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        batch = len(next(iter(feeds.values())))
        outputs: dict[str, Tensor] = {}
        for value in self._session.get_outputs():
            shape = [size if isinstance(size, int) else batch for size in value.shape]
            outputs[value.name] = torch.empty(shape, dtype=_DTYPES[value.type], device=self._device)
        for bind, tensors in ((binding.bind_input, feeds), (binding.bind_output, outputs)):
            for name, tensor in tensors.items():
                bind(name, self._device, 0, _NUMPY[tensor.dtype], list(tensor.shape), tensor.data_ptr())

        def run() -> None:
            self._session.run_with_iobinding(binding, options)

        run.__dict__["keeps"] = (feeds, outputs)  # addresses hold nothing
        return run, outputs


def forward(graph: str) -> Callable[[Setting], Bind]:
    """The model alone, from images of the caller's to logits of the caller's, as our engine has them."""

    def make(setting: Setting) -> Bind:
        session = BoundSession(setting.graphs.graph(graph), setting.device)

        def bind(batch: NDArray[np.float32]) -> Bound:
            images = images_on(setting.device, batch)
            fixed = torch.empty_like(images)
            run, outputs = session.bind({"images": fixed})

            def call() -> Answer:
                with torch.cuda.stream(session.stream):  # of None it does nothing
                    fixed.copy_(images)
                    run()
                    return Answer(outputs["logits"].clone(), None)

            return Bound(call)

        return bind

    return make
