"""Finding the target layer: automatic choice, layouts of all shapes of input, and layers that cannot be drawn."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from finercam_rt.errors import ExportError
from finercam_rt.export.grids import image_grids
from finercam_rt.export.layers import find_target_layer
from finercam_rt.export.prove import LayoutRequest

from .models import Odd, SmallCNN, TokenModel
from .oracle import noise, perturb


def _found(model: nn.Module, name: str = "auto", size: tuple[int, int] = (160, 160), **request: Any) -> tuple[Any, ...]:
    layer = find_target_layer(model.eval(), name, noise(2, size), LayoutRequest(**request))
    return layer.name, layer.layout, layer.grid, layer.prefix_tokens


def _timm(name: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return perturb(timm.create_model(name, **arguments))


@pytest.mark.parametrize(
    ("model", "arguments", "size", "expected"),
    [
        ("test_resnet", {}, (160, 160), ("layer4", "nchw", (5, 5), 0)),
        ("test_resnet", {}, (96, 224), ("layer4", "nchw", (3, 7), 0)),
        ("test_byobnet", {}, (160, 160), ("stages.3", "nchw", (5, 5), 0)),
        ("test_efficientnet", {}, (160, 160), ("bn2", "nchw", (5, 5), 0)),
        ("test_convnext", {}, (160, 160), ("stages.3", "nchw", (5, 5), 0)),
        ("test_maxvit", {}, (160, 160), ("norm", "nchw", (5, 5), 0)),
        ("test_vit", {}, (160, 160), ("blocks.5.norm1", "tokens", (10, 10), 1)),
        ("test_vit", {"img_size": (96, 224)}, (96, 224), ("blocks.5.norm1", "tokens", (6, 14), 1)),
        ("test_vit2", {}, (160, 160), ("blocks.7.norm1", "tokens", (10, 10), 1)),
        ("test_vit4", {}, (160, 160), ("blocks.8.norm1", "tokens", (10, 10), 1)),
        (
            "vit_tiny_patch16_224",
            {"class_token": False, "global_pool": "map", "depth": 2},
            (224, 224),
            ("blocks.1.norm1", "tokens", (14, 14), 0),
        ),
        ("resnet18", {}, (160, 224), ("layer4", "nchw", (5, 7), 0)),
        ("resnet18", {}, (65, 97), ("layer4", "nchw", (3, 4), 0)),
        ("mobilenetv3_small_050", {}, (160, 160), ("blocks.5", "nchw", (5, 5), 0)),
        ("vit_tiny_patch16_224", {"img_size": (160, 224)}, (160, 224), ("blocks.11.norm1", "tokens", (10, 14), 1)),
        (
            "vit_tiny_patch16_224",
            {"reg_tokens": 4, "class_token": True, "depth": 2},
            (224, 224),
            ("blocks.1.norm1", "tokens", (14, 14), 5),
        ),
        (
            "vit_tiny_patch16_224",
            {"reg_tokens": 4, "class_token": False, "global_pool": "avg", "depth": 2, "no_embed_class": True},
            (224, 224),
            ("blocks.1.norm1", "tokens", (14, 14), 4),
        ),
    ],
)
def test_auto(model: str, arguments: dict[str, Any], size: tuple[int, int], expected: tuple[Any, ...]) -> None:
    assert _found(_timm(model, **arguments), size=size) == expected


class _Last(nn.Conv2d):
    """As blocks of transformers, which return attention weights, too."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x).relu() + 0.1, None


class _Backbone(nn.Module):
    """Its pooled output is made of the last map before it returns both: who changes the map there changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 8, 8), _Last(8, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> Any:
        found, _ = self.last(self.stem(x).relu())
        return {"last_hidden_state": found, "pooler_output": found.mean((2, 3))}


class _Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = _Backbone(), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x)["pooler_output"])


def test_auto_finds_the_last_map_of_a_backbone_that_pools_it_itself() -> None:
    torch.manual_seed(0)
    model = _Pooled()
    assert _found(model, size=(64, 96)) == ("backbone.last", "nchw", (8, 12), 0)
    with pytest.raises(ExportError, match="do not depend on layer 'backbone'"):
        _found(model, "backbone", size=(64, 96))


class _ReducedAttention(nn.Module):
    """As PVT's: keys and values of a quarter of the positions, behind a normalisation of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.proj = nn.Linear(16, 16), nn.Linear(16, 32), nn.Linear(16, 16)
        self.sr, self.norm, self.attn_drop = nn.Conv2d(16, 16, 2, 2), nn.LayerNorm(16), nn.Dropout(0.1)

    def forward(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        fewer = self.norm(self.sr(x.mT.unflatten(2, grid)).flatten(2).mT)
        keys, values = self.kv(fewer).chunk(2, dim=-1)
        return self.proj(self.attn_drop((self.q(x) @ keys.mT / 4).softmax(-1)) @ values)


class _ReducedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = nn.LayerNorm(16), _ReducedAttention(), nn.LayerNorm(16), _mlp()

    def forward(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), grid)
        return x + self.mlp(self.norm2(x))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))


