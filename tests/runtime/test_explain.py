"""Photographs in, batch by batch: the same as one by one, failures beside the rest, the memory of one batch."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from finercam_rt import Engine, InputError

from .conftest import batch, photographs

pytestmark = pytest.mark.usefixtures("backend_name")


def test_explain_in_batches_equals_one_by_one(toy, tmp_path):
    engine = Engine(toy.path)
    arrays = photographs(7)
    path = tmp_path / "photo.png"
    Image.fromarray(arrays[2]).save(path)
    sources = [*arrays[:2], path, *(Image.fromarray(a) for a in arrays[3:5]), str(path), arrays[6]]
    targets = [None, 0, 1, None, 2, 3, None]
    together = engine.explain(sources, target=targets, references=[], alpha=0.5, batch_size=3)
    assert len(together) == 7
    assert together.names[2] == str(path)
    assert together.names[3] == "image 3"
    for i, source in enumerate(sources):
        alone = engine.explain(source, target=[targets[i]], references=[], alpha=0.5)
        assert np.abs(alone.logits[0] - together.logits[i]).max() < 1e-5
        assert np.abs(alone.saliency_map[0] - together.saliency_map[i]).max() < 1e-5
        assert alone.target[0] == together.target[i]
        assert np.array_equal(alone.images[0], together.images[i])


def test_explain_normalises_as_the_manifest_says(toy):
    engine = Engine(toy.path)
    explanation = engine.explain(photographs(2))
    spec = engine.manifest.input
    inputs = ((explanation.images / 255.0 - np.array(spec.mean)) / np.array(spec.std)).transpose(0, 3, 1, 2)
    assert np.abs(explanation.logits - toy.logits(inputs)).max() < 1e-4


def test_four_dimensional_array_is_a_list_of_photographs(toy):
    arrays = np.stack(photographs(3))
    engine = Engine(toy.path)
    assert np.array_equal(engine.explain(arrays).logits, engine.explain(list(arrays)).logits)


def test_no_images(toy):
    for images in ([], np.zeros((0, 9, 9, 3), np.uint8)):
        with pytest.raises(InputError, match="no images"):
            Engine(toy.path).explain(images)
    with pytest.raises(InputError, match="int"):
        Engine(toy.path).explain(3)


def test_batch_size_below_one(toy):
    with pytest.raises(InputError, match="batch size is 0"):
        Engine(toy.path).explain(photographs(1), batch_size=0)


def test_arguments_are_checked_before_the_first_batch(toy):
    """explain_batches is lazy about images, never about arguments."""
    with pytest.raises(InputError, match="out of range"):
        Engine(toy.path).explain_batches(photographs(1), target=99)


def test_failures_do_not_stop_the_others(toy, tmp_path):
    engine = Engine(toy.path)
    good = photographs(5)
    predicted = engine.explain(good).target
    pinned = int(predicted[3])
    references = [[pinned] if i == 3 else [] for i in range(6)]
    sources = [good[0], tmp_path / "missing.jpg", *good[1:]]
    references = [[pinned] if i == 4 else [] for i in range(6)]
    batches = list(engine.explain_batches(sources, references=references, batch_size=4, skip_errors=True))
    assert [b.indices for b in batches] == [(0, 2, 3), (5,)]
    assert "no such file" in str(batches[0].failures[1])
    assert "predicted class" in str(batches[1].failures[4])
    rows = np.concatenate([b.explanation.logits for b in batches])
    assert np.abs(rows - engine.explain([good[0], good[1], good[2], good[4]]).logits).max() < 1e-5
    with pytest.raises(InputError, match="no such file"):
        engine.explain(sources)


def test_memory_is_that_of_one_batch(toy, tmp_path):
    """Four times the images, the same peak."""
    path = tmp_path / "photo.png"
    Image.fromarray(photographs(1, size=(300, 400))[0]).save(path)
    engine = Engine(toy.path)

    def peak(count: int) -> int:
        tracemalloc.start()
        for part in engine.explain_batches([path] * count, references=[], batch_size=4):
            assert len(part.indices) == 4
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(8)
    assert peak(64) < 1.2 * peak(16)


def test_a_batch_in_which_every_image_fails(toy, tmp_path):
    batches = list(Engine(toy.path).explain_batches([tmp_path / "a", tmp_path / "b"], skip_errors=True))
    assert len(batches) == 1
    assert batches[0].explanation is None
    assert sorted(batches[0].failures) == [0, 1]


def test_fixed_batch(make_toy):
    """An engine of exactly four: explain pads the last batch, the low level refuses other sizes."""
    fixed, dynamic = Engine(make_toy(batch=4).path), Engine(make_toy("dynamic.onnx").path)
    arrays = photographs(6)
    a, b = fixed.explain(arrays, references=[]), dynamic.explain(arrays, references=[])
    assert np.abs(a.logits - b.logits).max() < 1e-5
    assert np.abs(a.saliency_map - b.saliency_map).max() < 1e-5
    assert len(a) == 6
    with pytest.raises(InputError, match="exactly 4"):
        fixed(batch(make_toy("other.onnx"), 3))
    with pytest.raises(InputError, match="exactly 4"):
        fixed.explain(arrays, batch_size=2)
