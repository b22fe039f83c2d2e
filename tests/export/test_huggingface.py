"""hf: folders: tiny models of transformers with random weights, their image processors, and folders that timm wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from finercam_rt.engine import Engine
from finercam_rt.errors import ExportError
from finercam_rt.export import ModelRequest, export_model, load_model
from finercam_rt.export.classifier import ClassifierRequest, as_classifier
from finercam_rt.export.eager import run_with_gradients
from finercam_rt.export.zero_shot import ZeroShot
from finercam_rt.preprocess import Preprocessor

from .oracle import blobs, noise, perturb

transformers = pytest.importorskip("transformers")

NAMES = {"id2label": {i: f"bird {i}" for i in range(6)}, "label2id": {f"bird {i}": i for i in range(6)}}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **NAMES}

MODELS: dict[str, Callable[[], Any]] = {
    "dinov2": lambda: transformers.Dinov2ForImageClassification(
        transformers.Dinov2Config(image_size=56, patch_size=14, **TINY)
    ),
    "vit": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=64, patch_size=16, intermediate_size=64, **TINY)
    ),
    "deit": lambda: transformers.DeiTForImageClassificationWithTeacher(
        transformers.DeiTConfig(image_size=64, patch_size=16, intermediate_size=64, **TINY)
    ),
    "beit": lambda: transformers.BeitForImageClassification(
        transformers.BeitConfig(image_size=64, patch_size=16, intermediate_size=64, **TINY)
    ),
    "siglip": lambda: transformers.SiglipForImageClassification(
        transformers.SiglipConfig(
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 64,
                "patch_size": 16,
            },
            **NAMES,
        )
    ),
    "swin": lambda: transformers.SwinForImageClassification(
        transformers.SwinConfig(embed_dim=16, depths=[1, 1], num_heads=[2, 2], image_size=64, window_size=4, **NAMES)
    ),
    "convnext": lambda: transformers.ConvNextForImageClassification(
        transformers.ConvNextConfig(hidden_sizes=[16, 24], depths=[1, 1], num_stages=2, **NAMES)
    ),
    "resnet": lambda: transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=16, hidden_sizes=[16, 24], depths=[1, 1], layer_type="basic", **NAMES)
    ),
}
LAYERS = {
    "dinov2": "dinov2.encoder.layer.1.norm1",
    "vit": "vit.layers.1.layernorm_before",
    "deit": "deit.layers.1.layernorm_before",
    "beit": "beit.layers.0",
    "siglip": "vision_model.encoder.layers.1.layer_norm1",
    "swin": "swin.encoder.layers.1.blocks.0",
    "convnext": "convnext.encoder.stages.1",
    "resnet": "resnet.encoder.stages.1.layers.0",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a model with random weights and a ViT's image processor, made once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            torch.manual_seed(0)
            perturb(MODELS[name](), scale=0.1).save_pretrained(folder)
            edge = 56 if name == "dinov2" else 64
            transformers.ViTImageProcessorPil(size={"height": edge, "width": edge}).save_pretrained(folder)
            made[name] = folder
        return made[name]

    return make


def _loaded(folder: Path | str, **arguments: Any) -> Any:
    return load_model(ModelRequest(f"hf:{folder}", **arguments))


@pytest.mark.parametrize("name", MODELS)
def test_classifiers_of_transformers(saved: Any, name: str) -> None:
    """Logits of the folder's own model; a feature map and its gradient at a layer of the user's own names."""
    folder = saved(name)
    loaded = _loaded(folder)
    assert loaded.name == f"hf:{folder.name}"
    assert loaded.classes == tuple(f"bird {i}" for i in range(6))
    images = blobs(2, loaded.input.size, 3)
    own = type(loaded.model).from_pretrained(folder).eval()
    classifier = as_classifier(loaded.model, images)
    assert "classifier: the logits are 'logits' of its" in classifier.notes[0]
    (activations,), logits = run_with_gradients(classifier.module, [LAYERS[name]], images)
    with torch.no_grad():
        torch.testing.assert_close(logits, own(pixel_values=images).logits)
    (gradients,) = torch.autograd.grad(logits[:, 0].sum(), activations)
    assert gradients.abs().max() > 0


@pytest.mark.parametrize(("name", "size", "grid"), [("resnet", (48, 64), (6, 8)), ("vit", (96, 48), (6, 3))])
def test_engines_of_transformers(saved: Any, tmp_path: Path, name: str, size: tuple[int, int], grid: Any) -> None:
    """Also at another input size than the model was made for."""
    loaded = _loaded(saved(name), input_size=size)
    assert loaded.inputs == ({"interpolate_pos_encoding": True} if name == "vit" else {})
    layer = LAYERS[name]
    manifest = export_model(
        loaded.model,
        tmp_path / "x.onnx",
        target_layer=layer,
        input=loaded.input,
        classes=loaded.classes,
        inputs=loaded.inputs,
    )
    assert (manifest.layers[0].name, manifest.layers[0].grid) == (layer, grid)
    assert manifest.verification["map_relative_l2"] < 1e-4
    images = noise(3, size)
    with Engine(tmp_path / "x.onnx") as engine, torch.no_grad():
        own = loaded.model(pixel_values=images, **loaded.inputs).logits
        np.testing.assert_allclose(engine(images.numpy()).logits, own.numpy(), rtol=1e-4, atol=1e-5)


def test_bfloat16_folders_are_computed_in_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    perturb(MODELS["vit"](), scale=0.1).bfloat16().save_pretrained(tmp_path)
    transformers.ViTImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    loaded = _loaded(tmp_path)
    assert next(loaded.model.parameters()).dtype == torch.bfloat16
    classifier = as_classifier(loaded.model, noise(2, (64, 64)), ClassifierRequest(inputs=loaded.inputs))
    assert "classifier: its bfloat16 weights were converted to float32" in classifier.notes
    assert next(classifier.module.parameters()).dtype == torch.float32


def test_random_weights_need_only_the_configuration(saved: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((saved("vit") / "config.json").read_bytes())
    loaded = _loaded(tmp_path, random_weights=True, num_classes=9)
    assert loaded.input.size == (64, 64)
    assert loaded.classes is None
    with torch.no_grad():
        assert loaded.model(noise(1, (64, 64))).logits.shape == (1, 9)


def test_the_folder_by_itself_is_a_specification(saved: Any) -> None:
    assert load_model(ModelRequest(str(saved("resnet")))).name == f"hf:{saved('resnet').name}"


def _photographs() -> list[Image.Image]:
    rng = np.random.default_rng(5)
    images = [Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)) for _ in range(5)]
    sizes = [(500, 375), (333, 501), (640, 481), (151, 97), (1025, 1024)]
    return [image.resize(size, Image.Resampling.BICUBIC) for image, size in zip(images, sizes, strict=True)]


def _processors() -> dict[str, Any]:
    t = transformers
    square, crop = {"height": 96, "width": 96}, {"height": 80, "width": 80}
    plain = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
    return {
        "vit": (t.ViTImageProcessorPil(size=square, **plain), ((96, 96), "squash", "bilinear")),
        "dinov2": (
            t.BitImageProcessorPil(size={"shortest_edge": 101}, crop_size=crop, **plain),
            ((80, 80), "center_floor", "bicubic"),
        ),
        "convnext": (
            t.ConvNextImageProcessorPil(size={"shortest_edge": 90}, crop_pct=0.875, resample=2),
            ((90, 90), "center_floor", "bilinear"),
        ),
        "convnext 384": (t.ConvNextImageProcessorPil(size={"shortest_edge": 384}), ((384, 384), "squash", "bicubic")),
        "deit": (t.DeiTImageProcessorPil(size=square, crop_size=crop), ((80, 80), "squash", "bicubic")),
        "clip": (
            t.CLIPImageProcessorPil(size={"shortest_edge": 80}, crop_size=crop),
            ((80, 80), "center_floor", "bicubic"),
        ),
        "efficientnet": (
            t.EfficientNetImageProcessorPil(size=square, rescale_offset=True),
            ((96, 96), "squash", "bicubic"),
        ),
        "no normalisation": (
            t.ViTImageProcessorPil(size={"height": 64, "width": 96}, do_normalize=False, rescale_factor=1 / 127.5),
            ((64, 96), "squash", "bilinear"),
        ),
    }


@pytest.mark.parametrize("name", _processors())
def test_photographs_are_prepared_as_transformers_does_it(saved: Any, tmp_path: Path, name: str) -> None:
    processor, expected = _processors()[name]
    (tmp_path / "config.json").write_bytes((saved("resnet") / "config.json").read_bytes())
    processor.save_pretrained(tmp_path)
    spec = _loaded(tmp_path, random_weights=True).input
    assert (spec.size, spec.crop_mode, spec.interpolation) == expected
    preprocess = Preprocessor(spec)
    for photograph in _photographs():
        wanted = processor(images=photograph, return_tensors="np")["pixel_values"][0]
        got, view = np.empty((3, *spec.size), np.float32), np.empty((*spec.size, 3), np.uint8)
        preprocess(photograph, got, view, "x")
        np.testing.assert_allclose(got, wanted, atol=2e-5)


@pytest.mark.parametrize(
    "processor",
    [
        lambda t: t.ViTImageProcessorPil(do_resize=False),
        lambda t: t.BitImageProcessorPil(size={"shortest_edge": 64}, do_center_crop=False),
        lambda t: t.BitImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 48}),
        lambda t: t.MobileViTImageProcessorPil(),
    ],
)
def test_processors_that_an_input_specification_cannot_say(saved: Any, tmp_path: Path, processor: Any) -> None:
    """No resize; sizes that follow the photograph; a crop of another shape; channels in the order BGR."""
    (tmp_path / "config.json").write_bytes((saved("resnet") / "config.json").read_bytes())
    processor(transformers).save_pretrained(tmp_path)
    with pytest.raises(
        ExportError, match=r"does to photographs cannot be expressed .* change preprocessor_config\.json"
    ):
        _loaded(tmp_path, random_weights=True)


def _refused(message: str, specification: str, **arguments: Any) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        load_model(ModelRequest(specification, **arguments))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_folders_that_are_refused(saved: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    spec = f"hf:{folder}"
    config = folder / "config.json"
    _refused("has no config.json; give a folder that transformers or timm saved", spec)
    adapter = folder / "adapter_config.json"
    adapter.write_text("{}")
    _refused(r"an adapter of peft alone; merge it with its model \(merge_and_unload\)", spec)
    adapter.unlink()
    config.write_text("{")
    _refused("config.json cannot be read", spec)
    config.write_text('{"hidden_size": 3}')
    _refused("names no model", spec)
    config.write_text('{"model_type": "vit", "auto_map": {"AutoConfig": "x.Y"}}')
    _refused("the model's code is in the folder .* and is not run", spec)
    config.write_text('{"model_type": "nonesuch"}')
    _refused("does not know its config.json", spec)
    config.write_text('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}')
    _refused("holds a BertForMaskedLM, which is no image classifier", spec)

    good = json.loads((saved("vit") / "config.json").read_text())
    config.write_text(json.dumps(good))
    _refused("model cannot be built", spec)  # no weights
    weights = (saved("vit") / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-500])
    _refused("model cannot be built", spec)
    (folder / "model.safetensors").write_bytes(weights)
    _refused(r"has no preprocessor_config\.json", spec)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "Nonesuch"}')
    _refused("its image processor cannot be loaded", spec)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor", "image_mean": [1]}')
    _refused("ViTImageProcessorPil does not run on an image of 3 channels .*; save it again", spec)
    _refused("the model has 6 classes; leave --num-classes out", spec, num_classes=4)
    _refused("leave --model-arg out", spec, arguments={"hidden_size": 8})
    config.write_text(json.dumps({**good, "architectures": ["ViTModel"]}))
    _refused("holds a ViTModel, a backbone without a classifier; give --linear-head", spec)
    _refused("is no folder here; give the path of one, or --pretrained", "hf:nobody/nothing")


def test_a_backbone_is_not_given_a_random_head(saved: Any, tmp_path: Path) -> None:
    """transformers would, with a line in the log."""
    model = transformers.ViTForImageClassification.from_pretrained(saved("vit"))
    model.vit.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((saved("vit") / "config.json").read_bytes())
    _refused(r"weights lack 'classifier\.bias' and 1 others that a ViTForImageClassification has", f"hf:{tmp_path}")


def test_a_checkpoint_of_a_training_module(saved: Any, tmp_path: Path) -> None:
    state = {key: torch.full_like(value, 0.5) for key, value in _loaded(saved("resnet")).model.state_dict().items()}
    torch.save({"state_dict": {f"net_a.{key}": value for key, value in state.items()}}, tmp_path / "x.pth")
    loaded = _loaded(saved("resnet"), checkpoint=tmp_path / "x.pth")
    torch.testing.assert_close(dict(loaded.model.state_dict()), state)


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no route to host\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    _refused("hf:a/b cannot be downloaded .*no route to host.*give a folder", "hf:a/b", pretrained=True)


def test_a_name_of_the_hub(monkeypatch: pytest.MonkeyPatch, saved: Any) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(saved("resnet")))
    loaded = _loaded("someone/birds", pretrained=True)
    assert (loaded.name, loaded.classes[0]) == ("hf:someone/birds", "bird 0")


@pytest.mark.parametrize(("name", "size"), [("test_resnet", None), ("test_vit", (96, 64))])
def test_folders_that_timm_wrote(tmp_path: Path, name: str, size: tuple[int, int] | None) -> None:
    """With the labels in config.json; a transformer's position embeddings follow the input size."""
    torch.manual_seed(0)
    model = perturb(timm.create_model(name, num_classes=4))
    labels = {"label_names": ["a", "b", "c", "d"], "mean": (0.1, 0.2, 0.3)}
    timm.models.save_for_hf(model, tmp_path, model_config=labels, safe_serialization=True)
    loaded = _loaded(tmp_path, input_size=size)
    assert loaded.classes == ("a", "b", "c", "d")
    assert loaded.input.size == (size or (160, 160))
    images = noise(2, loaded.input.size)
    reference = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, **({"img_size": size} if size else {}))
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), reference.eval()(images))


