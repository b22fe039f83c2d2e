"""What is compared: each contender turns a batch into its answer, as a user of that library would write it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finercam_rt.manifest import LayerInfo

if TYPE_CHECKING:
    import torch

OURS, PLAIN = "finercam-rt", "onnxruntime forward"
REFERENCES = 3


class Answer(NamedTuple):
    """logits (N,K) or None; the map (N,h,w) or (N,H,W), raw or normalised, or None: NumPy or torch."""

    logits: Any
    saliency_map: Any


Call = Callable[[], Answer]


@dataclass(frozen=True)
class Setting:
    """What a contender is made from; model is None where it needs no torch."""

    engine: Path
    forward: Path
    model: torch.nn.Module | None
    layer: LayerInfo
    threads: int


@dataclass(frozen=True)
class Contender:
    """A name, how to make it (setting -> batch -> call), and which objective its map has: None for a plain forward.

    modules: what it imports; layouts: those of a target layer's output that it reads.
    """

    name: str
    make: Callable[[Setting], Callable[[NDArray[np.float32]], Call]]
    objective: str | None
    alpha: float = 0.0
    modules: Sequence[str] = ("torch",)
    layouts: Sequence[str] = ("nchw", "nhwc", "tokens")

    @property
    def needs_torch(self) -> bool:
        """Whether it runs the PyTorch model and not one of the graphs."""
        return "torch" in self.modules


def _finercam(setting: Setting) -> Callable[[NDArray[np.float32]], Call]:
    """engine(batch): prediction, automatic references, map, status."""
    from finercam_rt import Engine

    engine = Engine(setting.engine, backend="onnxruntime", threads=setting.threads)

    def bind(batch: NDArray[np.float32]) -> Call:
        def call() -> Answer:
            outputs = engine(batch)
            return Answer(outputs.logits, outputs.saliency_map)

        return call

    return bind


def _onnxruntime(setting: Setting) -> Callable[[NDArray[np.float32]], Call]:
    """The model alone, with the session options, bindings and copy of the result that our engine has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(setting.forward), options, providers=["CPUExecutionProvider"])
    classes = session.get_outputs()[0].shape[1]

    def bind(batch: NDArray[np.float32]) -> Call:
        binding = session.io_binding()
        logits = np.empty((len(batch), classes), np.float32)
        binding.bind_output("logits", "cpu", 0, logits.dtype, logits.shape, logits.ctypes.data)

        def call() -> Answer:
            binding.bind_input("images", "cpu", 0, batch.dtype, batch.shape, batch.ctypes.data)
            session.run_with_iobinding(binding)
            return Answer(logits.copy(), None)

        return call

    return bind


def _torch(setting: Setting) -> Callable[[NDArray[np.float32]], Call]:
    import torch

    model = _model(setting)

    def bind(batch: NDArray[np.float32]) -> Call:
        images = torch.from_numpy(batch)

        def call() -> Answer:
            with torch.no_grad():
                return Answer(model(images), None)

        return call

    return bind


def _torchcam(setting: Setting) -> Callable[[NDArray[np.float32]], Call]:
    """Its extractor is made once, on a copy of the model, so that its hooks slow nobody else."""
    import torch
    from torchcam.methods import FinerCAM

    model = copy.deepcopy(_model(setting))
    options: dict[str, Any] = {}
    if setting.layer.layout != "nchw":
        options["reshape_transform"] = reshape_transform(setting.layer)
    extractor = FinerCAM(model, setting.layer.name, gamma=0.6, num_references=REFERENCES, **options)

    def bind(batch: NDArray[np.float32]) -> Call:
        images = torch.from_numpy(batch)

        def call() -> Answer:
            scores = model(images)
            (saliency_map,) = extractor(scores.argmax(1).tolist(), scores)
            return Answer(scores.detach(), saliency_map)

        return call

    return bind


def _gradcam(setting: Setting) -> Callable[[NDArray[np.float32]], Call]:
    """As torch-cam, made once on a copy of the model."""
    import torch
    from pytorch_grad_cam import FinerCAM

    model = copy.deepcopy(_model(setting))
    transform = None if setting.layer.layout == "nchw" else reshape_transform(setting.layer)
    cam = FinerCAM(model, [model.get_submodule(setting.layer.name)], reshape_transform=transform)

    def bind(batch: NDArray[np.float32]) -> Call:
        images = torch.from_numpy(batch)
        return lambda: Answer(None, cam(input_tensor=images, alpha=1.0))

    return bind


def _captum(setting: Setting) -> Callable[[NDArray[np.float32]], Call]:
    """LayerGradCam of a function that contrasts the best class with the next; its one forward pass gives the logits."""
    import torch
    from captum.attr import LayerGradCam

    model = _model(setting)
    seen: list[torch.Tensor] = []

    def finer(images: torch.Tensor) -> torch.Tensor:
        seen[:] = [model(images)]
        ordered = seen[0].sort(1, descending=True).values
        return ordered[:, 0] - 0.6 * ordered[:, 1 : 1 + REFERENCES].mean(1)

    attribution = LayerGradCam(finer, model.get_submodule(setting.layer.name))

    def bind(batch: NDArray[np.float32]) -> Call:
        images = torch.from_numpy(batch)

        def call() -> Answer:
            saliency_map = attribution.attribute(images, relu_attributions=True)
            return Answer(seen[0].detach(), saliency_map.detach().squeeze(1))

        return call

    return bind


CONTENDERS = (
    Contender(OURS, _finercam, "weighted", 1.0, modules=("finercam_rt", "onnxruntime")),
    Contender(PLAIN, _onnxruntime, None, modules=("onnxruntime",)),
    Contender("torch forward", _torch, None),
    Contender("torch-cam", _torchcam, "mean", 0.6, modules=("torch", "torchcam")),
    Contender("grad-cam", _gradcam, "weighted", 1.0, modules=("torch", "pytorch_grad_cam")),
    # of tokens it averages the channels, without an error
    Contender("captum", _captum, "mean", 0.6, modules=("torch", "captum.attr"), layouts=("nchw",)),
)


def reshape_transform(layer: LayerInfo) -> Callable[[Any], Any]:
    """What torch-cam and grad-cam need to read tokens or channels-last maps: (N,L,C) or (N,h,w,C) -> (N,C,h,w)."""

    def transform(tensor: Any) -> Any:
        if layer.layout == "tokens":
            tensor = tensor[:, layer.prefix_tokens :].reshape(len(tensor), *layer.grid, -1)
        return tensor.permute(0, 3, 1, 2)

    return transform


def _model(setting: Setting) -> torch.nn.Module:
    assert setting.model is not None
    return setting.model
