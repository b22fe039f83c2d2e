"""Specifications of open_clip: folders, names, tags, and how photographs are prepared; nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="the export needs PyTorch")
open_clip: Any = pytest.importorskip("open_clip", reason="the models come from open_clip")

from finercam_rt import ClassEmbeddings  # noqa: E402
from finercam_rt.cli.main import main  # noqa: E402
from finercam_rt.errors import ExportError  # noqa: E402
from finercam_rt.export import ModelRequest, ZeroShot, load_model  # noqa: E402
from finercam_rt.export.models.open_clip_models import load_open_clip  # noqa: E402

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PREPARED = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "resize_mode": "squash"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model as open_clip keeps models in folders."""
    path = tmp_path / "tiny"
    path.mkdir()
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": PREPARED}))
    torch.manual_seed(3)
    model = open_clip.CLIP(
        24, open_clip.CLIPVisionCfg(**CONFIG["vision_cfg"]), open_clip.CLIPTextCfg(**CONFIG["text_cfg"])
    )
    torch.save(model.state_dict(), path / "open_clip_pytorch_model.bin")
    return path


def test_a_folder(folder: Path) -> None:
    loaded = load_model(ModelRequest(f"open_clip:{folder}"))
    assert isinstance(loaded.model, ZeroShot)
    assert loaded.name == "open_clip:tiny"
    assert (loaded.input.size, loaded.input.crop_pct) == ((32, 32), 1.0)
    assert (loaded.input.mean, loaded.input.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert (loaded.input.interpolation, loaded.input.crop_mode) == ("bilinear", "squash")
    stored = torch.load(folder / "open_clip_pytorch_model.bin", weights_only=True)
    assert loaded.model.state_dict().keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in loaded.model.state_dict().items())
    assert loaded.model.logit_constants == (pytest.approx(1 / 0.07), 0.0)


def test_embed_text(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = tmp_path / "names.txt"
    names.write_text("jay\nblue kite\n")
    out = tmp_path / "birds.npz"
    arguments = ["embed-text", f"open_clip:{folder}", "--class-names", names, "--prompts", "red epaulets", "-o", out]
    assert main([str(argument) for argument in arguments]) == 0
    assert "3 classes, 24 numbers each, by open_clip:tiny" in capsys.readouterr().out
    made = ClassEmbeddings.load(out)
    assert made.names == ("jay", "blue kite", "red epaulets")
    assert made.templates == ("a photo of a {}.",)
    model = load_model(ModelRequest(f"open_clip:{folder}")).model
    assert isinstance(model, ZeroShot)
    assert made.text_sha256 == model.text_sha256()
    sentences = ["a photo of a jay.", "a photo of a blue kite.", "red epaulets"]
    np.testing.assert_allclose(made.values, model.embed(sentences).numpy(), atol=1e-6)
    out.unlink()
    long = "a very long prompt of far too many words that nobody would ever want to write for a bird"
    for extra, says in (
        (["--prompts", long], "the text tower reads 12"),
        (["--templates", "no place {} {}"], "exactly"),
    ):
        assert main([str(argument) for argument in [*arguments, *extra]]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert "Traceback" not in error
        assert not out.exists()


def test_random_weights_are_the_same_each_time(folder: Path) -> None:
    before = torch.get_rng_state()
    first, second = (load_model(ModelRequest(f"open_clip:{folder}", random_weights=True)).model for _ in range(2))
    assert first.text_sha256() == second.text_sha256()
    assert torch.equal(before, torch.get_rng_state())


def test_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    """With the prefix that parallel training leaves, inside of a training state."""
    state = torch.load(folder / "open_clip_pytorch_model.bin", weights_only=True)
    other = {f"module.{name}": value + 1 for name, value in state.items()}
    torch.save({"epoch": 3, "state_dict": other}, tmp_path / "checkpoint.pt")
    loaded = load_model(ModelRequest(f"open_clip:{folder}", checkpoint=tmp_path / "checkpoint.pt"))
    assert torch.equal(loaded.model.state_dict()["ln_final.weight"], state["ln_final.weight"] + 1)


def _without_weights(folder: Path) -> None:
    (folder / "open_clip_pytorch_model.bin").unlink()


def _damaged_weights(folder: Path) -> None:
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"nothing")


def _damaged_config(folder: Path) -> None:
    (folder / "open_clip_config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_without_weights, "cannot be built"),
        (_damaged_weights, "cannot be built"),
        (_damaged_config, "is not a configuration of open_clip"),
    ],
)
def test_refused_folders(folder: Path, damage: Callable[[Path], None], says: str) -> None:
    damage(folder)
    with pytest.raises(ExportError, match=says):
        load_model(ModelRequest(f"open_clip:{folder}"))


def test_a_checkpoint_of_another_model(folder: Path, tmp_path: Path) -> None:
    torch.save({"visual.proj": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(ExportError, match=r"with the weights of .*other.pt cannot be built"):
        load_model(ModelRequest(f"open_clip:{folder}", checkpoint=tmp_path / "other.pt"))


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("ViT-B-61", {"random_weights": True}, "the nearest are ViT-B-16"),
        ("ViT-B-16", {}, "has no weights yet"),
        ("ViT-B-16@nobody", {"pretrained": True}, "no weights 'nobody' of ViT-B-16; it has "),
        ("ViT-B-16@openai", {"pretrained": True}, "open_clip:ViT-B-16-quickgelu@openai"),
        ("ViT-B-16", {"pretrained": True}, "say which as open_clip:ViT-B-16@TAG"),
        ("ViT-L-14", {"checkpoint": Path("weights.pt")}, "prepared in different ways"),
    ],
)
def test_refused_names(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ExportError) as caught:
        load_open_clip(name, ModelRequest(f"open_clip:{name}", **options))
    assert says in str(caught.value)
