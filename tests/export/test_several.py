"""Several contrasts and several target layers in one engine, against eager autograd in float64."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="the export needs PyTorch")
onnx: Any = pytest.importorskip("onnx", reason="the export needs onnx")
timm: Any = pytest.importorskip("timm", reason="the export's models come from timm")

from finercam_rt import Contrast, Engine, Rank, alpha_sweep, top_classes, why_not  # noqa: E402
from finercam_rt.errors import ExportError, InputError  # noqa: E402
from finercam_rt.export import export_model  # noqa: E402
from finercam_rt.manifest import InputSpec, Manifest  # noqa: E402

from .oracle import Oracle, blobs, perturb, relative_l2  # noqa: E402

SIZE, CLASSES, P = 64, 10, 4
SPEC = InputSpec((SIZE, SIZE), (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
# tails: closed form; convolutions behind the layer; attention on one live token; attention on all tokens
MODELS = {
    "test_resnet": ("layer4", {}),
    "test_efficientnet": ("blocks.2", {}),
    "test_vit": ("auto", {"img_size": SIZE, "depth": 2}),
    "test_vit2": ("auto", {"img_size": SIZE, "depth": 2}),
    "test_convnext": ("stages.2", {}),
}


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    arguments = dict(MODELS[name][1])
    return perturb(timm.create_model(name, num_classes=CLASSES, **arguments))


Made = tuple[Any, Manifest, Path]


def export(folder: Path, name: str, **options: Any) -> Made:
    model, path = model_of(name), folder / "engine.onnx"
    manifest = export_model(model, path, input=SPEC, **{"target_layer": MODELS[name][0], **options})
    return model, manifest, path


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """`several(name)`: the model's engine of P contrasts, exported once."""
    return functools.cache(lambda name: export(tmp_path_factory.mktemp(name), name, contrasts=P))


@pytest.mark.parametrize("name", MODELS)
def test_every_contrast_has_the_map_that_autograd_gives_it(several: Callable[[str], Made], name: str) -> None:
    model, manifest, path = several(name)
    layer, images = manifest.layers[0], blobs(3, (SIZE, SIZE), 5)
    oracle = Oracle(model, layer.name, images, layer.prefix_tokens)
    ranked = np.argsort(-oracle.logits, axis=1, kind="stable")
    questions = [
        ([Contrast(Rank(p + 1)) for p in range(P)], [1.0] * P),
        (alpha_sweep([0.0, 0.5, 2.0]), [0.0, 0.5, 2.0]),
        ([Contrast(3, [1, 2], 0.7), Contrast(2, [1], 1.3), Contrast(None, [], 1.0)], [0.7, 1.3, 1.0]),
    ]
    targets = [ranked[:, :P].T.tolist(), [ranked[:, 0].tolist()] * 3, [[3] * 3, [2] * 3, ranked[:, 0].tolist()]]
    references = [[3] * P, [3] * 3, [[[1, 2, -2]] * 3, [[1, -2, -2]] * 3, [[-2] * 3] * 3]]
    with Engine(path, backend="onnxruntime", threads=1) as engine:
        for (contrasts, alphas), of_targets, of_references in zip(questions, targets, references, strict=True):
            got = engine(images.numpy(), contrasts=contrasts)
            assert got.saliency_map.shape == (3, len(contrasts), *layer.grid)
            for p, alpha in enumerate(alphas):
                want = oracle.explain(
                    layer.grid,
                    layer.layout,
                    target=of_targets[p],
                    references=of_references[p],
                    alpha=[alpha] * 3,
                    objective=manifest.objective,
                )
                assert got.target[:, p].tolist() == want.targets
                assert got.references[:, p].tolist() == want.references
                errors = relative_l2(got.saliency_map[:, p], want)
                assert errors.max() <= 1e-4, (p, errors)
        # what is not given is the top classes; one image alone is the same
        same = engine(images.numpy()[:1])
        assert same.target.tolist() == [ranked[0, :P].tolist()]
        first = engine(images.numpy(), contrasts=top_classes(P))
        np.testing.assert_allclose(same.saliency_map[0], first.saliency_map[0], rtol=1e-4, atol=1e-6)


def test_methods_that_need_all_gradients_or_none(tmp_path: Path) -> None:
    for method in ("gradcam++", "fem"):
        _, manifest, path = export(tmp_path, "test_vit", contrasts=2, method=method)  # verified by the export itself
        with Engine(path, backend="onnxruntime", threads=1) as engine:
            got = engine(blobs(2, (SIZE, SIZE), 5).numpy(), contrasts=[Contrast(1, [2], 1.0), Contrast(2, [1], 1.0)])
        assert manifest.method == method
        assert np.array_equal(got.saliency_map[:, 0], got.saliency_map[:, 1]) == (method == "fem")