class _Reduced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, 16, 8, 8), nn.ModuleList([_ReducedBlock(), _ReducedBlock()])
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x)
        grid, x = (x.shape[2], x.shape[3]), x.flatten(2).mT
        for block in self.blocks:
            x = block(x, grid)
        return self.head(self.norm(x).mean(1))


def test_auto_takes_no_keys_of_fewer_positions() -> None:
    torch.manual_seed(0)
    assert _found(perturb(_Reduced()), size=(96, 96)) == ("blocks.1.norm1", "tokens", (12, 12), 0)


def test_auto_on_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    assert _found(torchvision.models.resnet18(), size=(224, 160)) == ("layer4", "nchw", (7, 5), 0)
    assert _found(perturb(torchvision.models.mobilenet_v3_small())) == ("features.12", "nchw", (5, 5), 0)
    vit = torchvision.models.VisionTransformer(224, 16, 2, 4, 32, 64, num_classes=10)
    expected = ("encoder.layers.encoder_layer_1.ln_1", "tokens", (14, 14), 1)
    assert _found(perturb(vit), size=(224, 224)) == expected


@pytest.mark.parametrize(("classes", "expected"), [(12, "1"), (5, "1")])
def test_a_map_as_wide_as_there_are_classes_is_no_map_of_scores(classes: int, expected: str) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 40, 2, 2))
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, classes))
    assert _found(model, size=(96, 96)) == (expected, "nchw", (12, 12), 0)


def test_a_map_of_scores_is_not_what_they_were_made_from() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 40, 2, 2), nn.ReLU(), nn.Conv2d(40, 11, 1))
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert _found(model, size=(96, 96)) == ("2", "nchw", (12, 12), 0)


@pytest.mark.parametrize("channels", [16, 24, 96, 128, 160])
def test_a_pooled_output_is_not_a_map(channels: int) -> None:
    """(N,C,1,1) has one position; it is no C x 1 grid of channels-last values, however few channels there are."""
    model = SmallCNN(channels)
    name, layout, grid, _ = _found(model, size=(128, 128), layout="nchw" if channels == 16 else None)
    assert (name, layout, grid) == ("features", "nchw", (16, 16))
    with pytest.raises(ExportError, match=r"layer 'pool', of shape .*is not a feature map"):
        _found(model, "pool", (128, 128))


def test_grids_that_are_not_square_or_lose_a_border() -> None:
    model = SmallCNN(24, stride=8)
    for size, grid in {(64, 96): (8, 12), (96, 64): (12, 8), (70, 100): (8, 12), (33, 64): (4, 8)}.items():
        assert _found(model, size=size) == ("features", "nchw", grid, 0)
    unpadded = nn.Sequential(nn.Conv2d(3, 24, 7, 4), nn.ReLU(), nn.Conv2d(24, 24, 5, 2), nn.ReLU())
    model = nn.Sequential(unpadded, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))
    assert _found(model, "0", (128, 128)) == ("0", "nchw", (14, 14), 0)


def test_a_map_with_as_many_channels_as_rows() -> None:
    model = SmallCNN(8, stride=16)
    assert _found(model, "features", (128, 128)) == ("features", "nchw", (8, 8), 0)
    assert _found(model, "features", (128, 128), layout="nchw") == ("features", "nchw", (8, 8), 0)
    with pytest.raises(ExportError, match=r"where it looks in the image shows nchw with a 8x8 grid; give those, or"):
        _found(model, "features", (128, 128), layout="nhwc")


@pytest.mark.parametrize(("size", "grid"), [((64, 64), (4, 4)), ((48, 96), (3, 6)), ((96, 48), (6, 3))])
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_prefix_tokens_are_what_the_grid_leaves_over(size, grid, prefix: int) -> None:
    model = perturb(TokenModel(size, prefix, "mean"))
    assert _found(model, "norm", size) == ("norm", "tokens", grid, prefix)


