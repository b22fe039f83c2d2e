"""`finercam compare`, and the measures that it reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finercam_rt.comparison import compare_maps

SIZE = (40, 60)


def _maps(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, 4, 6)).astype(np.float32)
    return np.maximum(a, 0), np.maximum(a + b, 0)  # many zeros: ties


def test_measures_of_equal_scaled_and_reversed_maps() -> None:
    a, _ = _maps(0)
    assert compare_maps(a, a, SIZE) == pytest.approx((1, 1, 1))
    assert compare_maps(a, 7 * a, SIZE) == pytest.approx((1, 1, 1))
    ramp = np.arange(1, 25, dtype=np.float32).reshape(4, 6)
    turned = compare_maps(ramp, ramp[::-1, ::-1].copy(), SIZE)
    assert turned.spearman == pytest.approx(-1)
    assert turned.top_overlap == 0


@pytest.mark.parametrize("seed", range(5))
def test_rank_correlation_equals_scipy(seed: int) -> None:
    stats: Any = pytest.importorskip("scipy.stats", reason="the rank correlation is held against scipy")
    a, b = _maps(seed)
    got = compare_maps(a, b, SIZE)
    assert got.spearman == pytest.approx(stats.spearmanr(a.ravel(), b.ravel()).statistic, abs=1e-12)
    x, y = a.ravel().astype(float), b.ravel().astype(float)
    assert got.cosine == pytest.approx(x @ y / np.sqrt((x @ x) * (y @ y)), abs=1e-12)
    assert 0 <= got.top_overlap <= 1


def test_an_engine_agrees_with_itself(
    finercam: Callable[..., Any], make_toy: Callable[..., Any], photographs: Path
) -> None:
    toy = make_toy()
    ran = finercam("compare", toy.path, toy.path, "--images", photographs, "--json", "--min-cosine", "0.999")
    assert ran.code == 0
    report = json.loads(ran.out)
    compared = [record for record in report["images"] if "cosine" in record]
    assert len(report["images"]) == 5
    assert report["compared"] == len(compared) > 0
    assert report["mean"]["class_agreement"] == 1
    assert report["mean"]["cosine"] == pytest.approx(1)


def test_another_engine_disagrees_and_fails_the_threshold(
    finercam: Callable[..., Any], make_toy: Callable[..., Any], photographs: Path
) -> None:
    first, second = make_toy(), make_toy("mean.onnx", objective="mean")
    ran = finercam("compare", first.path, second.path, "--images", photographs, "--min-cosine", "0.9999999")
    assert ran.code == 1
    assert "below 1" in ran.err
    assert "class agreement" in ran.out


def test_a_bad_image_is_listed_and_the_others_go_on(
    finercam: Callable[..., Any], make_toy: Callable[..., Any], photographs: Path
) -> None:
    (photographs / "broken.jpg").write_text("hello")
    toy = make_toy()
    ran = finercam("compare", toy.path, toy.path, "--images", photographs, "--json")
    assert ran.code == 1, "as of `explain` and `evaluate`"
    assert [r["image"] for r in json.loads(ran.out)["images"] if "error" in r] == [str(photographs / "broken.jpg")]
    assert "broken.jpg is not an image" in ran.err


def test_a_map_of_one_engine_alone_is_a_disagreement(
    finercam: Callable[..., Any], make_toy: Callable[..., Any], photographs: Path
) -> None:
    """B cannot tell bright values apart; a map that neither has says nothing about them."""
    a, b = make_toy("a.onnx").path, make_toy("b.onnx", clip=0.6).path
    bright = np.random.default_rng(4).integers(200, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(bright).save(photographs / "bright.png")
    Image.new("RGB", (60, 40)).save(photographs / "flat.png")
    asked = ("--images", photographs, "--min-cosine", "-1", "--min-class-agreement", "0")
    for first, second, status in ((a, b, "A's map is ok and B's is constant"), (b, a, "is constant and B's is ok")):
        ran = finercam("compare", first, second, *asked)
        assert ran.code == 1
        assert f"finercam: {photographs / 'bright.png'}: " in ran.err
        assert status in ran.err
        for name in ("cosine", "class_agreement"):
            assert f"the mean {name} is without 1 of 7 images, of which one engine alone has a map.\n" in ran.err
        assert finercam("compare", first, second, *asked[:2]).code == 0, "no --min, and all could be read"
    ran = finercam("compare", a, a, *asked)
    assert ran.code == 0
    assert f"finercam: {photographs / 'flat.png'}: A's map is no_positive_evidence and B's" in ran.err


def test_mistakes(
    finercam: Callable[..., Any], make_toy: Callable[..., Any], photographs: Path, tmp_path: Path
) -> None:
    toy = make_toy()
    finercam("compare", toy.path, tmp_path / "none.onnx", "--images", photographs).refused("no such file")
    finercam("compare", toy.path, toy.path, "--images", tmp_path / "none").refused("no such file")
    finercam("compare", toy.path, toy.path, "--images", photographs, "--alpha", "-1").refused("alpha is -1")
    finercam("compare", toy.path, toy.path, "--images", photographs, "--metrics", "rd5").refused("no metric 'rd5'")
    for name in ("adcc", "energy"):
        asked = ("--images", photographs, "--metrics", name)
        finercam("compare", toy.path, toy.path, *asked).refused("`finercam evaluate A B` measures it")
    for least in ("nan", "95"):
        asked = ("--images", photographs, "--min-class-agreement", least)
        finercam("compare", toy.path, toy.path, *asked).refused(f"--min-class-agreement is {least}; give a number")


def test_engines_that_cannot_be_compared_are_refused_before_one_is_loaded(
    finercam: Callable[..., Any], make_toy: Callable[..., Any], photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their manifests: loading may take a minute, to measure which runtime is faster."""
    monkeypatch.setattr("finercam_rt.engine.open_backend", lambda *_, **__: pytest.fail("an engine was loaded"))
    toy, zero = make_toy().path, make_toy("zero.onnx", zero_shot=True).path
    others = {
        "references (3 and 1)": make_toy("one.onnx", references=1).path,
        "grid ((4, 6) and (4, 4))": make_toy("square.onnx", size=(32, 32)).path,
        "classes (7 and given when it runs)": zero,
        "images (photographs and arrays of 5 channels)": make_toy("five.onnx", channels=5).path,
    }
    for differ, other in others.items():
        finercam("compare", toy, other, "--images", photographs).refused(f"differ in their {differ}; compare engines")
    finercam("compare", zero, zero, "--images", photographs).refused("zero-shot", "finercam embed-text")
    finercam("compare", toy, toy, "--images", photographs, "--class-embeddings", "x.npz").refused("7 fixed classes")
    finercam("compare", toy, toy, "--images", photographs, "--method", "layercam").refused("--head taps")


