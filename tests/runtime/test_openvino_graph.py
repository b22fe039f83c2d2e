"""What is done to a graph before OpenVINO compiles it: a copy of square weights, and the cut behind the logits."""

from __future__ import annotations

import numpy as np
import pytest

from finercam_rt import BackendError, Engine, EngineError
from finercam_rt.backends import openvino as module
from finercam_rt.backends.openvino_cut import cut_behind_logits
from finercam_rt.backends.openvino_weights import unshare_square_weights

ov = pytest.importorskip("openvino", reason="openvino is not installed")
op = ov.opset13
RNG = np.random.default_rng(3)
F32 = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
CORE = ov.Core()


def infer(model, options=F32, **feeds):
    request = CORE.compile_model(model, "CPU", options).create_infer_request()
    request.infer(feeds)
    return [request.get_output_tensor(i).data.copy() for i in range(len(model.outputs))]


def direct(weight):
    shared = op.constant(weight)
    return shared, shared


def converted(weight):
    """Half precision in the file; OpenVINO merges the two conversions into one."""
    shared = op.constant(weight.astype(np.float16))
    return op.convert(shared, "f32"), op.convert(shared, "f32")


def reshaped(weight):
    shared = op.constant(weight.ravel())
    return tuple(op.reshape(shared, op.constant(np.array(weight.shape)), False) for _ in range(2))


def sliced(weight):
    shared = op.constant(np.concatenate([weight, 2 * weight]))
    zero, one, rows = (np.array([n]) for n in (0, 1, len(weight)))
    return tuple(op.slice(shared, zero, rows, one, zero) for _ in range(2))


def transposed(weight):
    """As the export writes it: one product reads the weight, the other one its transpose."""
    shared = op.constant(weight)
    return shared, op.transpose(op.transpose(shared, np.array([1, 0])), np.array([1, 0]))


@pytest.mark.parametrize("size", [32, 192])
@pytest.mark.parametrize("batch", [-1, 4])
@pytest.mark.parametrize("form", [direct, converted, reshaped, sliced, transposed])
def test_a_square_weight_read_both_ways_gives_both_products(form, batch, size):
    weight = (RNG.standard_normal((size, size)) / np.sqrt(size)).astype(np.float16).astype(np.float32)
    x, g = RNG.standard_normal((2, 4, size)).astype(np.float32)
    forward, backward = form(weight)
    inputs = [op.parameter([batch, size], np.float32, name=name) for name in "xg"]
    products = op.matmul(inputs[0], forward, False, True), op.matmul(inputs[1], backward, False, False)
    model = ov.Model([op.result(op.tanh(product)) for product in products], inputs)
    assert unshare_square_weights(ov, model) == 1
    got = infer(model, x=x, g=g)
    assert np.abs(got[0] - np.tanh(x @ weight.T)).max() < 1e-5
    assert np.abs(got[1] - np.tanh(g @ weight)).max() < 1e-5
    assert unshare_square_weights(ov, model) == 0, "nothing is left to copy"


@pytest.mark.parametrize("batch", [1, 3])
def test_a_square_weight_repeated_for_each_image_is_copied_once_the_batch_is_known(batch):
    size = 192
    weight = (RNG.standard_normal((size, size)) / np.sqrt(size)).astype(np.float32)
    x, g = RNG.standard_normal((2, batch, 1, size)).astype(np.float32)
    inputs = [op.parameter([-1, 1, size], np.float32, name=name) for name in "xg"]
    images = op.gather(op.shape_of(inputs[0]), op.constant([0]), op.constant(0))
    repeated = op.broadcast(op.constant(weight), op.concat([images, op.constant([size, size])], 0))
    backward = op.matmul(inputs[1], op.transpose(repeated, np.array([0, 2, 1])), False, False)
    products = op.matmul(inputs[0], repeated, False, False), backward
    model = ov.Model([op.result(op.tanh(product)) for product in products], inputs)
    assert unshare_square_weights(ov, model) == 0
    model.reshape({name: [batch, 1, size] for name in "xg"})
    assert unshare_square_weights(ov, model) == 1
    got = infer(model, x=x, g=g)
    assert np.abs(got[0] - np.tanh(x @ weight)).max() < 1e-5
    assert np.abs(got[1] - np.tanh(g @ weight.T)).max() < 1e-5


