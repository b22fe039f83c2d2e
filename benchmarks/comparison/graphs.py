"""Our engines, and the plain forward passes that they are measured against, in ONNX Runtime and in OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from comparison.contenders import Answer, Bind, Bound, Setting

if TYPE_CHECKING:
    from finercam_rt import Engine


def engine(graph: str, backend: str = "onnxruntime", **options: Any) -> Callable[[Setting], Bind]:
    """engine(batch) of this graph of the case: prediction, automatic references, map, status.

    On a GPU the batch lies there, as a tensor of torch, and so do the results.
    """

    def make(setting: Setting) -> Bind:
        from finercam_rt import Engine

        common: dict[str, Any] = {"backend": backend, "device": setting.device, "threads": setting.threads}
        loaded = Engine(setting.graphs.graph(graph), **common, **options)

        return answers_of(loaded, setting)

    return make


def answers_of(loaded: Engine, setting: Setting) -> Bind:
    """Calls of a loaded engine."""

    def bind(batch: NDArray[np.float32]) -> Bound:
        images = batch if setting.device == "cpu" else images_on(setting.device, batch)

        def call() -> Answer:
            outputs = loaded(images)
            return Answer(outputs.logits, outputs.saliency_map)

        return Bound(call)

    return bind


def images_on(device: str, batch: NDArray[np.float32]) -> Any:
    """A tensor of torch on the device."""
    import torch

    return torch.from_numpy(batch).to(device)


def onnxruntime_forward(graph: str) -> Callable[[Setting], Bind]:
    """The model alone, with the session options, bindings and copy of the result that our engine has."""

    def make(setting: Setting) -> Bind:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = setting.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = str(setting.graphs.graph(graph))
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        classes = session.get_outputs()[0].shape[1]

        def bind(batch: NDArray[np.float32]) -> Bound:
            binding = session.io_binding()
            logits = np.empty((len(batch), classes), np.float32)
            binding.bind_output("logits", "cpu", 0, logits.dtype, logits.shape, logits.ctypes.data)

            def call() -> Answer:
                binding.bind_input("images", "cpu", 0, batch.dtype, batch.shape, batch.ctypes.data)
                session.run_with_iobinding(binding)
                return Answer(logits.copy(), None)

            return Bound(call)

        return bind

    return make


def openvino_forward(precision: str) -> Callable[[Setting], Bind]:
    """The plain ONNX file, with the buffers and copies of our backend; one image has a graph of its own.

    One stream is enough for the one caller there is; our backend opens as many as its threads leave cores for.
    """

    def make(setting: Setting) -> Bind:
        import openvino

        core = openvino.Core()
        model = core.read_model(setting.graphs.graph("forward"))
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": setting.threads,
            "ENABLE_CPU_PINNING": False,
        }
        classes = model.outputs[0].get_partial_shape()[1].get_length()

        def bind(batch: NDArray[np.float32]) -> Bound:
            graph = model.clone()
            if len(batch) == 1:
                graph.reshape({"images": list(batch.shape)})
            request = core.compile_model(graph, "CPU", options).create_infer_request()
            images, logits = np.empty_like(batch), np.empty((len(batch), classes), np.float32)
            for name, buffer in (("images", images), ("logits", logits)):
                request.set_tensor(name, openvino.Tensor(buffer, shared_memory=True))

            def call() -> Answer:
                np.copyto(images, batch)
                request.infer(share_outputs=True)
                return Answer(logits.copy(), None)

            return Bound(call)

        return bind

    return make