def test_engines_of_several_contrasts_are_asked_for_the_first(
    finercam: Callable[..., Any], make_toy: Callable[..., Any], photographs: Path
) -> None:
    """Of both, of either: why the predicted class, so an engine agrees with its twin of one contrast."""
    one, several = make_toy("one.onnx").path, make_toy("several.onnx", contrasts=3).path
    for a, b in ((several, several), (one, several), (several, one)):
        ran = finercam("compare", a, b, "--images", photographs, "--json")
        assert ran.code == 0
        means = json.loads(ran.out)["mean"]
        assert means["class_agreement"] == 1
        assert min(means["cosine"], means["spearman"], means["top_overlap"]) > 0.9999


def test_what_the_deviation_of_the_maps_costs(
    finercam: Callable[..., Any], make_toy: Callable[..., Any], photographs: Path
) -> None:
    """A's figures are those that `evaluate` finds; B's map is measured on A, whatever B's own logits are."""
    from finercam_rt.evaluation import evaluate

    first, second = make_toy(), make_toy("mean.onnx", objective="mean")
    asked = ("--images", photographs, "--metrics", "rd@20", "deletion", "--json")
    report = json.loads(finercam("compare", first.path, second.path, *asked).out)
    results = evaluate(first.path, photographs, seeds=["weighted"], metrics=["rd@20", "deletion"], unlabelled=True)
    known = dict(zip(results.names, results.values[:, 0], strict=True))
    compared = [record for record in report["images"] if "metrics" in record]
    assert len(compared) == report["compared"] >= 3
    for record in compared:
        figures = record["metrics"]
        wanted = known[Path(record["image"]).relative_to(photographs).as_posix()]
        assert [figures["rd@20"][0], figures["deletion"][0]] == pytest.approx(wanted, abs=1e-6)
    for column, found in report["metrics"].items():
        a, b = np.array([record["metrics"][column] for record in compared]).T
        assert (found["a"], found["b"]) == pytest.approx((a.mean(), b.mean()))
        assert found["difference"]["mean"] == pytest.approx((b - a).mean())
        assert found["difference"]["low"] <= found["difference"]["mean"] <= found["difference"]["high"]
        assert (a != b).any()
    assert report["mean"]["map_error"] > 0.01

    itself = json.loads(finercam("compare", first.path, first.path, *asked).out)
    assert itself["mean"]["map_error"] == 0
    assert {found["difference"]["mean"] for found in itself["metrics"].values()} == {0}
    said = finercam("compare", first.path, second.path, "--images", photographs, "--metrics", "rd@20").out
    assert "rd@20            A " in said
    assert "map error        mean " in said
