"""Layers that see a part of the image alone, or a warped one, or whose weights cancel: no map is drawn there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from finercam_rt.errors import ExportError
from finercam_rt.export.export_model import export_model
from finercam_rt.export.layers import find_target_layer
from finercam_rt.manifest import InputSpec

from .models import SmallCNN, TokenModel
from .oracle import noise

Change = Callable[[torch.Tensor], torch.Tensor]


class _Prepared(nn.Module):
    """A classifier of what a function makes of the image."""

    def __init__(self, change: Change, inner: nn.Module) -> None:
        super().__init__()
        self.change, self.inner = change, inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.change(x))


class _Branches(nn.Module):
    """Two classifiers, the second of what a function makes of the image, whose logits are added."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.whole, self.part, self.change = SmallCNN(), SmallCNN(), change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.whole(x) + 0.5 * self.part(self.change(x))


def _spec(size: tuple[int, int]) -> InputSpec:
    return InputSpec(size, (0.5,) * 3, (0.5,) * 3)


def _enlarged_middle(x: torch.Tensor) -> torch.Tensor:
    """A crop that is resized to the image's size, so that its map has the grid of a whole image."""
    return functional.interpolate(x[:, :, 16:48, 24:72], size=(64, 96), mode="bilinear")


@pytest.mark.parametrize(
    ("change", "rows", "columns"),
    [
        (_enlarged_middle, "16 to 47", "24 to 71"),
        (lambda x: functional.pad(x[:, :, 8:], (0, 0, 0, 8)), "8 to 63", "0 to 95"),
        (lambda x: x * (torch.arange(96) < 40), "0 to 63", "0 to 39"),
    ],
)
def test_a_layer_behind_a_crop_is_refused(change: Change, rows: str, columns: str) -> None:
    torch.manual_seed(0)
    model = _Prepared(change, SmallCNN()).eval()
    with pytest.raises(
        ExportError, match=rf"rows {rows} and columns {columns} of an image of 64x96 alone.*a layer that does\.$"
    ):
        find_target_layer(model, "inner.features", noise(2, (64, 96)))


def test_one_window_of_a_map_is_refused() -> None:
    class Window(SmallCNN):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.pool(self.features(self.stem(x)[:, :, :4, :6])).flatten(1))

    torch.manual_seed(0)
    with pytest.raises(ExportError, match=r"see rows 0 to 31 and columns 0 to 47 of an image of 64x96 alone"):
        find_target_layer(Window().eval(), "features", noise(2, (64, 96)))


def test_patches_that_leave_less_than_a_patch_of_the_image_out_are_taken() -> None:
    torch.manual_seed(0)
    assert find_target_layer(TokenModel((71, 78), 1).eval(), "norm", noise(2, (71, 78))).grid == (4, 4)


def test_auto_takes_the_branch_that_sees_the_whole_image_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = _Branches(_enlarged_middle).eval()
    manifest = export_model(model, tmp_path / "x.onnx", input=_spec((64, 96)))
    assert manifest.layers[0].name == "whole.features"
    assert any("LOGITS OF ANOTHER BRANCH ARE ADDED BEHIND IT" in line for line in manifest.passes)
    pinned = export_model(model, tmp_path / "x.onnx", input=_spec((64, 96)), target_layer="whole.features")
    single = export_model(SmallCNN().eval(), tmp_path / "y.onnx", input=_spec((64, 96)))
    for said_of in (pinned, single):
        assert not any("BRANCH" in line for line in said_of.passes)


class _Warped(nn.Module):
    """A spatial transformer, or positions to which values from other places are added, as of deformable attention."""

    def __init__(self, beside: bool) -> None:
        super().__init__()
        self.stem, self.beside = nn.Conv2d(3, 8, 4, 4), beside
        self.where = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2), nn.Tanh())
        self.features, self.head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()), nn.Linear(8, 5)
        rows, columns = torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8), indexing="ij")
        self.register_buffer("places", torch.stack([columns, rows], -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        moved = functional.grid_sample(x, self.places + 0.1 * self.where(x)[:, None, None], align_corners=True)
        return self.head(self.features(x + moved if self.beside else moved).mean((2, 3)))


def test_a_layer_behind_a_spatial_transformer_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, spec = _Warped(beside=False).eval(), _spec((32, 32))
    with pytest.raises(ExportError, match=r"^layer 'features' comes behind a grid_sample whose grid the model makes"):
        export_model(model, tmp_path / "x.onnx", input=spec, target_layer="features")
    assert not list(tmp_path.iterdir())


def test_samples_beside_the_positions_move_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    manifest = export_model(_Warped(beside=True).eval(), tmp_path / "x.onnx", input=_spec((32, 32)))
    assert manifest.layers[0].name == "features"


class _Covariance(nn.Module):
    """Second-order pooling: it takes the mean off every channel, so that a sum over positions moves nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.features, self.squeeze = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(36, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.squeeze(self.features(self.stem(x))).flatten(2)
        x = x - x.mean(2, keepdim=True)
        return self.head((x @ x.mT / x.shape[2]).flatten(1))


def test_grad_cam_is_refused_where_its_weights_cancel(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, spec = _Covariance().eval(), _spec((32, 32))
    said = r"'features' sums to zero over the positions .* layercam, or another layer, such as 'features\.0'\.$"
    with pytest.raises(ExportError, match=said):
        export_model(model, tmp_path / "x.onnx", input=spec, target_layer="features")
    manifest = export_model(model, tmp_path / "x.onnx", input=spec)
    assert manifest.layers[0].name == "features.0"
    manifest = export_model(model, tmp_path / "x.onnx", input=spec, method="layercam")
    assert manifest.layers[0].name == "squeeze"
    export_model(model, tmp_path / "x.onnx", input=spec, target_layer="features", method="layercam")
