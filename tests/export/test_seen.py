"""Layers that see a part of the image alone, or a warped one, or whose weights cancel: no map is drawn there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.ops import roi_align

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
        (lambda x: functional.interpolate(x[:, :, 24:40, 40:56], size=(64, 96)), "24 to 39", "40 to 55"),
        (lambda x: functional.interpolate(x[:, :, :, 4:92], size=(64, 96)), "0 to 63", "4 to 91"),
    ],
)
def test_a_layer_behind_a_crop_is_refused(change: Change, rows: str, columns: str) -> None:
    torch.manual_seed(0)
    model = _Prepared(change, SmallCNN()).eval()
    with pytest.raises(
        ExportError, match=rf"rows {rows} and columns {columns} of an image of 64x96 alone.*a layer that does\.$"
    ):
        find_target_layer(model, "inner.features", noise(2, (64, 96)))


def test_a_mask_is_no_crop() -> None:
    """What is masked is not seen either, but the cells over the rest look where they are drawn."""
    torch.manual_seed(0)
    mask = torch.zeros(64, 96)
    mask[18:, 20:76] = 1
    layer = find_target_layer(_Prepared(lambda x: x * mask, SmallCNN()).eval(), "inner.features", noise(2, (64, 96)))
    assert layer.grid == (8, 12)


@pytest.mark.parametrize(("widths", "rows", "columns"), [((0, 24, 0, 0), 0, 24), ((8, 8, 16, 16), 32, 16)])
def test_a_map_that_lies_on_padding_is_refused(
    widths: tuple[int, ...], rows: int, columns: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = _Prepared(lambda x: functional.pad(0.5 * x, widths), SmallCNN(stride=16)).eval()
    with pytest.raises(ExportError, match=rf"pads its images of 64x64 by {rows} rows and {columns} columns"):
        export_model(model, tmp_path / "x.onnx", input=_spec((64, 64)))


def test_padding_of_less_than_a_cell_is_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = _Prepared(lambda x: functional.pad(x, (1, 2, 0, 3)), SmallCNN()).eval()
    assert export_model(model, tmp_path / "x.onnx", input=_spec((64, 61))).layers[0].grid == (8, 8)


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
    assert any("ANOTHER BRANCH OF THE MODEL DOES NOT PASS THROUGH IT" in line for line in manifest.passes)
    pinned = export_model(model, tmp_path / "x.onnx", input=_spec((64, 96)), target_layer="whole.features")
    assert not any("BRANCH" in line for line in pinned.passes)


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
    with pytest.raises(ExportError, match=r"^layer 'features' comes behind a grid_sample or a crop whose place"):
        export_model(model, tmp_path / "x.onnx", input=spec, target_layer="features")
    assert not list(tmp_path.iterdir())


def test_a_crop_that_the_model_finds_is_refused(tmp_path: Path) -> None:
    class Found(SmallCNN):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            corner = 16 * x.mean((2, 3))[:, :2].sigmoid()
            images = torch.arange(len(x)).to(x)[:, None]
            return super().forward(roi_align(x, torch.cat([images, corner, corner + 48], 1), (64, 64), aligned=True))

    torch.manual_seed(0)
    with pytest.raises(ExportError, match="a crop whose place the model finds in the image"):
        export_model(Found().eval(), tmp_path / "x.onnx", input=_spec((64, 64)), target_layer="features")


def test_a_gate_by_the_whole_image_does_not_hide_a_warp(tmp_path: Path) -> None:
    class Gated(_Warped):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            moved = functional.grid_sample(x, self.places + 0.1 * self.where(x)[:, None, None], align_corners=True)
            return self.head(self.features(moved * x.mean((2, 3), keepdim=True).sigmoid()).mean((2, 3)))

    torch.manual_seed(0)
    with pytest.raises(ExportError, match="comes behind a grid_sample"):
        export_model(Gated(beside=False).eval(), tmp_path / "x.onnx", input=_spec((32, 32)), target_layer="features")


def test_a_grid_of_fixed_places_is_no_warp(tmp_path: Path) -> None:
    class Fixed(_Warped):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            grid = self.places.type_as(x) + x.new_zeros(len(x), 1, 1, 2) + torch.zeros_like(x[:, :2]).movedim(1, 3)
            return self.head(self.features(functional.grid_sample(x, grid, align_corners=True)).mean((2, 3)))

    torch.manual_seed(0)
    manifest = export_model(Fixed(beside=False).eval(), tmp_path / "x.onnx", input=_spec((32, 32)))
    assert manifest.layers[0].name == "features"


def test_samples_beside_the_positions_move_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    manifest = export_model(_Warped(beside=True).eval(), tmp_path / "x.onnx", input=_spec((32, 32)))
    assert manifest.layers[0].name == "features"


class _Two(nn.Module):
    """Two backbones whose features are joined, multiplied, or read as features of as many channels as classes."""

    def __init__(self, join: str) -> None:
        super().__init__()
        self.a, self.b, self.join = TokenModel((64, 64), 1), SmallCNN(classes=11 if join == "features" else 9), join
        self.head = nn.Linear(20, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.a(x), self.b(x)
        return self.head(torch.cat([a, b], 1)) if self.join == "features" else a * b.sigmoid()


@pytest.mark.parametrize("join", ["features", "gate"])
def test_branches_whose_scores_do_not_add_up_are_no_branches_of_their_own(join: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    manifest = export_model(_Two(join).eval(), tmp_path / "x.onnx", input=_spec((64, 64)))
    assert manifest.layers[0].name == "a.norm"
    assert any("ANOTHER BRANCH OF THE MODEL" in line for line in manifest.passes)


def test_numbers_beside_the_image_are_no_branch(tmp_path: Path) -> None:
    class Scaled(SmallCNN):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            return torch.where(y > 0, y, torch.zeros_like(y) + y.new_ones(len(x), 7)) + 0.1 * y

    torch.manual_seed(0)
    manifest = export_model(Scaled().eval(), tmp_path / "x.onnx", input=_spec((64, 64)))
    assert not any("BRANCH" in line for line in manifest.passes)


@pytest.mark.parametrize("name", ["auto", "features"])
def test_a_model_without_a_derivative_is_refused_in_a_sentence(name: str) -> None:
    class Detached(SmallCNN):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.pool(self.features(self.stem(x))).flatten(1).detach())

    said = "have no derivative with respect to the images" if name == "auto" else "do not depend on layer 'features'"
    with pytest.raises(ExportError, match=said):
        find_target_layer(Detached().eval(), name, noise(2, (64, 64)))


def test_sigmoids_of_several_labels_are_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(SmallCNN(), nn.Sigmoid()).eval()
    manifest = export_model(model, tmp_path / "x.onnx", input=_spec((64, 64)), target_layer="0.features")
    assert any("ITS OUTPUTS LIE BETWEEN 0 AND 1" in line for line in manifest.passes)


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


def test_images_whose_channels_are_gone_are_padded(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def export(columns: int) -> None:
        change = lambda x: functional.pad(x.mean(1), (columns, 0))[:, None].expand(-1, 3, -1, -1)  # noqa: E731
        model = _Prepared(change, SmallCNN()).eval()
        export_model(model, tmp_path / "x.onnx", input=_spec((32, 64)), target_layer="inner.features")

    export(2)
    with pytest.raises(ExportError, match="pads its images of 32x64 by 0 rows and 8 columns"):
        export(8)
