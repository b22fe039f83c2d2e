"""`ops.seed` takes the classes that an exported engine takes, ties included."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the export needs PyTorch")

from finercam_rt import Engine, ops  # noqa: E402
from finercam_rt.export import export_model  # noqa: E402
from finercam_rt.manifest import InputSpec  # noqa: E402

from .models import SmallCNN  # noqa: E402

SIZE, CLASSES, R = 32, 12, 3


@pytest.mark.parametrize("contrasts", [1, 4])
def test_seed_takes_the_classes_of_an_engine(tmp_path: Path, contrasts: int) -> None:
    torch.manual_seed(0)
    model = SmallCNN(classes=CLASSES).eval()
    with torch.no_grad():  # two pairs of classes with equal logits, whatever the image
        for first, second in ((2, 9), (4, 5)):
            model.head.weight[second] = model.head.weight[first]
            model.head.bias[second] = model.head.bias[first]
    path = tmp_path / "engine.onnx"
    spec = InputSpec((SIZE, SIZE), (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    export_model(model, path, input=spec, target_layer="features", references=R, contrasts=contrasts)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((24, 3, SIZE, SIZE)).astype(np.float32)
    found = Engine(path)(images)
    several = found.target.ndim == 2
    assert several == (contrasts > 1)
    target = np.broadcast_to(-1 - np.arange(contrasts), (24, contrasts)) if several else np.full(24, -1)
    references = np.full((*target.shape, R), -1)
    seed = ops.seed(found.logits, np.ascontiguousarray(target), references, np.ones(target.shape, np.float32))
    np.testing.assert_array_equal(seed.target_class, found.target)
    np.testing.assert_array_equal(seed.reference_classes, found.references)
    # the ties were met: an engine's own two classes of one logit, beside each other
    assert {(2, 9), (4, 5)} & {
        tuple(sorted(pair)) for row in seed.classes.reshape(-1, 1 + R) for pair in itertools.pairwise(row)
    }