def _assert_linear(head: nn.Linear, pooled: torch.Tensor, loaded: Any, images: torch.Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), head(pooled))


@pytest.mark.parametrize("pool", ["mean", "cls", "cls+mean"])
def test_linear_heads_on_transformers(saved: Any, tmp_path: Path, pool: str) -> None:
    """Of Dinov2ForImageClassification's own classifier, too: it reads both."""
    head = nn.Linear(64 if pool == "cls+mean" else 32, 5)
    torch.save({"module.linear.weight": head.weight.data, "module.linear.bias": head.bias.data}, tmp_path / "head.pth")
    images = noise(2, (70, 98))
    loaded = _loaded(saved("dinov2"), linear_head=tmp_path / "head.pth", pool=pool, input_size=(70, 98))
    backbone = transformers.Dinov2Model.from_pretrained(saved("dinov2")).eval()
    with torch.no_grad():
        tokens = backbone(images).last_hidden_state
    token, mean = tokens[:, 0], tokens[:, 1:].mean(1)
    pooled = {"mean": mean, "cls": token, "cls+mean": torch.cat([token, mean], 1)}[pool]
    assert tokens.shape[1] == 1 + 5 * 7
    _assert_linear(head, pooled, loaded, images)
    assert "encoder.layer.1.norm1" in dict(loaded.model.named_modules())
    assert "linear_head.weight" in loaded.model.state_dict()


