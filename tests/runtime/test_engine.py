"""A call of the engine against the closed form of the toy model, every argument it must refuse, its runtimes."""

from __future__ import annotations

import sys
import threading
import types

import numpy as np
import pytest

from finercam_rt import BackendError, Engine, EngineError, InputError, _core, ops

from .conftest import batch, photographs

pytestmark = pytest.mark.usefixtures("backend_name")


def check(toy, images, outputs, target, references, alpha):
    """Outputs of `images` against the oracle; target and references are lists as the graph reports them."""
    assert np.abs(outputs.logits - toy.logits(images)).max() < 1e-4
    assert outputs.target.tolist() == target
    assert outputs.references.tolist() == references
    for i in range(len(images)):
        used = [r for r in references[i] if r >= 0]
        expected = toy.raw_map(images[i], target[i], used, alpha[i])
        assert np.linalg.norm(outputs.saliency_map[i] - expected) <= 1e-4 * max(np.linalg.norm(expected), 1e-3)


@pytest.mark.parametrize("objective", ["weighted", "mean"])
@pytest.mark.parametrize("count", [1, 5])
def test_automatic(make_toy, objective, count):
    toy = make_toy(objective=objective)
    images = batch(toy, count)
    outputs = Engine(toy.path)(images)
    logits = toy.logits(images)
    target = logits.argmax(axis=1).tolist()
    references = [toy.nearest(y, c) for y, c in zip(logits, target, strict=True)]
    default_alpha = {"weighted": 1.0, "mean": 0.6}[objective]
    check(toy, images, outputs, target, references, [default_alpha] * count)
    assert np.linalg.norm(outputs.saliency_map) > 0.1, "the comparison is not vacuous"
    assert outputs.alpha.tolist() == pytest.approx([default_alpha] * count)
    assert outputs.status.tolist() == ops.status(outputs.saliency_map).tolist()


@pytest.mark.parametrize("alpha", [0, 0.6, 1, 2.5])
def test_pinned(toy, alpha):
    images = batch(toy, 3)
    outputs = Engine(toy.path)(images, target=["magpie", 3, 6], references=[["kite", 1], [], [0]], alpha=alpha)
    check(toy, images, outputs, [0, 3, 6], [[6, 1, -2], [-2, -2, -2], [0, -2, -2]], [alpha] * 3)


def test_alpha_for_each_image(toy):
    images = batch(toy, 2)
    outputs = Engine(toy.path)(images, target=0, references=[1, 2], alpha=[0.0, 2.5])
    check(toy, images, outputs, [0, 0], [[1, 2, -2]] * 2, [0.0, 2.5])


def test_outputs_are_the_callers_own(toy):
    engine = Engine(toy.path)
    first = engine(batch(toy, 2))
    kept = [np.array(field) for field in first]
    engine(batch(toy, 2, scale=3.0))
    for field, copy in zip(first, kept, strict=True):
        assert np.array_equal(field, copy)


def test_not_contiguous(toy):
    engine = Engine(toy.path)
    images = batch(toy, 4)
    strided = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not strided.flags.c_contiguous
    assert np.array_equal(engine(strided).saliency_map, engine(images).saliency_map)
    assert np.array_equal(engine(images[::2]).logits, engine(images).logits[::2])


def test_read_only_batch(toy):
    images = batch(toy, 1)
    images.flags.writeable = False
    assert np.isfinite(Engine(toy.path)(images).logits).all()


@pytest.mark.parametrize("clip", [None, 4.0])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_that_is_not_finite_is_reported(make_toy, clip, value):
    """Also where the model hides it (here by clipping, elsewhere by a ReLU), and whatever the references are."""
    toy = make_toy(clip=clip)
    images = batch(toy, 3)
    images[1, 2, 5, 7] = value
    outputs = Engine(toy.path)(images, references=[])
    assert outputs.status[1] == ops.Status.NON_FINITE
    assert (outputs.status[[0, 2]] != ops.Status.NON_FINITE).all()
    if clip and np.isinf(value):
        assert np.isfinite(outputs.logits).all(), "hidden from the outputs"
    alone = Engine(toy.path)(images[1:2], references=[0, 1, 2])
    assert alone.status.tolist() == [ops.Status.NON_FINITE]


