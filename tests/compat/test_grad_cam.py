"""pytorch-grad-cam's form against pytorch-grad-cam, on small models; what it refuses where that is silently wrong."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import finercam_rt.compat as ours
from finercam_rt.errors import ExportError, FinerCAMError, InputError

from .conftest import CLASSES, SIZE, blobs, small_cnn

public: Any = pytest.importorskip("pytorch_grad_cam", reason="grad-cam, the library compared with")
public_targets: Any = pytest.importorskip("pytorch_grad_cam.utils.model_targets")

SAME = 1e-4
PINNED = [0, 3, 5, 6]


def _check(got: Any, expected: Any, share: float = 0.5) -> None:
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert (expected.max(axis=(1, 2)) > 0.9).mean() >= share, "too few maps with evidence to compare"
    np.testing.assert_allclose(got, expected, rtol=0, atol=SAME)


def _finer(count: int, references: list[int], alpha: float) -> list[Any]:
    return [public_targets.FinerWeightedTarget(target, references, alpha) for target in (0, 3, 5, 6)[:count]]


@pytest.mark.filterwarnings("ignore:the map explains nothing")
def test_grad_cam(cnn: Any, images: Any) -> None:
    chosen = [public_targets.ClassifierOutputTarget(index) for index in PINNED]
    likely = [public_targets.ClassifierOutputSoftmaxTarget(index) for index in PINNED]
    both = [public_targets.ClassifierOutputReST(index) for index in PINNED]
    with ours.GradCAM(model=cnn, target_layers=[cnn[1]]) as mine, public.GradCAM(cnn, [cnn[1]]) as theirs:
        _check(mine(input_tensor=images), theirs(input_tensor=images, targets=None))
        torch.testing.assert_close(mine.outputs, theirs.outputs.detach(), rtol=1e-5, atol=1e-6)
        _check(mine(images, chosen), theirs(images, chosen))
        _check(mine(images, chosen, aug_smooth=True), theirs(images, chosen, aug_smooth=True), 0.0)
        _check(mine(images, likely), theirs(images, likely))
        torch.testing.assert_close(mine.outputs, theirs.outputs.detach(), rtol=1e-5, atol=1e-6)
        _check(mine(images, both), theirs(images, both))
        mixed = [chosen[0], *_finer(4, [1, 2], 1.0)[1:]]
        _check(mine(images, mixed), theirs(images, mixed))


def test_float64_is_computed_in_float32(images: Any) -> None:
    model, images = small_cnn().double(), images.double()
    _check(ours.FinerCAM(model, [model[1]])(images), public.FinerCAM(model, [model[1]])(images))
    with pytest.warns(RuntimeWarning, match="constant"):
        assert not ours.GradCAM(model, [model[2]])(images).any()


@pytest.mark.filterwarnings("ignore:the map explains nothing")
def test_finer_cam(cnn: Any, images: Any) -> None:
    asked: list[dict[str, Any]] = [
        {},
        {"alpha": 0.6},
        {"alpha": 0.0},
        {"alpha": 0.4, "target_idx": 3},
        {"comparison_categories": [1]},
        {"comparison_categories": [2]},
        {"comparison_categories": [4, 1], "alpha": 0.5},
        {"comparison_categories": [1, 2, 9]},
        {"comparison_categories": [-1], "target_idx": 5},
        {"targets": _finer(4, [1, 2, 4], 0.6)},
    ]
    with ours.FinerCAM(model=cnn, target_layers=[cnn[1]]) as mine, public.FinerCAM(cnn, [cnn[1]]) as theirs:
        for arguments in asked:
            _check(mine(input_tensor=images, **arguments), theirs(input_tensor=images, **arguments))
        by_other_name = mine(images, reference_category_ranks=[2])
        np.testing.assert_array_equal(by_other_name, mine(images, comparison_categories=[2]))
        one_each = mine(images, target_idx=PINNED, alpha=0.3)
        for row, index in enumerate(PINNED):
            np.testing.assert_allclose(one_each[row], mine(images, target_idx=index, alpha=0.3)[row], atol=1e-6)
        seen = mine(images, comparison_categories=list(range(1, CLASSES)))
        _check(seen, theirs(images, comparison_categories=list(range(1, CLASSES))))


def test_several_layers(cnn: Any, images: Any) -> None:
    layers = [cnn[0], cnn[1][1], cnn[1]]
    with ours.GradCAM(cnn, layers) as mine, public.GradCAM(cnn, layers) as theirs:
        _check(mine(images), theirs(images, None))


@pytest.mark.parametrize(
    "name", ["GradCAMPlusPlus", "XGradCAM", "LayerCAM", "HiResCAM", "GradCAMElementWise", "EigenGradCAM", "FEM"]
)
def test_the_other_methods(name: str, images: Any) -> None:
    model = small_cnn(seed=2)
    theirs = getattr(public, name, None) or __import__("pytorch_grad_cam.fem", fromlist=["FEM"]).FEM
    got, expected = getattr(ours, name)(model, [model[1]])(images), theirs(model, [model[1]])(images, None)
    if name == "EigenGradCAM":  # the sign of a principal component is an accident of the original
        rows = [np.allclose(a, b, atol=SAME) for a, b in zip(got, expected, strict=True)]
        other = theirs(model, [model[1]])
        other.get_cam_image = lambda *_: -type(other).get_cam_image(other, *_)
        flipped = other(images, None)
        assert all(row or np.allclose(a, b, atol=SAME) for row, a, b in zip(rows, got, flipped, strict=True))
    else:
        _check(got, expected)


def test_eigen_smoothing(cnn: Any, images: Any) -> None:
    got = ours.GradCAM(cnn, [cnn[1]])(images, eigen_smooth=True)
    expected = public.GradCAM(cnn, [cnn[1]])(images, None, eigen_smooth=True)
    for mine, theirs in zip(got, expected, strict=True):
        # of the two signs the original's is an accident: then the positive parts of both cover the image
        assert np.allclose(mine, theirs, atol=1e-3) or np.minimum(mine, theirs).max() < 0.5
    assert any(np.allclose(a, b, atol=1e-3) for a, b in zip(got, expected, strict=True))


@pytest.mark.filterwarnings("ignore:the map explains nothing")
def test_a_model_of_one_logit(images: Any) -> None:
    model = small_cnn(classes=1)
    for_it = [public_targets.BinaryClassifierOutputTarget(1)] * 4
    against = [public_targets.BinaryClassifierOutputTarget(0)] * 4
    with ours.GradCAM(model, [model[1]]) as mine, public.GradCAM(model, [model[1]]) as theirs:
        got, expected = mine(images, for_it), theirs(images, for_it)
        opposite, its = mine(images, against), theirs(images, against)
        np.testing.assert_allclose(got, expected, atol=SAME)
        np.testing.assert_allclose(opposite, its, atol=SAME)
        assert max(expected.max(), its.max()) > 0.9
        np.testing.assert_allclose(mine(images), expected, atol=SAME)
        assert mine.outputs.shape == (4, 1)
    with pytest.raises(InputError, match="one logit"):
        ours.FinerCAM(model, [model[1]])(images)


class _SequenceFirst(nn.Module):
    """A class token before 2x3 patches and a block over (L,N,C), as CLIP's authors and nn.Transformer have it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.patch, self.cls = nn.Conv2d(3, 48, 16, 16), nn.Parameter(torch.randn(1, 1, 48))
        self.norm, self.attn = nn.LayerNorm(48), nn.MultiheadAttention(48, 4)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, images: Any) -> Any:
        x = self.patch(images).flatten(2).permute(2, 0, 1)
        x = torch.cat([self.cls.expand(1, len(images), 48), x])
        y = self.norm(x)
        return self.head((x + self.attn(y, y, y, need_weights=False)[0])[0])