def _clip(classify: bool) -> Any:
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 60}
    config = transformers.CLIPConfig(
        vision_config={**vision, "intermediate_size": 64},
        text_config={**text, "intermediate_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        projection_dim=24,
        **NAMES,
    )
    return (transformers.CLIPForImageClassification if classify else transformers.CLIPModel)(config)


@pytest.mark.parametrize("classify", [False, True])
def test_clip_folders(tmp_path: Path, classify: bool) -> None:
    """With two towers a zero-shot model, in float32 whatever the weights; with a classifier on it one like others."""
    torch.manual_seed(0)
    perturb(_clip(classify), scale=0.1).bfloat16().save_pretrained(tmp_path)
    crop = {"height": 64, "width": 64}
    transformers.CLIPImageProcessorPil(size={"shortest_edge": 70}, crop_size=crop).save_pretrained(tmp_path)
    loaded = _loaded(tmp_path)
    images = noise(2, (64, 64))
    assert (loaded.input.size, loaded.input.crop_mode) == ((64, 64), "center_floor")
    assert isinstance(loaded.model, ZeroShot) == (not classify)
    assert loaded.classes == (NAMES["id2label"][0], *loaded.classes[1:]) if classify else loaded.classes is None
    classifier = as_classifier(loaded.model, images)
    assert classifier.width == (6 if classify else 24)
    layer = "vision_model.encoder.layers.1.layer_norm1"
    (activations,), _ = run_with_gradients(classifier.module, [layer], images)
    assert activations.shape == (2, 17, 32)
    assert activations.dtype == torch.float32
    if not classify:
        assert classifier.module is loaded.model
        with pytest.raises(ExportError, match="a zero-shot model has one input and one output; leave --logits"):
            as_classifier(loaded.model, images, ClassifierRequest(output="x"))
        with pytest.raises(ExportError, match=r"is bfloat16; convert the model with model\.float\(\)"):
            as_classifier(loaded.model.bfloat16(), images)