def test_logits_that_overflow_are_reported(toy):
    """The map of another class may be finite all the same, and draw something."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(toy.path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
    values = onnx.numpy_helper.to_array(bias).copy()
    values[4] = np.inf
    bias.CopyFrom(onnx.numpy_helper.from_array(values, "bias"))
    onnx.save(model, toy.path)
    explanation = Engine(toy.path).explain(photographs(2), target=0, references=[], alpha=0)
    assert np.isfinite(explanation.saliency_map).all()
    assert explanation.status == ("non_finite", "non_finite")


def test_large_values_are_finite(toy):
    images = batch(toy, 1)
    images[0, 0] = 1e30
    outputs = Engine(toy.path)(images, references=[])
    assert np.isfinite(outputs.logits).all()
    assert outputs.status.tolist() != [ops.Status.NON_FINITE]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x[0], "expected (N,3,32,48)"),
        (lambda x: x[:, :2], "expected (N,3,32,48)"),
        (lambda x: x.transpose(0, 1, 3, 2), "expected (N,3,32,48)"),
        (lambda x: x.transpose(0, 2, 3, 1), "expected (N,3,32,48)"),
        (lambda x: x.astype(np.float64), "expected float32"),
        (lambda x: x.astype(np.float16), "expected float32"),
        (lambda x: (x * 9).astype(np.uint8), "expected float32"),
        (lambda x: x[:0], "empty"),
        (lambda x: x.tolist(), "list"),
        (lambda x: "photo.jpg", "str"),
    ],
)
def test_wrong_batches(toy, change, says):
    with pytest.raises(InputError) as caught:
        Engine(toy.path)(change(batch(toy, 2)))
    assert says in str(caught.value)


def test_a_reference_that_is_the_predicted_class(toy):
    engine = Engine(toy.path)
    images = batch(toy, 3)
    predicted = engine(images).target
    name = engine.classes.name(int(predicted[1]))
    other = next(k for k in range(7) if k not in predicted)
    with pytest.raises(InputError, match="image 1") as caught:
        engine(images, references=[[other], [int(predicted[1])], [other]])
    assert name in str(caught.value)
    assert engine(images, target=[None, other, None], references=[[other], [int(predicted[1])], [other]])


def test_torch_in_torch_out(toy):
    torch = pytest.importorskip("torch")
    images = batch(toy, 2)
    engine = Engine(toy.path)
    for tensor in (torch.from_numpy(images), torch.from_numpy(images).to(memory_format=torch.channels_last)):
        outputs = engine(tensor, references=[])
        assert all(isinstance(field, torch.Tensor) for field in outputs[:6])
        assert np.array_equal(outputs.saliency_map.numpy(), engine(images, references=[]).saliency_map)
        assert outputs.target.dtype == torch.int64
    with pytest.raises(InputError, match="DLPack"):
        engine(torch.from_numpy(images).requires_grad_())
    with pytest.raises(InputError, match=r"DLPack|float32"):
        engine(torch.from_numpy(images).bfloat16())


def test_a_subclass_of_a_tensor_is_a_tensor(toy):
    """As torchvision's tv_tensors are, of a package that makes no arrays itself."""
    torch = pytest.importorskip("torch")
    images, engine = batch(toy, 2), Engine(toy.path)
    given = torch.from_numpy(images).as_subclass(type("Photograph", (torch.Tensor,), {"__module__": "pictures"}))
    assert isinstance(engine(given).saliency_map, torch.Tensor)
    torch.testing.assert_close(engine.logits(given), torch.from_numpy(engine.logits(images)))


def test_classes_and_references_may_be_tensors(toy):
    torch = pytest.importorskip("torch")
    images, engine = batch(toy, 2), Engine(toy.path)
    wanted = engine(images, target=[3, 4], references=np.array([[1, -2], [2, 0]]))
    given = {"target": torch.tensor([3, 4]), "references": torch.tensor([[1, -2], [2, 0]])}
    np.testing.assert_array_equal(engine(images, **given).saliency_map, wanted.saliency_map)
    one = engine(images, target=torch.tensor(3), references=torch.tensor(1))
    np.testing.assert_array_equal(one.saliency_map, engine(images, target=3, references=1).saliency_map)
    for wrong in (torch.tensor(1.5), torch.tensor([1.5, 2.5]), 1.5, np.float32(2)):
        with pytest.raises(InputError, match=r"is neither|which is neither"):
            engine(images, target=wrong)


def test_torch_tensors_that_no_protocol_describes(toy):
    """DLPack and the array protocols give the memory of a negated view, and would give every value its other sign."""
    torch = pytest.importorskip("torch")
    images, engine = torch.from_numpy(batch(toy, 2)), Engine(toy.path)
    for negated in (torch._neg_view(images), torch.complex(images, images).conj().imag):
        assert negated.is_neg()
        with pytest.raises(InputError, match=r"resolve_neg\(\)"):
            engine(negated)
        found, wanted = engine(negated.resolve_neg(), references=[]), engine(-images, references=[])
        assert np.array_equal(found.logits.numpy(), wanted.logits.numpy())
    with pytest.raises(InputError):
        engine(images.to("meta"))


