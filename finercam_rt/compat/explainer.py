"""One model at some layers: batches and questions in, logits and raw maps out, by engines that are compiled on use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from finercam_rt.compat.engines import IMAGES, EngineCache, Facts, Shape, Spec, common_request, example
from finercam_rt.compat.reshape import ReshapeTransform, in_words, read_reshape
from finercam_rt.compat.targets import Question
from finercam_rt.contrast import AUTOMATIC, UNUSED
from finercam_rt.engine import Engine
from finercam_rt.errors import ExportError, InputError, WrongTypeError
from finercam_rt.export.layers import find_target_layer
from finercam_rt.export.prove import LayoutRequest
from finercam_rt.manifest import LayerInfo
from finercam_rt.ops import Status
from finercam_rt.outputs import Outputs

CACHE = EngineCache()
"""Shared by all CAM objects, because callers make a new one for each image."""

_REFERENCES = 3
"""R of most engines; where more references are asked for, R is the next multiple of eight."""

_OPEN = "weighted"
"""The objective of engines for questions that leave it open; one for all, so that they share an engine."""

Images = NDArray[np.float32]


class Answer(NamedTuple):
    """logits (N,K); the raw map (N,h,w) of each layer; status (N,), the codes of `ops.Status`."""

    logits: NDArray[np.float32]
    maps: list[NDArray[np.float32]]
    status: NDArray[np.uint8]


class Explainer:
    """What the CAM objects of both forms have in common.

    Args:
        model: what is explained is its evaluation mode. It is not changed.
        layers: names of modules.
        method: one of manifest.METHODS.
        reshape_transform: the caller's function from a layer's output to (N,C,h,w); without one the layout is found.
        cache: where the engines are kept.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        method: str,
        reshape_transform: ReshapeTransform | None = None,
        cache: EngineCache = CACHE,
    ) -> None:
        """Nothing is compiled yet."""
        self.model, self.layers, self.method = model, tuple(layers), method
        self._transform, self._cache = reshape_transform, cache
        self._readings: dict[tuple[torch.Size, ...], list[LayerInfo]] = {}

    def facts(self, images: Images) -> Facts:
        """What a forward pass says where the model is new or has changed; to be asked once before each question.

        Raises:
            InputError: the model is not on the CPU, or does not run on images of that shape.
            ExportError: the layers or the output are nothing that can be compiled.
        """
        return self._cache.facts(self.model, self.layers, _shape(images))

    def logits(self, images: Images, facts: Facts) -> NDArray[np.float32]:
        """(N,K)."""
        return self.ask(images, facts, None).logits

    def nearest(
        self, images: Images, facts: Facts, count: int, alpha: float, target: int | Sequence[int] | None = None
    ) -> Answer:
        """`target` (the predicted class, one class, or one an image) against the `count` classes nearest to it."""
        if _has_one_position(facts):
            return self._constant(images)
        engine = self._engine(images, facts, _OPEN, count)
        row = [AUTOMATIC] * count + [UNUSED] * (engine.manifest.references - count)
        outputs = engine(images, target=target, references=np.array([row] * len(images), np.int64), alpha=alpha)
        return self._answer(engine, outputs, facts)

    def ask(self, images: Images, facts: Facts, questions: Sequence[Question] | None) -> Answer:
        """One question an image; None is each image's predicted class, against nothing."""
        if questions is None and _has_one_position(facts):
            return self._constant(images)
        if questions is None:
            engine = self._engine(images, facts, _OPEN, 0)
            target = 0 if facts.num_classes == 1 else None
            return self._answer(engine, engine(images, target=target, references=[], alpha=0.0), facts)
        objectives = {question.objective for question in questions} - {None}
        scores = {question.scores for question in questions}
        if len(objectives) > 1 or len(scores) > 1:
            raise InputError(
                "the targets of one batch are of different kinds (logits, probabilities, weighted or mean contrasts); "
                "explain each kind in a batch of its own."
            )
        most = max(len(question.references) for question in questions)
        if most >= max(2, facts.num_classes):
            raise InputError(f"a target has {most} comparison classes, and the model {facts.num_classes} classes.")
        if _has_one_position(facts):
            return self._constant(images)
        (kind,), (objective,) = scores, objectives or {_OPEN}
        engine = self._engine(images, facts, str(objective), most, kind)
        # scores other than logits stand behind them
        first = facts.num_classes if kind != "logits" else 0
        outputs = engine(
            images,
            target=[first + question.target for question in questions],
            references=[[first + index for index in question.references] for question in questions],
            alpha=[question.alpha for question in questions],
        )
        return self._answer(engine, outputs, facts)

    def _engine(self, images: Images, facts: Facts, objective: str, references: int, scores: str = "logits") -> Engine:
        shape = _shape(images)
        rounded = _REFERENCES if references <= _REFERENCES else -(-references // 8) * 8
        spec = Spec(self.layers, shape, self.method, objective, rounded, scores)
        engine = self._cache.engine(self.model, spec, facts, lambda subject: self._request(subject, facts, shape))
        for found, reading in zip(engine.manifest.layers, self._read(facts), strict=False):
            self._check(reading, found)
        return engine

    def _read(self, facts: Facts) -> list[LayerInfo]:
        """How the caller's function reads each layer; empty without one."""
        if self._transform is None:
            return []
        if facts.shapes not in self._readings:
            pairs = zip(facts.shapes, self.layers, strict=True)
            self._readings[facts.shapes] = [read_reshape(self._transform, *pair, IMAGES) for pair in pairs]
        return self._readings[facts.shapes]

    def _request(self, model: nn.Module, facts: Facts, shape: Shape) -> LayoutRequest:
        """The layout that the caller's function reads, held against what the shapes say."""
        readings = self._read(facts)
        found: list[LayerInfo | None] = []
        for layer in self.layers:
            try:
                found.append(find_target_layer(model, layer, example(shape)))
            except ExportError:  # not to be told by itself; what else is wrong, the export says
                found.append(None)
        for known, reading in zip(found, readings, strict=False):
            if known is not None:
                self._check(reading, known)
        if readings:
            return common_request(readings)
        # what could be read in two ways, both libraries read as (N,C,h,w) where no function is given
        unclear = None in found and all(len(shape) == 4 for shape in facts.shapes)
        return LayoutRequest(layout="nchw") if unclear else LayoutRequest()

    @staticmethod
    def _check(reading: LayerInfo, found: LayerInfo) -> None:
        if reading != replace(found, name=reading.name):  # an engine's layer may be inside a model of ours
            raise InputError(
                f"reshape_transform reads the output of layer {reading.name!r} as {in_words(reading)}, and it is "
                f"{in_words(found)}; correct it, or leave it out."
            )

    def _constant(self, images: Images) -> Answer:
        """Of layers whose map has one position for images of this size: there is nothing to compile."""
        weights = (value.dtype for value in self.model.parameters() if value.is_floating_point())
        with torch.no_grad():
            batch = torch.from_numpy(np.ascontiguousarray(images)).to(next(weights, torch.float32))
            logits = self.model(batch).float().numpy()
        finite = np.isfinite(logits).all(axis=1) & np.isfinite(images).all(axis=(1, 2, 3))
        status = np.where(finite, Status.CONSTANT, Status.NON_FINITE).astype(np.uint8)
        return Answer(logits, [np.zeros((len(images), 1, 1), np.float32) for _ in self.layers], status)

    def _answer(self, engine: Engine, outputs: Outputs, facts: Facts) -> Answer:
        maps = [outputs.layer_maps[layer.name] for layer in engine.manifest.layers] if outputs.layer_maps else []
        return Answer(outputs.logits[:, : facts.num_classes], maps or [outputs.saliency_map], outputs.status)


def _shape(images: Images) -> Shape:
    """(C,H,W)."""
    return images.shape[1], images.shape[2], images.shape[3]


def _has_one_position(facts: Facts) -> bool:
    """Whether all layers give (N,C,1,1)."""
    return all(len(shape) == 4 and shape[2:] == (1, 1) for shape in facts.shapes)


def checked_images(images: object, name: str) -> Images:
    """A batch as the engines take it, in float32; what they say about its values they say themselves.

    Raises:
        WrongTypeError: no tensor.
        InputError: not (N,C,H,W), float32 or float64, on the CPU.
    """
    if not isinstance(images, torch.Tensor):
        raise WrongTypeError(f"{name} is of type {type(images).__name__}; give a torch tensor (N,C,H,W).")
    if images.ndim != 4 or 0 in images.shape:
        raise InputError(f"{name} has shape {tuple(images.shape)}; engines take images (N,C,H,W).")
    if images.device.type != "cpu":
        raise InputError(f"{name} is on {images.device}, and engines run on the CPU; move it with .cpu().")
    if images.dtype not in (torch.float32, torch.float64):
        raise InputError(f"{name} is {str(images.dtype)[6:]}; convert it, and the model, with .float().")
    values: Images = images.detach().resolve_neg().float().numpy()
    return values


def layer_name(model: nn.Module, layer: object) -> str:
    """The name of a module of `model`.

    Raises:
        WrongTypeError: no module.
        InputError: not one of this model's.
    """
    if not isinstance(layer, nn.Module):
        raise WrongTypeError(
            f"a target layer is {layer!r}, of type {type(layer).__name__}; give a module of the model."
        )
    for name, module in model.named_modules():
        if module is layer and name:
            return str(name)
    raise InputError(
        f"a target layer, a {type(layer).__name__}, is not inside the model; give one of model.named_modules()."
    )