def test_the_batch_in_the_second_axis(images: Any) -> None:
    """With the function that CLIP-ES's users write, and without one, where the original would be silently wrong."""
    model = _SequenceFirst().eval()
    transform = lambda t: t[1:].permute(1, 2, 0).unflatten(2, (2, 3))  # noqa: E731
    expected = public.FinerCAM(model, [model.norm], reshape_transform=transform)(images)
    _check(ours.FinerCAM(model, [model.norm], reshape_transform=transform)(images), expected)
    _check(ours.FinerCAM(model, [model.norm])(images), expected)
    chosen = [public_targets.ClassifierOutputSoftmaxTarget(index) for index in PINNED]
    expected = public.GradCAM(model, [model.norm], reshape_transform=transform)(images, chosen)
    _check(ours.GradCAM(model, [model.norm])(images, chosen), expected)
    wrong = lambda t: t[:6].permute(1, 2, 0).unflatten(2, (2, 3))  # noqa: E731
    with pytest.raises(InputError, match=r"behind|after|suffix"):
        ours.FinerCAM(model, [model.norm], reshape_transform=wrong)(images)


def _vit() -> Any:
    """A class token before 2x3 patches, one block, and a head on the class token."""
    timm = pytest.importorskip("timm", reason="the ViT is timm's")
    torch.manual_seed(1)
    options = {"img_size": SIZE, "depth": 1, "embed_dim": 48, "num_classes": CLASSES}
    model = timm.create_model("vit_tiny_patch16_224", **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.eval()


def _grid(height: int, width: int) -> Any:
    return lambda t: t[:, 1:].reshape(len(t), height, width, -1).permute(0, 3, 1, 2)


def test_tokens(images: Any) -> None:
    model = _vit()
    expected = public.FinerCAM(model, [model.blocks[0].norm1], _grid(2, 3))(images, alpha=0.6)
    _check(ours.FinerCAM(model, [model.blocks[0].norm1], _grid(2, 3))(images, alpha=0.6), expected)
    _check(
        ours.FinerCAM(model, [model.blocks[0].norm1])(images, alpha=0.6), expected
    )  # the original needs the function
    for wrong, sentence in (
        (_grid(3, 2), "3x2"),
        (_grid(1, 6), "1x6"),
        (lambda t: t[:, 1:].reshape(len(t), 2, 3, -1).permute(0, 3, 2, 1), "turns the map over"),
        (lambda t: t.reshape(len(t), 2, 3, -1), "does more"),
    ):
        with pytest.raises(InputError, match=sentence):
            ours.FinerCAM(model, [model.blocks[0].norm1], wrong)(images)
    fresh = _vit()
    with pytest.raises(InputError, match="3x2"):  # before anything is compiled, too
        ours.FinerCAM(fresh, [fresh.blocks[0].norm1], _grid(3, 2))(images)


def test_the_original_is_silently_zero_behind_the_last_block(images: Any) -> None:
    model = _vit()
    assert public.GradCAM(model, [model.blocks[0]], _grid(2, 3))(images, None).max() == 0
    with pytest.raises(ExportError, match="zero"):
        ours.GradCAM(model, [model.blocks[0]], _grid(2, 3))(images)


def test_the_model_is_left_alone(images: Any) -> None:
    model = small_cnn().requires_grad_(False)
    model[4].weight.requires_grad_()
    model[4].weight.grad = torch.ones_like(model[4].weight)
    weights = copy.deepcopy(model.state_dict())
    model.train()
    with ours.GradCAM(model, [model[1]]) as cam:
        assert not any(module.training for module in model.modules())  # as the original's constructor does
        with torch.inference_mode():
            cam(images)
        cam(images.clone().requires_grad_())
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["4.weight"]
    assert torch.equal(model[4].weight.grad, torch.ones_like(model[4].weight))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_is_no_explanation_is_said(images: Any) -> None:
    model = small_cnn()
    with torch.no_grad():
        model[4].weight[2] = -model[4].weight[2].abs()  # nothing speaks for it
    cam = ours.GradCAM(model, [model[1]])
    damaged = images.clone()
    damaged[1, 0, 0, 0] = torch.nan
    with pytest.warns(RuntimeWarning, match=r"nothing for image 1 \(non_finite\)") as found:
        got = cam(damaged)
    assert found[0].filename == __file__
    assert cam.status == ("ok", "non_finite", "ok", "ok")
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[[0, 2, 3]]).all()
    best = model(images).argmax(1).tolist()
    with pytest.warns(RuntimeWarning, match=r"image 0 \(no_positive_evidence\), 2 \(no_positive_evidence\);"):
        zero = cam(images, [ours.ClassifierOutputTarget(index) for index in (2, best[1], 2, best[3])])
    assert zero[[0, 2]].max() == 0


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("GradCAM", {"targets": [ours.ClassifierOutputTarget(1)]}, "1 targets for 4 images"),
    ("GradCAM", {"targets": [ours.ClassifierOutputTarget(1)] * 5}, "5 targets for 4 images"),
    ("GradCAM", {"targets": ours.ClassifierOutputTarget(1)}, "a list of one target an image"),
    ("GradCAM", {"targets": [ours.ClassifierOutputTarget(7)] * 4}, "7 classes"),
    ("GradCAM", {"targets": [lambda y: y.sum()] * 4}, "cannot be compiled"),
    ("GradCAM", {"targets": [ours.FinerWeightedTarget(1, [1, 2], 1.0)] * 4}, "the target itself"),
    ("GradCAM", {"targets": [ours.FinerWeightedTarget(1, range(7), 1.0)] * 4}, "7 comparison classes"),
    ("GradCAM", {"targets": [ours.FinerWeightedTarget(1, [2, 3], -1.0)] * 4}, "alpha is -1"),
    (
        "GradCAM",
        {"targets": [ours.FinerWeightedTarget(1, [2, 3], 1.0), lambda y: y[1] - y[[2, 3]].mean()] * 2},
        "a batch of its own",
    ),
    ("FinerCAM", {"alpha": -1.0}, "alpha is -1"),
    ("FinerCAM", {"alpha": float("nan")}, "alpha is nan"),
    ("FinerCAM", {"target_idx": 7}, "7"),
    ("FinerCAM", {"target_idx": 7, "comparison_categories": [2]}, "class 7"),
    ("FinerCAM", {"target_idx": [1, 2], "comparison_categories": [2]}, "names 2 classes for 4 images"),
    ("FinerCAM", {"target_idx": 1.5, "comparison_categories": [2]}, "give a class index"),
    ("FinerCAM", {"comparison_categories": [0, 1]}, "rank 0"),
    ("FinerCAM", {"comparison_categories": [1, 1]}, "twice"),
    ("FinerCAM", {"comparison_categories": []}, "no class"),
    ("FinerCAM", {"comparison_categories": [7, 8]}, "no class"),
    ("FinerCAM", {"comparison_categories": "12"}, "a list of ranks"),
    ("FinerCAM", {"comparison_categories": [1], "reference_category_ranks": [1]}, "one argument"),
    ("FinerCAM", {"targets": [ours.ClassifierOutputTarget(1)] * 4, "alpha": 0.6}, "would be ignored"),
    ("FinerCAM", {"targets": [ours.ClassifierOutputTarget(1)] * 4, "target_idx": 2}, "would be ignored"),
]


