"""Photographs whose bytes go to the GPU and are resized there, over the stand-ins."""

from __future__ import annotations

import dataclasses
import gc

import numpy as np
import pytest
from PIL import Image

from finercam_rt import Engine, InputError, device_inputs
from finercam_rt.manifest import InputSpec

from ..fakes.frameworks import DeviceTensor, install
from ..fakes.gpu import Gpu
from ..fakes.taps import with_taps
from .conftest import done_elsewhere

SIZES = [(48, 64), (32, 48), (90, 41), (33, 200), (20, 20)]


@pytest.fixture
def gpu(monkeypatch) -> Gpu:
    gpu = Gpu(monkeypatch)
    install(monkeypatch, 0)
    return gpu


def photograph(size: tuple[int, int], seed: int, channels: int = 3) -> np.ndarray:
    """Slow waves, in which a level more or less is all that another order of rounding makes."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(*(np.linspace(0, 3, edge) for edge in size), indexing="ij")
    waves = [np.sin(rng.uniform(1, 2) * x + rng.uniform(1, 2) * y + rng.uniform(0, 6)) for _ in range(channels)]
    return (127.5 + 120 * np.stack(waves, axis=2)).astype(np.uint8)


def spec(**changes) -> dict:
    return {"input": dataclasses.replace(InputSpec((32, 48), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)), **changes)}


def same(found, wanted) -> None:
    off = np.abs(found.images.astype(int) - wanted.images)
    assert off.max() <= 2, "one for the kernel, and one where Pillow begins with the other axis"
    assert off.mean() < 0.1
    exact = np.array([np.array_equal(a, b) for a, b in zip(found.images, wanted.images, strict=True)])
    np.testing.assert_allclose(found.logits[exact], wanted.logits[exact], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.logits, wanted.logits, atol=0.05 * np.abs(wanted.logits).max())
    np.testing.assert_allclose(found.saliency_map, wanted.saliency_map, atol=0.05 * wanted.saliency_map.max())
    assert found.status == wanted.status
    assert found.names == wanted.names
    for a, b in zip(found.originals, wanted.originals, strict=True):
        assert a.geometry == b.geometry


@pytest.mark.parametrize("head", ["graph", "taps"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_mode", ["center", "border", "squash"])
def test_as_the_host_makes_them(make_toy, gpu, interpolation, crop_mode, head):
    toy = make_toy(manifest=spec(interpolation=interpolation, crop_mode=crop_mode, crop_pct=0.9))
    path = toy.path if head == "graph" else with_taps(toy, gradients=True)
    engine, reference = Engine(gpu.plan(path)), Engine(path)
    for step in range(3):
        images = [photograph(size, 10 * step + k) for k, size in enumerate(SIZES)]
        asked = {"target": [k % 7 for k in range(len(images))], "references": []}
        same(engine.explain(images, **asked), reference.explain(images, **asked))


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels(make_toy, gpu, channels):
    toy = make_toy(channels=channels)
    engine, reference = Engine(gpu.plan(toy.path)), Engine(toy.path)
    images = [photograph(size, k, channels) for k, size in enumerate(SIZES)]
    same(engine.explain(images), reference.explain(images))
    there = [DeviceTensor(gpu.device, image) for image in images]
    same(engine.explain(there), reference.explain(images))
    with pytest.raises(InputError, match=rf"give uint8 \(H,W,{channels}\) there"):
        engine.explain([DeviceTensor(gpu.device, photograph(SIZES[0], 1))])


def test_their_bytes_alone_go_there(toy, gpu):
    engine = Engine(gpu.plan(toy.path))
    images = [photograph((32, 48), k) for k in range(4)]
    for _ in range(2):
        engine.explain(images)
    del gpu.device.journal[:]
    engine.explain(images)
    copies = [size for what, size in gpu.device.journal if what == "copy"]
    pixels, crops = 4 * 32 * 48 * 3, 4 * 32 * 48 * 3
    assert copies[0] == pixels, "a quarter of what the inputs have"
    assert copies[1] == crops
    assert len(copies) == 3
    assert gpu.device.count("kernel") == 1, "the rest is in the graph"
    assert gpu.device.count("memory") == gpu.device.count("pinned") == 0


def test_in_parts_of_what_the_plan_takes(toy, gpu):
    engine, reference = Engine(gpu.plan(toy.path, (2, 3, 3))), Engine(toy.path)
    for count in (7, 1, 3, 5):
        images = [photograph(SIZES[k % 5], k) for k in range(count)]
        targets = [k % 7 for k in range(count)]
        same(
            engine.explain(images, target=targets, references=[], batch_size=8),
            reference.explain(images, target=targets, references=[], batch_size=8),
        )


def test_a_fixed_batch(make_toy, gpu):
    path = make_toy(batch=3).path
    engine, reference = Engine(gpu.plan(path, (3, 3, 3))), Engine(path)
    for count in (3, 2, 4):
        images = [photograph(SIZES[k], k) for k in range(count)]
        same(engine.explain(images, references=[]), reference.explain(images, references=[]))


@pytest.mark.parametrize("interpolation", ["lanczos", "bicubic"])
def test_what_the_kernel_does_not_resize_is_cropped_on_the_host(make_toy, gpu, monkeypatch, interpolation):
    """Of another interpolation, or larger than what is sent: its crop goes there, and is the host's to the bit."""
    monkeypatch.setattr(device_inputs, "LARGEST", 0)
    path = make_toy(manifest=spec(interpolation=interpolation, crop_pct=0.9)).path
    engine, reference = Engine(gpu.plan(path)), Engine(path)
    images = [photograph(size, k) for k, size in enumerate(SIZES)]
    for _ in range(3):
        found, wanted = engine.explain(images, references=[]), reference.explain(images, references=[])
        np.testing.assert_array_equal(found.images, wanted.images)
        np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-5, atol=1e-6)