def test_any_framework_by_dlpack(toy, monkeypatch):
    """A module with from_dlpack gets its own arrays back; one without gets NumPy's. Neither is imported."""

    class Tensor:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    Tensor.__module__ = "framework.tensors"
    images = batch(toy, 2)
    engine = Engine(toy.path)
    assert isinstance(engine(Tensor(images), references=[]).logits, np.ndarray)
    framework = types.ModuleType("framework")
    framework.from_dlpack = lambda array: Tensor(np.from_dlpack(array))
    monkeypatch.setitem(sys.modules, "framework", framework)
    outputs = engine(Tensor(images), references=[])
    assert all(isinstance(field, Tensor) for field in outputs[:6])
    assert np.array_equal(outputs.logits.array, engine(images, references=[]).logits)


def test_another_device_is_refused(toy):
    class Elsewhere:
        def __dlpack__(self, **_):
            raise AssertionError("must not be exported")

        def __dlpack_device__(self):
            return 2, 0

    with pytest.raises(InputError, match=r"another device|cannot be read on its device"):
        Engine(toy.path)(Elsewhere())


def test_many_threads_share_one_engine(toy):
    engine = Engine(toy.path, threads=1)
    inputs = [batch(toy, 1 + k % 3, scale=1 + k) for k in range(8)]
    expected = [engine(x, references=[]) for x in inputs]
    wrong: list[int] = []
    start = threading.Barrier(8)

    def work(k: int) -> None:
        start.wait()
        for _ in range(100):
            outputs = engine(inputs[k], references=[])
            if not all(np.array_equal(a, b) for a, b in zip(outputs, expected[k], strict=True)):
                wrong.append(k)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_closed_engine(toy):
    with Engine(toy.path) as engine:
        engine(batch(toy, 1))
    with pytest.raises(BackendError, match="closed"):
        engine(batch(toy, 1))
    engine.close()


def test_backends_and_devices(toy, backend_name, on_gpu):
    if on_gpu:
        pytest.skip("those of GPUs are in tests/tensorrt and test_onnxruntime_gpu.py")
    engine = Engine(toy.path, backend=backend_name, device="cpu", threads=1, spinning=True)
    assert (engine.backend, engine.device, engine.compute) == (backend_name, "cpu", "f32")
    assert "toy" in repr(engine)
    with pytest.raises(BackendError, match="no backend 'tensorflow'"):
        Engine(toy.path, backend="tensorflow")
    with pytest.raises(BackendError, match="no device 'tpu'"):
        Engine(toy.path, device="tpu")
    if not _core.cuda_status()[0]:
        with pytest.raises(BackendError, match="there is no CUDA device here"):
            Engine(toy.path, device="cuda")
    with pytest.raises(BackendError, match="threads is 0"):
        Engine(toy.path, threads=0)


def test_without_the_runtime(toy, backend_name, on_gpu, monkeypatch):
    if on_gpu:
        pytest.skip("those of GPUs are in tests/tensorrt and test_onnxruntime_gpu.py")
    monkeypatch.setitem(sys.modules, backend_name, None)
    extra = {"onnxruntime": r"finercam-rt\[cpu\]", "openvino": r"finercam-rt\[openvino\]"}[backend_name]
    with pytest.raises(BackendError, match=extra):
        Engine(toy.path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"contrasts": 2}, "its input target is int64"),
        ({"references": 2}, "references"),
        ({"num_classes": 8, "classes": None}, "logits"),
    ],
)
def test_a_graph_that_is_not_what_its_manifest_says(make_toy, changes, says):
    with pytest.raises(EngineError) as caught:
        Engine(make_toy(manifest=changes).path)
    assert says in str(caught.value)


def test_a_graph_with_other_outputs(toy):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(toy.path)
    del model.graph.output[1]
    onnx.save(model, toy.path)
    with pytest.raises(EngineError, match="has the outputs logits, target_class"):
        Engine(toy.path)


def test_a_graph_that_onnxruntime_cannot_load(toy):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(toy.path)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, toy.path)
    with pytest.raises(EngineError, match=r"cannot load it|does not take it") as caught:
        Engine(toy.path)
    assert "\n" not in str(caught.value)