@pytest.mark.parametrize(("name", "arguments", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_mistakes_in_a_call(name: str, arguments: dict[str, Any], sentence: str, cnn: Any, images: Any) -> None:
    with pytest.raises(InputError, match=sentence) as raised:
        getattr(ours, name)(cnn, [cnn[1]])(images, **arguments)
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (torch.zeros(2, 1, *SIZE), "does not run on images of 32x48 and 1 channel "),
        (torch.zeros(0, 3, *SIZE), "shape"),
        (torch.zeros(3, *SIZE), "shape"),
        (torch.zeros(2, 3, *SIZE, dtype=torch.float16), "is float16; convert it, and the model, with .float()"),
        (torch.zeros(2, 3, *SIZE, device="meta"), "on meta"),
        (np.zeros((2, 3, *SIZE), np.float32), "ndarray"),
        (torch.zeros(2, 3, 4, 4), "4x4"),
    ],
)
def test_mistakes_in_the_input(batch: Any, sentence: str, cnn: Any) -> None:
    with pytest.raises(InputError, match=sentence):
        ours.GradCAM(cnn, [cnn[1]])(batch)


def test_the_originals_classes_are_taken_for_ours(cnn: Any, images: Any) -> None:
    """Where a user changed the import of FinerCAM alone."""
    maps = [ours.FinerCAM(cnn, [cnn[1]], base_method=method)(images) for method in (public.LayerCAM, ours.LayerCAM)]
    np.testing.assert_array_equal(*maps)
    assert not np.array_equal(maps[0], ours.FinerCAM(cnn, [cnn[1]])(images))