@pytest.mark.parametrize(
    ("patch", "stride", "size", "grid"),
    [
        ((16, 16), (8, 8), (224, 224), (27, 27)),
        ((16, 16), (8, 8), (256, 128), (31, 15)),
        ((16, 8), (16, 8), (96, 96), (6, 12)),
        ((4, 8), (4, 8), (32, 128), (8, 16)),
    ],
)
def test_patches_that_overlap_or_are_no_squares(patch: Any, stride: Any, size: Any, grid: Any) -> None:
    """The model's own convolution says how many there are each way; where they look says that it is so."""
    model = timm.create_model("test_vit", img_size=size)
    embedding = model.patch_embed
    embedding.proj = nn.Conv2d(3, model.embed_dim, patch, stride)
    embedding.grid_size, embedding.num_patches = grid, grid[0] * grid[1]
    model.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid[0] * grid[1], model.embed_dim))
    torch.manual_seed(0)
    model = perturb(model)
    assert _found(model, size=size) == ("blocks.5.norm1", "tokens", grid, 1)
    assert _found(model, "blocks.2", size) == ("blocks.2", "tokens", grid, 1)


def test_what_divides_the_image_is_no_pooled_row() -> None:
    """16 x 12 cells and 8 x 4 of them, and no column of 16, nor 192 tokens in one."""
    stem, tokens = (
        nn.Conv2d(3, 4, 4, (4, 8)),
        nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (-1, 1)), nn.Conv2d(4, 4, 1)),
    )
    pools = nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (16, 12)), nn.MaxPool2d((2, 3)), nn.AvgPool2d((1, 4)))
    model = nn.Sequential(stem, tokens, pools, nn.Flatten(), nn.LazyLinear(5))
    assert image_grids(model.eval(), noise(2, (64, 96))).made == ((16, 12), (8, 4))


def test_a_grid_and_prefix_tokens_can_be_pinned() -> None:
    model = perturb(TokenModel((64, 64), 1, "mean"))
    assert _found(model, "norm", (64, 64), grid=(4, 4)) == ("norm", "tokens", (4, 4), 1)
    assert _found(model, "norm", (64, 64), prefix_tokens=1, layout="tokens") == ("norm", "tokens", (4, 4), 1)
    for request in (
        {"grid": (2, 8)},
        {"grid": (3, 5)},
        {"grid": (17, 1), "prefix_tokens": 0},
        {"grid": (5, 5)},
        {"prefix_tokens": 2},
        {"grid": (4, 4), "prefix_tokens": 0},
        {"grid": (6, 6)},
        {"prefix_tokens": 40},
        {"layout": "nchw"},
    ):
        with pytest.raises(ExportError, match=r"looks in the image shows tokens of a 4x4 grid behind 1 prefix token"):
            _found(model, "norm", (64, 64), **request)
    with pytest.raises(ExportError, match="layout 'hwc' is unknown; give one of nchw, nhwc, tokens"):
        _found(model, "norm", (64, 64), layout="hwc")


def test_a_zero_gradient_names_the_layer_to_use() -> None:
    """The last block's output of a CLS head: the logits read no patch token of it."""
    model = _timm("test_vit")
    assert model.global_pool != "avg"
    with pytest.raises(
        ExportError,
        match=r"gradient at layer 'blocks\.5' is zero .*; choose an earlier layer, such as 'blocks\.5\.norm1'\.",
    ):
        _found(model, "blocks.5")
    assert _found(model, "blocks.4")[0] == "blocks.4"
    with pytest.raises(
        ExportError, match=r"gradient at layer 'block' is zero .*; choose an earlier layer, such as 'patch'\."
    ):
        _found(perturb(TokenModel((64, 64), 1)), "block", (64, 64))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("featurs", r"the model has no layer 'featurs'; the nearest are 'features'"),
        ("features.9", r"the model has no layer 'features\.9'; the nearest are 'features\.\d'"),
        ("", r"the model has no layer ''; the nearest are '"),
        ("zzzz", r"the model has no layer 'zzzz'; the nearest are '"),
        ("head", r"the output of layer 'head', of shape \(2, 7\), is not a feature map"),
        ("pool", r"the output of layer 'pool', of shape \(2, 24, 1, 1\), is not a feature map"),
        ("twice", r"target layer 'twice' runs 2 times in one forward pass; choose a layer that runs once"),
        ("never", r"target layer 'never' runs 0 times in one forward pass; choose a layer that runs once"),
        ("beside", r"the logits do not depend on layer 'beside'; choose a layer before the head"),
    ],
)
def test_layers_that_cannot_be_drawn(name: str, message: str) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        _found(Odd(), name, (64, 64))
    assert str(caught.value).count("\n") == 0
    assert str(caught.value).endswith(".")


def test_an_input_size_the_model_does_not_take() -> None:
    for name in ("auto", "blocks.5.norm1"):
        with pytest.raises(ExportError, match=r"does not run on an input of shape \(2, 3, 100, 100\) .*input size"):
            _found(_timm("test_vit"), name, (100, 100))


def test_a_model_without_any_map() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 16), nn.ReLU(), nn.Linear(16, 4))
    with pytest.raises(
        ExportError, match=r"no target layer was found by itself \(no output with positions .*; name one"
    ):
        _found(model, size=(32, 32))


