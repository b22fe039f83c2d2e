"""`ops.seed` against the definition in float64, and against the graph."""

from __future__ import annotations

import numpy as np
import pytest

from finercam_rt import InputError, ops

SIZES = [(1, 1, 2, 1), (3, 1, 7, 3), (2, 4, 1000, 3), (5, 2, 257, 8), (1, 3, 20011, 2), (2, 1, 300, 64)]


def questions(size: tuple[int, int, int, int], seed: int = 0) -> tuple[np.ndarray, ...]:
    """Logits with ties, and targets, references and alphas of all kinds; without the axis P where it is 1."""
    n, p, k, r = size
    rng = np.random.default_rng([seed, *size])
    logits = np.round(rng.standard_normal((n, k)) * 4, 1).astype(np.float32)
    target = rng.integers(-p, k, (n, p))
    references = rng.integers(0, k, (n, p, r))
    kind = rng.random((n, p, r))
    references[kind < 0.5] = -1
    references[kind > 0.85] = -2
    alpha = rng.random((n, p)).astype(np.float32) * 2
    return (logits, target, references, alpha) if p > 1 else (logits, target[:, 0], references[:, 0], alpha[:, 0])


def definition(y: np.ndarray, target: int, references: np.ndarray, alpha: float, objective: str, most: int):
    """Target, references and dense seed of one contrast, in float64; `most` is P."""
    y = y.astype(np.float64)
    if target < 0:
        target = int(np.argsort(-y, kind="stable")[min(-1 - target, most - 1, len(y) - 1)])
    taken = {target, *references.tolist()}
    near = [int(k) for k in np.argsort(np.abs(y - y[target]), kind="stable") if k not in taken]
    used, chosen = {target}, []
    for reference in references.tolist():
        if reference == -1:
            reference = near.pop(0) if near else -2
        elif reference in used:
            reference = -2
        chosen.append(reference)
        used.add(reference)
    dense = np.zeros(len(y))
    dense[target] = 1
    left = [c for c in chosen if c >= 0]
    if left:
        scores = y[left]
        q = np.exp(scores - scores.max())
        q /= q.sum()
        dense[left] = -alpha * (q * (1 + scores - q @ scores) if objective == "weighted" else 1 / len(left))
    return target, chosen, dense


@pytest.mark.parametrize("objective", ["weighted", "mean"])
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_definition(device, size, objective):
    n, p, k, r = size
    given = questions(size)
    found = ops.seed(*(device.put(x) for x in given), objective=objective, dense=True)
    target_class, reference_classes, classes, values, dense = (device.get(x) for x in found)
    assert target_class.dtype == reference_classes.dtype == classes.dtype == np.int64
    rows = (n, p) if p > 1 else (n,)
    assert (target_class.shape, values.shape, dense.shape) == (rows, (*rows, 1 + r), (*rows, k))
    logits = np.repeat(given[0], p, axis=0)
    flat = (given[1].reshape(-1), given[2].reshape(-1, r), given[3].reshape(-1))
    for row, (y, target, references, alpha) in enumerate(zip(logits, *flat, strict=True)):
        wanted_target, wanted_references, wanted = definition(y, int(target), references, float(alpha), objective, p)
        assert target_class.reshape(-1)[row] == wanted_target
        assert reference_classes.reshape(-1, r)[row].tolist() == wanted_references
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(dense.reshape(-1, k)[row], wanted, rtol=0, atol=5e-7 * device.tolerance * scale)
        sparse = np.zeros(k)
        np.add.at(sparse, classes.reshape(-1, 1 + r)[row], values.reshape(-1, 1 + r)[row])
        np.testing.assert_array_equal(sparse.astype(np.float32), dense.reshape(-1, k)[row])


def test_equals_the_graph():
    """The same classes, and the same seed but for rounding, as export/contrast.py; its ties are the runtime's own."""
    torch = pytest.importorskip("torch")
    from finercam_rt.export.contrast import contrast

    for size in [(4, 1, 50, 3), (3, 5, 50, 3)]:
        logits, *others = questions(size)
        logits = np.random.default_rng(1).permutation(logits.size).reshape(logits.shape).astype(np.float32) / 50
        for objective in ("weighted", "mean"):
            graph = contrast(*(torch.from_numpy(x) for x in (logits, *others)), objective)
            found = ops.seed(logits, *others, objective=objective)
            np.testing.assert_array_equal(found.target_class, graph.target.numpy())
            np.testing.assert_array_equal(found.reference_classes, graph.references.numpy())
            np.testing.assert_array_equal(found.classes, graph.classes.numpy())
            np.testing.assert_allclose(found.values, graph.cotangents.numpy(), rtol=0, atol=2e-6)


def test_a_confident_classifier_keeps_its_sign(device):
    logits = np.zeros((1, 6), np.float32)
    logits[0, :4] = 120, 60, 59.8, 59.5
    given = (logits, np.array([-1]), np.full((1, 3), -1), np.ones(1, np.float32))
    values = device.get(ops.seed(*(device.put(x) for x in given)).values)[0]
    assert values[0] == 1
    assert (values[1:] < 0).all()
    np.testing.assert_allclose(values[1:].sum(), -1, atol=1e-6)  # of the weighted objective, q sums to 1


def test_what_is_not_finite_and_what_is_not_there(device):
    logits = np.array([[1, np.nan, 3, 2], [1, np.inf, 3, 2], [1, 4, 3, 2], [1, 4, 3, 2]], np.float32)
    target = np.array([-1, -1, 4, 0])
    references = np.array([[-1, -2], [-1, -2], [-1, -2], [9, -1]])
    given = (logits, target, references, np.ones(4, np.float32))
    found = ops.seed(*(device.put(x) for x in given), dense=True)
    assert device.get(found.target_class).tolist() == [1, 1, 4, 0]
    values, dense = device.get(found.values), device.get(found.dense)
    assert np.isnan(values[2:]).all()
    assert np.isnan(dense[2:]).any(1).all()


def test_out_is_written_in_place_and_threads_change_nothing(device):
    given = [device.put(x) for x in questions((5, 2, 257, 8))]
    first = ops.seed(*given, dense=True)
    out = ops.Seed(*(device.put(np.zeros_like(device.get(v))) for v in first))
    assert ops.seed(*given, out=out, threads=3) is out
    for a, b in zip(first, out, strict=True):
        np.testing.assert_array_equal(device.get(a), device.get(b))


LOGITS, TARGET, REFERENCES, ALPHA = questions((2, 1, 5, 3))
BAD = {
    "objective": ({"objective": "softmax"}, "the objective is 'softmax'; use one of 'weighted', 'mean'"),
    "logits": ({"logits": LOGITS.astype("f8")}, "logits are float64; convert them to 'float32'"),
    "strides": ({"logits": LOGITS[:, ::2]}, "logits are not C-contiguous"),
    "target": ({"target": TARGET.astype("i4")}, "targets are int32; convert them to 'int64'"),
    "images": ({"target": TARGET[:1]}, "give one value, or one row of references, for each image or contrast"),
    "rank": ({"target": TARGET[:, None]}, r"references have shape \(2, 3\); give \(N,P,R\)|alphas have shape"),
    "many": ({"references": np.full((2, 65), -1)}, "65 references are too many; give at most 64"),
    "none": ({"references": np.zeros((2, 0), np.int64)}, "with sizes of at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_sentence(case):
    change, sentence = BAD[case]
    given = {"logits": LOGITS, "target": TARGET, "references": REFERENCES, "alpha": ALPHA} | change
    with pytest.raises(InputError, match=sentence) as caught:
        ops.seed(**given)
    assert "\n" not in str(caught.value)