def test_mistakes_in_the_constructor(cnn: Any) -> None:
    for layers, sentence in (
        (cnn[1], "a list is expected"),  # a Sequential is a list of layers, too: the original takes its children
        ([], "empty"),
        ([nn.ReLU()], "not inside the model"),
        ([cnn], "not inside the model"),
        (["1"], "of type str"),
    ):
        with pytest.raises(InputError, match=sentence):
            ours.GradCAM(cnn, layers)
    with pytest.raises(TypeError, match="base_method"):
        ours.FinerCAM(cnn, [cnn[1]], base_method=public.ScoreCAM)
    with pytest.raises(InputError, match="k=2"):
        ours.FEM(cnn, [cnn[1]], k=3)


def test_mistakes_in_the_model(images: Any) -> None:
    again = small_cnn()
    cam = ours.GradCAM(again, [again[1]])
    again.train()
    with pytest.raises(InputError, match="training mode"):
        cam(images)
    for model, layer, sentence in (
        (nn.Sequential(*[shared := nn.Identity(), *small_cnn(), shared]).eval(), 0, "2 times"),
        (small_cnn(), 3, "feature map|positions"),
    ):
        with pytest.raises(FinerCAMError, match=sentence):
            ours.GradCAM(model, [model[layer]])(images)


def test_images_whose_sign_is_still_to_be_applied(cnn: Any, images: Any) -> None:
    cam = ours.GradCAM(cnn, [cnn[1]])
    negated = torch._neg_view(images)
    assert negated.is_neg()
    np.testing.assert_array_equal(cam(negated), cam(-images))


