"""Batch norms folded into the layers before them: the same logits in float64, and counts of what stays in the graph."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="the export needs PyTorch")
timm: Any = pytest.importorskip("timm", reason="the export's models come from timm")
pytest.importorskip("onnx", reason="the export needs onnx")

from torch import nn  # noqa: E402

from finercam_rt.export.capture import Captured, capture  # noqa: E402
from finercam_rt.export.cut import cut  # noqa: E402
from finercam_rt.export.fold import BATCH_NORM, fold_batch_norms  # noqa: E402


def _randomise(model: Any) -> Any:
    """Statistics far from 0 and 1, in float64."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 3)
            if module.affine:
                nn.init.uniform_(module.weight, 0.3, 2)
                nn.init.normal_(module.bias)
    return model.double().eval()


def _count(graph_module: Any) -> Counter[Any]:
    return Counter(node.target for node in graph_module.graph.nodes if node.op == "call_function")


def _folded(model: Any, layer: str, size: int = 32) -> tuple[Captured, tuple[str, ...], Any]:
    """The folded graph, whose logits equal the model's; trunk and tail of its cut compute them too."""
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    captured, report = fold_batch_norms(capture(model, [layer], images))
    with torch.no_grad():
        expected = model(images)
        split = cut(captured)
        (halves,) = split.tail(*split.trunk(images))
        got = captured.graph_module(images)
    got = got[0] if isinstance(got, (tuple, list)) else got
    bound = 1e-10 * float(expected.abs().max())
    assert torch.allclose(got, expected, rtol=0, atol=bound)
    assert torch.allclose(halves, expected, rtol=0, atol=bound)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return captured, report, split


class Toy(nn.Module):
    """Named parts that `forward` of a subclass puts together: images (N,3,32,32) -> (N,5)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.first, self.second = nn.BatchNorm2d(8), nn.BatchNorm2d(8, eps=0.1)
        self.tap = nn.Identity()
        self.head = nn.Linear(8, 5)


class Kinds(Toy):
    """Grouped, depthwise, "same" padding, 1-D, without affine parameters, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(8, 12, 3, groups=4, bias=False),
            nn.BatchNorm2d(12),
            nn.SiLU(),
            nn.Conv2d(12, 12, 5, groups=12, padding="same", dilation=2),
            nn.BatchNorm2d(12, affine=False),
            nn.SiLU(),
            nn.Flatten(2),
            nn.Conv1d(12, 6, 1),
            nn.BatchNorm1d(6),
        )
        self.wide, self.last = nn.Linear(6, 9, bias=False), nn.BatchNorm1d(9)
        self.head = nn.Linear(9, 5)

    def forward(self, x: Any) -> Any:
        x = self.features(self.tap(self.first(self.stem(x))))
        return self.head(self.last(self.wide(x.tanh().mean(2))).relu())


class SharedWeight(Toy):
    """One convolution, run twice, with two batch norms and once without any."""

    def forward(self, x: Any) -> Any:
        x = self.first(self.conv(self.stem(x))).relu()
        x = self.tap(self.second(self.conv(x))).relu()
        return self.head(self.conv(x).mean((2, 3)))


class ReadTwice(Toy):
    """The convolution's output goes around the batch norm as well."""

    def forward(self, x: Any) -> Any:
        y = self.conv(self.stem(x))
        return self.head(self.tap((self.first(y) + y).relu()).mean((2, 3)))


class BeforeConvolution(Toy):
    """A pre-activation network, and a batch norm of a batch norm."""

    def forward(self, x: Any) -> Any:
        x = self.conv(self.first(self.stem(x).relu()).relu())
        return self.head(self.tap(self.second(self.first(x)).relu()).mean((2, 3)))


class TokensBehindLinear(Toy):
    """Behind a linear layer of (N,C,L) a batch norm scales the rows, not the layer's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.rows = nn.Linear(256, 8), nn.BatchNorm1d(8)

    def forward(self, x: Any) -> Any:
        return self.head(self.rows(self.mix(self.tap(self.stem(x)).flatten(2))).relu().mean(2))


@pytest.mark.parametrize(
    ("toy", "folded", "norms"),
    [
        (Kinds, 5, 5),
        (SharedWeight, 2, 2),
        (ReadTwice, 0, 1),
        (BeforeConvolution, 1, 3),
        (TokensBehindLinear, 0, 1),
    ],
)
def test_what_can_be_folded_is_and_the_rest_stays(toy: Any, folded: int, norms: int) -> None:
    torch.manual_seed(0)
    captured, report, _ = _folded(_randomise(toy()), "tap")
    assert report == (f"batch norm: folded {folded} of {norms}",)
    assert _count(captured.graph_module)[BATCH_NORM] == norms - folded


@pytest.mark.parametrize(
    ("name", "layer", "folded", "norms", "tail_norms"),
    [
        ("resnet18", "layer3", 20, 20, 0),
        ("resnet18", "layer4.1.conv2", 19, 20, 1),  # the target layer stands between the two
        ("resnet18", "layer4.1.bn1", 20, 20, 0),
        ("mobilenetv3_small_050", "blocks.4", 34, 34, 0),
        ("densenet", "features.denseblock2", 5, 11, 1),  # norms that follow a concatenation stay
    ],
)
def test_networks_keep_their_logits(name: str, layer: str, folded: int, norms: int, tail_norms: int) -> None:
    torch.manual_seed(0)
    if name == "densenet":
        model = timm.models.densenet.DenseNet(growth_rate=8, block_config=(2, 2), num_classes=10)
    else:
        model = timm.create_model(name, num_classes=10)
    captured, report, split = _folded(_randomise(model), layer, size=64)
    assert report == (f"batch norm: folded {folded} of {norms}",)
    assert _count(captured.graph_module)[BATCH_NORM] == norms - folded
    assert _count(split.tail)[BATCH_NORM] == tail_norms


def test_a_model_without_batch_norms_is_left_as_it_is() -> None:
    class Plain(Toy):
        def forward(self, x: Any) -> Any:
            return self.head(self.tap(self.conv(self.stem(x))).mean((2, 3)))

    model = Plain().double().eval()
    captured = capture(model, ["tap"], torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert fold_batch_norms(captured) == (captured, ())


def test_the_file_holds_the_folded_weights_alone(tmp_path: Any) -> None:
    """No batch norm, none of its statistics and no unfolded weight; float32 weights are rounded once."""
    import onnx

    from finercam_rt.export import export_model
    from finercam_rt.manifest import InputSpec

    torch.manual_seed(0)
    model = _randomise(SharedWeight()).float()
    path = tmp_path / "engine.onnx"
    spec = InputSpec((32, 32), (0.0,) * 3, (1.0,) * 3)  # type: ignore[arg-type]
    manifest = export_model(model, path, target_layer="tap", input=spec)
    assert manifest.passes[0] == "batch norm: folded 2 of 2"
    graph = onnx.load(path).graph
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    kernels = [onnx.numpy_helper.to_array(v) for v in graph.initializer if list(v.dims) == [8, 8, 3, 3]]
    weight = model.conv.weight.detach().double()
    expected = [weight]
    for norm in (model.first, model.second):
        scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        expected.append(weight * scale[:, None, None, None])
    assert len(kernels) == 3  # one is read without a batch norm
    for value in expected:
        rounded = value.float().numpy()
        assert any((abs(kernel - rounded) <= 1.2e-7 * abs(rounded)).all() for kernel in kernels)
