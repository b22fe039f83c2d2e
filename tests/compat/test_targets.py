"""Targets are read from what they do, whoever wrote them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from finercam_rt.compat.targets import ClassifierOutputTarget, FinerWeightedTarget, Question, read_target
from finercam_rt.errors import InputError

OURS = [
    (ClassifierOutputTarget(3), Question(3)),
    (ClassifierOutputTarget(-1), Question(6)),
    (FinerWeightedTarget(3, [1, 2, 5], 0.6), Question(3, (1, 2, 5), 0.6, "weighted")),
    (FinerWeightedTarget(3, (1,), 0.6), Question(3, (1,), 0.6)),
    (lambda y: y[3], Question(3)),
    (lambda y: y[3] - y[4], Question(3, (4,), 1.0)),
    (lambda y: y[3] - 0.25 * (y[4] + y[6]), Question(3, (4, 6), 0.5, "mean")),
    (lambda y: y[3] - 0.6 * y[[0, 1, 2]].mean(), Question(3, (0, 1, 2), 0.6, "mean")),
    (lambda y: y[2:3], Question(2)),
]


@pytest.mark.parametrize(("target", "expected"), OURS)
def test_what_a_target_asks(target: Any, expected: Question) -> None:
    found = read_target(target, 7)
    assert found._replace(alpha=0) == expected._replace(alpha=0)
    assert found.alpha == pytest.approx(expected.alpha, rel=1e-6)


def test_the_public_targets() -> None:
    public = pytest.importorskip("pytorch_grad_cam.utils.model_targets", reason="grad-cam, whose targets are read")
    assert read_target(public.ClassifierOutputTarget(3), 7) == Question(3)
    assert read_target(public.ClassifierOutputTarget(np.int64(3)), 7) == Question(3)
    assert read_target(public.ClassifierOutputSoftmaxTarget(3), 7) == Question(3, scores="probabilities")
    assert read_target(public.ClassifierOutputReST(3), 7).scores == "logits and log-probabilities"
    for classes in (7, 20_000):
        found = read_target(public.FinerWeightedTarget(3, [1, 2, 5], 0.6), classes)
        assert found == Question(3, (1, 2, 5), 0.6, "weighted")
    assert read_target(public.BinaryClassifierOutputTarget(1), 1) == Question(0)
    assert read_target(public.BinaryClassifierOutputTarget(0), 1) == Question(1)
    assert read_target(public.RawScoresOutputTarget(), 1) == Question(0)
    with pytest.raises(InputError, match="7 values"):
        read_target(public.RawScoresOutputTarget(), 7)


def test_targets_of_a_known_class_are_not_differentiated(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be a fifth of a call's time; what is out of range is, for its sentence."""
    monkeypatch.setattr(torch.autograd, "grad", None)
    for target, expected in OURS[:4]:
        assert read_target(target, 7) == expected
    for target in (ClassifierOutputTarget(7), FinerWeightedTarget(3, [-8], 0.6), FinerWeightedTarget(9, [1], 0.6)):
        with pytest.raises(InputError, match="fails on the scores of 7 classes"):
            read_target(target, 7)


def test_a_target_is_what_it_does_and_not_what_it_is_called() -> None:
    class Impostor(ClassifierOutputTarget):
        def __call__(self, model_output: Any) -> Any:
            return model_output[self.category] - model_output[0]

    assert read_target(Impostor(3), 7) == Question(3, (0,), 1.0)


@pytest.mark.parametrize("inference", [False, True])
def test_gradients_that_are_off_are_no_matter(inference: bool) -> None:
    with torch.inference_mode(inference), torch.no_grad():
        assert read_target(lambda y: y[2], 7) == Question(2)


@pytest.mark.parametrize(
    ("target", "classes", "sentence"),
    [
        (lambda y: y.max(), 2, "cannot be compiled"),
        (lambda y: y.max(), 7, "cannot be compiled"),
        (lambda y: y.sum(), 7, "cannot be compiled"),
        (lambda y: -y[1], 7, "cannot be compiled"),
        (lambda y: 2 * y[1], 7, "cannot be compiled"),
        (lambda y: y[1] ** 2, 7, "cannot be compiled"),
        (lambda y: y[1] - 0.5 * y[2] - 0.1 * y[3], 7, "cannot be compiled"),
        (lambda y: torch.where(y[2] > 0, y[0], y[1]), 7, "cannot be compiled"),
        (lambda y: y[30], 7, "fails on the scores of 7 classes"),
        (lambda y: y, 7, "7 values"),
        (lambda y: 1.0, 7, "a float"),
        (lambda y: y[1].detach(), 7, "does not depend"),
        (3, 7, "is 3, of type int"),
    ],
)
def test_what_cannot_be_compiled_gets_a_sentence(target: Any, classes: int, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_target(target, classes)


def test_the_finer_target_is_right_where_the_public_one_turns() -> None:
    """A target 30 nats above its references, which then have probabilities of some 1e-13."""
    scores = torch.tensor([30.0, 0.0, -0.2, -0.5, -9.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(FinerWeightedTarget(0, [1, 2, 3], 1.0)(scores), scores)
    assert gradient[0] == 1
    assert gradient[1:4].sum() == pytest.approx(-1)
    public = pytest.importorskip("pytorch_grad_cam.utils.model_targets", reason="grad-cam, whose target turns")
    (theirs,) = torch.autograd.grad(public.FinerWeightedTarget(0, [1, 2, 3], 1.0)(scores), scores)
    assert theirs[0] < 0