def test_what_contrasts_share_is_computed_once(several: Callable[[str], Made], tmp_path: Path) -> None:
    """As many products and convolutions for four contrasts as for one: the VJP takes all seeds in one go."""
    counts = []
    for path in (export(tmp_path, "test_vit")[2], several("test_vit")[2]):
        nodes = onnx.load(path).graph.node
        counts.append(Counter("product" if n.op_type in ("MatMul", "Gemm") else n.op_type for n in nodes))
    one, many = counts
    for kind in ("Conv", "LayerNormalization", "Gelu", "Erf", "Softmax"):
        assert one[kind] == many[kind], kind
    assert abs(one["product"] - many["product"]) <= 2, (one, many)
    convolutions = [node.op_type for node in onnx.load(several("test_efficientnet")[2]).graph.node]
    assert convolutions.count("ConvTranspose") + convolutions.count("Conv") < 2 * count_of_convolutions()


def count_of_convolutions() -> int:
    return sum(isinstance(module, torch.nn.Conv2d) for module in model_of("test_efficientnet").modules())


def test_the_mean_of_the_layers_maps(tmp_path: Path) -> None:
    """By hand: each layer's raw map in float64, min-max normalised, resized to the larger grid, averaged."""
    names = ["layer4", "layer3"]
    model, manifest, path = export(tmp_path, "test_resnet", target_layer=names, layer_maps=True)
    images = blobs(3, (SIZE, SIZE), 5)
    grids = [layer.grid for layer in manifest.layers]
    assert [layer.name for layer in manifest.layers] == names
    assert grids[0][0] < grids[1][0]
    assert manifest.grid == grids[1]
    with Engine(path, backend="onnxruntime", threads=1) as engine:
        got = engine(images.numpy(), target=[1, 2, 3], alpha=1.0)
        assert list(got.layer_maps) == names
        wanted = []
        for layer in manifest.layers:
            answer = Oracle(model, layer.name, images).explain(
                layer.grid, layer.layout, target=[1, 2, 3], alpha=[1.0] * 3, objective="weighted"
            )
            assert relative_l2(got.layer_maps[layer.name], answer).max() <= 1e-4
            raw = torch.from_numpy(answer.raw)
            normal = (raw - raw.amin((1, 2), True)) / (raw.amax((1, 2), True) - raw.amin((1, 2), True))
            wanted.append(torch.nn.functional.interpolate(normal[None], manifest.grid, mode="bilinear")[0].numpy())
        np.testing.assert_allclose(got.saliency_map, np.mean(wanted, axis=0), atol=1e-4)

        explanation = engine.explain([np.zeros((SIZE, SIZE, 3), np.uint8)], target=1)
        for name, grid in zip(names, grids, strict=True):
            assert explanation.layer(name).saliency_map.shape == (1, *grid)
        with pytest.raises(InputError, match="no map of layer 'layer1'; it has layer4, layer3"):
            explanation.layer("layer1")


def test_several_layers_and_contrasts_together(tmp_path: Path) -> None:
    """The contrasts of one engine are those of an engine of one contrast, asked one by one."""
    names = ["layer3", "layer4"]
    images = blobs(2, (SIZE, SIZE), 5).numpy()
    questions = why_not([1, 2], 1.0)
    path = export(tmp_path, "test_resnet", target_layer=names, contrasts=2)[2]
    with Engine(path, backend="onnxruntime", threads=1) as engine:
        got = engine(images, contrasts=questions)
        assert got.layer_maps == {}
    path = export(tmp_path, "test_resnet", target_layer=names)[2]
    with Engine(path, backend="onnxruntime", threads=1) as engine:
        for p, (target, reference) in enumerate([(1, 2), (2, 1)]):
            one = engine(images, target=target, references=[reference], alpha=1.0)
            np.testing.assert_allclose(got.saliency_map[:, p], one.saliency_map, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"contrasts": 0}, "contrasts is 0"),
        ({"target_layer": ["layer4", "layer4"]}, "each only once"),
        ({"target_layer": []}, "must be given"),
        ({"target_layer": ["auto", "layer4"]}, "stands alone"),
        ({"target_layer": ["layer4", "layer5"]}, "no layer 'layer5'"),
        ({"target_layer": "layer4", "layer_maps": True}, "leave layer maps out"),
    ],
)
def test_refused(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ExportError, match=says):
        export(tmp_path, "test_resnet", **options)
    assert not list(tmp_path.iterdir())
