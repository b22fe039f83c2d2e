"""Engines whose classes are an input: names, several sets of classes on one graph, and what is refused."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finercam_rt import BackendError, ClassEmbeddings, Engine, EngineError, InputError, why_not
from finercam_rt.backends import selection

NAMES = ("magpie", "jay", "crane", "kite", "red epaulets", "bird", "finch, linnet")
TEXT = "1" * 64  # as the toy's manifest has it


@pytest.fixture
def zero_shot(make_toy: Callable[..., Any]) -> Any:
    return make_toy(zero_shot=True)


def embeddings(toy: Any, count: int = 7, **other: Any) -> ClassEmbeddings:
    return ClassEmbeddings(toy.weight[:count], NAMES[:count], **other)


def batch(toy: Any, count: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, *toy.size)).astype(np.float32)


def check(toy: Any, got: Any, images: np.ndarray, weight: np.ndarray) -> None:
    """Against the closed form of the toy in float64, with these embeddings as its weight."""
    toy = dataclasses.replace(toy, weight=weight, bias=np.zeros(len(weight)))
    logits = toy.logits(images)
    np.testing.assert_allclose(got.logits, logits, rtol=1e-4, atol=1e-5)
    for row in range(len(images)):
        used = [int(index) for index in got.references[row] if index >= 0]
        assert int(got.target[row]) == int(logits[row].argmax())
        want = toy.raw_map(images[row], int(got.target[row]), used, 1.0)
        np.testing.assert_allclose(got.saliency_map[row], want, rtol=1e-3, atol=1e-5)


def test_one_graph_serves_any_classes(zero_shot: Any, backend_name: str) -> None:
    """Different numbers of classes in turn, and back, on one loaded graph."""
    with Engine(zero_shot.path, class_embeddings=embeddings(zero_shot)) as engine:
        assert engine.backend == backend_name
        few = engine.with_classes(embeddings(zero_shot, 5))
        for asked, count in ((engine, 7), (few, 5), (engine, 7), (few, 5)):
            for size in (1, 3):
                images = batch(zero_shot, size, seed=size + count)
                got = asked(images)
                assert got.logits.shape == (size, count)
                check(zero_shot, got, images, zero_shot.weight[:count])
        other = engine.with_classes(ClassEmbeddings(-zero_shot.weight[:5], NAMES[:5]))
        images = batch(zero_shot, 2)
        # of the same size as `few`, so that a buffer kept from that would show
        np.testing.assert_allclose(other(images).logits, -few(images).logits, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(few(images).logits, -other(images).logits, rtol=1e-4, atol=1e-6)
    with pytest.raises(BackendError, match="closed"):
        few(images)


def test_concepts_by_name(zero_shot: Any, tmp_path: Path) -> None:
    path = tmp_path / "birds.npz"
    embeddings(zero_shot, text_sha256=TEXT, model="toy").save(path)
    with Engine(zero_shot.path, class_embeddings=path) as engine:
        photograph = np.random.default_rng(0).integers(0, 256, (*zero_shot.size, 3), dtype=np.uint8)
        explained = engine.explain(photograph, target="red epaulets", references=["bird"])
        assert explained.target.tolist() == [4]
        assert explained.references.tolist() == [[5, -2, -2]]
        assert explained.record(0)["target"]["name"] == "red epaulets"
        assert explained.classes.name(int(explained.target[0])) == "red epaulets"
        with pytest.raises(InputError, match="there is no class 'raven'"):
            engine.explain(photograph, target="raven")
        with pytest.raises(InputError, match="the model has 7 classes"):
            engine.explain(photograph, target=7)


def test_several_contrasts(make_toy: Callable[..., Any]) -> None:
    toy = make_toy(zero_shot=True, contrasts=2)
    with Engine(toy.path, class_embeddings=embeddings(toy)) as engine:
        images = batch(toy, 2)
        got = engine(images, contrasts=why_not(["red epaulets", "bird"]))
        assert got.target.tolist() == [[4, 5]] * 2
        for row in range(2):
            for p, (target, reference) in enumerate([(4, 5), (5, 4)]):
                want = toy.raw_map(images[row], target, [reference], 1.0)
                np.testing.assert_allclose(got.saliency_map[row, p], want, rtol=1e-3, atol=1e-5)


def test_threads_with_classes_of_their_own(zero_shot: Any, backend_name: str) -> None:
    images = batch(zero_shot, 2)
    with Engine(zero_shot.path, class_embeddings=embeddings(zero_shot), threads=1) as engine:
        sets = [zero_shot.weight[:5] * sign for sign in (1, -1)] + [zero_shot.weight]
        engines = [engine.with_classes(ClassEmbeddings(values, NAMES[: len(values)])) for values in sets]
        wrong: list[str] = []

        def ask(own: Engine, values: np.ndarray) -> None:
            for _ in range(30):
                try:
                    check(zero_shot, own(images), images, values)
                except AssertionError as error:
                    wrong.append(str(error))

        threads = [threading.Thread(target=ask, args=pair) for pair in zip(engines, sets, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_a_fixed_batch(make_toy: Callable[..., Any], backend_name: str) -> None:
    toy = make_toy(zero_shot=True, batch=2)
    with Engine(toy.path, class_embeddings=embeddings(toy)) as engine:
        photographs = np.random.default_rng(0).integers(0, 256, (3, *toy.size, 3), dtype=np.uint8)
        explained = engine.explain(photographs)
        assert explained.logits.shape == (3, 7)
        assert explained.status == ("ok",) * 3


def test_the_faster_runtime_is_found(zero_shot: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("FINERCAM_BACKEND", "auto")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    agreed = []
    known = selection._that_agree
    monkeypatch.setattr(selection, "_that_agree", lambda *args: agreed.append(known(*args)) or agreed[-1])
    with Engine(zero_shot.path, class_embeddings=embeddings(zero_shot)) as engine:
        images = batch(zero_shot, 2)
        check(zero_shot, engine(images), images, zero_shot.weight)
    assert [backend.name for backend in agreed[0]] == ["onnxruntime", "openvino"]


def test_bf16_keeps_the_explanation_in_float32(zero_shot: Any) -> None:
    pytest.importorskip("openvino")
    try:
        engine = Engine(zero_shot.path, backend="openvino", compute="bf16", class_embeddings=embeddings(zero_shot))
    except BackendError as error:
        pytest.skip(str(error))
    images = batch(zero_shot, 2)
    with engine:
        got = engine(images, target=[1, 2], references=[[0], [3]])
    for row, (target, reference) in enumerate([(1, 0), (2, 3)]):
        want = zero_shot.raw_map(images[row], target, [reference], 1.0)
        assert np.linalg.norm(got.saliency_map[row] - want) <= 0.02 * np.linalg.norm(want)


def test_without_classes(zero_shot: Any) -> None:
    with Engine(zero_shot.path) as engine:
        for call in (
            lambda: engine(batch(zero_shot, 1)),
            lambda: engine.explain(np.zeros((9, 9, 3), np.uint8)),
            lambda: engine.classes,
        ):
            with pytest.raises(InputError, match="finercam embed-text"):
                call()
        images = batch(zero_shot, 1)
        check(zero_shot, engine.with_classes(embeddings(zero_shot))(images), images, zero_shot.weight)


def test_refused_classes(zero_shot: Any, make_toy: Callable[..., Any], tmp_path: Path) -> None:
    with Engine(zero_shot.path) as engine:
        for given, says in (
            (embeddings(zero_shot, text_sha256="2" * 64, model="other clip"), "by another text tower (other clip)"),
            (ClassEmbeddings(np.eye(5), NAMES[:5]), "rows of 5 numbers, and toy has embeddings of 6"),
            (zero_shot.weight, "not ndarray"),
            (tmp_path / "nothing.npz", "no such file"),
        ):
            with pytest.raises(InputError) as caught:
                engine.with_classes(given)
            assert says in str(caught.value)
            with pytest.raises(InputError) as caught:
                Engine(zero_shot.path, class_embeddings=given)
            assert says in str(caught.value)
    fixed = make_toy("fixed.onnx")
    with pytest.raises(InputError, match="7 fixed classes"):
        Engine(fixed.path, class_embeddings=embeddings(zero_shot))


def test_a_graph_that_is_not_what_its_manifest_says(make_toy: Callable[..., Any], backend_name: str) -> None:
    ordinary = make_toy("ordinary.onnx")
    manifest = make_toy("zero.onnx", zero_shot=True)
    from finercam_rt.onnx_metadata import read_manifest

    mixed = make_toy("mixed.onnx", metadata=read_manifest(manifest.path).to_json())
    with pytest.raises(EngineError, match="class_embeddings"):
        Engine(mixed.path)
    mixed = make_toy("mixed.onnx", zero_shot=True, metadata=read_manifest(ordinary.path).to_json())
    with pytest.raises(EngineError, match="class_embeddings"):
        Engine(mixed.path)