def test_another_size_is_another_engine(cnn: Any) -> None:
    batch = blobs(2, (48, 40))
    _check(ours.GradCAM(cnn, [cnn[1]])(batch), public.GradCAM(cnn, [cnn[1]])(batch, None))


def test_a_map_of_one_position_is_the_originals_and_said() -> None:
    """Zeros, as grad-cam gives them for its own test's images of 32 x 32 pixels, but not silently."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.Conv2d(8, 6, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(6, 5)
    )
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    targets = [public_targets.ClassifierOutputTarget(index) for index in (0, 2, 4)]
    for mine, theirs, arguments in (
        (ours.GradCAM, public.GradCAM, {"targets": targets}),
        (ours.LayerCAM, public.LayerCAM, {"targets": None, "eigen_smooth": True}),
        (ours.FinerCAM, public.FinerCAM, {"targets": None, "alpha": 0.6}),
    ):
        with mine(model=model, target_layers=[model[3]]) as a, theirs(model, [model[3]]) as b:
            with pytest.warns(RuntimeWarning, match=r"explains nothing for image 0 \(constant\)"):
                found = a(input_tensor=images, **arguments)
            wanted = b(input_tensor=images, **arguments)
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted)
            torch.testing.assert_close(a.outputs, model(images).detach(), rtol=1e-5, atol=1e-6)
            assert a.status == ("constant",) * 3
    with ours.GradCAM(model=model, target_layers=[model[3]]) as a, pytest.raises(InputError, match="index 5 is out"):
        a(images, [public_targets.ClassifierOutputTarget(5)] * 3)
