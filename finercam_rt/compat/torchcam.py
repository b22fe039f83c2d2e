"""The classes of torch-cam 0.5.0, by their names and signatures, over compiled engines.

    from finercam_rt.compat.torchcam import FinerCAM

    with FinerCAM(model, "layer4", gamma=0.6) as extractor:
        scores = model(images)
        (saliency_map,) = extractor(scores.argmax(1).tolist(), scores)  # (N,h,w)

As in the original the model runs in PyTorch for its scores. The engine then runs on the same images, so that this form
costs a forward pass of the engine more than `finercam_rt.compat`'s.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from finercam_rt.compat.engines import OWN_RUN
from finercam_rt.compat.explainer import Explainer, checked_images, layer_name
from finercam_rt.compat.originals import our_class
from finercam_rt.compat.reshape import ReshapeTransform
from finercam_rt.compat.targets import Question, read_target
from finercam_rt.compat.torchcam_arguments import (
    answer_for,
    check_row,
    checked_scores,
    classes_of,
    references_of,
)
from finercam_rt.errors import InputError, WrongTypeError
from finercam_rt.export.classifier import in_float32
from finercam_rt.export.layers import find_target_layer
from finercam_rt.ops import Status

EPSILON = 1e-8
"""What torch-cam adds to the largest value before it divides by it."""

Layer = nn.Module | str
TargetFunction = Callable[[torch.Tensor], torch.Tensor]

_LOG = logging.getLogger("finercam_rt.compat")


class _Recorder:
    """A hook that remembers the last input of a model, and changes nothing."""

    changes_nothing = True

    def __init__(self) -> None:
        self.enabled = True
        self.images: object = None

    def __call__(self, _model: nn.Module, inputs: tuple[object, ...], named: dict[str, object]) -> None:
        if self.enabled and not OWN_RUN.get():
            tensors = (value.detach() for value in (*inputs, *named.values()) if isinstance(value, torch.Tensor))
            self.images = next(tensors, None)  # without its graph, with which no module can be copied


class _Extractor:
    """What the classes of this form share.

    Args:
        model: float32 or float64, on the CPU; engines compute in float32. What is explained is its evaluation mode;
            scores that training mode changed are refused. Until `remove_hooks`, or the end of the with block, a hook
            remembers its last input; it is not changed otherwise.
        target_layer: a module of the model, its name, or a list of these; None chooses one.
        input_shape: of an image, (C,H,W), where the layer is chosen.
        enable_hooks: whether inputs are remembered from the start.
        reshape_transform: from a layer's output to (N,C,h,w). It is held against what the shapes say; without it the
            layout is found.

    Raises:
        WrongTypeError, InputError: a layer that is no module, or not the model's.
        ExportError: no layer was found.
    """

    _method: str
    _fused_by: Callable[[torch.Tensor], torch.Tensor] = staticmethod(lambda cam: cam)

    def __init__(
        self,
        model: nn.Module,
        target_layer: Layer | Sequence[Layer] | None = None,
        input_shape: tuple[int, ...] = (3, 224, 224),
        enable_hooks: bool = True,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        """Find the layers; the first map compiles."""
        if reshape_transform is not None and not callable(reshape_transform):
            raise WrongTypeError(f"reshape_transform is {reshape_transform!r}; give a function of a layer's output.")
        if target_layer is None:
            layers = [self._choose(model, input_shape)]
        elif isinstance(target_layer, list):
            layers = [_resolved(model, layer) for layer in target_layer]
        else:
            layers = [_resolved(model, target_layer)]  # type: ignore[arg-type]
        self.model, self.target_names = model, layers
        self._explainer = Explainer(model, layers, self._method, reshape_transform)
        self._recorder = _Recorder()
        self._recorder.enabled = enable_hooks
        self.hook_handles = [model.register_forward_pre_hook(self._recorder, with_kwargs=True)]

    def __enter__(self) -> Any:
        """The object itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Remove the hook."""
        self.remove_hooks()
        self.reset_hooks()

    def __repr__(self) -> str:
        """The class and its layers."""
        return f"{type(self).__name__}(target_layer={self.target_names})"

    def enable_hooks(self) -> None:
        """Remember inputs from now on."""
        self._recorder.enabled = True

    def disable_hooks(self) -> None:
        """Remember no inputs from now on."""
        self._recorder.enabled = False

    def reset_hooks(self) -> None:
        """Forget the last input."""
        self._recorder.images = None

    def remove_hooks(self) -> None:
        """Take the hook off the model."""
        for handle in self.hook_handles:
            handle.remove()
        self.hook_handles.clear()

    @property
    def _hooks_enabled(self) -> bool:
        """By the original's name, for what reads it there."""
        return self._recorder.enabled

    @contextmanager
    def _hooks_off(self) -> Iterator[None]:
        """What torch-cam's metrics call while they run the model on other images."""
        before, self._recorder.enabled = self._recorder.enabled, False
        try:
            yield
        finally:
            self._recorder.enabled = before

    @classmethod
    def fuse_cams(cls, cams: list[torch.Tensor], target_shape: tuple[int, int] | None = None) -> torch.Tensor:
        """The largest value at each position over the maps (N,h,w) of several layers, resized to one shape.

        Args:
            cams: as a call returns them.
            target_shape: (h, w); by default the largest of theirs.

        Raises:
            WrongTypeError, InputError: no list of tensors, or an empty one.
        """
        if not isinstance(cams, list) or not all(isinstance(cam, torch.Tensor) for cam in cams):
            raise WrongTypeError("cams is not a list of tensors; give what the extractor returned.")
        if not cams:
            raise InputError("cams is an empty list; give what the extractor returned.")
        if len(cams) == 1:
            return cams[0]
        shape = target_shape or (max(cam.shape[1] for cam in cams), max(cam.shape[2] for cam in cams))
        resized = [
            functional.interpolate(cls._fused_by(cam)[:, None], shape, mode="bilinear", align_corners=False)[:, 0]
            for cam in cams
        ]
        return torch.stack(resized).amax(0)

    def _choose(self, model: nn.Module, input_shape: tuple[int, ...]) -> str:
        if any(module.training for module in model.modules()):
            raise InputError("a target layer is found in evaluation mode only; call model.eval(), or name the layer.")
        noise = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0))
        found = find_target_layer(in_float32(model)[0], "auto", noise).name
        _LOG.warning("the target layer is %s; name one with target_layer", found)
        return found

    def _explain(
        self,
        scores: torch.Tensor,
        normalized: bool,
        ask: Callable[[int], Sequence[Question]],
    ) -> list[torch.Tensor]:
        """The map of each layer, by the questions that `ask` makes for so many classes."""
        if self._recorder.images is None:
            raise InputError("the model has not run since the extractor was made; call model(images) first.")
        images = checked_images(self._recorder.images, "the model's input")
        given: NDArray[Any] = scores.detach().float().cpu().numpy()
        facts = self._explainer.facts(images)
        if given.shape != (len(images), facts.num_classes):
            raise InputError(
                f"scores have shape {given.shape}, and the model's last output {(len(images), facts.num_classes)}; "
                "pass the scores of the last batch."
            )
        questions = ask(facts.num_classes)
        answer = answer_for(
            given, lambda kind: self._explainer.ask(images, facts, [each._replace(scores=kind) for each in questions])
        )
        maps = [torch.from_numpy(values).to(scores.dtype) for values in answer.maps]
        for values in maps:
            values[torch.from_numpy(answer.status == Status.NON_FINITE)] = torch.nan
            if normalized:
                values -= values.amin((1, 2), keepdim=True)
                values /= values.amax((1, 2), keepdim=True) + EPSILON
        return maps


