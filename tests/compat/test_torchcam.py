"""torch-cam's form against torch-cam, on small models; what it refuses where a map would be of something else."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import finercam_rt.compat.torchcam as ours
from finercam_rt.errors import ExportError, InputError

from .conftest import CLASSES, blobs, small_cnn

public: Any = pytest.importorskip("torchcam.methods", reason="torch-cam, the library compared with")

PINNED = [0, 3, 5, 6]


class Shares(nn.Module):
    """Not negative, and one in sum."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """(N,K) to (N,K)."""
        squares = logits.square()
        return squares / squares.sum(1, keepdim=True)


def _check(got: list[Any], expected: list[Any]) -> None:
    assert len(got) == len(expected)
    for mine, theirs in zip(got, expected, strict=True):
        assert theirs.abs().sum((1, 2)).gt(0).sum() * 2 >= len(theirs), "too few maps with evidence to compare"
        assert not mine.requires_grad
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.max()))


def _both(
    name: str, model: Any, layer: Any, images: Any, settings: dict[str, Any], scored: Any, **arguments: Any
) -> list[Any]:
    """Ours and theirs, one after the other: the hooks of theirs would take our runs of the model for its owner's."""
    found = []
    for library in (ours, public):
        with getattr(library, name)(model, layer, **settings) as extractor:
            found.append(extractor(scores=scored(model(images)), **arguments))
    return found


@pytest.mark.parametrize("name", ["GradCAM", "LayerCAM", "XGradCAM"])
def test_plain_methods(name: str, cnn: Any, images: Any) -> None:
    asked: list[dict[str, Any]] = [{"class_idx": PINNED}, {"class_idx": 3, "normalized": False}]
    if name == "GradCAM":
        asked.append({"targets": [lambda y: y[3] - y[2], lambda y: y[1], lambda y: y[1], lambda y: y[4]]})
    for arguments in asked:
        _check(*_both(name, cnn, "1", images, {}, lambda scores: scores, **arguments))


def test_finer_cam(cnn: Any, images: Any) -> None:
    asked: list[tuple[dict[str, Any], Any, Any, Any]] = [
        ({}, None, None, lambda y: y),
        ({"gamma": 1.5, "num_references": 1}, None, None, lambda y: y),
        ({"num_references": 99, "gamma": 0.3}, PINNED, None, lambda y: y),
        ({}, PINNED, [1, 2], lambda y: y),
        ({}, PINNED, [[1, 2], [4, 5], [0, 1], [2, 3]], lambda y: y),
        ({}, None, None, partial(torch.softmax, dim=-1)),
    ]
    for options, classes, references, scored in asked:
        arguments = {"class_idx": classes or cnn(images).argmax(1).tolist(), "comparison_idx": references}
        for normalized in (False, True):
            found = _both("FinerCAM", cnn, "1", images, options, scored, normalized=normalized, **arguments)
            _check(*found)
    with ours.FinerCAM(cnn, "1", gamma=1) as mine, public.FinerCAM(cnn, "1", gamma=1) as theirs:
        assert repr(mine) == repr(theirs)


def test_several_layers_and_their_fusion(cnn: Any, images: Any) -> None:
    got, expected = _both("GradCAM", cnn, ["0", cnn[1]], images, {}, lambda scores: scores, class_idx=PINNED)
    _check(got, expected)
    smaller = [got[0], got[1][:, ::2, ::2]]
    for name in ("GradCAM", "LayerCAM"):
        mine, theirs = getattr(ours, name), getattr(public, name)
        torch.testing.assert_close(mine.fuse_cams(smaller), theirs.fuse_cams(smaller))
        torch.testing.assert_close(mine.fuse_cams(smaller, (3, 3)), theirs.fuse_cams(smaller, (3, 3)))
    for wrong in ([], torch.zeros(1, 2, 2)):
        with pytest.raises((InputError, TypeError)):
            ours.GradCAM.fuse_cams(wrong)


