"""A hand-made engine whose logits and maps are known in closed form, so that the runtime is tested without torch."""

from __future__ import annotations

import dataclasses
import gc
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CLASS_NAMES = (
    "magpie",
    "house finch, linnet",
    "indigo bunting, indigo finch",
    "crane",
    "crane",
    "jay, blue jay",
    "kite",
)

# exports make millions of objects: a suite that looks through them less often takes 6 % less time
gc.set_threshold(200_000, 50, 50)

TOY_LEVELS = {3: ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))}
"""Mean and std of a toy by its channels; of other numbers they are 0.5 and 0.25."""


@dataclass(frozen=True)
class ToyEngine:
    """A = Conv(images), one patch a cell; y = W mean(A) + b; the Grad-CAM weights are W' seed / (h w).

    Of a zero-shot engine W is an input, class_embeddings, and b is 0; `weight` is what to give it in a test.
    """

    path: Path
    kernel: np.ndarray  # (C,channels,P,P)
    weight: np.ndarray  # (K,C)
    bias: np.ndarray  # (K,)
    objective: str
    size: tuple[int, int]
    references: int
    clip: float | None
    contrasts: int = 1
    zero_shot: bool = False

    def activations(self, images: np.ndarray) -> np.ndarray:
        patch = self.kernel.shape[-1]
        n, channels, height, width = images.shape
        cells = images.astype(np.float64).reshape(n, channels, height // patch, patch, width // patch, patch)
        if self.clip is not None:
            cells = np.clip(cells, -self.clip, self.clip)
        return np.einsum("nchpwq,kcpq->nkhw", cells, self.kernel.astype(np.float64))

    def logits(self, images: np.ndarray) -> np.ndarray:
        return self.activations(images).mean(axis=(2, 3)) @ self.weight.T.astype(np.float64) + self.bias

    def nearest(self, logits: np.ndarray, target: int) -> list[int]:
        distance = np.abs(logits - logits[target])
        order = [int(k) for k in np.argsort(distance, kind="stable") if k != target]
        return order[: self.references]

    def raw_map(self, image: np.ndarray, target: int, references: list[int], alpha: float) -> np.ndarray:
        """DESIGN, section 2, in float64, for one image (channels,H,W)."""
        activations, logits = self.activations(image[None])[0], self.logits(image[None])[0]
        seed = np.zeros(len(logits))
        seed[target] = 1
        if references and self.objective == "weighted":
            y = logits[references]
            q = np.exp(y - y.max()) / np.exp(y - y.max()).sum()
            seed[references] -= alpha * q * (1 + y - (q * y).sum())
        elif references:
            seed[references] -= alpha / len(references)
        weights = seed @ self.weight.astype(np.float64) / activations[0].size
        return np.maximum(np.einsum("c,chw->hw", weights, activations), 0)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts this process and those it starts: jobs that a shell put into the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def _one_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The runtime is ONNX Runtime but where a test asks for another, and nothing reaches the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINERCAM_BACKEND", "onnxruntime")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def make_toy(tmp_path: Path) -> Callable[..., ToyEngine]:
    """Writes a toy engine; `manifest` replaces fields of its manifest, `metadata` the whole JSON text (None: none)."""
    pytest.importorskip("onnxruntime")

    def make(
        name: str = "toy.onnx",
        *,
        objective: str = "weighted",
        size: tuple[int, int] = (32, 48),
        references: int = 3,
        batch: int | str = "N",
        clip: float | None = None,
        contrasts: int = 1,
        zero_shot: bool = False,
        channels: int = 3,
        manifest: dict[str, Any] | None = None,
        metadata: str | None = "",
    ) -> ToyEngine:
        onnx = pytest.importorskip("onnx")
        rng = np.random.default_rng(7)
        patch, features = 8, 6
        kernel = rng.normal(size=(features, channels, patch, patch)).astype(np.float32) / patch
        weight = rng.normal(size=(len(CLASS_NAMES), features)).astype(np.float32) * 3
        bias = rng.normal(size=len(CLASS_NAMES)).astype(np.float32)
        if zero_shot:
            weight, bias = weight / np.linalg.norm(weight, axis=1, keepdims=True), 0 * bias
        toy = ToyEngine(tmp_path / name, kernel, weight, bias, objective, size, references, clip, contrasts, zero_shot)
        model = _model(onnx, toy, batch)
        text = _manifest(toy, manifest or {}) if metadata == "" else metadata
        if text is not None:
            entry = model.metadata_props.add()
            entry.key, entry.value = "finercam", text
        onnx.save(model, toy.path)
        return toy

    return make


@pytest.fixture
def toy(make_toy: Callable[..., ToyEngine]) -> ToyEngine:
    return make_toy()


def _manifest(toy: ToyEngine, changes: dict[str, Any]) -> str:
    from finercam_rt.manifest import InputSpec, LayerInfo, Manifest, ModelInfo, ZeroShotInfo

    channels = toy.kernel.shape[1]
    grid = (toy.size[0] // toy.kernel.shape[-1], toy.size[1] // toy.kernel.shape[-1])
    manifest = Manifest(
        model=ModelInfo("toy", "0" * 64),
        input=InputSpec(toy.size, *TOY_LEVELS.get(channels, ((0.5,) * channels, (0.25,) * channels))),
        classes=None if toy.zero_shot else CLASS_NAMES,
        num_classes=None if toy.zero_shot else len(CLASS_NAMES),
        layers=(LayerInfo("conv", "nchw", grid),),
        method="gradcam",
        objective=toy.objective,
        references=toy.references,
        contrasts=toy.contrasts,
        zero_shot=ZeroShotInfo(toy.weight.shape[1], 1.0, 0.0, "1" * 64) if toy.zero_shot else None,
        opset=18,
    )
    return dataclasses.replace(manifest, **changes).to_json()


def _model(onnx: Any, toy: ToyEngine, batch: int | str) -> Any:
    """The graph interface of DESIGN, section 3, by hand."""
    helper, numpy_helper, tensor = onnx.helper, onnx.numpy_helper, onnx.TensorProto
    classes = len(toy.weight)
    slots = toy.references
    several = [] if toy.contrasts == 1 else [toy.contrasts]
    grid = [toy.size[0] // toy.kernel.shape[-1], toy.size[1] // toy.kernel.shape[-1]]
    constants = {
        "kernel": toy.kernel,
        "weight": toy.weight,
        "bias": toy.bias,
        "low": np.float32(-(toy.clip or 0)),
        "high": np.float32(toy.clip or 0),
        "minus_one": np.int64(-1),
        "unused": np.int64(-2),
        "zero": np.int64(0),
        "one": np.float32(1),
        "far": np.float32(1e30),
        "never": np.float32(-1e30),
        "off_on": np.array([0, 1], np.float32),
        "depth": np.int64(classes),
        "slots": np.array([slots], np.int64),
        "cells": np.float32(grid[0] * grid[1]),
        "axis1": np.array([1], np.int64),
        "axis2": np.array([2], np.int64),
        "axes_hw": np.array([2, 3], np.int64),
        "ranks": np.array([min(toy.contrasts, classes)], np.int64),
        "last_rank": np.int64(min(toy.contrasts, classes) - 1),
        **{f"contrast_{p}": np.int64(p) for p in range(toy.contrasts)},
        "earlier": np.tril(np.ones((slots, slots), np.int64), -1)[None] > 0,
    }
    if toy.zero_shot:  # K is known only when it runs
        del constants["weight"], constants["bias"], constants["depth"]
        constants["no_bias"] = np.zeros(1, np.float32)
        constants["first"] = np.int64(0)
    weight, bias = ("class_embeddings", "no_bias") if toy.zero_shot else ("weight", "bias")
    nodes: list[Any] = []

    def op(kind: str, inputs: str, outputs: str, **attributes: Any) -> None:
        nodes.append(helper.make_node(kind, inputs.split(), outputs.split(), **attributes))

    per_contrast: list[str] = []

    def contrast_op(kind: str, inputs: str, outputs: str, **attributes: Any) -> None:
        """One node of each contrast's own: names that a contrast has made, or is given, carry its number."""
        per_contrast.extend(outputs.split())
        for p in range(toy.contrasts):
            own = [f"{name}.{p}" if name in per_contrast else name for name in inputs.split()]
            op(kind, " ".join(own), " ".join(f"{name}.{p}" for name in outputs.split()), **attributes)

    op("Identity" if toy.clip is None else "Clip", "images" if toy.clip is None else "images low high", "seen")
    op("Conv", "seen kernel", "activations", strides=list(toy.kernel.shape[2:]))
    op("ReduceMean", "activations axes_hw", "pooled", keepdims=0)
    op("Gemm", f"pooled {weight} {bias}", "logits", transB=1)
    if toy.zero_shot:
        op("Shape", "class_embeddings", "embeddings_shape")
        op("Gather", "embeddings_shape first", "depth", axis=0)
    op("TopK", "logits ranks", "_largest ranked", axis=1)
    for name in ("target", "references", "alpha"):
        per_contrast.append(name)
        for p in range(toy.contrasts):
            if toy.contrasts == 1:
                op("Identity", name, f"{name}.0")
            else:
                op("Gather", f"{name} contrast_{p}", f"{name}.{p}", axis=1)
    contrast_op("Sub", "minus_one target", "rank")
    contrast_op("Clip", "rank zero last_rank", "rank_there")
    contrast_op("Unsqueeze", "rank_there axis1", "rank_column")
    contrast_op("GatherElements", "ranked rank_column", "ranked_column", axis=1)
    contrast_op("Squeeze", "ranked_column axis1", "ranked_class")
    contrast_op("Less", "target zero", "is_automatic")
    contrast_op("Where", "is_automatic ranked_class target", "target_class")
    contrast_op("Unsqueeze", "target_class axis1", "target_column")
    contrast_op("GatherElements", "logits target_column", "target_logit", axis=1)
    contrast_op("Sub", "logits target_logit", "difference")
    contrast_op("Abs", "difference", "distance")
    contrast_op("OneHot", "target_class depth off_on", "target_one_hot", axis=1)
    contrast_op("Mul", "target_one_hot far", "excluded")
    contrast_op("Add", "distance excluded", "distance_to_others")
    contrast_op("TopK", "distance_to_others slots", "_distances nearest", axis=1, largest=0)
    contrast_op("Equal", "references minus_one", "chosen_here")
    contrast_op("Where", "chosen_here nearest references", "wanted")
    contrast_op("Equal", "wanted target_column", "is_target")
    contrast_op("Unsqueeze", "wanted axis2", "wanted_rows")
    contrast_op("Unsqueeze", "wanted axis1", "wanted_columns")
    contrast_op("Equal", "wanted_rows wanted_columns", "same")
    contrast_op("And", "same earlier", "repeats")
    contrast_op("Cast", "repeats", "repeats_number", to=tensor.FLOAT)
    contrast_op("ReduceMax", "repeats_number axis2", "repeated_number", keepdims=0)
    contrast_op("Cast", "repeated_number", "repeated", to=tensor.BOOL)
    contrast_op("Or", "is_target repeated", "dropped")
    contrast_op("Where", "dropped unused wanted", "reference_classes")
    contrast_op("GreaterOrEqual", "reference_classes zero", "used")
    contrast_op("Cast", "used", "used_number", to=tensor.FLOAT)
    contrast_op("Where", "used reference_classes zero", "safe")
    contrast_op("GatherElements", "logits safe", "reference_logits", axis=1)
    contrast_op("Unsqueeze", "alpha axis1", "alpha_column")
    if toy.objective == "weighted":
        contrast_op("Where", "used reference_logits never", "masked")
        contrast_op("Softmax", "masked", "softmax", axis=1)
        contrast_op("Mul", "softmax used_number", "q")
        contrast_op("Mul", "q reference_logits", "q_y")
        contrast_op("ReduceSum", "q_y axis1", "y_bar", keepdims=1)
        contrast_op("Sub", "reference_logits y_bar", "y_less_mean")
        contrast_op("Add", "y_less_mean one", "factor")
        contrast_op("Mul", "q factor", "share")
    else:
        contrast_op("ReduceSum", "used_number axis1", "count", keepdims=1)
        contrast_op("Max", "count one", "divisor")
        contrast_op("Div", "used_number divisor", "share")
    contrast_op("Mul", "share alpha_column", "strength")
    contrast_op("Unsqueeze", "strength axis2", "strength_column")
    contrast_op("Gather", f"{weight} target_class", "target_weight", axis=0)
    contrast_op("Gather", f"{weight} safe", "reference_weight", axis=0)
    contrast_op("Mul", "reference_weight strength_column", "scaled")
    contrast_op("ReduceSum", "scaled axis1", "contrasted", keepdims=0)
    contrast_op("Sub", "target_weight contrasted", "summed")
    contrast_op("Div", "summed cells", "channel_weights")
    contrast_op("Unsqueeze", "channel_weights axes_hw", "channel_weights_4d")
    contrast_op("Mul", "activations channel_weights_4d", "weighted")
    contrast_op("ReduceSum", "weighted axis1", "evidence", keepdims=0)
    contrast_op("Relu", "evidence", "saliency_map")
    for name in ("saliency_map", "target_class", "reference_classes"):
        if toy.contrasts == 1:
            op("Identity", f"{name}.0", name)
        else:
            for p in range(toy.contrasts):
                op("Unsqueeze", f"{name}.{p} axis1", f"{name}_row.{p}")
            op("Concat", " ".join(f"{name}_row.{p}" for p in range(toy.contrasts)), name, axis=1)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "toy",
        [
            value("images", tensor.FLOAT, [batch, toy.kernel.shape[1], *toy.size]),
            value("target", tensor.INT64, [batch, *several]),
            value("references", tensor.INT64, [batch, *several, slots]),
            value("alpha", tensor.FLOAT, [batch, *several]),
            *([value("class_embeddings", tensor.FLOAT, ["K", toy.weight.shape[1]])] if toy.zero_shot else []),
        ],
        [
            value("logits", tensor.FLOAT, [batch, "K" if toy.zero_shot else classes]),
            value("saliency_map", tensor.FLOAT, [batch, *several, *grid]),
            value("target_class", tensor.INT64, [batch, *several]),
            value("reference_classes", tensor.INT64, [batch, *several, slots]),
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
