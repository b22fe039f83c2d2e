"""The classes of pytorch-grad-cam 1.5.7, by their names and signatures, over compiled engines."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from finercam_rt.compat.explainer import Answer, Explainer, Images, checked_images, layer_name
from finercam_rt.compat.maps import Maps, finished
from finercam_rt.compat.originals import our_class
from finercam_rt.compat.reshape import ReshapeTransform
from finercam_rt.compat.targets import Question, read_target
from finercam_rt.errors import InputError, WrongTypeError
from finercam_rt.ops import Status

BRIGHTNESS = (0.9, 1.0, 1.1)
"""What aug_smooth multiplies the input by, with and without a horizontal flip."""

_SMOOTHED = {
    "hirescam": "eigengradcam",
    **{name: f"{name}-eigen" for name in ("gradcam", "gradcam++", "xgradcam", "layercam", "gradcamelementwise")},
}
"""The method that eigen_smooth makes of another; the rest it leaves as they are, as in the original."""

Targets = Sequence[Callable[[torch.Tensor], torch.Tensor]]


class _CAM:
    """What the classes of this form share.

    Args:
        model: float32 or float64, on the CPU. As the original does, the constructor calls model.eval(); nothing else of
            the model is changed: no gradients, no requires_grad, no hooks.
        target_layers: a list of modules of the model.
        reshape_transform: from a layer's output to (N,C,h,w), as the original needs it for tokens. It is read once,
            and held against what the shapes say; without it the layout is found.

    Raises:
        InputError: no target layer, or one that is not the model's.
    """

    _method: str

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        """Find the layers' names; the first call compiles."""
        if isinstance(target_layers, (nn.Module, str)):
            raise WrongTypeError("target_layers is one layer, and a list is expected; write target_layers=[layer].")
        layers = [layer_name(model, layer) for layer in target_layers]
        if not layers:
            raise InputError("target_layers is empty; give at least one module of the model.")
        self.model = model.eval()
        self.target_layers = list(target_layers)
        self.reshape_transform = reshape_transform
        self.outputs: torch.Tensor | None = None
        self.status: tuple[str, ...] = ()
        self._explainers = {
            smooth: Explainer(model, layers, method, reshape_transform)
            for smooth, method in ((False, self._method), (True, _SMOOTHED.get(self._method, self._method)))
        }

    def __enter__(self) -> Any:
        """The object itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Nothing to release: there are no hooks, and the engine is kept for the next object."""

    def _run(self, input_tensor: torch.Tensor, aug_smooth: bool, ask: Callable[[Images], Answer]) -> Maps:
        if any(module.training for module in self.model.modules()):
            raise InputError(
                "the model, or a part of it, is in training mode again, and the map is that of evaluation mode; call "
                "model.eval()."
            )
        images = checked_images(input_tensor, "input_tensor")
        answers = [(ask(view), flipped) for view, flipped in (_views(images) if aug_smooth else [(images, False)])]
        found = [finished(answer.maps, images.shape[2:]) for answer, _ in answers]
        # where a map may be made of what is not finite, it must not look like one
        for maps, (answer, _) in zip(found, answers, strict=True):
            maps[answer.status == Status.NON_FINITE] = np.nan
        unflipped = [maps[..., ::-1] if flipped else maps for maps, (_, flipped) in zip(found, answers, strict=True)]
        self.outputs = torch.from_numpy(answers[-1][0].logits)
        self.status = _labels([answer.status for answer, _ in answers])
        _warn(self.status)
        return np.mean(unflipped, axis=0, dtype=np.float32) if aug_smooth else unflipped[0]

    def _questions(self, targets: Targets, count: int, num_classes: int) -> list[Question]:
        try:
            every = list(targets)
        except TypeError:
            raise WrongTypeError(f"targets is {targets!r}; give a list of one target an image.") from None
        if len(every) != count:
            raise InputError(f"there are {len(every)} targets for {count} images; give one for each.")
        return [read_target(target, num_classes) for target in every]


class _PlainCAM(_CAM):
    """A method with one target class an image."""

    def __call__(
        self,
        input_tensor: torch.Tensor,
        targets: Targets | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
    ) -> Maps:
        """The maps of a batch.

        Args:
            input_tensor: (N,C,H,W) float32 or float64, normalised, on the CPU.
            targets: one an image, each a function of the scores (see `read_target`); None is the predicted class.
            aug_smooth: whether to average over horizontal flips and three brightnesses.
            eigen_smooth: whether to take the first principal component of the weighted activations, not their sum.

        Returns:
            (N,H,W) float32 in [0, 1]. `outputs` then has the logits, `status` what each map is worth.

        Raises:
            InputError: an argument that cannot be used, or as many targets as there are not images.
            ExportError: the model cannot be compiled at these layers.
        """
        explainer = self._explainers[bool(eigen_smooth)]

        def ask(images: Images) -> Answer:
            facts = explainer.facts(images)
            questions = None if targets is None else self._questions(targets, len(images), facts.num_classes)
            return explainer.ask(images, facts, questions)

        return self._run(input_tensor, aug_smooth, ask)


