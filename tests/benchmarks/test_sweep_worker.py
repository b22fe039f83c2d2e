"""Models of transformers in the sweep: loaded from a folder as users have them, called as any other model."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("transformers")

import torch
from sweep.cases import Variant, find_variant
from sweep.families import as_given
from sweep.heads import BACKBONE, LINEAR
from sweep.worker import call_plainly, called_plainly, load

PP_LCNET = "transformers:PPLCNetForImageClassification"
VIT_MSN = "transformers:ViTMSNForImageClassification"


def test_what_the_export_is_given(tmp_path: Path) -> None:
    assert as_given("timm:resnet50", tmp_path) == "timm:resnet50"
    assert not list(tmp_path.iterdir())
    assert as_given(VIT_MSN, tmp_path) == f"hf:{tmp_path}"
    assert '"ViTMSNForImageClassification"' in (tmp_path / "config.json").read_text()


def test_a_model_of_transformers_is_called_as_any_other() -> None:
    loaded, head = load(PP_LCNET, Variant("v", "of two classes", sizes=((0.5, 0.75),), classes=2), 1)
    assert (loaded.input.size, head) == ((112, 168), "library")
    model, images = loaded.model, torch.randn(1, 3, 112, 168)
    assert model(images).last_hidden_state.shape == (1, 2)
    with called_plainly(model, loaded.inputs):
        assert model(images).shape == (1, 2)
    assert model(images).last_hidden_state.shape == (1, 2)
    call_plainly(model, loaded.inputs)
    assert model(images).shape == (1, 2)


def test_what_a_model_takes_besides_images_is_given() -> None:
    """Of a vision transformer at another size than its own: whether the embeddings of places are interpolated."""
    said = []

    class Sized(torch.nn.Module):
        def forward(self, pixel_values, interpolate=False):
            said.append(interpolate)
            return pixel_values

    model = Sized()
    with called_plainly(model, {"interpolate": True}):
        model(torch.zeros(1))
    model(torch.zeros(1))
    assert said == [True, False]


def test_a_head_is_put_on_a_model_of_transformers() -> None:
    """Never behind it: it has no features without a head."""
    loaded, head = load(PP_LCNET, Variant("v", "another head", classes=7, head=BACKBONE), 1)
    assert head == LINEAR
    assert type(loaded.model).__name__ == PP_LCNET.partition(":")[2]
    assert loaded.model(torch.zeros(1, 3, *loaded.input.size)).last_hidden_state.shape == (1, 7)
    assert find_variant("base").head == "library"
