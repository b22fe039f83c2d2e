"""The contrast stage alone: which classes it takes, and the seed against autograd of the written-out objective."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from finercam_rt.export.contrast import contrast

from .oracle import objective_value

OBJECTIVES = ("weighted", "mean")
TOLERANCE = 1e-12
"""Of the seed in float64."""


def _resolved(y: np.ndarray, target: int, references: Sequence[int]) -> tuple[int, list[int]]:
    """The rules of the graph interface, one image at a time, in plain Python."""
    chosen = int(np.argmax(y)) if target == -1 else target
    distance = np.abs(y - y[chosen])
    free = [int(k) for k in np.argsort(distance, kind="stable") if k != chosen and k not in references]
    row: list[int] = []
    for wanted in references:
        if wanted == -1:
            row.append(free.pop(0))
        elif wanted == chosen or wanted in row:
            row.append(-2)
        else:
            row.append(wanted)
    return chosen, row


def _dense(result, row: int, num_classes: int) -> np.ndarray:
    seed = np.zeros(num_classes)
    np.add.at(seed, result.classes[row].numpy(), result.cotangents[row].numpy())
    return seed


def _run(y, target, references, alpha, objective, dtype=torch.float64):
    return contrast(
        torch.as_tensor(y, dtype=dtype),
        torch.tensor(target),
        torch.tensor(references),
        torch.tensor(alpha, dtype=dtype),
        objective,
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("num_references", [1, 2, 3, 5])
@pytest.mark.parametrize("num_classes", [6, 7, 40, 1000])
def test_choices_and_seed(objective: str, num_references: int, num_classes: int) -> None:
    """Random logits and contrasts of every kind: the closed-form seed is autograd's, in float64, to 1e-12."""
    rng = np.random.default_rng(num_classes * 10 + num_references)
    count = 24
    y = rng.normal(0, 3, (count, num_classes))
    target = rng.integers(-1, num_classes, count)
    references = rng.integers(-2, num_classes, (count, num_references))
    references[0] = -1
    references[1] = -2
    references[2] = 0
    target[2], target[3] = 0, -1
    alpha = rng.choice([0.0, 0.6, 1.0, 2.5], count)
    result = _run(y, target, references, alpha, objective)
    for i in range(count):
        chosen, row = _resolved(y[i], int(target[i]), references[i].tolist())
        assert int(result.target[i]) == chosen
        assert result.references[i].tolist() == row
        logits = torch.tensor(y[i], requires_grad=True)
        value = objective_value(logits, chosen, [k for k in row if k >= 0], float(alpha[i]), objective)
        (expected,) = torch.autograd.grad(value, logits)
        np.testing.assert_allclose(_dense(result, i, num_classes), expected.numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_seed_by_hand(objective: str) -> None:
    """v_c = 1; weighted: v_i = -alpha q_i (1 + y_i - ybar); mean: v_i = -alpha / R. No autograd on either side."""
    y = np.array([[1.0, 3.0, 2.5, -1.0, 2.0]])
    result = _run(y, [-1], [[-1, -1]], [0.5], objective)
    assert result.target.tolist() == [1]
    assert result.references.tolist() == [[2, 4]]
    refs = y[0, [2, 4]]
    q = np.exp(refs) / np.exp(refs).sum()
    share = q * (1 + refs - q @ refs) if objective == "weighted" else np.array([0.5, 0.5])
    expected = np.zeros(5)
    expected[1] = 1
    expected[[2, 4]] = -0.5 * share
    np.testing.assert_allclose(_dense(result, 0, 5), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("y", "target", "references", "expected_target", "expected"),
    [
        pytest.param([4, 5, 3, 2, 5], -1, [-1, -1, -1], 1, [4, 0, 2], id="a tied maximum: the lower index"),
        pytest.param([9, 1, 3, 2, 0.1], 1, [-1, -1], 1, [4, 3], id="target not the maximum: nearest on both sides"),
        pytest.param([9, 1, 3, 2, 0], 1, [2, 2], 1, [2, -2], id="a repeated reference counts once"),
        pytest.param([9, 1, 3, 2, 0], 1, [1, 2], 1, [-2, 2], id="the target is no reference of its own"),
        pytest.param([9, 1, 3, 2, 0], -1, [0, -1], 0, [-2, 2], id="the predicted target neither"),
        pytest.param([9, 1, 3, 2, 0], 1, [3, -1], 1, [3, 4], id="automatic leaves out what is pinned"),
        pytest.param([9, 1, 3, 2, 0], 1, [-1, 3], 1, [4, 3], id="pinned after automatic leaves it out as well"),
        pytest.param([9, 1, 3, 2.5, 0], 1, [-2, -1, -2, -1], 1, [-2, 4, -2, 3], id="unused slots are kept apart"),
        pytest.param([9, 1, 3, 2, 0], 1, [-2, -2], 1, [-2, -2], id="all unused"),
        pytest.param([9, 1, 3, 2, 0], 0, [-1] * 4, 0, [2, 3, 1, 4], id="R = K - 1"),
        pytest.param([9, 1, 3, 2, 0], 0, [4, -1, -1, -1], 0, [4, 2, 3, 1], id="R = K - 1, one pinned"),
        pytest.param([1, 2], -1, [-1], 1, [0], id="K = 2"),
        pytest.param([1, 2], 0, [-1], 0, [1], id="K = 2, target not the maximum"),
        pytest.param([1, 2], 0, [0], 0, [-2], id="K = 2, the target against itself"),
    ],
)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_choices(y, target, references, expected_target, expected, objective: str) -> None:
    result = _run([y], [target], [references], [1.0], objective)
    assert result.target.tolist() == [expected_target]
    assert result.references.tolist() == [expected]
    used = [k for k in expected if k >= 0]
    seed = _dense(result, 0, len(y))
    assert seed[expected_target] == 1
    assert set(np.flatnonzero(seed)) <= {expected_target, *used}
    if used:
        # the references' cotangents sum to -alpha in both objectives: sum q_i (1 + y_i - ybar) = 1
        assert seed[used].sum() == pytest.approx(-1, abs=TOLERANCE)
    else:
        assert np.abs(seed).sum() == 1


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_references_or_alpha_zero_is_the_plain_method(objective: str) -> None:
    y = np.random.default_rng(0).normal(size=(2, 9))
    for references, alpha in (([[-2, -2]] * 2, [2.5, 1.0]), ([[-1, 3]] * 2, [0.0, 0.0])):
        result = _run(y, [-1, 4], references, alpha, objective)
        for i, chosen in enumerate((int(y[0].argmax()), 4)):
            assert np.array_equal(_dense(result, i, 9), np.eye(9)[chosen])


def test_large_logits_and_margins_stay_finite() -> None:
    """The softmax runs over the references alone, stably: no epsilon, no overflow, no flip (facts, part A1)."""
    y = np.array([[30, -10, -10.2, -10.5, 0], [3e4, 2.9e4, 1, 0, -3e4]])
    for dtype in (torch.float64, torch.float32):
        result = contrast(
            torch.as_tensor(y, dtype=dtype),
            torch.tensor([0, 0]),
            torch.tensor([[1, 2, 3], [1, 2, 4]]),
            torch.tensor([1.0, 1.0], dtype=dtype),
            "weighted",
        )
        seeds = np.array([_dense(result, i, 5) for i in range(2)])
        assert np.isfinite(seeds).all()
        assert seeds[:, 0].tolist() == [1, 1]
        refs = y[0, 1:4]
        q = np.exp(refs - refs.max()) / np.exp(refs - refs.max()).sum()
        np.testing.assert_allclose(seeds[0, 1:4], -q * (1 + refs - q @ refs), rtol=1e-5)
        np.testing.assert_allclose(seeds[1, 1:3], [-1, 0], atol=1e-6)


def test_the_seed_hangs_on_differences_of_logits_alone() -> None:
    """In float32, where 1 + y is y for logits of 1e8; these differences are exact there."""
    small = torch.tensor([[96.0, 64.0, 32.0, -1024.0, -2048.0], [64.0, 64.0, 32.0, 64.0, 0.0]])
    (expected, found) = (
        _run((small + shift).tolist(), [-1, 2], [[-1, -1, -1], [0, 4, -2]], [1.0, 2.5], "weighted", torch.float32)
        for shift in (0.0, 2.0**28)
    )
    for row in range(2):
        np.testing.assert_allclose(_dense(found, row, 5), _dense(expected, row, 5), rtol=1e-6)
    assert _dense(found, 0, 5)[1] == pytest.approx(-1)


def test_ties_go_to_the_lower_index_in_the_compiled_graph(tmp_path: Path) -> None:
    """ONNX promises the order of equal values in TopK; torch.topk does not, so this is asked of the graph."""
    onnxruntime = pytest.importorskip("onnxruntime")

    class Stage(torch.nn.Module):
        def forward(self, logits, target, references, alpha):
            return contrast(logits, target, references, alpha, "weighted")[:2]

    logits = np.array([[5, 4, 4, 4, 1], [4, 5, 4, 4, 5], [0] * 5, [0] * 5, [1, 3, 2, 1, 3]], np.float32)
    target = np.array([-1, -1, -1, 2, 2])
    references = np.full((5, 3), -1)
    alpha = np.ones(5, np.float32)
    arguments = {"logits": logits, "target": target, "references": references, "alpha": alpha}
    tensors = tuple(torch.from_numpy(v) for v in arguments.values())
    path = tmp_path / "contrast.onnx"
    torch.onnx.export(
        Stage().eval(), tensors, path, dynamo=True, opset_version=18, input_names=list(arguments), verbose=False
    )
    chosen, resolved = onnxruntime.InferenceSession(path).run(None, arguments)
    assert chosen.tolist() == [0, 1, 0, 2, 2]
    assert resolved.tolist() == [[1, 2, 3], [4, 0, 2], [1, 2, 3], [0, 1, 3], [0, 1, 3]]