class _PlainExtractor(_Extractor):
    """A method with one target class an image."""

    def __call__(
        self,
        class_idx: int | list[int] | None = None,
        scores: torch.Tensor | None = None,
        normalized: bool = True,
        *,
        targets: TargetFunction | list[TargetFunction] | None = None,
        retain_graph: bool = False,
    ) -> list[torch.Tensor]:
        """The maps of the model's last batch.

        Args:
            class_idx: the class of all images, or one an image.
            scores: (N,K), what the model gave for that batch: its logits, or their softmax, of which the map then is.
            normalized: whether each map is brought to [0, 1].
            targets: instead of class_idx, a function of one row of the scores, or one an image (see `read_target`).
            retain_graph: of no effect, there is no graph of gradients.

        Returns:
            (N,h,w) for each layer, in the dtype of the scores.

        Raises:
            InputError, WrongTypeError: an argument that cannot be used, or scores that the model did not give last.
            ExportError: the model cannot be compiled at these layers.
        """
        if (class_idx is None) == (targets is None):
            raise InputError("provide exactly one of class_idx or targets.")
        given = checked_scores(scores)

        def ask(num_classes: int) -> list[Question]:
            if targets is None:
                return [Question(index) for index in classes_of(class_idx, *given.shape)]
            every = [targets] * len(given) if callable(targets) else targets
            if not isinstance(every, list):
                raise WrongTypeError("targets must be a function, or a list of one function an image.")
            if len(every) != len(given):
                raise InputError(f"there are {len(every)} targets, and the batch size is {len(given)}.")
            return [read_target(target, num_classes) for target in every]

        return self._explain(given, normalized, ask)

    compute_cams = __call__


class GradCAM(_PlainExtractor):
    """ReLU(sum_k w_k A_k), w_k the mean of G_k (Selvaraju et al., ICCV 2017)."""

    _method = "gradcam"


class LayerCAM(_PlainExtractor):
    """ReLU(sum_k ReLU(G_k) A_k) (Jiang et al., TIP 2021); layers are fused after tanh(2 map), as there."""

    _method = "layercam"
    _fused_by = staticmethod(lambda cam: torch.tanh(2.0 * cam))


