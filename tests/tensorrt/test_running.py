"""Plans that run: their graphs, contexts and memory, and what goes wrong, over a stand-in that is as lazy as a GPU."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from finercam_rt import BackendError, Engine, InputError, ops, top_classes
from finercam_rt.backends import device_slots
from finercam_rt.errors import DeviceMemoryError
from finercam_rt.tensorrt.library import RTX

from ..fakes.cuda import FakeDevice
from ..fakes.gpu import Gpu
from ..fakes.taps import with_taps
from .conftest import batch, done_elsewhere, same


def test_the_stand_in_is_lazy_and_replays():
    """So that the tests below can fail."""
    device = FakeDevice()
    stream, other = device.stream(), device.stream()
    source, target, host = device.memory(4), device.memory(4), device.pinned(4)
    stream.fill(source.address, 1, 4)
    other.copy(target.address, source.address, 4)
    other.synchronize()
    assert target.raw.tolist() == [0xCD] * 4, "nothing ordered the two"
    ready = device.event()
    stream.record(ready)
    other.begin_capture()
    other.copy(target.address, source.address, 4)
    graph = other.end_capture()
    assert target.raw.tolist() == [0xCD] * 4, "a capture does nothing"
    other.wait(ready)
    other.launch(graph)
    other.copy(host.address, target.address, 4)
    assert host.raw.tolist() == [0xCD] * 4, "nothing has waited yet"
    other.synchronize()
    assert host.raw.tolist() == [1] * 4
    source.release()
    other.launch(graph)
    with pytest.raises(Exception, match="illegal memory access"):
        other.synchronize()
    with pytest.raises(Exception, match="illegal memory access"):
        device.memory(4)


@pytest.mark.parametrize("flavour", ["tensorrt", RTX])
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_it_gives_what_onnx_runtime_gives(toy, monkeypatch, flavour, cuda_graphs):
    reference = Engine(toy.path)
    gpu = Gpu(monkeypatch, flavour)
    engine = Engine(gpu.plan(toy.path), cuda_graphs=cuda_graphs)
    assert (engine.backend, engine.device) == (flavour, "cuda:0")
    for step in range(4):
        images = batch(2, seed=step)
        same(engine(images, references=[step], target=6), reference(images, references=[step], target=6))
        same(engine(images[:1]), reference(images[:1]))
    assert gpu.device.count("capture") == (2 if cuda_graphs else 0)
    assert sum(graph.launches for graph in gpu.device.graphs) == (6 if cuda_graphs else 0)


@pytest.mark.parametrize("contrasts", [1, 3])
@pytest.mark.parametrize("gradients", [True, False])
def test_taps_are_drawn_on_the_gpu(make_toy, gpu, contrasts, gradients):
    toy = make_toy(contrasts=contrasts)
    reference = Engine(toy.path)
    taps = with_taps(toy, gradients=gradients, carried=True)
    host, engine = Engine(taps), Engine(gpu.plan(taps))
    for step in range(3):
        images = batch(5, seed=step)
        asked = {"alpha": 0.5} if contrasts == 1 else {"contrasts": top_classes(2, alpha=0.5)}
        found = engine(images, **asked)
        np.testing.assert_allclose(found.saliency_map, reference(images, **asked).saliency_map, rtol=1e-4, atol=1e-5)
        assert found.saliency_map.max() > 0.1
        same(found, host(images, **asked))
        assert len(found.carried) == 1
    kernels = gpu.device.count("kernel")
    assert kernels == 2 * 2, "the map and the status, once for the first run, once for the capture"
    photographs = [np.full((32, 48, 3), 40 * k, np.uint8) for k in range(5)]
    del gpu.device.journal[:]
    explained = engine.explain(photographs)
    np.testing.assert_allclose(explained.saliency_map, host.explain(photographs).saliency_map, rtol=1e-4, atol=1e-5)
    assert gpu.device.count("copy") == 4, "pixels, questions, crops and answers; the taps stay, as nobody reads them"
    engine(images)
    assert gpu.device.count("copy") == 4 + 3, "the images, the answers and the taps; the questions are the same"


@pytest.mark.parametrize("contrasts", [1, 3])
def test_every_method_that_has_a_kernel_is_drawn_on_the_gpu(make_toy, gpu, contrasts):
    """In turn, from one engine: each has a graph of its own, and its own map."""
    taps = with_taps(make_toy(contrasts=contrasts), gradients=True)
    host, engine = Engine(taps), Engine(gpu.plan(taps))
    maps = {}
    for step in range(3):
        for method in ops.KERNEL_METHODS[:4]:
            found = engine.with_method(method)(batch(2, step))
            same(found, host.with_method(method)(batch(2, step)))
            maps[method] = found.saliency_map
    assert gpu.device.count("kernel") == 4 * 2 * 2, "of each the first run, and the capture"
    assert all(graph.launches == 2 for graph in gpu.device.graphs)
    for method in ops.KERNEL_METHODS[4:]:
        found = engine.with_method(method)(batch(2, step))
        same(found, host.with_method(method)(batch(2, step)))
        maps[method] = found.saliency_map
    assert gpu.device.count("kernel") == 4 * 2 * 2 + 3 * 2
    different = {values.tobytes() for values in maps.values()}
    assert len(different) == len(ops.KERNEL_METHODS)


def test_fem_needs_no_gradients(make_toy, gpu):
    taps = with_taps(make_toy(), gradients=False)
    host, engine = Engine(taps, method="fem"), Engine(gpu.plan(taps), method="fem")
    for step in range(3):
        same(engine(batch(2, step)), host(batch(2, step)))
    assert gpu.device.count("kernel") == 2 * 2


def test_methods_that_the_gpu_does_not_draw(make_toy, gpu):
    taps = with_taps(make_toy(), gradients=True)
    host, engine = Engine(taps, method="eigencam"), Engine(gpu.plan(taps), method="eigencam")
    for step in range(3):
        same(engine(batch(2, step)), host(batch(2, step)))
        same(engine.with_method("gradcam")(batch(2, step)), host.with_method("gradcam")(batch(2, step)))
    assert gpu.device.count("kernel") == 2 * 2, "of gradcam"


def test_the_logits_are_read_of_any_method(make_toy, gpu):
    """No context and no buffers of their own."""
    taps = with_taps(make_toy(), gradients=True)
    host, engine = Engine(taps), Engine(gpu.plan(taps)).with_method("layercam")
    engine(batch(2))
    for step in range(3):
        np.testing.assert_allclose(engine.logits(batch(2, step)), host.logits(batch(2, step)), rtol=1e-5, atol=1e-6)
    assert len(gpu.trt.contexts) == 1


def test_batches_outside_of_the_profile(toy, gpu):
    """Larger ones run in parts, smaller ones are filled up."""
    reference, engine = Engine(toy.path), Engine(gpu.plan(toy.path, (3, 4, 4)))
    assert engine.fixed_batch is None
    for count in (1, 2, 3, 4, 5, 8, 11):
        images = batch(count, seed=count)
        targets = [k % 7 for k in range(count)]
        same(engine(images, target=targets, references=[]), reference(images, target=targets, references=[]))
        np.testing.assert_allclose(engine.logits(images), reference.logits(images), rtol=1e-5, atol=1e-6)
    photographs = [np.full((32, 48, 3), 20 * k, np.uint8) for k in range(10)]
    sizes = [len(step.indices) for step in engine.explain_batches(photographs)]
    assert sizes == [4, 4, 2]
    fixed = Engine(gpu.plan(toy.path, (2, 2, 2)))
    assert fixed.fixed_batch == 2
    with pytest.raises(InputError, match="exactly 2"):
        fixed(batch(3))


def test_classes_outside_of_the_profile(make_toy, gpu):
    toy = make_toy(zero_shot=True)
    from finercam_rt import ClassEmbeddings

    engine = Engine(
        gpu.plan(toy.path, classes=(2, 4, 6)), class_embeddings=ClassEmbeddings(toy.weight[:6], tuple("abcdef"))
    )
    few = engine.with_classes(ClassEmbeddings(toy.weight[:3], tuple("abc")))
    others = engine.with_classes(ClassEmbeddings(toy.weight[3:6], tuple("def")))
    for step in range(3):  # the embeddings of two engines of one shape, in turn
        images = batch(2, step)
        activations = toy.activations(images).mean(axis=(2, 3))
        for one, weight in ((few, toy.weight[:3]), (others, toy.weight[3:6]), (engine, toy.weight[:6])):
            np.testing.assert_allclose(one(images).logits, activations @ weight.T, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        InputError, match=r"there are 7 classes, and .* was built for 2 to 6; build it again with --max"
    ):
        engine.with_classes(ClassEmbeddings(toy.weight, tuple("abcdefg")))(batch(1))


def test_the_steady_state_allocates_nothing(toy, gpu):
    engine = Engine(gpu.plan(toy.path))
    engine(batch(2))
    engine(batch(2))
    before = gpu.device.used(), len(gpu.device.streams), len(gpu.trt.contexts)
    del gpu.device.journal[:]
    for _ in range(5):
        engine(batch(2))
    assert (gpu.device.used(), len(gpu.device.streams), len(gpu.trt.contexts)) == before
    assert gpu.device.count("memory") == gpu.device.count("pinned") == gpu.device.count("capture") == 0
    assert gpu.device.count("replay") == 5
    assert gpu.device.count("copy") == 5 * 2, "the images and the answers; the questions are the same"


def test_few_sizes_are_kept_and_their_memory_comes_back(toy, gpu):
    engine = Engine(gpu.plan(toy.path))
    for count in range(1, 5):
        engine(batch(count))
    used, contexts = gpu.device.used(), len(gpu.trt.contexts)
    engine(batch(1))
    assert len(gpu.trt.contexts) == contexts, "it is kept"
    engine(batch(5))
    engine(batch(1))
    assert len(gpu.trt.contexts) == contexts + 1, "2 went, which was used the longest ago"
    engine(batch(2))
    assert len(gpu.trt.contexts) == contexts + 2
    assert gpu.device.used() < 1.8 * used
    engine.close()
    gc.collect()
    assert gpu.device.used() == 0
    with pytest.raises(BackendError, match="the engine is closed"):
        engine(batch(1))


def test_the_memory_of_a_thread_is_bounded(toy, gpu, monkeypatch):
    engine = Engine(gpu.plan(toy.path))
    monkeypatch.setattr(device_slots, "MEMORY_KEPT", 0)
    gc.collect()
    small = Engine(gpu.plan(toy.path))
    small._backend._slots = device_slots.DeviceSlots(0)
    for count in (1, 2, 1, 2):
        same(small(batch(count)), engine(batch(count)))
    assert len(gpu.trt.contexts) == 4 + 2, "of the small one only the last is kept"


def test_too_little_memory(toy, gpu):
    other, engine = Engine(gpu.plan(toy.path)), Engine(gpu.plan(toy.path))
    before = gpu.device.taken
    other(batch(8))
    needed = gpu.device.taken - before
    other.close()
    engine(batch(1))
    gpu.device.limit = gpu.device.taken + needed - 1000
    same(engine(batch(8)), engine(batch(8)))  # the slot of 1 made room
    assert len(gpu.trt.contexts) == 4, "one of them was made twice"
    taken = gpu.device.taken
    with pytest.raises(DeviceMemoryError, match="does not suffice for a run of 16 images: ") as caught:
        engine(batch(16))
    assert isinstance(caught.value, MemoryError)
    assert gpu.device.taken < taken, "nothing is held, neither by the error"
    assert caught.value.bytes > 0
    assert "\n" not in str(caught.value)
    gpu.device.limit = None
    assert np.isfinite(engine(batch(16)).logits).all(), "it works on"


def test_a_thread_gives_its_memory_back(toy, gpu):
    engine = Engine(gpu.plan(toy.path))
    engine(batch(1))
    used = gpu.device.used()
    expected = engine(batch(2)).logits
    found = []
    workers = [threading.Thread(target=lambda: found.append(engine(batch(2)).logits)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for logits in found:
        np.testing.assert_array_equal(logits, expected)
    gc.collect()
    assert gpu.device.used() < 3 * used + 100_000


def test_kernels_that_rtx_compiles_are_kept(toy, rtx_gpu, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plan = rtx_gpu.plan(toy.path)
    engine = Engine(plan)
    engine(batch(2))
    (file,) = (tmp_path / "cache" / "finercam-rt" / "tensorrt-rtx").iterdir()
    assert file.read_bytes() == rtx_gpu.trt.cache
    written = file.stat().st_mtime_ns
    engine(batch(2))
    engine(batch(2))
    assert file.stat().st_mtime_ns == written
    engine(batch(3))
    assert file.read_bytes() == rtx_gpu.trt.cache
    assert len(list(file.parent.iterdir())) == 1
    stored = file.read_bytes()
    rtx_gpu.trt.cache = b""
    written = file.stat().st_mtime_ns
    again = Engine(plan)
    assert rtx_gpu.trt.cache == stored, "the next process begins with them"
    again(batch(2))
    assert file.stat().st_mtime_ns == written
    file.write_bytes(b"of another GPU")
    rtx_gpu.trt.cache = b""
    assert np.isfinite(Engine(plan)(batch(1)).logits).all()
    assert file.read_bytes() == rtx_gpu.trt.cache != b""


def test_a_cache_that_cannot_be_written(toy, rtx_gpu, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    engine = Engine(rtx_gpu.plan(toy.path))
    for count in (1, 2):
        assert np.isfinite(engine(batch(count)).logits).all()


def test_version_compatible_plans_may_bring_code(toy, gpu):
    Engine(gpu.plan(toy.path))
    assert not gpu.trt.host_code_allowed
    Engine(gpu.plan(toy.path, version_compatible=True))
    assert gpu.trt.host_code_allowed


def test_closing_frees_what_other_threads_hold(toy, gpu):
    engine = Engine(gpu.plan(toy.path))
    with done_elsewhere(lambda: engine(batch(1))):
        assert gpu.device.used() > 0
        engine.close()
        gc.collect()
        assert gpu.device.used() == 0