class GradCAM(_PlainCAM):
    """ReLU(sum_k w_k A_k), w_k the mean of G_k (Selvaraju et al., ICCV 2017)."""

    _method = "gradcam"


class GradCAMPlusPlus(_PlainCAM):
    """As Grad-CAM, with the weights of Chattopadhay et al. (WACV 2018)."""

    _method = "gradcam++"


class XGradCAM(_PlainCAM):
    """As Grad-CAM, with w_k = sum G A / sum A (Fu et al., BMVC 2020)."""

    _method = "xgradcam"


class LayerCAM(_PlainCAM):
    """ReLU(sum_k ReLU(G_k) A_k) (Jiang et al., TIP 2021)."""

    _method = "layercam"


class HiResCAM(_PlainCAM):
    """ReLU(sum_k G_k A_k) (Draelos and Carin, 2020)."""

    _method = "hirescam"


class GradCAMElementWise(_PlainCAM):
    """sum_k ReLU(G_k A_k)."""

    _method = "gradcamelementwise"


class EigenCAM(_PlainCAM):
    """The first principal component of A (Muhammad and Yeasin, 2020); of its two signs the one along the mean of A."""

    _method = "eigencam"


class EigenGradCAM(_PlainCAM):
    """Eigen-CAM of G A."""

    _method = "eigengradcam"


class FEM(_PlainCAM):
    """sum_k w_k A_k, w_k the share of positions where A_k > mean + 2 deviations (Fuad et al., 2020)."""

    _method = "fem"

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: ReshapeTransform | None = None,
        k: float = 2,
    ) -> None:
        """As the others; `k`, the number of deviations, is 2."""
        if k != 2:
            raise InputError(f"k is {k}, and FEM is compiled for k=2 alone; leave it out.")
        super().__init__(model, target_layers, reshape_transform)


class FinerCAM(_CAM):
    """A method with the Finer seed: why the target and not the classes nearest to it (Finer-CAM, CVPR 2025).

    The objective is y_c - alpha * sum_i q_i y_i, q the softmax over the references. The original divides by their
    probability plus 1e-9, which turns the sign of its map where the classifier is some 18 nats sure; this one does not,
    and equals it elsewhere.

    Args:
        model, target_layers, reshape_transform: as for the other classes.
        base_method: GradCAM, or another of this module's; the original's class of that name is taken for it.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: ReshapeTransform | None = None,
        base_method: type[_PlainCAM] = GradCAM,
    ) -> None:
        """Find the layers' names; the first call compiles."""
        base = our_class(base_method, "pytorch_grad_cam", _PlainCAM)
        if base is None:
            raise WrongTypeError(
                f"base_method is {base_method!r}; give a class of finercam_rt.compat, such as GradCAM."
            )
        self._method = base._method
        super().__init__(model, target_layers, reshape_transform)

    def __call__(
        self,
        input_tensor: torch.Tensor,
        targets: Targets | None = None,
        eigen_smooth: bool = False,
        alpha: float = 1,
        comparison_categories: Sequence[int] | None = None,
        target_idx: int | Sequence[int] | None = None,
        *,
        reference_category_ranks: Sequence[int] | None = None,
        aug_smooth: bool = False,
    ) -> Maps:
        """The maps of a batch.

        Args:
            input_tensor: (N,C,H,W) float32 or float64, normalised, on the CPU.
            targets: one an image, such as FinerWeightedTarget, instead of the four arguments after eigen_smooth.
            eigen_smooth: whether to take the first principal component of the weighted activations, not their sum.
            alpha: how strongly the references count; 0 is the plain method.
            comparison_categories: the references by rank among the other classes, the nearest logit first: [1, 2, 3]
                by default. Ranks that the model has no class for are left out; -1 is the furthest.
            target_idx: the target class of all images, or one an image; by default the predicted class.
            reference_category_ranks: another name of comparison_categories.
            aug_smooth: whether to average over horizontal flips and three brightnesses.

        Returns:
            (N,H,W) float32 in [0, 1]. `outputs` then has the logits, `status` what each map is worth.

        Raises:
            InputError: an argument that cannot be used, or that targets make void.
            ExportError: the model cannot be compiled at these layers.
        """
        if comparison_categories is not None and reference_category_ranks is not None:
            raise InputError("comparison_categories and reference_category_ranks are one argument; give one of them.")
        ranks = reference_category_ranks if comparison_categories is None else comparison_categories
        if targets is not None and (ranks is not None or target_idx is not None or alpha != 1):
            raise InputError(
                "targets say themselves what is contrasted, and alpha, comparison_categories and target_idx would be "
                "ignored; give either."
            )
        explainer = self._explainers[bool(eigen_smooth)]

        def ask(images: Images) -> Answer:
            facts = explainer.facts(images)
            if targets is not None:
                return explainer.ask(images, facts, self._questions(targets, len(images), facts.num_classes))
            found = _ranks(ranks, facts.num_classes)
            if found == list(range(1, len(found) + 1)):
                return explainer.nearest(images, facts, len(found), alpha, target_idx)
            logits = explainer.logits(images, facts)
            return explainer.ask(images, facts, _ranked(logits, found, alpha, target_idx))

        return self._run(input_tensor, aug_smooth, ask)


