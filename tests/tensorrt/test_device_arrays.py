"""Batches that lie on the GPU: explained there, ordered with the caller's stream, given back in its framework."""

from __future__ import annotations

import contextlib
import gc
import sys
import types

import numpy as np
import pytest

from finercam_rt import Engine, InputError, device_arrays, ops, top_classes
from finercam_rt.backends.device_results import Piece, ResultLayout
from finercam_rt.contrast import Contrast
from finercam_rt.device_arrays import DeviceArray
from finercam_rt.ops import Status

from ..fakes.cuda import FakeDevice
from ..fakes.frameworks import DeviceTensor, Given, UnorderedTensor, install
from ..fakes.gpu import Gpu
from ..fakes.taps import with_taps

READER = 0x2000
"""The stream on which the framework reads what it was given."""


@pytest.fixture
def gpu(monkeypatch) -> Gpu:
    gpu = Gpu(monkeypatch)
    gpu.device.streams[READER] = type(gpu.device.streams[0])(gpu.device, READER)
    install(monkeypatch, READER)
    return gpu


def batch(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 32, 48)).astype(np.float32)


def values(outputs, device) -> dict[str, np.ndarray]:
    found = {name: field.numpy(device) for name, field in outputs._asdict().items() if isinstance(field, Given)}
    assert {"logits", "saliency_map", "target", "references", "alpha", "status"} <= set(found)
    found |= {name: field.numpy(device) for name, field in outputs.layer_maps.items()}
    return found | {f"carried_{k}": field.numpy(device) for k, field in enumerate(outputs.carried)}


def same(outputs, wanted, device) -> None:
    found = values(outputs, device)
    for name, field in wanted._asdict().items():
        if isinstance(field, np.ndarray):
            assert found[name].dtype == field.dtype, name
            np.testing.assert_allclose(found[name], field, rtol=1e-4, atol=1e-5, err_msg=name)
    for k, field in enumerate(wanted.carried):
        np.testing.assert_allclose(found[f"carried_{k}"], field, rtol=1e-5, atol=1e-6)


