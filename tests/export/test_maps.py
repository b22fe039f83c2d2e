"""Compiled maps equal eager autograd on every supported family: batches, contrasts, strengths, objectives.

Here, too, is what the graphs of these models hold: a file shares its engines, which take most of the time to make.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
import torch

from finercam_rt.export.emit import TRUNK

from .conftest import Exported, ExportedFactory
from .forbidden import forbidden
from .oracle import RELATIVE_L2, noise, relative_l2

LAYERS = {
    "resnet18": ("layer4", "nchw", (7, 7), 0),
    "resnet50": ("layer4", "nchw", (7, 7), 0),
    "mobilenetv2_100": ("bn2", "nchw", (7, 7), 0),
    "convnext_tiny": ("stages.3", "nchw", (7, 7), 0),
    "vit_small_patch16_224": ("blocks.3.norm1", "tokens", (14, 14), 1),
    "vit_small_patch14_dinov2": ("blocks.3.norm1", "tokens", (16, 16), 1),
    "swin_tiny_patch4_window7_224": ("norm", "nhwc", (7, 7), 0),
}
CASES = [
    ("resnet18", "weighted"),
    ("resnet50", "weighted"),
    ("mobilenetv2_100", "weighted"),
    ("convnext_tiny", "mean"),
    ("vit_small_patch16_224", "mean"),
    ("vit_small_patch14_dinov2", "weighted"),
    ("swin_tiny_patch4_window7_224", "weighted"),
]
ALPHAS = (0.0, 0.6, 1.0, 2.5)
COUNT = 5


class Check:
    """One exported model and its oracle on the same images."""

    def __init__(self, item: Exported, images: torch.Tensor) -> None:
        self.item, self.images, self.oracle = item, images, item.oracle(images)

    def __call__(
        self,
        rows: slice = slice(0, COUNT),
        *,
        target: list[int] | None = None,
        references: list[list[int]] | int = 3,
        alpha: Sequence[float],
    ) -> None:
        """Classes exactly, logits to 1e-4 of their spread, maps to 1e-4 of their norm; the engine sees only `rows`."""
        want = self.oracle.explain(
            self.item.layer.grid,
            self.item.layer.layout,
            target=target,
            references=references,
            alpha=alpha,
            objective=self.item.manifest.objective,
        )
        got = self.item.engine(
            self.images[rows].numpy(),
            target=None if target is None else target[rows],
            references=None if isinstance(references, int) else np.array(references)[rows],
            alpha=list(alpha)[rows],
        )
        assert got.target.tolist() == want.targets[rows]
        assert got.references.tolist() == want.references[rows]
        assert np.abs(got.logits - self.oracle.logits[rows]).max() <= 1e-4 * np.ptp(self.oracle.logits)
        errors = relative_l2(got.saliency_map, want.rows(rows))
        assert errors.max() <= RELATIVE_L2, errors


@pytest.mark.parametrize(("name", "objective"), CASES)
def test_maps_equal_eager_autograd(exported: ExportedFactory, name: str, objective: str) -> None:
    """Every alpha with automatic and with pinned classes, in batches of five and of one; then mixed references."""
    item = exported(name, objective)
    check = Check(item, noise(COUNT))
    classes = item.manifest.num_classes
    pinned = [(7 * i + 3) % classes for i in range(COUNT)]
    others = [[(c + 1) % classes, (c + 5) % classes, (c + 11) % classes] for c in pinned]
    first, second = [*ALPHAS, 0.8], [1.0, 0.0, 2.5, 0.6, 1.7]
    check(alpha=first)
    check(alpha=second)
    check(target=pinned, references=others, alpha=first)
    check(target=pinned, references=others, alpha=second)
    for row in range(2):
        one = slice(row, row + 1)
        check(one, alpha=first)
        check(one, target=pinned, references=others, alpha=second)

    check(target=pinned, alpha=second)
    nearest = check.oracle.nearest(4, pinned[4], 1)  # pinned: the automatic choice must take the next ones
    mixed = [[others[0][0], -1, -1], [-1, others[1][0], -2], [-2, -2, -2], [-2, -1, others[3][2]], [*nearest, -1, -1]]
    check(target=pinned, references=mixed, alpha=[1.0] * COUNT)
    predicted = check.oracle.targets(None)
    check(references=[[(c + 2) % classes, -1, -2] for c in predicted], alpha=[2.5] * COUNT)
    check(references=[[-2, -2, -2]] * COUNT, alpha=[1.0] * COUNT)


@pytest.mark.parametrize("name", LAYERS)
def test_auto_finds_the_usual_layer(exported: ExportedFactory, name: str) -> None:
    objective = next(objective for model, objective in CASES if model == name)
    layer = exported(name, objective).layer
    assert (layer.name, layer.layout, layer.grid, layer.prefix_tokens) == LAYERS[name]


@pytest.mark.parametrize(("name", "objective"), CASES)
def test_no_operation_that_tensorrt_refuses(exported: ExportedFactory, name: str, objective: str) -> None:
    assert forbidden(exported(name, objective).path) == []


def test_the_trunk_keeps_its_fused_operations(exported: ExportedFactory) -> None:
    """Up to the last block's first norm: each norm, activation and softmax is one node, as in the plain export."""
    item = exported("vit_small_patch14_dinov2", "weighted")
    assert item.layer.name == "blocks.3.norm1"
    trunk = Counter(node.op_type for node in onnx.load(item.path).graph.node if node.name.startswith(TRUNK))
    kinds = {"LayerNormalization": 2 * 3 + 1, "Gelu": 3, "Softmax": 3, "Conv": 1}
    assert {kind: trunk[kind] for kind in kinds} == kinds
    assert not {"Erf", "Tanh", "ReduceMean", "ReduceSum", "Exp"} & set(trunk)


def test_the_contrast_changes_the_map(exported: ExportedFactory) -> None:
    """The comparisons above would be empty if all contrasts gave one map."""
    item = exported("resnet18", "weighted")
    images = noise(5).numpy()
    plain, finer = (item.engine(images, alpha=alpha).saliency_map for alpha in (0.0, 1.0))
    other = item.engine(images, target=3, alpha=0.0).saliency_map
    for left, right in ((plain, finer), (plain, other)):
        assert np.linalg.norm(left - right) > 0.1 * np.linalg.norm(left)
    assert np.array_equal(plain, item.engine(images, references=[], alpha=1.0).saliency_map)


def test_the_rows_of_a_batch_are_independent(exported: ExportedFactory) -> None:
    item = exported("vit_small_patch16_224", "mean")
    images = noise(3, seed=4).numpy()
    together = item.engine(images, target=[1, 2, 3], alpha=[0.0, 1.0, 2.5])
    for i, alpha in enumerate((0.0, 1.0, 2.5)):
        alone = item.engine(images[i : i + 1], target=i + 1, alpha=alpha)
        np.testing.assert_allclose(alone.saliency_map[0], together.saliency_map[i], rtol=1e-4, atol=1e-6)