def test_only_square_weights_that_are_shared_are_copied():
    x = op.parameter([-1, 8], np.float32, name="x")
    square, other, wide = (
        op.constant(RNG.standard_normal(shape).astype(np.float32)) for shape in ((8, 8), (8, 8), (8, 24))
    )
    y = op.matmul(op.matmul(x, square, False, False), other, False, True)
    y = op.matmul(op.matmul(y, wide, False, False), wide, False, True)
    y = op.matmul(y, op.transpose(x, np.array([1, 0])), False, False)  # no weight: it depends on an input
    model = ov.Model([op.result(y)], [x])
    assert unshare_square_weights(ov, model) == 0


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_and_its_transpose_with_one_weight(kernel, groups):
    """As in the tail behind a layer of a ResNet, and its gradient: channels in and out are as many."""
    size, pads = 64 // groups, [kernel // 2] * 2
    weight = (RNG.standard_normal((groups, size, size, kernel, kernel)) / 8).astype(np.float32)
    x, g = RNG.standard_normal((2, 1, 64, 2, 2)).astype(np.float32)

    def model(shared):
        inputs = [op.parameter([1, 64, 2, 2], np.float32, name=name) for name in "xg"]
        forward, backward = (op.constant(weight if groups > 1 else weight[0]) for _ in range(2))
        backward = forward if shared else backward
        kinds = (
            (op.convolution, op.convolution_backprop_data)
            if groups == 1
            else (op.group_convolution, op.group_convolution_backprop_data)
        )
        outputs = [
            kinds[0](inputs[0], forward, [1, 1], pads, pads, [1, 1]),
            kinds[1](inputs[1], backward, [1, 1], pads_begin=pads, pads_end=pads, dilations=[1, 1]),
        ]
        return ov.Model([op.result(value) for value in outputs], inputs)

    shared = model(True)
    assert unshare_square_weights(ov, shared) == 1
    for got, want in zip(infer(shared, x=x, g=g), infer(model(False), x=x, g=g), strict=True):
        assert np.abs(got - want).max() < 1e-5


def whole_and_parts(toy):
    whole = CORE.read_model(toy.path)
    return whole, cut_behind_logits(ov, whole.clone())


def test_the_cut_leaves_the_prediction_on_one_side(toy):
    _, (prediction, explanation) = whole_and_parts(toy)
    assert [value.get_any_name() for value in prediction.inputs] == ["images"]
    assert "logits" in prediction.outputs[0].get_names()
    names = {name for value in explanation.inputs for name in value.get_names()}
    assert {"target", "references", "alpha"} <= names
    assert "images" not in names
    assert {name for value in explanation.outputs for name in value.get_names()} >= {
        "saliency_map",
        "target_class",
        "reference_classes",
    }
    products = [node.get_type_name() for node in explanation.get_ops()]
    assert "Convolution" not in products
    assert "MatMul" not in products, "nothing of the prediction is computed twice"


