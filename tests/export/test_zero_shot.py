"""Zero-shot models with the classes as an input, against eager autograd in float64; random weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="the export needs PyTorch")
onnx: Any = pytest.importorskip("onnx", reason="the export needs onnx")
open_clip: Any = pytest.importorskip("open_clip", reason="the models come from open_clip")

from finercam_rt import ClassEmbeddings, Contrast, Engine  # noqa: E402
from finercam_rt.embeddings import random_embeddings  # noqa: E402
from finercam_rt.errors import ExportError  # noqa: E402
from finercam_rt.export import ZeroShot, embed_text, export_model  # noqa: E402
from finercam_rt.export.expected import run_eagerly, run_in_float64  # noqa: E402
from finercam_rt.export.zero_shot import zero_shot_of_transformers  # noqa: E402
from finercam_rt.manifest import InputSpec, LayerInfo  # noqa: E402

from .oracle import Oracle, blobs, perturb, relative_l2  # noqa: E402

SIZE, DIMENSION, P = 32, 24, 2
SPEC = InputSpec((SIZE, SIZE), (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
SCALE = 30.0
PROMPTS = ["red epaulets", "a bird", "a photo of a jay."]


def clip(vision: dict[str, Any]) -> Any:
    """A small CLIP of open_clip, which reads texts with the vocabulary that comes with it."""
    torch.manual_seed(0)
    text = open_clip.CLIPTextCfg(width=16, heads=2, layers=1)
    model = open_clip.CLIP(DIMENSION, open_clip.CLIPVisionCfg(image_size=SIZE, **vision), text)
    with torch.no_grad():
        perturb(model).logit_scale.fill_(np.log(SCALE))
    return model.eval()


def read(prompts: Any, _tokenizer: Any = None) -> Any:
    return transformer().encode_text(open_clip.tokenize(list(prompts)))


@functools.cache
def transformer() -> Any:
    return clip({"layers": 1, "width": 32, "head_width": 8, "patch_size": 8})


@functools.cache
def convolutional() -> Any:
    """With batch norm, and attention over all positions in the place of pooling."""
    return clip({"layers": (1, 1, 1, 1), "width": 8, "head_width": 64})


@functools.cache
def siglip() -> Any:
    """Of transformers: with a bias, and attention from a learned query in the place of pooling."""
    transformers = pytest.importorskip("transformers", reason="the model comes from transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": DIMENSION, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.SiglipModel(
        transformers.SiglipConfig(
            vision_config={**sizes, "image_size": SIZE, "patch_size": 8},
            text_config={**sizes, "vocab_size": 50, "max_position_embeddings": 8},
        )
    )
    with torch.no_grad():
        perturb(model).logit_scale.fill_(np.log(SCALE))
        model.logit_bias.fill_(-7.0)
    return model.eval()


class Classifier(torch.nn.Module):
    """The model with embeddings as weights of its own, by the formula: what an engine with them must equal."""

    def __init__(self, model: Any, embeddings: np.ndarray) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("embeddings", torch.tensor(embeddings))

    def forward(self, images: Any) -> Any:
        if hasattr(self.model, "vision_model"):
            features = self.model.vision_model(images).pooler_output
        else:
            features = self.model.visual(images)
        cosine = (features / features.norm(dim=1, keepdim=True)) @ self.embeddings.T
        bias = getattr(self.model, "logit_bias", None)
        return self.model.logit_scale.exp() * cosine + (0.0 if bias is None else bias)


CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], ZeroShot], str, dict[str, Any]]] = {
    "clip": (
        transformer,
        lambda model: ZeroShot(model, model.encode_image, logit_scale=SCALE, image_tower=["visual"], text=read),
        "visual.transformer.resblocks.0.ln_1",
        {},
    ),
    "clip-resnet": (
        convolutional,
        lambda model: ZeroShot(model, model.encode_image, logit_scale=SCALE),
        "visual.layer3",
        {"objective": "softmax"},
    ),
    "siglip": (
        siglip,
        lambda model: zero_shot_of_transformers(model, Path("missing")),
        "vision_model.encoder.layers.0.layer_norm1",
        {"objective": "softmax", "contrasts": P},
    ),
}
Made = tuple[Any, Any, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """`made(case)`: the model, the manifest and the engine, exported once."""

    def export(case: str) -> Made:
        build, wrap, layer, options = CASES[case]
        model, path = build(), tmp_path_factory.mktemp(case) / "engine.onnx"
        return model, export_model(wrap(model), path, target_layer=layer, input=SPEC, **options), path

    return functools.cache(export)


def classes_of(count: int, seed: int = 5) -> ClassEmbeddings:
    return ClassEmbeddings(random_embeddings(count, DIMENSION, seed), tuple(f"class {k}" for k in range(count)))


def oracle_of(model: Any, layer: LayerInfo, embeddings: ClassEmbeddings, images: Any) -> Oracle:
    return Oracle(Classifier(model, embeddings.values), f"model.{layer.name}", images, layer.prefix_tokens)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_maps_and_logits(made: Callable[[str], Made], case: str, backend: str) -> None:
    """One engine, three numbers of classes, of which two have fewer than the references ask for."""
    pytest.importorskip(backend)
    model, manifest, path = made(case)
    (layer,) = manifest.layers
    images = blobs(3, (SIZE, SIZE), 5)
    with Engine(path, backend=backend, threads=1) as engine:
        for count in (9, 3, 2):
            embeddings = classes_of(count)
            asked, oracle = engine.with_classes(embeddings), oracle_of(model, layer, embeddings, images)
            kept = min(3, count - 1)
            alphas = [0.0, 0.7, 2.0]
            questions: dict[str, Any] = {"target": [0, 1, 1], "alpha": alphas}
            if manifest.contrasts > 1:
                rows = [[Contrast(t, None, a)] for t, a in zip([0, 1, 1], alphas, strict=True)]
                questions = {"contrasts": rows}
            for arguments, target in (({}, None), (questions, [0, 1, 1])):
                got = asked(images.numpy(), **arguments)
                np.testing.assert_allclose(got.logits, oracle.logits, rtol=1e-4, atol=1e-4)
                first = [values[:, 0] if manifest.contrasts > 1 else values for values in got[1:4]]
                want = oracle.explain(
                    layer.grid,
                    layer.layout,
                    target=target,
                    references=kept,
                    alpha=alphas if arguments else [1.0] * 3,
                    objective=manifest.objective,
                )
                assert first[1].tolist() == want.targets
                assert [row[:kept] for row in first[2].tolist()] == want.references
                assert (first[2][:, kept:] == -2).all()
                assert relative_l2(first[0], want).max() <= 1e-4


def test_the_second_contrast(made: Callable[[str], Made]) -> None:
    model, manifest, path = made("siglip")
    (layer,) = manifest.layers
    images, embeddings = blobs(2, (SIZE, SIZE), 6), classes_of(6)
    want = oracle_of(model, layer, embeddings, images).explain(
        layer.grid, layer.layout, target=[4, 4], references=[[2], [2]], alpha=[0.5, 0.5], objective="softmax"
    )
    with Engine(path, backend="onnxruntime", threads=1, class_embeddings=embeddings) as engine:
        got = engine(images.numpy(), contrasts=[Contrast(1, [2], 1.0), Contrast(4, [2], 0.5)])
        assert relative_l2(got.saliency_map[:, 1], want).max() <= 1e-4
        # more contrasts than classes: the last one again
        few = engine.with_classes(classes_of(2))(images.numpy())
        assert sorted(few.target[0].tolist()) == [0, 1]


def test_the_manifest(made: Callable[[str], Made]) -> None:
    model, manifest, _ = made("siglip")
    assert manifest.zero_shot is not None
    assert manifest.zero_shot.embedding_dim == DIMENSION
    assert manifest.zero_shot.logit_scale == pytest.approx(SCALE, rel=1e-6)
    assert manifest.zero_shot.logit_bias == -7.0
    assert (manifest.num_classes, manifest.classes, manifest.references) == (None, None, 3)
    assert manifest.inputs == ("images", "target", "references", "alpha", "class_embeddings")
    # the same sentences by the model itself
    tokens, images = torch.tensor([[1, 2, 3], [4, 5, 6]]), blobs(2, (SIZE, SIZE), 5)
    with torch.no_grad():
        whole = model(input_ids=tokens, pixel_values=images).logits_per_image
        text = model.get_text_features(input_ids=tokens).pooler_output
    with Engine(made("siglip")[2], backend="onnxruntime", threads=1) as engine:
        got = engine.with_classes(ClassEmbeddings(text.numpy(), ("a", "b")))(images.numpy()).logits
    np.testing.assert_allclose(got, whole.numpy(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_float64_tells_rounding_from_defects(made: Callable[[str], Made], case: str) -> None:
    """A copy of the wrapped model is one of the model, hooks and dtype included."""
    model, manifest, _ = made(case)
    wrapped, images, embeddings = CASES[case][1](model), blobs(3, (SIZE, SIZE), 5), classes_of(9)
    contrasts = [(torch.tensor([0, 1, 2]), torch.tensor([[3, 4], [5, -2], [6, 7]]), torch.tensor([0.0, 0.7, 1.0]))]
    exact = run_in_float64(wrapped, manifest, images, contrasts, embeddings)
    assert exact.logits.dtype == exact.maps[0][0].values.dtype == torch.float64
    eager = run_eagerly(wrapped, manifest, images, contrasts, embeddings)
    torch.testing.assert_close(eager.logits.double(), exact.logits, rtol=1e-4, atol=1e-4)
    difference = (eager.maps[0][0].values - exact.maps[0][0].values).flatten(1).norm(dim=1)
    assert 0 < (difference / exact.maps[0][0].scale).max() < 1e-4


def test_text_to_map(made: Callable[[str], Made]) -> None:
    """Prompts to embeddings to logits, as CLIP does it; the engine knows its own text tower from another."""
    model, _, path = made("clip")
    wrap = CASES["clip"][1]
    embeddings = embed_text(wrap(model), ["jay"], PROMPTS[:2], templates=["a photo of a {}.", "{}"], model_name="tiny")
    assert embeddings.names == ("jay", *PROMPTS[:2])
    with torch.no_grad():

        def encoded(text: str) -> Any:
            return model.encode_text(open_clip.tokenize([text]), normalize=True)[0]

        jay = (encoded("a photo of a jay.") + encoded("jay")) / 2
        want = torch.stack([jay / jay.norm(), encoded(PROMPTS[0]), encoded(PROMPTS[1])])
        np.testing.assert_allclose(embeddings.values, want.numpy(), atol=1e-6)
        images = blobs(2, (SIZE, SIZE), 5)
        features = model.encode_image(images, normalize=True)
    with Engine(path, backend="onnxruntime", threads=1, class_embeddings=embeddings) as engine:
        got = engine(images.numpy(), target="red epaulets", references=["a bird"])
        np.testing.assert_allclose(got.logits, SCALE * (features @ want.T).numpy(), rtol=1e-4, atol=1e-4)
        assert got.target.tolist() == [1, 1]
        other = clip({"layers": 1, "width": 16, "head_width": 8, "patch_size": 8})
        text = {name: value for name, value in model.state_dict().items() if not name.startswith("visual.")}
        assert not other.load_state_dict(text, strict=False).unexpected_keys
        engine.with_classes(embed_text(wrap(other), PROMPTS))  # another image tower, the same text tower
        with torch.no_grad():
            other.text_projection.mul_(1.01)
        with pytest.raises(ValueError, match="by another text tower"):
            engine.with_classes(embed_text(wrap(other), PROMPTS))


def test_a_reduced_precision(made: Callable[[str], Made], tmp_path: Path) -> None:
    model = made("clip")[0]
    path = tmp_path / "fp16.onnx"
    manifest = export_model(
        CASES["clip"][1](model),
        path,
        target_layer=CASES["clip"][2],
        input=SPEC,
        precision="fp16",
        class_embeddings=classes_of(6),
    )
    assert manifest.verification["precision"]["cosine"] > 0.99
    images = blobs(2, (SIZE, SIZE), 5).numpy()
    with Engine(path, backend="onnxruntime", class_embeddings=classes_of(9)) as reduced:
        low = reduced(images).logits
    with Engine(made("clip")[2], backend="onnxruntime", class_embeddings=classes_of(9)) as engine:
        full = engine(images).logits
    assert 0 < np.abs(low - full).max() < 0.01 * np.abs(full).max()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda model: embed_text(model, ["jay", "kite"], templates=["a photo"]), "has not exactly one {}"),
        (lambda model: embed_text(model, ["jay"], templates=[]), "no templates"),
        (lambda model: embed_text(model, []), "no class to embed"),
        (lambda model: embed_text(model, ["jay"]), "at least 2"),
        (lambda model: embed_text(model, [], ["jay", "jay"]), "given twice"),
        (
            lambda model: embed_text(ZeroShot(model, model, logit_scale=1.0), PROMPTS),
            "no text tower",
        ),
        (
            lambda model: embed_text(zero_shot_of_transformers(siglip(), Path("missing")), PROMPTS),
            "its tokenizer cannot be loaded",
        ),
        (
            lambda model: zero_shot_of_transformers(_of_another_kind(), Path()),
            "is not known to compare an image with texts",
        ),
    ],
)
def test_refused(call: Callable[[ZeroShot], Any], says: str) -> None:
    with pytest.raises((ExportError, ValueError)) as caught:
        call(CASES["clip"][1](transformer()))
    assert says in str(caught.value)


def _of_another_kind() -> Any:
    model = torch.nn.Linear(2, 2)
    model.config = type("Config", (), {"model_type": "blip"})()
    return model


def test_class_names_and_embeddings_belong_to_one_kind_of_model(tmp_path: Path) -> None:
    model = CASES["clip"][1](transformer())
    with pytest.raises(ExportError, match="leave the class names out"):
        export_model(model, tmp_path / "x.onnx", target_layer=CASES["clip"][2], input=SPEC, classes=["a", "b"])
    timm = pytest.importorskip("timm")
    ordinary = timm.create_model("test_resnet", num_classes=4).eval()
    with pytest.raises(ExportError, match="leave class embeddings out"):
        export_model(ordinary, tmp_path / "x.onnx", input=SPEC, class_embeddings=classes_of(4))
    assert not list(tmp_path.iterdir())


def test_head_taps(made: Callable[[str], Made], tmp_path: Path) -> None:
    """The same maps, from channel weights; a tail would need the classes of each run."""
    model, manifest, path = made("clip")
    options: dict[str, Any] = {"target_layer": manifest.layers[0].name, "input": SPEC, "head": "taps"}
    wrapped = CASES["clip"][1](model)
    with pytest.raises(ExportError, match="need the classes of each run; leave the tail out"):
        export_model(wrapped, tmp_path / "taps.onnx", tail=tmp_path / "taps.tail.onnx", **options)
    assert not list(tmp_path.iterdir())
    export_model(wrapped, tmp_path / "taps.onnx", **options)
    images = blobs(2, (SIZE, SIZE), 4).numpy()
    for count in (2, 7):
        given: dict[str, Any] = {"backend": "onnxruntime", "threads": 1, "class_embeddings": classes_of(count)}
        with Engine(tmp_path / "taps.onnx", **given) as taps, Engine(path, **given) as graph:
            got, want = taps(images, alpha=0.7), graph(images, alpha=0.7)
        assert got.channel_weights is not None
        assert got.references.tolist() == want.references.tolist()
        np.testing.assert_allclose(got.saliency_map, want.saliency_map, rtol=1e-4, atol=1e-5 * want.saliency_map.max())