def _ranks(ranks: Sequence[int] | None, num_classes: int) -> list[int]:
    """Ranks from 1 on, of the classes that there are."""
    if num_classes < 2:
        raise InputError("the model has one logit, so there is nothing to contrast it with; use GradCAM.")
    try:
        given = [1, 2, 3] if ranks is None else [operator.index(rank) for rank in ranks]
    except TypeError:
        raise WrongTypeError(f"comparison_categories is {ranks!r}; give a list of ranks, such as [1, 2, 3].") from None
    found = [rank % num_classes for rank in given if -num_classes <= rank < num_classes]
    if not found:
        raise InputError(f"comparison_categories {given} name no class of {num_classes}; give ranks from 1 on.")
    if 0 in found:
        raise InputError("comparison_categories has rank 0, which is the target itself; give ranks from 1 on.")
    if len(set(found)) < len(found):
        raise InputError(f"comparison_categories {given} name a class twice; give each rank once.")
    return sorted(found)


def _targets(target_idx: int | Sequence[int], images: int, num_classes: int) -> list[int]:
    """A class for each image."""
    values = np.asarray(target_idx).tolist()
    given = values if isinstance(values, list) else [values] * images
    try:
        found = [operator.index(target) for target in given]
    except TypeError:
        raise WrongTypeError(f"target_idx is {target_idx!r}; give a class index, or one for each image.") from None
    if len(found) != images:
        raise InputError(f"target_idx names {len(found)} classes for {images} images; give one, or one for each.")
    wrong = [target for target in found if not 0 <= target < num_classes]
    if wrong:
        raise InputError(f"target_idx has class {wrong[0]}; the model's classes are 0 to {num_classes - 1}.")
    return found


def _ranked(
    logits: NDArray[np.float32], ranks: Sequence[int], alpha: float, target_idx: int | Sequence[int] | None
) -> list[Question]:
    """The questions that ranks ask, by logits (N,K)."""
    every = _targets(target_idx, *logits.shape) if target_idx is not None else logits.argmax(axis=1).tolist()
    objective = "weighted" if len(ranks) > 1 else None
    questions = []
    for row, target in zip(logits, every, strict=True):
        distance = np.abs(row - row[target])
        distance[target] = -1
        order = np.argsort(distance, kind="stable")
        questions.append(Question(target, tuple(int(order[rank]) for rank in ranks), float(alpha), objective))
    return questions


def _views(images: Images) -> Iterator[tuple[Images, bool]]:
    """A batch as aug_smooth looks at it, and whether it is flipped."""
    for flipped in (False, True):
        for factor in BRIGHTNESS:
            yield np.ascontiguousarray(images[..., ::-1] if flipped else images) * np.float32(factor), flipped


def _labels(found: Sequence[NDArray[np.uint8]]) -> tuple[str, ...]:
    """The status of each image, the worst of several views'."""
    return tuple(Status(int(worst)).label for worst in np.max(found, axis=0))


def _warn(status: Sequence[str]) -> None:
    wrong = [f"{row} ({label})" for row, label in enumerate(status) if label != "ok"]
    if wrong:
        warnings.warn(
            f"the map explains nothing for image {', '.join(wrong[:8])}{' and more' if len(wrong) > 8 else ''}; see "
            "the status of the CAM object.",
            RuntimeWarning,
            stacklevel=4,
        )