def test_the_model_is_left_alone(images: Any) -> None:
    model = small_cnn().requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    with ours.GradCAM(model, "1") as extractor, torch.no_grad():
        assert len(model._forward_pre_hooks) == 1
        model.train()  # no dropout and no batch norm here: it makes no difference
        extractor(1, model(images))
        assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match="has not run"):
        extractor(1, torch.zeros(4, CLASSES))


def test_two_extractors_do_not_disturb_each_other(images: Any) -> None:
    """Compiling runs the model on noise, which neither may take for its input."""
    model, other = small_cnn(seed=1), blobs(4, seed=9)
    with ours.GradCAM(model, "1") as first, ours.LayerCAM(model, "1") as second:
        scores = model(images)
        got, late = first(PINNED, scores, normalized=False), second(PINNED, scores, normalized=False)
        first.disable_hooks()
        scores_of_other = model(other)
        again = first(PINNED, scores, normalized=False)
        assert not torch.equal(second(PINNED, scores_of_other)[0], late[0])
        first.enable_hooks()
    assert torch.equal(got[0], again[0])
    for cls, mine in (("GradCAM", got), ("LayerCAM", late)):
        with getattr(public, cls)(model, "1") as theirs:
            _check(mine, theirs(PINNED, model(images), normalized=False))


@pytest.mark.parametrize("last", [nn.Softmax(1), Shares()])
def test_models_whose_output_are_shares(last: nn.Module, cnn: Any, images: Any) -> None:
    """What sums up to one is explained as it is: it need not be a softmax."""
    model = nn.Sequential(*cnn, last).eval()
    for name in ("GradCAM", "FinerCAM"):
        found = _both(name, model, "1", images, {}, lambda scores: scores, class_idx=PINNED, normalized=False)
        _check(*found)


def test_scores_of_something_else_are_refused(cnn: Any, images: Any) -> None:
    model = nn.Sequential(*copy.deepcopy(cnn)[:4], nn.Dropout(0.5), copy.deepcopy(cnn[4])).eval()
    with ours.GradCAM(cnn, "1") as extractor, ours.GradCAM(model, "1") as dropped:
        scores = cnn(images)
        cnn(images.flip(0))
        for wrong in (scores, scores * 2, scores + 0.1, scores.flip(1).softmax(1)):
            with pytest.raises(InputError, match="not what the model gives"):
                extractor(PINNED, wrong)
        with pytest.raises(InputError, match="shape"):
            extractor(PINNED[:2], scores[:2])
        extractor(PINNED, scores.flip(0))
        with pytest.raises(InputError, match="evaluation mode"):
            dropped(PINNED, model.train()(images))


def test_a_chosen_layer(cnn: Any, images: Any) -> None:
    with ours.FinerCAM(cnn, input_shape=(3, 32, 48)) as extractor:
        assert extractor.target_names == ["1"]
        assert extractor(PINNED, cnn(images))[0].shape == (4, 4, 6)


def test_torchcams_metrics_take_it(cnn: Any, images: Any) -> None:
    metrics: Any = pytest.importorskip("torchcam.metrics")
    found = []
    for library in (ours, public):
        with library.FinerCAM(cnn, "1", num_references=1) as extractor:
            metric = metrics.DeletionInsertionMetric(extractor, partial(torch.softmax, dim=-1), steps=4)
            metric.update(images)
            found.append(metric.summary())
    assert found[0].keys() == found[1].keys()
    np.testing.assert_allclose(list(found[0].values()), list(found[1].values()), rtol=1e-3)