def test_the_two_parts_together_equal_the_whole(toy):
    whole, (prediction, explanation) = whole_and_parts(toy)
    feeds = {
        "images": RNG.standard_normal((2, 3, *toy.size)).astype(np.float32),
        "target": np.array([-1, 2]),
        "references": np.array([[-1, -1, -1], [0, 5, -2]]),
        "alpha": np.array([1, 0.5], np.float32),
    }
    expected = dict(zip([v.get_any_name() for v in whole.outputs], infer(whole, **feeds), strict=True))
    logits, *handed_on = infer(prediction, images=feeds["images"])
    assert np.abs(logits - expected["logits"]).max() < 1e-5
    request = CORE.compile_model(explanation, "CPU", F32).create_infer_request()
    for position, value in enumerate(handed_on):
        request.set_input_tensor(position, ov.Tensor(value))
    for name in ("target", "references", "alpha"):
        request.set_tensor(name, ov.Tensor(feeds[name]))
    request.infer()
    for name in ("saliency_map", "target_class", "reference_classes"):
        assert np.abs(request.get_tensor(name).data - expected[name]).max() < 1e-5


def needs_bf16():
    if "BF16" not in CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor does not compute in bf16")


@pytest.mark.parametrize("count", [1, 3])
def test_bf16_rounds_the_prediction_alone(toy, count):
    """Rounding to f32 is 1e-7, to bf16 4e-3."""
    needs_bf16()
    images = RNG.standard_normal((count, 3, *toy.size)).astype(np.float32)
    chosen = {"target": 0, "references": [1, 2, 3], "alpha": 0.0}
    with Engine(toy.path, backend="openvino", threads=1) as engine:
        exact = engine(images, **chosen)
    with Engine(toy.path, backend="openvino", compute="bf16", threads=1) as engine:
        assert (engine.backend, engine.compute) == ("openvino", "bf16")
        rounded = engine(images, **chosen)
        again = engine(images, **chosen)
        graphs = engine._backend._graphs(count)
        hints = [graph.get_property("INFERENCE_PRECISION_HINT") for graph in graphs]
        assert hints == [ov.Type.bf16, ov.Type.f32], "the prediction, the explanation"
    error = np.linalg.norm(rounded.logits - exact.logits) / np.linalg.norm(exact.logits)
    assert 1e-4 < error < 3e-2
    difference = np.linalg.norm(rounded.saliency_map - exact.saliency_map) / np.linalg.norm(exact.saliency_map)
    assert 1e-5 < difference < 3e-2
    assert all(np.array_equal(a, b) for a, b in zip(rounded, again, strict=True)), "repeated runs agree"


def test_a_processor_without_bf16_is_told(toy, monkeypatch):
    monkeypatch.setattr(module, "_BF16", "no such capability")
    with pytest.raises(BackendError, match="does not compute in bf16; use compute='f32'"):
        Engine(toy.path, backend="openvino", compute="bf16")


def test_where_a_dynamic_graph_fails_each_batch_size_has_its_own(toy, monkeypatch):
    compile_for = module.OpenVinoBackend._compile
    compiled: list[int | None] = []

    def refuse_dynamic(self, batch, logits_alone):
        compiled.append(batch)
        if batch is None:
            raise RuntimeError("Cannot get length of dynamic dimension")
        return compile_for(self, batch, logits_alone)

    monkeypatch.setattr(module.OpenVinoBackend, "_compile", refuse_dynamic)
    with Engine(toy.path, backend="openvino", threads=1) as engine:
        for count in (1, 3, 2, 3, 4, 5, 6):
            images = RNG.standard_normal((count, 3, *toy.size)).astype(np.float32)
            assert np.abs(engine(images).logits - toy.logits(images)).max() < 1e-4
        assert compiled == [1, None, 3, 2, 4, 5, 6]
        assert len(engine._backend._compiled) == 4, "the oldest went"


def test_a_graph_that_cannot_be_compiled_is_one_sentence(toy, monkeypatch):
    def refuse(self, batch, logits_alone):
        raise RuntimeError("Exception from src/inference:1:\nCheck failed at src/core:2:\n  no such kernel.\n")

    monkeypatch.setattr(module.OpenVinoBackend, "_compile", refuse)
    with pytest.raises(EngineError) as caught:
        Engine(toy.path, backend="openvino")
    assert str(caught.value).endswith(
        "OpenVINO cannot load it (no such kernel); use backend='onnxruntime', or export it again."
    )
