"""What is compiled anew, what is kept, and what must not outlive its model."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import finercam_rt.compat as ours
from finercam_rt.compat import engines
from finercam_rt.compat.engines import EngineCache, Spec
from finercam_rt.compat.explainer import Explainer
from finercam_rt.compat.targets import Question
from finercam_rt.export.layers import LayoutRequest

from .conftest import blobs, small_cnn


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    """A cache of the test's own, and `compiled`, how often it compiled."""
    own = EngineCache()
    own.compiled = []  # type: ignore[attr-defined]
    compile_ = engines._compile

    def counted(model: Any, spec: Any, *asked: Any) -> Any:
        own.compiled.append(spec)  # type: ignore[attr-defined]
        return compile_(model, spec, *asked)

    monkeypatch.setattr(engines, "_compile", counted)
    return own


def _map(model: Any, cache: EngineCache, images: Any = None, target: int = 1, **question: Any) -> np.ndarray:
    values = (blobs(2) if images is None else images).numpy()
    explainer = Explainer(model, ["1"], "gradcam", None, cache)
    facts = explainer.facts(values)
    (answer,) = explainer.ask(values, facts, [Question(target, **question)] * len(values)).maps
    return answer


def _eager(model: Any, images: Any, target: int = 1) -> np.ndarray:
    activations = model[1](model[0](images))
    weights = model[4].weight[target] / activations[0, 0].numel()
    return torch.einsum("nchw,c->nhw", activations, weights).relu().detach().numpy()


def test_new_weights_are_never_explained_by_an_old_engine(cache: EngineCache) -> None:
    """A training loop: the map is that of the weights as they are, at each call."""
    model, images = small_cnn(), blobs(2)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for step in range(2):
        for _ in range(2):
            np.testing.assert_allclose(_map(model, cache, images), _eager(model, images), rtol=1e-4, atol=1e-6)
        assert len(cache.compiled) == step + 1  # type: ignore[attr-defined]
        assert len(cache) == 1
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), torch.tensor([1, 2])).backward()
        optimizer.step()
    with torch.no_grad():
        model[4].weight.data.mul_(-1)
    np.testing.assert_allclose(_map(model, cache, images), _eager(model, images), rtol=1e-4, atol=1e-6)


def test_objects_share_engines(cache: EngineCache, caplog: pytest.LogCaptureFixture) -> None:
    model = small_cnn()
    with caplog.at_level(logging.INFO, logger="finercam_rt.compat"):
        _map(model, cache)
        _map(model, cache, blobs(5), target=3)
        _map(model, cache, target=3, references=(1, 2), alpha=0.6, objective="weighted")
        _map(model, cache, target=3, references=(1,), alpha=0.6)
    said = [record.getMessage() for record in caplog.records if record.name == "finercam_rt.compat"]
    assert said == ["compiling Sequential with gradcam at 1 for images of 32x48, once"]
    _map(model, cache, target=3, references=(0, 1, 2, 4, 5), alpha=0.6, objective="mean")
    found = [(spec.objective, spec.references) for spec in cache.compiled]  # type: ignore[attr-defined]
    assert found == [("weighted", 3), ("mean", 8)]


def test_the_engines_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The book-keeping alone: what stands for an engine here is a number."""
    made: list[int] = []

    def compile_(*_: Any) -> Any:
        made.append(len(made))
        return engines._Kept(made[-1], 10)  # type: ignore[arg-type]

    monkeypatch.setattr(engines, "_compile", compile_)
    cache, models = EngineCache(max_engines=3), [small_cnn(seed=seed) for seed in range(4)]

    def ask(number: int) -> Any:
        facts = cache.facts(models[number], ("1",), (3, 32, 48))
        return cache.engine(models[number], Spec(("1",), (3, 32, 48), "gradcam", "mean"), facts, LayoutRequest)

    assert [ask(number) for number in (0, 1, 2, 0, 3, 0, 1, 3)] == [0, 1, 2, 0, 3, 0, 4, 3]
    cache.max_bytes = 29
    assert ask(2) == 5
    assert len(cache) == 2
    cache.max_bytes = 1
    assert ask(0) == 6
    assert len(cache) == 1
    cache.clear()
    assert len(cache) == 0
    assert ask(0) == 7


def test_an_engine_goes_with_its_model_and_nothing_stays_on_disk(
    cache: EngineCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = small_cnn()
    _map(model, cache)
    assert list(tmp_path.iterdir()) == []
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert len(cache) == 0


def test_threads_compile_once_and_agree(cache: EngineCache) -> None:
    model, images = small_cnn(), blobs(2)
    start = threading.Barrier(4)

    def run(target: int) -> np.ndarray:
        start.wait()
        return _map(model, cache, images, target)

    with ThreadPoolExecutor(4) as pool:
        maps = list(pool.map(run, range(4)))
    assert len(cache.compiled) == 1  # type: ignore[attr-defined]
    for target, values in enumerate(maps):
        np.testing.assert_allclose(values, _eager(model, images, target), rtol=1e-4, atol=1e-6)


def test_an_engine_of_weights_that_changed_while_it_was_made_is_not_kept(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = small_cnn(), blobs(2)
    compile_ = engines._compile

    def disturbed(*asked: Any) -> Any:
        kept = compile_(*asked)
        with torch.no_grad():
            model[4].weight.mul_(-1)
        cache._current(model)  # as a call in another thread would, before it waits
        return kept

    with monkeypatch.context() as patch:
        patch.setattr(engines, "_compile", disturbed)
        _map(model, cache, images)
    assert len(cache) == 0
    np.testing.assert_allclose(_map(model, cache, images), _eager(model, images), rtol=1e-4, atol=1e-6)


def test_the_public_cache_is_the_one_in_use(cnn: Any) -> None:
    ours.cache.clear()
    ours.GradCAM(cnn, [cnn[1]])(blobs(1))
    assert len(ours.cache) == 1
