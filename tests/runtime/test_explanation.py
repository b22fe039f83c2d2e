"""What is drawn, and what goes into the records."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from finercam_rt import Engine, Explanation, InputError, alpha_sweep
from finercam_rt.classes import Classes
from finercam_rt.explanation import concatenate


def explanation(**changes) -> Explanation:
    """Three photographs: an explained one, a map without evidence, one that is not finite."""
    rng = np.random.default_rng(5)
    fields = {
        "logits": np.array([[2, 1, 0, -1], [0, 3, 1, 2], [np.nan, 1, 1, 1]], np.float32),
        "saliency_map": np.stack([np.arange(12.0).reshape(3, 4), np.zeros((3, 4)), np.full((3, 4), np.nan)]).astype(
            np.float32
        ),
        "target": np.array([0, 1, 0]),
        "references": np.array([[1, 2], [3, -2], [-2, -2]]),
        "alpha": np.array([1.0, 0.5, 0.0], np.float32),
        "status": ("ok", "no_positive_evidence", "non_finite"),
        "names": ("a.jpg", "b.jpg", "image 2"),
        "classes": Classes(("w", "x", "y", "z"), 4),
        "size": (30, 40),
        "images": rng.integers(0, 256, (3, 30, 40, 3), dtype=np.uint8),
    }
    return Explanation(**(fields | changes))


def test_length_and_frozen():
    e = explanation()
    assert len(e) == 3
    with pytest.raises(FrozenInstanceError):
        e.target = np.zeros(3)


def test_probabilities_are_a_softmax():
    probabilities = explanation().probabilities
    expected = np.exp([2, 1, 0, -1]) / np.exp([2, 1, 0, -1]).sum()
    assert np.abs(probabilities[0] - expected).max() < 1e-6
    assert np.isnan(probabilities[2]).all()
    large = explanation(logits=np.array([[1e4, 0, 0, 0]] * 3, np.float32))
    assert large.probabilities[0].tolist() == [1, 0, 0, 0]


def test_overlay_shows_the_map_where_it_is():
    """With opacity 1 and grey colours, brightness rises towards the last cell, as the map does."""
    e = explanation()
    drawn = np.asarray(e.overlay(0, colormap="gray", opacity=1.0))
    assert drawn.shape == (30, 40, 3)
    assert drawn[-1, -1].tolist() == [255, 255, 255]
    assert drawn[0, 0].tolist() == [0, 0, 0]
    assert (np.diff(drawn[:, 20, 0].astype(int)) >= 0).all()


def test_overlay_of_the_crop_takes_its_pixels_as_they_are(monkeypatch):
    """Not by way of an image of Pillow's; of any strides, and grey as well."""
    images = np.random.default_rng(1).integers(0, 256, (3, 30, 40, 3), dtype=np.uint8)
    wanted = explanation(images=images).overlay(0)
    grey = explanation(images=np.repeat(images[..., :1], 3, axis=3)).overlay(0)
    monkeypatch.setattr("finercam_rt.explanation.Image.fromarray", lambda pixels: pytest.fail("converted"))
    turned = np.ascontiguousarray(images[:, ::-1, ::-1])[:, ::-1, ::-1]
    assert np.array_equal(explanation(images=turned).overlay(0), wanted)
    assert np.array_equal(explanation(images=images[..., :1]).overlay(0), grey)


def test_overlay_blends():
    e = explanation()
    half, full = (np.asarray(e.overlay(0, opacity=o)).astype(float) for o in (0.5, 1.0))
    assert np.abs(half - (0.5 * full + 0.5 * e.images[0])).max() <= 1.0
    assert np.array_equal(np.asarray(e.overlay(0, opacity=0.0)), e.images[0])


@pytest.mark.parametrize("i", [1, 2])
def test_a_map_that_explains_nothing_is_not_drawn(i):
    e = explanation()
    assert np.array_equal(np.asarray(e.overlay(i)), e.images[i])
    assert not np.asarray(e.heatmap(i))[:, :, 3].any()


def test_sizes():
    e = explanation()
    assert e.overlay(0, size=(60, 90)).size == (90, 60)
    assert e.heatmap(0).size == (40, 30)
    assert e.heatmap(0, size=(7, 9)).size == (9, 7)
    assert e.heatmap(0).mode == "RGBA"
    assert np.asarray(e.heatmap(0))[:, :, 3].all()


@pytest.mark.parametrize("coordinates", ["crop", "original"])
@pytest.mark.parametrize(
    ("size", "says"),
    [
        ((0, 0), "two integers of at least 1"),
        (224, "two integers of at least 1"),
        ((10,), "two integers of at least 1"),
        ((), "two integers of at least 1"),
        ((np.inf, 7), "two integers of at least 1"),
        ((40000, 10), "a side is at most 32767"),
    ],
)
def test_sizes_that_no_picture_has(toy, size, coordinates, says):
    found = Engine(toy.path).explain(np.full((60, 80, 3), 9, np.uint8), references=[])
    for call in (found.overlay, found.heatmap, found.saliency_at):
        with pytest.raises(InputError, match=says):
            call(0, size=size, coordinates=coordinates)