def test_files_and_failures_and_many_batches(toy, gpu, tmp_path):
    """An array that the source writes to again, a file, and what cannot be read between them."""
    Image.fromarray(photograph((60, 70), 9)).save(tmp_path / "one.png")
    buffer = np.empty((48, 64, 3), np.uint8)

    def source():
        for k in range(5):
            buffer[...] = photograph((48, 64), k)
            yield buffer
            yield tmp_path / "one.png" if k % 2 else b"no image"

    engine, reference = Engine(gpu.plan(toy.path)), Engine(toy.path)
    found, wanted = (
        list(of.explain_batches(source(), references=[], batch_size=3, skip_errors=True)) for of in (engine, reference)
    )
    assert [batch.indices for batch in found] == [batch.indices for batch in wanted]
    assert [sorted(batch.failures) for batch in found] == [sorted(batch.failures) for batch in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert (a.explanation is None) == (b.explanation is None)
        if a.explanation is not None:
            same(a.explanation, b.explanation)


def test_a_source_that_explains_others_meanwhile(toy, gpu):
    engine, reference = Engine(gpu.plan(toy.path)), Engine(toy.path)
    inner = []

    def source():
        for k in range(3):
            yield photograph((48, 64), k)
            inner.append(engine.explain([photograph((64, 48), 10 + k)], references=[]))

    for _ in range(2):
        same(
            engine.explain(source(), references=[], batch_size=3),
            reference.explain([photograph((48, 64), k) for k in range(3)], references=[]),
        )
    for k, found in enumerate(inner[:3]):
        wanted = reference.explain([photograph((64, 48), 10 + k)], references=[])
        np.testing.assert_allclose(found.logits, wanted.logits, atol=0.05 * np.abs(wanted.logits).max())
    del gpu.device.journal[:]
    engine.explain(source(), references=[], batch_size=3)
    assert gpu.device.count("memory") == gpu.device.count("pinned") == 0


def test_arrays_on_the_gpu_stay_there(toy, gpu):
    """In turn with those of the host, on a stream of their own."""
    engine, reference = Engine(gpu.plan(toy.path)), Engine(toy.path)
    stream = gpu.device.stream().handle
    for step in range(3):
        images = [photograph(size, 10 * step + k) for k, size in enumerate(SIZES)]
        given = [DeviceTensor(gpu.device, image, stream) if k % 2 else image for k, image in enumerate(images)]
        del gpu.device.journal[:]
        found = engine.explain(given, target=2, references=[])
        sizes = [size for what, size in gpu.device.journal if what == "copy"]
        assert not {image.nbytes for image in images[1::2]} & set(sizes), "they are read where they lie"
        same(found, reference.explain(images, target=2, references=[]))
        alone = engine.explain(given[1], target=2, references=[])
        np.testing.assert_array_equal(alone.images[0], found.images[1])
    assert found.overlay(1, coordinates="original").size == (SIZES[1][1], SIZES[1][0])


def test_arrays_on_the_gpu_that_are_refused(make_toy, gpu):
    toy = make_toy()
    engine = Engine(gpu.plan(toy.path))
    for values, says in (
        (photograph((32, 48), 0).astype(np.float32), "array of float32 of shape"),
        (photograph((32, 48), 0)[:, :, :2], r"shape \(32, 48, 2\) on the GPU; give uint8"),
    ):
        with pytest.raises(InputError, match=says):
            engine.explain([DeviceTensor(gpu.device, values)])
    strided = DeviceTensor(gpu.device, photograph((32, 48), 0))
    strided.strides = (3, 96, 1)
    with pytest.raises(InputError, match=r"not contiguous in the order \(H,W,3\)"):
        engine.explain([strided])
    elsewhere = DeviceTensor(gpu.device, photograph((32, 48), 0))
    elsewhere.__class__ = type("Elsewhere", (DeviceTensor,), {"__dlpack_device__": lambda self: (2, 1)})
    with pytest.raises(InputError, match="image 0 lies on cuda:1, and the engine computes on cuda:0"):
        engine.explain([elsewhere])
    lanczos = Engine(gpu.plan(make_toy("lanczos.onnx", manifest=spec(interpolation="lanczos")).path))
    with pytest.raises(InputError, match="resizes by lanczos, which is done on the host; give a NumPy array"):
        lanczos.explain([DeviceTensor(gpu.device, photograph((32, 48), 0))])


def test_the_memory_of_other_threads_comes_back(toy, gpu):
    """Also of one that has taken a batch and will run no other."""
    engine = Engine(gpu.plan(toy.path))
    batches = engine.explain_batches([photograph(SIZES[k], k) for k in range(2)], batch_size=1)
    next(batches)
    with done_elsewhere(lambda: engine.explain([photograph((500, 400), 0)])):
        assert gpu.device.used() > 0
        engine.close()
        batches.close()
        gc.collect()
        assert gpu.device.used() == 0


def test_the_memory_comes_back(toy, gpu):
    engine = Engine(gpu.plan(toy.path))
    engine.explain([photograph((500, 400), 0)])
    engine.close()
    gc.collect()
    assert gpu.device.used() == 0
