"""The logits alone are those that come with the explanation, from every runtime."""

from __future__ import annotations

import numpy as np
import pytest

from finercam_rt import BackendError, ClassEmbeddings, Engine, InputError

from .conftest import batch


def test_they_are_those_of_the_explanation(toy, backend_name):
    with Engine(toy.path, threads=1) as engine:
        assert engine.backend == backend_name
        for count in (1, 4, 3, 4):
            images = batch(toy, count)
            found = engine.logits(images)
            np.testing.assert_allclose(found, toy.logits(images), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(found, engine(images).logits, rtol=1e-5, atol=1e-6)
        kept = engine.logits(images)
        engine.logits(2 * images)
        np.testing.assert_array_equal(kept, found)  # the caller's own
    with pytest.raises(BackendError, match="the engine is closed"):
        engine.logits(images)


@pytest.mark.parametrize("contrasts", [1, 2])
def test_of_a_fixed_batch_and_of_several_contrasts(make_toy, backend_name, contrasts):
    toy = make_toy(batch=2, contrasts=contrasts)
    with Engine(toy.path, threads=1) as engine:
        np.testing.assert_allclose(engine.logits(batch(toy, 2)), toy.logits(batch(toy, 2)), rtol=1e-4, atol=1e-5)
        with pytest.raises(InputError, match="exported for exactly 2"):
            engine.logits(batch(toy, 3))


def test_of_a_zero_shot_model(make_toy, backend_name):
    toy = make_toy(zero_shot=True)
    with Engine(toy.path, threads=1) as engine:
        with pytest.raises(InputError, match="is a zero-shot model"):
            engine.logits(batch(toy, 2))
        for count in (7, 5, 7):
            few = engine.with_classes(ClassEmbeddings(toy.weight[:count], tuple(map(str, range(count)))))
            images = batch(toy, 2)
            np.testing.assert_allclose(few.logits(images), few(images).logits, rtol=1e-5, atol=1e-6)


def test_openvino_computes_nothing_else(toy):
    pytest.importorskip("openvino", reason="openvino is not installed")
    with Engine(toy.path, backend="openvino", threads=1) as engine:
        engine.logits(batch(toy, 2))
        (graph,) = engine._backend._graphs(2, logits_alone=True)
        assert [value.get_any_name() for value in graph.inputs] == ["images"]
        assert [value.get_any_name() for value in graph.outputs] == ["logits"]
        (whole,) = engine._backend._graphs(2)
        assert len(graph.get_runtime_model().get_ops()) < len(whole.get_runtime_model().get_ops()) / 2


def test_frameworks_get_their_own(toy, backend_name):
    torch = pytest.importorskip("torch")
    with Engine(toy.path, threads=1) as engine:
        found = engine.logits(torch.from_numpy(batch(toy, 2)))
        assert isinstance(found, torch.Tensor)
        np.testing.assert_allclose(found.numpy(), toy.logits(batch(toy, 2)), rtol=1e-4, atol=1e-5)
