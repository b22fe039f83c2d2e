"""Frames from any iterator: in order, a batch at a time, in the memory of one batch."""

from __future__ import annotations

import gc
import itertools
import tracemalloc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageSequence

from finercam_rt import Contrast, Engine, InputError

SIZE = (24, 36)


def frame(k: int) -> np.ndarray:
    return np.random.default_rng(k).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


class Camera:
    """Frames that remember how many were taken, how many of them are alive, and whether the source was closed."""

    def __init__(self, count: int | None = None) -> None:
        self.taken, self.closed, self.most = 0, False, 0
        self.references: list[weakref.ref[np.ndarray]] = []
        self.count = count

    def __call__(self) -> Iterator[np.ndarray]:
        try:
            for k in itertools.count() if self.count is None else range(self.count):
                new = frame(k % 50)
                self.taken += 1
                self.references = [r for r in self.references if r() is not None] + [weakref.ref(new)]
                self.most = max(self.most, len(self.references))
                yield new
                del new
        finally:
            self.closed = True


@pytest.mark.parametrize("batch_size", [1, 4])
def test_in_order_and_as_a_list_gives(toy, batch_size):
    camera = Camera(10)
    with Engine(toy.path) as engine:
        expected = engine.explain([frame(k) for k in range(10)], target="kite", references=["magpie"], alpha=0.5)
        batches = list(
            engine.explain_batches(camera(), target="kite", references=["magpie"], alpha=0.5, batch_size=batch_size)
        )
        together = engine.explain(Camera(10)(), target="kite", references=["magpie"], alpha=0.5)
    assert [i for batch in batches for i in batch.indices] == list(range(10))
    assert [len(batch.indices) for batch in batches] == ([1] * 10 if batch_size == 1 else [4, 4, 2])
    maps = np.concatenate([batch.explanation.saliency_map for batch in batches])
    np.testing.assert_allclose(maps, expected.saliency_map, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(together.saliency_map, expected.saliency_map, rtol=1e-4, atol=1e-6)
    assert [name for batch in batches for name in batch.explanation.names] == [f"image {k}" for k in range(10)]
    assert camera.closed


@pytest.mark.parametrize("batch_size", [1, 3])
def test_no_frame_is_taken_before_the_last_ones_answer_is_given(toy, batch_size):
    camera = Camera()
    for step, batch in enumerate(Engine(toy.path).explain_batches(camera(), references=[], batch_size=batch_size)):
        assert camera.taken == (step + 1) * batch_size
        assert batch.indices == tuple(range(step * batch_size, (step + 1) * batch_size))
        if step == 5:
            break


def test_memory_does_not_grow(make_toy):
    """Three thousand frames of an endless source: the memory of the first hundred, and one batch of frames alive."""
    camera = Camera()
    engine = Engine(make_toy(size=(8, 8)).path, threads=1)
    batches = engine.explain_batches(camera(), references=[], batch_size=8)
    peaks = []
    tracemalloc.start()
    try:
        for step in range(1, 371):
            batch = next(batches)  # enumerate() would hold on to the one before
            assert len(batch.indices) == 8
            assert batch.explanation.originals[0].source.shape == (*SIZE, 3)
            del batch
            if step in (12, 370):
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.reset_peak()
    finally:
        tracemalloc.stop()
    assert camera.taken == 2960
    # the interpreter's free lists fill up by some 300 kB; the frames alone, if they were kept, would be 7 MB
    assert peaks[1] < peaks[0] + 1_000_000
    assert camera.most <= 8


def test_a_source_is_closed_when_the_consumer_stops(toy):
    engine = Engine(toy.path)
    camera = Camera()
    held = camera()
    batches = engine.explain_batches(held, references=[], batch_size=2)
    next(batches)
    assert not camera.closed
    batches.close()
    assert camera.closed, "although the caller still holds it"

    camera = Camera()
    for _ in engine.explain_batches(camera(), references=[], batch_size=2):
        break
    gc.collect()
    assert camera.closed

    camera = Camera()

    def failing() -> Iterator[object]:
        yield from itertools.islice(camera(), 3)
        yield "no such file.jpg"

    with pytest.raises(InputError, match="no such file"):
        list(engine.explain_batches(failing(), references=[], batch_size=2))


def test_a_failing_frame_is_reported_and_the_others_go_on(toy):
    def frames() -> Iterator[object]:
        yield frame(0)
        yield frame(1).astype(np.float32)
        yield frame(2)
        yield None
        yield b""
        yield frame(5)

    batches = list(Engine(toy.path).explain_batches(frames(), references=[], batch_size=2, skip_errors=True))
    assert [batch.indices for batch in batches] == [(0,), (2,), (5,)]
    failures = {position: str(error) for batch in batches for position, error in batch.failures.items()}
    assert sorted(failures) == [1, 3, 4]
    assert "image 1 is an array of float32" in failures[1]
    assert "image 3 is of type NoneType" in failures[3]
    assert "image 4 is empty" in failures[4]


def test_a_source_that_fails_itself(toy):
    """A damaged video: what was taken before is explained, the failure is reported, and the stream ends."""

    def frames() -> Iterator[np.ndarray]:
        yield from (frame(k) for k in range(3))
        raise InputError("clip.mp4 is damaged.")

    engine = Engine(toy.path)
    batches = list(engine.explain_batches(frames(), references=[], batch_size=2, skip_errors=True))
    assert [batch.indices for batch in batches] == [(0, 1), (2,)]
    assert str(batches[1].failures[3]) == "clip.mp4 is damaged."
    with pytest.raises(InputError, match=r"clip\.mp4 is damaged"):
        list(engine.explain_batches(frames(), references=[], batch_size=2))

    def bug() -> Iterator[np.ndarray]:
        yield frame(0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(engine.explain_batches(bug(), references=[], batch_size=1, skip_errors=True))


def test_a_reused_array_is_read_before_it_is_written_again(toy):
    """As cv2.VideoCapture.read(frame) and PIL's ImageSequence do."""
    buffer = np.empty((*SIZE, 3), np.uint8)

    def frames() -> Iterator[np.ndarray]:
        for k in range(6):
            buffer[...] = frame(k)
            yield buffer

    engine = Engine(toy.path)
    expected = engine.explain([frame(k) for k in range(6)], references=[])
    found = engine.explain(frames(), references=[], batch_size=3)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert np.array_equal(found.images, expected.images)
    assert found.overlay(5, coordinates="original").size == SIZE[::-1]
    with pytest.raises(InputError, match="image 2 has changed since it was explained"):
        found.overlay(2, coordinates="original")


def test_an_animations_frames_by_pillow(toy, tmp_path):
    path = tmp_path / "clip.webp"
    frames = [Image.fromarray(frame(k)) for k in range(5)]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    engine = Engine(toy.path)
    expected = engine.explain(frames, references=[])
    with Image.open(path) as image:
        found = engine.explain(ImageSequence.Iterator(image), references=[], batch_size=2)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-4)


def test_contrasts_are_those_of_all_frames(make_toy):
    engine = Engine(make_toy(contrasts=2).path)
    questions = [Contrast("magpie", ["kite"]), Contrast("kite", ["magpie"])]
    found = engine.explain(Camera(3)(), contrasts=questions, batch_size=2)
    assert found.target.tolist() == [[0, 6]] * 3
    one = Engine(make_toy("one.onnx").path)
    with pytest.raises(InputError, match="one target, references, alpha and contrasts for all"):
        one.explain_batches(Camera(3)(), target=[0, 1, 2])
    with pytest.raises(InputError, match="out of range"):
        one.explain_batches(Camera(3)(), target=99)


def test_no_frames(toy):
    engine = Engine(toy.path)
    for nothing in (iter(()), Camera(0)()):
        with pytest.raises(InputError, match="no images"):
            engine.explain(nothing)


def test_a_fixed_batch_runs_in_full(make_toy):
    fixed, dynamic = Engine(make_toy(batch=4).path), Engine(make_toy("dynamic.onnx").path)
    a, b = (engine.explain(Camera(6)(), references=[]) for engine in (fixed, dynamic))
    np.testing.assert_allclose(a.logits, b.logits, atol=1e-5)
    assert len(a) == 6


def test_one_image_is_no_list_of_bytes_or_lines(toy, tmp_path):
    """Bytes and open files can be iterated over, and are one photograph all the same."""
    path = tmp_path / "photo.png"
    Image.fromarray(frame(1)).save(path)
    engine = Engine(toy.path)
    expected = engine.explain(path, references=[])
    with path.open("rb") as stream:
        for source in (path.read_bytes(), bytearray(path.read_bytes()), stream):
            found = engine.explain(source, references=[])
            assert np.array_equal(found.logits, expected.logits)
            assert found.names == ("image 0",)
