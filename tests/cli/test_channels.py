"""Engines of other images than RGB on the command line: grey photographs, folders of arrays, and what is refused."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from finercam_rt import Engine

RNG = np.random.default_rng(4)


@pytest.fixture
def bands(tmp_path):
    """A folder of arrays of five channels, and a note."""
    folder = tmp_path / "bands"
    (folder / "deeper").mkdir(parents=True)
    for name in ("a", "b", "deeper/c"):
        np.save(folder / f"{name}.npy", RNG.integers(0, 256, (40, 60, 5), dtype=np.uint8))
    (folder / "notes.txt").write_text("no array")
    return folder


def test_photographs_are_explained_in_grey(make_toy, finercam, tmp_path):
    """A grey X-ray, the same as a photograph in colours, and in 16 bits: one answer, under one grey picture."""
    toy, folder, out = make_toy(channels=1), tmp_path / "rays", tmp_path / "out"
    folder.mkdir()
    grey = RNG.integers(0, 256, (40, 60), dtype=np.uint8)
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(np.dstack([grey] * 3)).save(folder / "colours.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.tiff")
    ran = finercam("explain", toy.path, folder, "-o", out, "--target", "kite", "--references", "magpie", "--opacity", 0)
    assert ran.code == 0, ran.err
    records = json.loads((out / "explanations.json").read_text())["images"]
    assert len(records) == 3
    assert max(record["target"]["logit"] for record in records) == records[0]["target"]["logit"]
    with Engine(toy.path) as engine:
        expected = engine.explain(grey, target="kite", references=["magpie"])
    assert records[0]["target"]["logit"] == pytest.approx(float(expected.logits[0, 6]), rel=1e-5)
    for name in ("grey", "colours", "deep"):
        picture = np.asarray(Image.open(out / f"{name}.overlay.png"))
        np.testing.assert_array_equal(picture, np.repeat(expected.images[0], 3, axis=2))
        np.testing.assert_allclose(np.load(out / f"{name}.npy"), expected.saliency_map[0], rtol=1e-5)


def test_a_folder_of_arrays(make_toy, finercam, bands, tmp_path):
    toy = make_toy(channels=5)
    assert finercam("explain", toy.path, bands, "-o", bands / "out", "--coordinates", "original").code == 0
    assert Image.open(bands / "out" / "deeper" / "c.overlay.png").size == (60, 40)
    ran = finercam("explain", toy.path, bands, "--json")
    assert ran.code == 0, ran.err
    names = [record["image"] for record in json.loads(ran.out)["images"]]
    assert names == [str(bands / f"{name}.npy") for name in ("a", "b", "deeper/c")], "without the maps of the first run"
    (bands / "photograph.png").write_bytes(b"")
    ran = finercam("explain", toy.path, bands, "--json")
    ran.refused("photograph.png is empty")  # photographs are what a folder is searched for first


def test_photographs_for_an_engine_of_five_channels(make_toy, finercam, bands, tmp_path):
    Image.new("RGB", (60, 40)).save(tmp_path / "x.png")
    ran = finercam("explain", make_toy(channels=5).path, tmp_path / "x.png", "--json")
    ran.refused("x.png is a photograph, and the engine's images have 5 channels; give a uint8 array (H,W,5), or a .npy")
    ran = finercam("explain", make_toy("rgb.onnx").path, bands / "a.npy", "--json")
    ran.refused("a.npy is an array of shape (40, 60, 5); give (H,W), (H,W,1), (H,W,3) or (H,W,4)")


@pytest.mark.parametrize("channels", [1, 5])
def test_comparing_evaluating_and_measuring(make_toy, finercam, bands, tmp_path, channels):
    toy, other = make_toy(channels=channels), make_toy("other.onnx", channels=channels, objective="mean")
    if channels == 1:
        bands = tmp_path / "rays"
        bands.mkdir()
        for name in "abc":
            Image.fromarray(RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(bands / f"{name}.png")
    ran = finercam("compare", toy.path, other.path, "--images", bands, "--metrics", "rd@10", "--json")
    assert ran.code == 0, ran.err
    compared = json.loads(ran.out)
    assert compared["compared"] == 3
    assert np.isfinite(compared["metrics"]["rd@10"]["a"])
    metrics = ("rd@10", "noise_robustness", "road", "average_drop", "insertion")
    options = ["--unlabelled", "--metrics", *metrics, "--methods", "gradcam", "rise", "--masks", 10]
    ran = finercam("evaluate", toy.path, "--data", bands, "-o", tmp_path / "results", *options, "--json")
    assert ran.code == 0, ran.err
    assert (tmp_path / "results" / "report.html").stat().st_size > 10_000
    rows = json.loads(ran.out)["rows"]
    assert {row["method"] for row in rows} == {"gradcam", "rise"}
    assert finercam("bench", toy.path, "--iterations", 1, "--duration", 0, "--warmup-ms", 0).code == 0
    said = {1: "grey", 5: "5 channels"}[channels]
    assert f"32 x 48 pixels (height x width), {said}" in finercam("inspect", toy.path).out


def test_a_grey_engine_beside_one_of_rgb(make_toy, finercam, tmp_path):
    """Each prepares the photograph in its own way; the arrays of another engine are none of either's."""
    Image.fromarray(RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    grey, colours, five = (make_toy(f"{channels}.onnx", channels=channels).path for channels in (1, 3, 5))
    with Engine(grey) as a, Engine(colours) as b:
        expected = [float(engine.explain(tmp_path / "x.png").logits.max()) for engine in (a, b)]
        errors = np.linalg.norm(b.explain(tmp_path / "x.png").logits - a.explain(tmp_path / "x.png").logits)
        norms = np.linalg.norm(a.explain(tmp_path / "x.png").logits)
    assert expected[0] != expected[1]
    ran = finercam("compare", grey, colours, "--images", tmp_path / "x.png", "--metrics", "rd@10", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["mean"]["logit_error"] == pytest.approx(errors / norms, rel=1e-4)
    finercam("compare", grey, five, "--images", tmp_path / "x.png").refused(
        "images (photographs and arrays of 5 channels)"
    )


MODEL = """
import torch
from torch import nn

def load():
    torch.manual_seed(0)
    convolutions = nn.Conv2d(2, 8, 8, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(8, 5)).eval()
"""


def test_exporting_a_model_of_two_channels(finercam, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    (tmp_path / "two_bands.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "two_bands", raising=False)
    export = ("export", "py:two_bands:load", "-o", "two.onnx", "--input-size", 32, 48)

    def refused(*options: object) -> str:
        ran = finercam(*export, *options)
        assert (ran.code, ran.out) == (2, "")
        assert not (tmp_path / "two.onnx").exists()
        sentence = ran.err.splitlines()[-1]
        assert sentence.startswith("finercam: ")
        assert sentence.endswith(".")
        return sentence

    assert "takes images of 2 channels, and the mean 0.485 0.456 0.406 is of 3; give --mean and --std" in refused()
    levels = ("--mean", 0.5, "--std", 0.2, 0.3)
    assert "takes images of 2 channels and not of 1; leave --channels (" in refused("--channels", 1, *levels)
    assert "the number of channels is -1; give at least 1" in refused("--channels", -1)
    assert "--std has a value that is not above zero" in refused("--std", 0.2, 0)
    assert "--mean 123.7 is one of values from 0 to 255; divide mean and std by 255" in refused("--mean", 123.7)
    assert "--mean has a value that is not finite; give one number, or one a channel" in refused("--mean", "nan")
    ran = finercam(*export, "--channels", 2, *levels)
    assert ran.code == 0, ran.err
    assert "images of 2 channels, given as arrays (H,W,2) or .npy files of them" in ran.out
    with Engine("two.onnx") as engine:
        spec = engine.manifest.input
    assert (spec.shape, spec.mean, spec.std) == ((2, 32, 48), (0.5, 0.5), (0.2, 0.3))
    np.save(tmp_path / "x.npy", RNG.integers(0, 256, (40, 60, 2), dtype=np.uint8))
    ran = finercam("explain", "two.onnx", "x.npy", "--json")
    assert ran.code == 0, ran.err
