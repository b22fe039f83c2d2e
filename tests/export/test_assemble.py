"""Graphs put together without another trace: what comes out as ONNX is what they compute one behind the other."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from finercam_rt.export.assemble import Assembly
from finercam_rt.export.emit import to_onnx
from finercam_rt.export.rewriter import fake_mode

WIDTH = 4


def _traced(function: object, *inputs: torch.Tensor) -> torch.fx.GraphModule:
    return make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*inputs)


@pytest.fixture
def weight() -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1, 1, WIDTH * WIDTH).reshape(WIDTH, WIDTH), requires_grad=False)


@pytest.mark.parametrize("in_place", [False, True])
def test_two_graphs_are_one(weight: nn.Parameter, in_place: bool, tmp_path: Path) -> None:
    """A number of rows goes from one to the other, a weight is in both, and something may be written in place."""

    def first(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        y = x @ weight
        return y, (y.mul_(2) if in_place else y * 2).relu(), x.shape[0]

    def second(values: tuple[torch.Tensor, torch.Tensor], rows: int, shift: torch.Tensor) -> list[torch.Tensor]:
        joined = torch.cat([*values, values[0] @ weight], 1).reshape(rows, 3, WIDTH)
        return [joined.sum(1) + shift[:, None], joined.square()]

    x, shift = torch.randn(2, WIDTH), torch.randn(2)
    left = _traced(first, x)
    mode = fake_mode(left.graph)
    produced = [node.meta["val"] for node in left.graph.output_node().args[0]]
    with mode:
        fake_shift = torch.empty(produced[0].shape[0])
    right = make_fx(second, _allow_non_fake_inputs=True, tracing_mode="symbolic")(produced[:2], produced[2], fake_shift)

    assembly = Assembly(mode)
    (given,) = (node for node in left.graph.nodes if node.op == "placeholder")
    values = assembly.add(left, [assembly.input("x", given.meta["val"])])
    outputs = assembly.add(right, [*values, assembly.input("shift", fake_shift)])
    program = assembly.program(outputs)
    assert len(program.state_dict) == 1, "a weight that both graphs read is there once"

    model = to_onnx(program, ["x", "shift"], ["sum", "square"], 20, {"x": "batch"})
    path = tmp_path / "x.onnx"
    onnx_ir.save(model, path)
    graph = onnx.load(path).graph
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    x, shift = torch.randn(5, WIDTH), torch.randn(5)
    one, other, rows = first(x)
    wanted = second((one, other), rows, shift)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for found, expected in zip(session.run(None, {"x": x.numpy(), "shift": shift.numpy()}), wanted, strict=True):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_what_changes_nothing_goes() -> None:
    """But not what only leaves the shape as it is, nor what is an output."""

    def function(x: torch.Tensor) -> list[torch.Tensor]:
        y = x.relu()[:, None].sum((1,), keepdim=True).mean(1, keepdim=True)[:, :1].expand(-1, 1, -1)
        y = functional.pad(y, (0, 0)).reshape(-1, 1, WIDTH)
        moved = functional.pad(y, (1, -1)) + y.double().sum(1, keepdim=True, dtype=torch.float32)
        return [moved.neg(), y.reshape(-1, 1, WIDTH), y.view(-1, 1, WIDTH)]

    x = torch.randn(2, WIDTH)
    traced = _traced(function, x)
    assembly = Assembly(fake_mode(traced.graph))
    (given,) = (node for node in traced.graph.nodes if node.op == "placeholder")
    program = assembly.program(assembly.add(traced, [assembly.input("x", given.meta["val"])]))
    model = to_onnx(program, ["x"], ["moved", "same", "again"], 20, {"x": "batch"})
    operations = Counter(node.op_type for node in model.graph)
    assert operations["Pad"] == 1
    assert operations["ReduceSum"] + operations["ReduceMean"] == 1, "the one that takes another type"
    assert not operations.keys() & {"Expand", "Slice"}
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(model).SerializeToString())
    x = torch.randn(5, WIDTH)
    for found, expected in zip(session.run(None, {"x": x.numpy()}), function(x), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)