def test_a_negated_view_is_refused(toy, gpu):
    """Of which the protocols give the memory, with the other sign."""
    given = DeviceTensor(gpu.device, batch(2))
    given.is_neg = lambda: True
    with pytest.raises(InputError, match=r"resolve_neg\(\)"):
        Engine(gpu.plan(toy.path))(given)
    given.is_neg = lambda: False
    same(Engine(gpu.plan(toy.path))(given), Engine(toy.path)(batch(2)), gpu.device)


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize("stream", ["default", "own", "given"])
def test_they_stay_on_the_gpu(toy, gpu, cuda_graphs, stream):
    engine, reference = Engine(gpu.plan(toy.path), cuda_graphs=cuda_graphs), Engine(toy.path)
    made_on = 0 if stream == "default" else gpu.device.stream().handle
    kept = []  # freeing them would wait
    for step in range(6):
        images = batch(2, step)
        given = DeviceTensor(gpu.device, images, 0 if stream == "given" else made_on)
        if stream == "given":  # the batch says nothing of it
            gpu.device.stream(made_on).wait(_event(gpu, 0))
        options = {"stream": made_on} if stream == "given" else {}
        asked = {} if step % 2 else {"target": step, "references": [6, 5]}
        del gpu.device.journal[:]
        found = engine(given, **asked, **options)
        kept.append((given, found))
        assert gpu.device.streams[made_on].ended < len(gpu.device.streams[made_on]._work), "nothing has waited"
        sizes = [size for what, size in gpu.device.journal if what == "copy"]
        assert (images.nbytes in sizes) == cuda_graphs, "without a graph they are read where they lie"
        same(found, reference(images, **asked), gpu.device)
    assert gpu.device.count("capture") == 0
    assert len(gpu.device.graphs) == cuda_graphs


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_arrays_that_name_no_stream_are_read_when_they_are_ready(toy, gpu, cuda_graphs):
    engine, reference = Engine(gpu.plan(toy.path), cuda_graphs=cuda_graphs), Engine(toy.path)
    made_on = gpu.device.stream().handle
    for step in range(3):
        images = batch(2, step)
        given = UnorderedTensor(gpu.device, images, made_on)
        same(engine(given), reference(images), gpu.device)
    given = UnorderedTensor(gpu.device, images, made_on)
    np.testing.assert_array_equal(device_arrays.to_host(given, "the images"), images)


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_arrays_whose_memory_goes_on_without_waiting_may_be_dropped(toy, gpu, cuda_graphs):
    """As JAX's does, once its own stream has come there: nothing holds the batch but the call."""
    engine, reference = Engine(gpu.plan(toy.path), cuda_graphs=cuda_graphs), Engine(toy.path)
    made_on = gpu.device.stream().handle
    found = [engine(UnorderedTensor(gpu.device, batch(2, step), made_on)) for step in range(4)]
    scores = engine.logits(UnorderedTensor(gpu.device, batch(2, 4), made_on))
    gpu.device.stream(made_on).synchronize()
    for step, outputs in enumerate(found):
        same(outputs, reference(batch(2, step)), gpu.device)
    np.testing.assert_allclose(scores.numpy(gpu.device), reference.logits(batch(2, 4)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("several", [1, 2, 3])
def test_arrays_of_a_framework_without_strides(make_toy, gpu, several):
    """Fewer contrasts than the graph has are a part of the memory with all."""
    toy = make_toy(contrasts=3)
    engine, reference = Engine(gpu.plan(toy.path)), Engine(toy.path)
    given = UnorderedTensor(gpu.device, batch(2), gpu.device.stream().handle)
    same(engine(given, contrasts=top_classes(several)), reference(batch(2), contrasts=top_classes(several)), gpu.device)


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_a_stream_that_is_captured_is_refused(toy, gpu, cuda_graphs):
    """The events that order runs would be part of the caller's graph, and later runs could not wait for them."""
    engine, reference = Engine(gpu.plan(toy.path), cuda_graphs=cuda_graphs), Engine(toy.path)
    stream = gpu.device.stream()
    for _ in range(3):
        same(engine(DeviceTensor(gpu.device, batch(2), stream.handle)), reference(batch(2)), gpu.device)
        given = DeviceTensor(gpu.device, batch(2), stream.handle)
        stream.synchronize()
        stream.begin_capture()
        for call in (engine, engine.logits):
            with pytest.raises(InputError, match="the stream is being captured"):
                call(given)
        stream.abandon_capture()
    np.testing.assert_allclose(engine(batch(2)).saliency_map, reference(batch(2)).saliency_map, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["graph", "gradients"])
def test_an_engine_that_is_dropped_gives_its_memory_back(toy, gpu, head):
    """At once: the garbage collector comes when it likes."""
    path = toy.path if head == "graph" else with_taps(toy, gradients=True, carried=False)
    plan = gpu.plan(path)
    gc.collect()
    gc.disable()
    try:
        engine = Engine(plan)
        for _ in range(3):
            engine(batch(2))
        assert gpu.device.taken > 0
        del engine
        assert gpu.device.taken == 0
    finally:
        gc.enable()


def test_images_that_are_not_aligned_are_copied(toy, gpu):
    """Libraries take no others."""
    engine, reference = Engine(gpu.plan(toy.path), cuda_graphs=False), Engine(toy.path)
    for offset in (0, 16, 256):
        images = batch(2, offset)
        del gpu.device.journal[:]
        found = engine(DeviceTensor(gpu.device, images, offset=offset))
        assert (("copy", images.nbytes) in gpu.device.journal) == (offset == 16)
        same(found, reference(images), gpu.device)


def _event(gpu, handle):
    event = gpu.device.event()
    gpu.device.stream(handle).record(event)
    return event


@pytest.mark.parametrize("contrasts", [1, 3])
@pytest.mark.parametrize("head", ["graph", "channel_weights", "gradients"])
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_of_every_head_and_several_contrasts(make_toy, gpu, contrasts, head, cuda_graphs):
    toy = make_toy(contrasts=contrasts)
    path = toy.path if head == "graph" else with_taps(toy, gradients=head == "gradients", carried=True)
    engine, reference = Engine(gpu.plan(path, (2, 3, 4)), cuda_graphs=cuda_graphs), Engine(path)
    for step, count in enumerate((3, 3, 1, 9, 3, 9)):  # filled up, whole, and in parts
        images = batch(count, step)
        asked = {"alpha": 0.25} if contrasts == 1 else {"contrasts": top_classes(2, alpha=0.25)}
        same(engine(DeviceTensor(gpu.device, images), **asked), reference(images, **asked), gpu.device)


@pytest.mark.parametrize("channels", [1, 5])
def test_of_other_channels(make_toy, gpu, channels):
    """Whole, filled up and in parts, the last of which has the image that is not finite."""
    toy = make_toy(channels=channels)
    engine, reference = Engine(gpu.plan(toy.path, (2, 3, 4))), Engine(toy.path)
    for count in (3, 1, 11):
        images = np.random.default_rng(count).normal(size=(count, channels, *toy.size)).astype(np.float32)
        images[-1, -1, -1, -1] = np.nan
        found, wanted = engine(DeviceTensor(gpu.device, images)), reference(images)
        same(found, wanted, gpu.device)
        assert wanted.status.tolist() == [*wanted.status[:-1], Status.NON_FINITE]


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_host_and_gpu_and_several_streams_in_turn(toy, gpu, cuda_graphs):
    """They share buffers: each must wait for the one before."""
    engine, reference = Engine(gpu.plan(toy.path), cuda_graphs=cuda_graphs), Engine(toy.path)
    streams = [0, gpu.device.stream().handle, gpu.device.stream().handle]
    kept = []
    for step in range(9):
        images = batch(2, step)
        if step % 4 == 3:
            np.testing.assert_allclose(engine(images).logits, reference(images).logits, rtol=1e-5)
        else:
            kept.append((engine(DeviceTensor(gpu.device, images, streams[step % 3])), reference(images)))
    for found, wanted in reversed(kept):
        same(found, wanted, gpu.device)


def test_many_calls_before_anything_is_done(toy, gpu):
    """More than there are staging buffers; their questions differ."""
    engine, reference = Engine(gpu.plan(toy.path)), Engine(toy.path)
    stream = gpu.device.stream().handle
    for _ in range(2):
        engine(batch(1))
    kept = [
        (engine(DeviceTensor(gpu.device, batch(1, k), stream), target=k % 7), reference(batch(1, k), target=k % 7))
        for k in range(12)
    ]
    for found, wanted in kept:
        same(found, wanted, gpu.device)


def test_a_capture_waits_for_the_run_before(toy, gpu):
    engine = Engine(gpu.plan(toy.path))
    given = [DeviceTensor(gpu.device, batch(2, step)) for step in range(2)]
    kept = [engine(one) for one in given]
    assert len(gpu.device.graphs) == 1
    for found, step in zip(kept, range(2), strict=True):
        same(found, Engine(toy.path)(batch(2, step)), gpu.device)


@pytest.mark.parametrize("closing", ["closed", "evicted"])
def test_what_is_under_way_is_finished_before_the_memory_goes(toy, gpu, closing):
    engine = Engine(gpu.plan(toy.path))
    stream = gpu.device.stream().handle
    kept = [engine(DeviceTensor(gpu.device, batch(2, step), stream)) for step in range(3)]
    if closing == "closed":
        engine.close()
        gc.collect()
    else:
        for count in range(3, 9):
            engine(batch(count))
    for step, found in enumerate(kept):
        same(found, Engine(toy.path)(batch(2, step)), gpu.device)


def test_results_that_nobody_reads(toy, gpu):
    engine = Engine(gpu.plan(toy.path))
    given = DeviceTensor(gpu.device, batch(2))
    for _ in range(4):
        engine(given)
    same(engine(given), Engine(toy.path)(batch(2)), gpu.device)


def test_the_logits_alone(make_toy, gpu):
    for toy in (make_toy(), make_toy("many.onnx", contrasts=2)):
        engine, reference = Engine(gpu.plan(toy.path)), Engine(toy.path)
        for step in range(3):
            images = batch(2, step)
            found = engine.logits(DeviceTensor(gpu.device, images)).numpy(gpu.device)
            np.testing.assert_allclose(found, reference.logits(images), rtol=1e-5, atol=1e-6)


def test_of_a_zero_shot_model(make_toy, gpu):
    from finercam_rt import ClassEmbeddings

    toy = make_toy(zero_shot=True)
    embeddings = ClassEmbeddings(toy.weight[:5], tuple("abcde"))
    engine = Engine(gpu.plan(toy.path), class_embeddings=embeddings)
    reference = Engine(toy.path, class_embeddings=embeddings)
    for step in range(3):
        same(engine(DeviceTensor(gpu.device, batch(2, step))), reference(batch(2, step)), gpu.device)
    names = tuple("abc")
    several = [ClassEmbeddings(toy.weight[k : k + 3], names) for k in range(4)]
    kept = [engine.with_classes(one)(DeviceTensor(gpu.device, batch(2))) for one in several]
    for found, one in zip(kept, several, strict=True):
        same(found, reference.with_classes(one)(batch(2)), gpu.device)


@pytest.mark.parametrize("contrasts", [1, 2])
@pytest.mark.parametrize("head", ["graph", "channel_weights"])
def test_images_that_are_not_finite_are_reported(make_toy, gpu, contrasts, head):
    toy = make_toy(contrasts=contrasts, clip=4.0)  # which hides infinities
    path = toy.path if head == "graph" else with_taps(toy, gradients=False)
    engine = Engine(gpu.plan(path))
    for value in (np.inf, np.nan, -np.inf):
        images = batch(3)
        images[1, 2, 5, 7] = value
        status = engine(DeviceTensor(gpu.device, images)).status.numpy(gpu.device)
        assert (status[1] == Status.NON_FINITE).all()
        assert (status[[0, 2]] != Status.NON_FINITE).all()


@pytest.mark.parametrize("where", ["host", "device"])
def test_logits_that_are_not_finite_are_reported(toy, gpu, where):
    """They show in the map of no other class."""
    import onnx

    model = onnx.load(toy.path)
    (bias,) = (value for value in model.graph.initializer if value.name == "bias")
    values = onnx.numpy_helper.to_array(bias).copy()
    values[3] = np.inf
    bias.CopyFrom(onnx.numpy_helper.from_array(values, "bias"))
    onnx.save(model, toy.path)
    engine = Engine(gpu.plan(toy.path))
    for _ in range(3):
        given = batch(2) if where == "host" else DeviceTensor(gpu.device, batch(2))
        found = engine(given, target=1, references=[2])
        status, maps = found.status, found.saliency_map
        if where == "device":
            status, maps = status.numpy(gpu.device), maps.numpy(gpu.device)
        assert np.isfinite(maps).all()
        assert (status == Status.NON_FINITE).all()


def test_a_reference_that_is_the_predicted_class(make_toy, gpu):
    toy = make_toy()
    engine = Engine(gpu.plan(toy.path))
    images = batch(3)
    predicted = Engine(toy.path)(images).target
    with pytest.raises(InputError, match="image 1"):
        engine(
            DeviceTensor(gpu.device, images),
            references=[[int(p == 0)] if k != 1 else [int(p)] for k, p in enumerate(predicted)],
        )
    several = Engine(gpu.plan(make_toy("many.onnx", contrasts=2).path))
    with pytest.raises(InputError, match="image 0"):
        several(DeviceTensor(gpu.device, images), contrasts=[Contrast(None, [int(predicted[0])])])


def test_batches_that_are_refused(toy, gpu):
    engine = Engine(gpu.plan(toy.path))
    for wrong, says in (
        (batch(2)[0], "expected (N,3,32,48)"),
        (batch(2).astype(np.float16), "expected float32"),
        (batch(2)[:, :, :16], "expected (N,3,32,48)"),
    ):
        with pytest.raises(InputError) as caught:
            engine(DeviceTensor(gpu.device, wrong))
        assert says in str(caught.value)
    strided = DeviceTensor(gpu.device, batch(2))
    strided.strides = (18432, 4, 576, 12)
    with pytest.raises(InputError, match=r"not contiguous in the order \(N,C,H,W\)"):
        engine(strided)
    elsewhere = DeviceTensor(gpu.device, batch(2))
    elsewhere.__class__ = type("Elsewhere", (DeviceTensor,), {"__dlpack_device__": lambda self: (2, 1)})
    with pytest.raises(InputError, match="lies on cuda:1, and the engine computes on cuda:0"):
        engine(elsewhere)
    with pytest.raises(InputError, match="a stream is for a batch on the engine's GPU"):
        engine(batch(2), stream=7)
    with pytest.raises(
        InputError, match=r"the stream is of type object; give its handle, such as torch's stream\.cuda_"
    ):
        engine(DeviceTensor(gpu.device, batch(2)), stream=object())
    with pytest.raises(InputError, match="another device than the engine, which computes on the CPU"):
        Engine(toy.path)(DeviceTensor(gpu.device, batch(2)))


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize("contrasts", [1, 2])
@pytest.mark.parametrize("method", ops.KERNEL_METHODS)
def test_every_method_that_has_a_kernel(make_toy, gpu, method, contrasts, cuda_graphs):
    path = with_taps(make_toy(contrasts=contrasts), gradients=True)
    engine = Engine(gpu.plan(path), cuda_graphs=cuda_graphs).with_method(method)
    reference = Engine(path, method=method)
    for step in range(3):
        same(engine(DeviceTensor(gpu.device, batch(2, step))), reference(batch(2, step)), gpu.device)


def test_maps_that_the_gpu_does_not_draw(make_toy, gpu):
    engine = Engine(gpu.plan(with_taps(make_toy(), gradients=True)), method="eigencam")
    with pytest.raises(InputError, match="maps by eigencam are drawn on the host, and the batch lies on cuda:0"):
        engine(DeviceTensor(gpu.device, batch(2)))
    assert engine.logits(DeviceTensor(gpu.device, batch(2))).numpy(gpu.device).shape == (2, 7)


def test_a_closed_engine(toy, gpu):
    engine = Engine(gpu.plan(toy.path))
    engine.close()
    with pytest.raises(Exception, match="the engine is closed"):
        engine(DeviceTensor(gpu.device, batch(2)))


class TorchOnTheHost:
    """Stands for the module torch: its tensors are those of the CPU, and its streams are recorded."""

    def __init__(self, torch) -> None:
        self.uint8, self.float32, self.int64, self.empty, self.cuda = (
            torch.uint8,
            torch.float32,
            torch.int64,
            lambda size, dtype, device: torch.empty(size, dtype=dtype),
            self,
        )
        self.used: list[int] = []

    def current_stream(self, device):
        return types.SimpleNamespace(cuda_stream=0x77)

    def default_stream(self, device):
        return 0

    def ExternalStream(self, handle, device):  # noqa: N802
        return handle

    def stream(self, stream):
        self.used.append(stream)
        return contextlib.nullcontext()


def test_torch_allocates_its_results_on_the_stream_that_uses_them(monkeypatch):
    torch = pytest.importorskip("torch")
    stands_in = TorchOnTheHost(torch)
    monkeypatch.setitem(sys.modules, "torch", stands_in)
    example = torch.zeros(1)
    found = DeviceArray(0, (1,), "float32", True, None)
    assert device_arrays.stream_of(example, found, None) == 0x77
    assert device_arrays.stream_of(example, found, np.int64(9)) == 9
    layout = ResultLayout(
        {
            "logits": Piece(np.dtype(np.float32), (3,), False),
            "target": Piece(np.dtype(np.int64), (2,), True),
            "map": Piece(np.dtype(np.float32), (2, 2, 2), True),
        },
        5,
    )
    for stream, current in ((0, False), (0x99, False), (0x77, True)):
        results = device_arrays.allocate(example, layout.bytes, FakeDevice(), stream, current=current)
        memory = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * layout.bytes).from_address(results.address))
        memory[:] = np.random.default_rng(0).integers(0, 64, layout.bytes)
        wanted = layout.arrays(memory)
        found = results.take(layout.places())
        assert list(found) == list(wanted)
        for name, tensor in found.items():
            assert tensor.shape == wanted[name].shape
            np.testing.assert_array_equal(tensor.numpy(), wanted[name])
        assert results.take(layout.places(1))["target"].shape == (5, 1)
    assert stands_in.used == [0, 0x99], "on its current stream it needs no other"