class XGradCAM(_PlainExtractor):
    """As Grad-CAM, with w_k = sum G A / sum A (Fu et al., BMVC 2020)."""

    _method = "xgradcam"


class FinerCAM(_Extractor):
    """y_c - gamma * mean of the references' scores, by the method of `base_method` (Finer-CAM, CVPR 2025).

    Args:
        model, target_layer, input_shape, base_kwargs: as for the other classes.
        base_method: GradCAM or LayerCAM, of this module; torch-cam's own are taken for these.
        gamma: how strongly the references count; 0 is the plain method.
        num_references: how many references are chosen, those with the nearest scores.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layer: Layer | Sequence[Layer] | None = None,
        input_shape: tuple[int, ...] = (3, 224, 224),
        *,
        base_method: type[_PlainExtractor] = GradCAM,
        gamma: float = 0.6,
        num_references: int = 3,
        **base_kwargs: Any,
    ) -> None:
        """Find the layers; the first map compiles."""
        base = our_class(base_method, "torchcam", _PlainExtractor)
        if base is None or base not in (GradCAM, LayerCAM):
            raise WrongTypeError(
                "of torch-cam's GradCAM, GradCAMpp, or LayerCAM, base_method must be the first or the last: its "
                "GradCAMpp is not Grad-CAM++, since its division is lost; for that, take FinerCAM of "
                "finercam_rt.compat with base_method=GradCAMPlusPlus."
            )
        if isinstance(gamma, bool) or not isinstance(gamma, (int, float)):
            raise WrongTypeError(f"gamma must be a real number, and is {gamma!r}.")
        if not (math.isfinite(gamma) and gamma >= 0):
            raise InputError(f"gamma must be finite and non-negative, and is {gamma}.")
        if isinstance(num_references, bool) or not isinstance(num_references, int):
            raise WrongTypeError(f"num_references must be an integer, and is {num_references!r}.")
        if num_references < 1:
            raise InputError(f"num_references must be positive, and is {num_references}.")
        self._base, self._method, self._fused_by = base, base._method, base._fused_by
        self.gamma, self.num_references = float(gamma), num_references
        super().__init__(model, target_layer, input_shape, **base_kwargs)

    def __repr__(self) -> str:
        """The class, its layers and its settings."""
        return (
            f"FinerCAM(base_method={self._base.__name__}, target_layer={self.target_names}, gamma={self.gamma}, "
            f"num_references={self.num_references})"
        )

    def __call__(
        self,
        class_idx: int | list[int],
        scores: torch.Tensor | None = None,
        comparison_idx: int | list[int] | list[list[int]] | None = None,
        normalized: bool = True,
        *,
        targets: None = None,
        retain_graph: bool = False,
    ) -> list[torch.Tensor]:
        """The maps of the model's last batch.

        Args:
            class_idx, scores, normalized, retain_graph: as for the other classes.
            comparison_idx: the references: one for all images, a list for all, or one list an image, of one length.
                By default the num_references classes with the nearest scores.
            targets: not supported, as in the original.

        Returns:
            (N,h,w) for each layer, in the dtype of the scores.

        Raises:
            InputError, WrongTypeError: an argument that cannot be used, or scores that the model did not give last.
            ExportError: the model cannot be compiled at these layers.
        """
        if targets is not None:
            raise InputError("FinerCAM does not support arbitrary output targets; give class_idx.")
        given = checked_scores(scores)
        if given.shape[1] < 2:
            raise InputError("FinerCAM needs at least one comparison class, and the scores have one column.")
        classes = classes_of(class_idx, *given.shape)
        rows = self._nearest(given, classes) if comparison_idx is None else references_of(comparison_idx, len(given))
        for image, (index, row) in enumerate(zip(classes, rows, strict=True)):
            check_row(image, index, row, given.shape[1])
        objective = "mean" if len(rows[0]) > 1 else None
        questions = [
            Question(index, tuple(row), self.gamma, objective) for index, row in zip(classes, rows, strict=True)
        ]
        return self._explain(given, normalized, lambda _: questions)

    compute_cams = __call__

    def fuse_cams(  # type: ignore[override]
        self, cams: list[torch.Tensor], target_shape: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """As `base_method` does."""
        return self._base.fuse_cams(cams, target_shape)

    def _nearest(self, scores: torch.Tensor, classes: list[int]) -> list[list[int]]:
        column = torch.tensor(classes)[:, None]
        distance = (scores - scores.gather(1, column)).abs().scatter(1, column, torch.inf)
        count = min(self.num_references, scores.shape[1] - 1)
        found: list[list[int]] = distance.topk(count, dim=1, largest=False).indices.tolist()
        return found


def _resolved(model: nn.Module, layer: Layer) -> str:
    """The name of a layer; whether the model has it is found when it is compiled, and here."""
    if not isinstance(layer, str):
        return layer_name(model, layer)
    names = dict(model.named_modules())
    if layer not in names or not layer:
        find_target_layer(model, layer, torch.zeros(0))  # its error names the nearest
    return layer
