"""What the exporter to ONNX takes apart first, and what it need not."""

from __future__ import annotations

from pathlib import Path

import onnx_ir
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional
from torch.onnx._internal.exporter._registration import ONNXRegistry

from finercam_rt.errors import ExportError
from finercam_rt.export import export_model
from finercam_rt.export.emit import to_onnx
from finercam_rt.export.registry import one_registry
from finercam_rt.export.simplify import RULES
from finercam_rt.manifest import InputSpec


class _Norm(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (functional.rms_norm(x, [4]) * 2,)


class _InPlace(nn.Module):
    """Its output is written through a view of it."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = x + 1
        y[:, :2].add_(1)
        y.mul_(3)
        return (y,)


class _Pure(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (functional.softplus(x).sum(-1, keepdim=True).squeeze(-1),)


class _Idle(nn.Module):
    """Most of it changes nothing."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return ((x * 1 + 0).transpose(0, 1).transpose(0, 1).exp(),)


class _Cosine(nn.Module):
    """What traces write in place, or with numbers of elements: a norm's derivative, and shifted windows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding="same")
        self.classes = nn.Parameter(torch.randn(5, 8))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv(functional.avg_pool2d(images, 4)).relu().roll((1, 2), (2, 3))
        x = x.reshape(-1, 8, 3, 2, 2, 4).transpose(3, 4).reshape(-1, 48)
        x = (x * x.sigmoid()).reshape(-1, 8, 6, 8).mean((2, 3))
        return functional.linear(functional.normalize(x), functional.normalize(self.classes))


@pytest.mark.parametrize(("module", "taken_apart"), [(_Norm(), True), (_InPlace(), True), (_Pure(), False)])
def test_what_is_taken_apart(
    module: nn.Module, taken_apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _taken_apart(monkeypatch)
    x = torch.linspace(-2, 2, 12).reshape(3, 4)
    (wanted,) = module(x)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: Dim("batch", min=1, max=64)},))
    model = to_onnx(program, ["x"], ["y"], 20, {"x": "batch"})
    assert bool(calls) == taken_apart
    onnx_ir.save(model, tmp_path / "x.onnx")
    (found,) = onnxruntime.InferenceSession(tmp_path / "x.onnx").run(None, {"x": x.numpy()})
    assert found == pytest.approx(wanted.numpy(), abs=1e-5)


def _taken_apart(monkeypatch: pytest.MonkeyPatch) -> list[ExportedProgram]:
    calls = []
    run_decompositions = ExportedProgram.run_decompositions
    monkeypatch.setattr(
        ExportedProgram,
        "run_decompositions",
        lambda self, *given, **named: calls.append(self) or run_decompositions(self, *given, **named),
    )
    return calls


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_a_derivative_is_not_taken_apart(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _taken_apart(monkeypatch)
    torch.manual_seed(0)
    spec = InputSpec((24, 32), (0.5,) * 3, (0.5,) * 3)
    export_model(_Cosine().eval(), tmp_path / "x.onnx", input=spec, target_layer="conv", method=method)
    assert not calls


def test_an_axis_that_was_fixed_is_refused() -> None:
    program = torch.export.export(_Pure(), (torch.zeros(3, 4),))
    with pytest.raises(
        ExportError, match="holds for an axis `batch` of 3 alone, as where a model mixes the images of a batch"
    ):
        to_onnx(program, ["x"], ["y"], 20, {"x": "batch"})


def test_what_changes_nothing_is_left_out() -> None:
    x = torch.zeros(3, 4)
    program = torch.export.export(_Idle(), (x,), dynamic_shapes=({0: Dim("batch", min=1, max=64)},))
    assert {node.target.name() for node in program.graph.nodes if node.op == "call_function"} >= {"aten::mul.Tensor"}
    model = to_onnx(program, ["x"], ["y"], 20, {"x": "batch"})
    assert [node.op_type for node in model.graph] == ["Exp"]


def test_a_rule_is_tried_where_it_can_match() -> None:
    """A rule under another type than that of the node which its pattern ends in would be tried in vain."""
    for op_type, rules in RULES.items():
        for rule in rules:
            (output,) = rule._target_pattern.outputs
            assert output.producer().op.matches(op_type), (op_type, rule.name)


def test_the_exporters_table_is_made_once_and_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is added to a copy is in no other, and the exporter has its own way back afterwards."""
    before = ONNXRegistry.__dict__["from_torchlib"]
    wanted = ONNXRegistry.from_torchlib()
    with one_registry():
        first = ONNXRegistry.from_torchlib()
        with monkeypatch.context() as patch:
            patch.setattr(ONNXRegistry, "_register", lambda *_: pytest.fail("made twice"))
            second = ONNXRegistry.from_torchlib()
        added = first.functions["aten::relu"].pop()
        assert second.functions["aten::relu"] == [*first.functions["aten::relu"], added]
        assert list(second.functions) == list(wanted.functions)
        assert second.opset_version == wanted.opset_version
        assert ONNXRegistry.from_torchlib(opset_version=20).opset_version == 20
    assert ONNXRegistry.__dict__["from_torchlib"] is before