REFUSED: list[tuple[Any, Any, type[Exception], str]] = [
    ((0,), {}, ValueError, "scores is required"),
    ((0, [[1.0, 2.0]]), {}, TypeError, "must be a tensor"),
    ((0, torch.zeros(3)), {}, ValueError, "shape"),
    ((0, torch.zeros(2, 1)), {}, ValueError, "comparison class"),
    ((True, None), {}, TypeError, "class_idx"),
    (([0, True, 1, 1], None), {}, TypeError, "contain integers"),
    (([0], None), {}, ValueError, "batch size"),
    (([0, 1, 2, 7], None), {}, ValueError, "out-of-range"),
    ((-1, None), {}, ValueError, "out-of-range"),
    ((0, None, []), {}, ValueError, "cannot be empty"),
    ((0, None, (2,)), {}, TypeError, "a list, or a nested list"),
    ((0, None, [0, 2]), {}, ValueError, "target class"),
    ((0, None, [2, 2]), {}, ValueError, "duplicates"),
    ((0, None, [2, 7]), {}, ValueError, "out-of-range"),
    ((0, None, [True]), {}, TypeError, "contain integers"),
    ((0, None, [[1, 2]]), {}, ValueError, "batch size"),
    ((0, None, [[], [], [], []]), {}, ValueError, "rows cannot be empty"),
    ((0, None, [[1], [1, 2], [1], [1]]), {}, ValueError, "equal lengths"),
    ((0, None, [2, [1]]), {}, TypeError, "integers or lists"),
    ((0, None), {"targets": lambda y: y[0]}, ValueError, "does not support"),
]


@pytest.mark.parametrize(("arguments", "named", "error", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_mistakes_in_a_call(
    arguments: tuple[Any, ...], named: dict[str, Any], error: type[Exception], sentence: str, cnn: Any, images: Any
) -> None:
    """The exceptions that torch-cam raises, so that who catches them goes on to."""
    with ours.FinerCAM(cnn, "1") as extractor:
        scores = cnn(images)
        if len(arguments) > 1 and arguments[1] is None:
            arguments = (arguments[0], scores, *arguments[2:])
        with pytest.raises(error, match=sentence):
            extractor(*arguments, **named)


def test_a_model_that_has_seen_images_with_a_graph_can_be_copied(cnn: Any, images: Any) -> None:
    """The verification copies it to float64 where rounding must explain a difference."""
    with ours.GradCAM(cnn, "1"):
        cnn(images.clone().requires_grad_() * 1)
        copy.deepcopy(cnn)


def test_the_originals_classes_are_taken_for_ours(cnn: Any) -> None:
    """Where a user changed the import of FinerCAM alone."""
    for theirs, mine in ((public.GradCAM, ours.GradCAM), (public.LayerCAM, ours.LayerCAM)):
        with ours.FinerCAM(cnn, "1", base_method=theirs) as extractor:
            assert extractor._method == mine._method


@pytest.mark.parametrize("layer", ["1", None])
def test_float64_is_computed_in_float32(layer: str | None, images: Any) -> None:
    """And given in the dtype of the scores; the model stays what it is."""
    model, settings = small_cnn().double(), {} if layer else {"input_shape": images.shape[1:]}
    with ours.FinerCAM(model, layer, **settings) as extractor:
        found = extractor(PINNED, model(images.double()))
    with public.FinerCAM(model, "1") as extractor:
        expected = extractor(PINNED, model(images.double()))
    assert found[0].dtype == expected[0].dtype == next(model.parameters()).dtype == torch.float64
    _check(found, expected)


def test_mistakes_in_the_constructor(cnn: Any) -> None:
    for options, error in (
        ({"base_method": public.GradCAMpp}, TypeError),
        ({"base_method": public.XGradCAM}, TypeError),
        ({"base_method": ours.XGradCAM}, TypeError),
        ({"gamma": True}, TypeError),
        ({"gamma": -0.1}, ValueError),
        ({"gamma": float("inf")}, ValueError),
        ({"num_references": 1.5}, TypeError),
        ({"num_references": 0}, ValueError),
        ({"reshape_transform": 3}, TypeError),
    ):
        with pytest.raises(error):
            ours.FinerCAM(cnn, "1", **options)
    with pytest.raises(TypeError, match=r"is not Grad-CAM\+\+.*base_method=GradCAMPlusPlus"):
        ours.FinerCAM(cnn, "1", base_method=public.GradCAMpp)
    for layer, error in ((3, TypeError), ([3], TypeError), (nn.ReLU(), ValueError), ("9", ExportError)):
        with pytest.raises(error):
            ours.GradCAM(cnn, layer)
    with ours.GradCAM(cnn, "1") as extractor, pytest.raises(InputError, match="exactly one"):
        extractor(scores=torch.zeros(1, CLASSES))
