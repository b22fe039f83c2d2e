"""Exports that are refused or interrupted in Python: one sentence, and the older engine is still there."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import onnx_ir
import pytest
import torch
from google.protobuf.message import EncodeError
from torch import nn

from finercam_rt.engine_file import read_manifest
from finercam_rt.errors import ExportError, InputError
from finercam_rt.export import export_model
from finercam_rt.manifest import InputSpec

from .conftest import OLDER, check_untouched
from .models import SmallCNN
from .oracle import perturb

SIZE = (48, 64)
SPEC = InputSpec(SIZE, (0.5,) * 3, (0.5,) * 3)


def _export(model: nn.Module, output: Path, **options: Any) -> None:
    export_model(model, output, **{"input": SPEC, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "median"}, "objective 'median' is unknown; give one of weighted, mean"),
        ({"method": "scorecam"}, "method 'scorecam' is unknown; give one of gradcam"),
        ({"images": torch.zeros(1, 3, *SIZE)}, "images must be .* with N >= 2, not"),
        ({"images": torch.zeros(2, 3, 32, 32)}, r"images must be \(N,3,48,64\) float32"),
        ({"images": torch.zeros(2, 3, *SIZE, dtype=torch.float64)}, "not .* float64"),
        ({"images": torch.zeros(2, 3, *SIZE).fill_(torch.nan)}, "not finite"),
        ({"classes": ["a", "b"]}, "2 class names were given for a model of 7 classes"),
        ({"target_layer": "hed"}, "no layer 'hed'; the nearest is 'head'"),
    ],
)
def test_arguments_of_export_model(output: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        _export(SmallCNN().eval(), output, **options)
    assert "\n" not in str(caught.value)
    check_untouched(output)


def test_what_is_at_the_destination(tmp_path: Path) -> None:
    """A pipe stays one, and so does a link, whose file is written."""
    pipe, file, link = (tmp_path / name for name in ("pipe", "file.onnx", "link.onnx"))
    os.mkfifo(pipe)
    link.symlink_to(file)
    with pytest.raises(InputError, match="pipe cannot be written: it is not a regular file; give the name of one"):
        _export(SmallCNN().eval(), pipe)
    assert pipe.is_fifo()
    _export(SmallCNN().eval(), link)
    assert link.is_symlink()
    assert read_manifest(file).num_classes == 7


def test_weights_that_do_not_fit_into_a_file(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["finercam_rt.export.emit"], "MOST_BYTES", 2**12)
    with pytest.raises(ExportError, match=r"the model's weights take 0\.0 GiB, .* choose a smaller model\.$"):
        _export(SmallCNN().eval(), output)
    check_untouched(output)


def test_a_file_that_protobuf_does_not_write(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise EncodeError("Failed to serialize proto")

    monkeypatch.setattr(onnx_ir, "save", full)
    with pytest.raises(ExportError, match="does not fit into one ONNX file of 2 GiB"):
        _export(SmallCNN().eval(), output)
    check_untouched(output)


def test_training_mode_of_one_inner_layer(output: Path) -> None:
    model = SmallCNN().eval()
    model.features[1].train()
    with pytest.raises(ExportError, match="training mode"):
        _export(model, output)
    check_untouched(output)


def test_a_wrong_map_is_never_written(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sign of the references' cotangents turned round in the compiled graph: verification must see it."""
    stage = sys.modules["finercam_rt.export.vjp"]
    honest = stage.contrast

    def flipped(*arguments: Any) -> Any:
        result = honest(*arguments)
        return result._replace(cotangents=result.cotangents * torch.tensor([1.0] + [-1.0] * 3))

    monkeypatch.setattr(stage, "contrast", flipped)
    with pytest.raises(ExportError, match=r"does not equal the model: relative error .* nothing was written"):
        _export(SmallCNN().eval(), output)
    check_untouched(output)


def test_wrong_choices_are_never_written(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Farthest references in place of the nearest: their map is right for them, and still refused."""
    stage = sys.modules["finercam_rt.export.vjp"]
    honest = stage.contrast
    monkeypatch.setattr(
        stage,
        "contrast",
        lambda logits, target, references, *rest: honest(
            logits,
            target,
            torch.where(references == -1, (logits.argmin(1)[:, None] + torch.arange(3)) % 7, references),
            *rest,
        ),
    )
    with pytest.raises(ExportError, match="nothing was written"):
        _export(perturb(SmallCNN(), scale=0.3), output)
    check_untouched(output)


@pytest.mark.parametrize("stage", ["finding", "capturing", "differentiating", "writing", "verifying"])
def test_an_interrupted_export_leaves_nothing(output: Path, stage: str) -> None:
    def interrupt(phrase: str) -> None:
        if phrase.startswith(stage):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _export(SmallCNN().eval(), output, on_stage=interrupt)
    check_untouched(output)


def test_a_good_export_replaces_the_older_engine(output: Path) -> None:
    """The counterpart of all above: the same call without a mistake does write."""
    _export(SmallCNN().eval(), output)
    assert [file.name for file in output.parent.iterdir()] == [output.name]
    assert output.read_bytes() != OLDER