class _TwoBackbones(nn.Module):
    """They meet in a vector; the second has a normalisation beside a Flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = _timm("test_resnet", num_classes=0), _timm("mobilenetv3_small_050", num_classes=0)
        self.head = nn.Linear(self.one.num_features + self.other.head_hidden_size, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.one(x), self.other(x)], 1))


def test_two_backbones_that_meet_in_a_vector_have_no_layer_of_both() -> None:
    with pytest.raises(ExportError, match="branches meet behind their poolings"):
        _found(_TwoBackbones())


class _Functional(nn.Module):
    """Parameters and no modules; as it is, and with a place to explain."""

    def __init__(self, place: nn.Module | None = None) -> None:
        super().__init__()
        self.kernel, self.weight = nn.Parameter(torch.randn(8, 3, 4, 4)), nn.Parameter(torch.randn(5, 8))
        self.place = place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.conv2d(x, self.kernel, stride=4).relu()
        return nn.functional.linear((self.place or nn.Identity())(x).mean((2, 3)), self.weight)


@pytest.mark.parametrize("name", ["auto", "place"])
def test_a_model_without_modules_is_told_how_to_have_one(name: str) -> None:
    with pytest.raises(ExportError, match=r"no modules inside, .* nn\.Identity\(\) of its own, and name that"):
        _found(_Functional(), name, (32, 48))
    assert _found(_Functional(nn.Identity()), "place", (32, 48)) == ("place", "nchw", (8, 12), 0)


class _Exits(nn.Module):
    """Two stages whose logits are added up, with a gate between them that is no place to look from."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 24, 8, 8), nn.Conv2d(24, 24, 2, 2)
        self.gate = nn.Sequential(nn.Conv2d(24, 24, 1), nn.Sigmoid())
        self.early, self.late = nn.Linear(24, 5), nn.Linear(24, 5)
        self.dropped = nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        y = self.second(x * self.gate(x))
        return self.early(x.mean((2, 3))) + self.late(self.dropped(y).mean((2, 3)))


def test_auto_takes_no_gate_and_the_last_of_several_exits() -> None:
    model = _Exits()
    assert _found(model, size=(64, 96)) == ("second", "nchw", (4, 6), 0)
    model.second = nn.Identity()
    assert _found(model, size=(64, 96)) == ("first", "nchw", (8, 12), 0)
    with pytest.raises(ExportError, match=r"the logits do not depend on layer 'beside'; .* such as 'features"):
        _found(Odd(), "beside", (64, 64))


class _Mixing(nn.Module):
    """An attention with its normalisation inside, as vit-pytorch has it: the sum around it is no module's output."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(24), nn.MultiheadAttention(24, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        mixed: torch.Tensor = self.attention(y, y, y, need_weights=False)[0]
        return mixed


class _Tokens(nn.Module):
    """Patches and a class token through two attentions, between all tokens or of the class token with the patches."""

    def __init__(self, of_class: bool) -> None:
        super().__init__()
        self.patches, self.first, self.head = nn.Conv2d(3, 24, 8, 8), nn.LayerNorm(24), nn.Linear(24, 5)
        self.token, self.of_class = nn.Parameter(torch.randn(1, 1, 24)), of_class
        self.blocks = nn.ModuleList(nn.ModuleDict({"mixing": _Mixing()}) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.first(self.patches(x).flatten(2).transpose(1, 2))
        token = self.token.expand(len(x), 1, 24)
        for block in self.blocks:
            every = torch.cat([token, tokens], 1)
            every = every + block["mixing"](every)
            token = every[:, :1]
            if not self.of_class:
                tokens = every[:, 1:]
        return self.head(token[:, 0])


@pytest.mark.parametrize(
    ("of_class", "expected"),
    [(False, ("blocks.1.mixing.norm", "tokens", (8, 12), 1)), (True, ("first", "tokens", (8, 12), 0))],
)
def test_auto_finds_the_last_block_where_sums_have_no_name(of_class: bool, expected: tuple[Any, ...]) -> None:
    torch.manual_seed(0)
    assert _found(_Tokens(of_class), size=(64, 96)) == expected


class _Deviation(nn.Module):
    """Pools by the standard deviation, whose derivative is not finite for a channel that is zero everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.features, self.head = nn.Conv2d(3, 12, 8, 8), nn.ReLU(), nn.Linear(12, 5)
        with torch.no_grad():
            self.stem.bias[4] = -100

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(self.stem(x)).var((2, 3)).sqrt())


def test_a_gradient_that_is_not_finite_is_not_called_zero() -> None:
    torch.manual_seed(0)
    says = r"the derivative of the logits is not finite at layer 'features', .* add an epsilon .* such as 'stem'"
    with pytest.raises(ExportError, match=says):
        _found(_Deviation(), "features", (64, 64))