def test_negative_positions_count_from_the_end():
    e = explanation()
    assert np.array_equal(e.overlay(-3), e.overlay(0))
    assert e.record(-1) == e.record(2)


@pytest.mark.parametrize("i", [3, -4])
def test_position_out_of_range(i):
    for draw in (explanation().overlay, explanation().heatmap, explanation().record):
        with pytest.raises(InputError, match="no image"):
            draw(i)


def test_without_photographs():
    e = explanation(images=None)
    with pytest.raises(InputError, match="no photographs"):
        e.overlay(0)
    assert e.heatmap(0).size == (40, 30)


def test_record():
    e = explanation()
    record = e.record(0)
    assert record["image"] == "a.jpg"
    assert record["target"]["name"] == "w"
    assert record["target"]["probability"] == pytest.approx(float(e.probabilities[0, 0]))
    assert [r["name"] for r in record["references"]] == ["x", "y"]
    assert record["logit_margin"] == pytest.approx(1.0)
    assert record["status"] == "ok"
    assert record["saliency_map"] == {"shape": [3, 4], "min": 0.0, "max": 11.0}
    second = e.record(1)
    assert [r["name"] for r in second["references"]] == ["z"]
    assert (second["image"], second["status"], second["alpha"]) == ("b.jpg", "no_positive_evidence", 0.5)
    assert second["saliency_map"]["max"] == 0


def test_a_record_takes_the_softmax_once(make_toy, monkeypatch):
    """Not anew for each class of each contrast, of which there may be hundreds."""
    engine = Engine(make_toy(contrasts=5).path)
    source = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    whole = engine.explain([source, source + 1])
    exp, calls = np.exp, []
    monkeypatch.setattr(np, "exp", lambda *given, **options: calls.append(1) or exp(*given, **options))
    record = whole.record(1)
    assert len(calls) == 1
    classes = [record["predicted"], *(part["target"] for part in record["contrasts"])]
    classes += [item for part in record["contrasts"] for item in part["references"]]
    assert len(classes) == 1 + 5 + 5 * 3
    for item in classes:
        assert item["probability"] == float(whole.probabilities[1, item["index"]])


def test_a_record_looks_at_one_image_alone(make_toy, monkeypatch):
    """Not, for each of its contrasts, at all of them."""
    rng = np.random.default_rng(0)
    whole = Engine(make_toy(contrasts=4).path).explain(list(rng.integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)))
    expected = [[whole.contrast(p).record(i) for p in range(4)] for i in range(3)]
    monkeypatch.setattr(Explanation, "contrast", lambda self, p: pytest.fail("all images"))
    for i, parts in enumerate(expected):
        record = whole.record(i)
        contrasts = record.pop("contrasts")
        assert [record | part for part in contrasts] == parts


def test_record_is_json_whatever_the_numbers():
    e = explanation()
    text = json.dumps([e.record(i) for i in range(3)], allow_nan=False)
    last = json.loads(text)[2]
    assert last["logit_margin"] is None
    assert last["target"]["logit"] is None
    assert last["saliency_map"]["max"] is None
    assert last["references"] == []


def test_concatenate():
    e = explanation()
    both = concatenate([e, explanation(images=None)])
    assert len(both) == 6
    assert both.names == e.names * 2
    assert both.images is None
    assert concatenate([e, e]).images.shape == (6, 30, 40, 3)


def test_several_contrasts_are_drawn_one_by_one(make_toy):
    toy = make_toy(contrasts=3)
    photograph = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    with Engine(toy.path) as engine:
        whole = engine.explain([photograph] * 2, batch_size=1, contrasts=alpha_sweep([0, 1, 2], "magpie"))
        one = Engine(make_toy("one.onnx").path).explain([photograph], target="magpie", alpha=1)
    assert whole.contrasts == 3
    assert whole.saliency_map.shape == (2, 3, 4, 6)
    assert [len(row) for row in whole.status] == [3, 3]
    part = whole.contrast(1)
    assert part.contrasts is None
    np.testing.assert_allclose(part.saliency_map[0], one.saliency_map[0], rtol=1e-5, atol=1e-6)
    assert np.array_equal(part.overlay(0), one.overlay(0))
    assert part.record(0)["alpha"] == 1
    assert [each["alpha"] for each in whole.record(0)["contrasts"]] == [0, 1, 2]
    for call in (whole.overlay, whole.heatmap):
        with pytest.raises(InputError, match=r"3 contrasts an image; draw one with contrast\(p\)"):
            call(0)
    with pytest.raises(InputError, match="no contrast 3: the explanation has 3"):
        whole.contrast(3)
    with pytest.raises(InputError, match="one contrast an image"):
        part.contrast(0)
    with pytest.raises(InputError, match="export it with --layer-maps"):
        part.layer("conv")
