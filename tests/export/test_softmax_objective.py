"""The objective "softmax": its seed against 60 digits, one ordinary classifier, and what a certain classifier gets."""

from __future__ import annotations

import decimal
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="the export needs PyTorch")
timm: Any = pytest.importorskip("timm", reason="the export's models come from timm")
pytest.importorskip("onnx", reason="the export needs onnx")

from finercam_rt import Engine  # noqa: E402
from finercam_rt.export import export_model  # noqa: E402
from finercam_rt.export.contrast import contrast, softmax_seed  # noqa: E402
from finercam_rt.export.eager import objective_value  # noqa: E402
from finercam_rt.manifest import DEFAULT_ALPHA, InputSpec  # noqa: E402

from .oracle import Oracle, blobs, perturb, relative_l2  # noqa: E402


def exact_seed(y: Sequence[float], target: int, references: Sequence[int], alpha: float) -> list[float]:
    """v_j = p_j (w_j - sum_i w_i p_i), w = 1 at the target and -alpha / R at the references, in 60 digits."""
    with decimal.localcontext() as context:
        context.prec = 60
        powers = [Decimal(float(value)).exp() for value in y]
        p = [power / sum(powers) for power in powers]
        w = [Decimal(0)] * len(p)
        w[target] += 1
        for index in references:
            w[index] -= Decimal(float(alpha)) / len(references)
        mean = sum((a * b for a, b in zip(w, p, strict=True)), Decimal(0))
        return [float(a * (b - mean)) for a, b in zip(p, w, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("spread", [1, 8, 20])
@pytest.mark.parametrize("classes", [2, 3, 5, 40])
def test_the_seed(classes: int, spread: float, dtype: Any) -> None:
    """Sure classifiers too, where 1 - p is below what a float32 near 1 can say, and references that have all of p."""
    rng = np.random.default_rng(classes)
    count = 12
    y = torch.tensor(rng.normal(0, spread, (count, classes)), dtype=dtype)
    target, references = rng.integers(-1, classes, count), rng.integers(-2, classes, (count, 3))
    references[0] = -1
    alpha = rng.choice([0.0, 0.6, 1.0, 2.5], count)
    arguments = (torch.tensor(target), torch.tensor(references), torch.tensor(alpha, dtype=dtype), "softmax")
    chosen = contrast(y, *arguments)
    seed = softmax_seed(chosen, y)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    logits = y.double().requires_grad_()
    used = [[index for index in row if index >= 0] for row in chosen.references.tolist()]
    targets = chosen.target.tolist()
    value = objective_value(logits, targets, chosen.references.tolist(), chosen_alpha(alpha, dtype), "softmax")
    (eager,) = torch.autograd.grad(value, logits)
    for row in range(count):
        want = exact_seed(y[row].tolist(), targets[row], used[row], chosen_alpha(alpha, dtype)[row])
        size = np.linalg.norm(want)
        if size > 1e-25:
            assert np.linalg.norm(seed[row].numpy() - want) <= tolerance * size, row
            assert np.linalg.norm(eager[row].numpy() - want) <= 1e-9 * size, row


def chosen_alpha(alpha: np.ndarray, dtype: Any) -> list[float]:
    return torch.tensor(alpha, dtype=dtype).tolist()


def test_several_contrasts_have_the_seeds_of_each() -> None:
    y = torch.tensor(np.random.default_rng(0).normal(0, 3, (4, 9)))
    target = torch.tensor([[-1, 3, -2]] * 4)
    references = torch.tensor([[[-1, -1], [2, -2], [3, -1]]] * 4)
    alpha = torch.tensor([[1.0, 0.5, 0.0]] * 4, dtype=torch.float64)
    together = contrast(y, target, references, alpha, "softmax")
    seeds = softmax_seed(together, y)
    for p in range(3):
        one = contrast(y, together.target[:, p], references[:, p], alpha[:, p], "softmax")
        torch.testing.assert_close(seeds[:, p], softmax_seed(one, y))


def test_a_certain_classifier_has_no_evidence_rather_than_noise() -> None:
    y = torch.tensor([[100.0, 20.0, 10.0, 0.0], [5.0, 4.0, 3.0, 0.0]])
    chosen = contrast(y, torch.tensor([-1, -1]), torch.full((2, 2), -1), torch.ones(2), "softmax")
    seed = softmax_seed(chosen, y)
    assert (seed[0] == 0).all()
    assert (seed[1] != 0).all()


@pytest.mark.parametrize("references", [1, 3, 5])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_fewer_classes_than_references_or_contrasts(classes: int, references: int) -> None:
    """What is lacking is unused, and a rank that there is not is the last."""
    y = torch.tensor(np.random.default_rng(classes).normal(0, 3, (5, classes)))
    target = torch.arange(-1, -6, -1).expand(5, 5)
    chosen = contrast(y, target, torch.full((5, 5, references), -1), torch.ones(5, 5).double(), "weighted")
    order = np.argsort(-y.numpy(), axis=1)
    for row in range(5):
        wanted = [int(order[row, min(rank, classes - 1)]) for rank in range(5)]
        assert chosen.target[row].tolist() == wanted
        for p, c in enumerate(wanted):
            near = [k for k in np.argsort(np.abs(y[row].numpy() - y[row, c].item())).tolist() if k != c]
            assert chosen.references[row, p].tolist() == (near + [-2] * references)[:references]


def test_an_ordinary_classifier(tmp_path: Path) -> None:
    """The seed is dense there, and goes through the last layer's whole weight."""
    torch.manual_seed(0)
    model, size = perturb(timm.create_model("test_resnet", num_classes=10)), 64
    path = tmp_path / "engine.onnx"
    spec = InputSpec((size, size), (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    manifest = export_model(model, path, target_layer="layer4", input=spec, objective="softmax")
    assert "seed: dense" in manifest.passes
    (layer,) = manifest.layers
    images = blobs(3, (size, size), 5)
    oracle = Oracle(model, layer.name, images)
    with Engine(path, backend="onnxruntime", threads=1) as engine:
        for alpha in (None, 0.0, 2.0):
            got = engine(images.numpy(), alpha=alpha)
            used = [DEFAULT_ALPHA["softmax"] if alpha is None else alpha] * 3
            want = oracle.explain(layer.grid, layer.layout, alpha=used, objective="softmax")
            assert got.references.tolist() == want.references
            assert relative_l2(got.saliency_map, want).max() <= 1e-4
