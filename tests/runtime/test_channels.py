"""Engines of other images than RGB: grey ones, which take photographs, and others, which take arrays."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from finercam_rt import Engine, EngineError, Explanation, InputError, frames
from finercam_rt.images import load_image
from finercam_rt.manifest import CROP_MODES, InputSpec, from_json
from finercam_rt.methods import Rise
from finercam_rt.pixels import as_rgb, channels_of, resized, size_of
from finercam_rt.preprocess import Preprocessor

from .conftest import batch

RNG = np.random.default_rng(11)
COLOURS = RNG.integers(0, 256, (41, 57, 3), dtype=np.uint8)
GREY = np.asarray(Image.fromarray(COLOURS).convert("L"))
BANDS = RNG.integers(0, 256, (41, 57, 5), dtype=np.uint8)


def file_of(image: Image.Image, format_: str) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, format=format_)
    return stream


def npy_of(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_a_batch_equals_the_closed_form(make_toy, backend_name, channels):
    toy = make_toy(channels=channels)
    images = batch(toy, 3)
    with Engine(toy.path, backend="auto", threads=1) as engine:
        got = engine(images, target=[1, 2, 3], references=[0], alpha=0.5)
        assert engine.logits(images).shape == (3, 7)
        with pytest.raises(InputError, match=rf"\(3, 3, 32, 48\); expected \(N,{channels},32,48\)"):
            engine(np.zeros((3, 3, 32, 48), np.float32))
    np.testing.assert_allclose(got.logits, toy.logits(images), rtol=1e-4, atol=1e-4)
    expected = [toy.raw_map(image, target, [0], 0.5) for image, target in zip(images, [1, 2, 3], strict=True)]
    assert np.max(expected) > 0
    np.testing.assert_allclose(got.saliency_map, expected, rtol=1e-3, atol=1e-4)


GREY_FORMS = {
    "an array (H,W)": GREY,
    "an array (H,W,1)": GREY[:, :, None],
    "a PIL image of mode L": Image.fromarray(GREY),
    "a file of mode L": file_of(Image.fromarray(GREY), "PNG"),
    "an array (H,W,3)": COLOURS,
    "an array (H,W,4)": np.dstack([COLOURS, np.full((41, 57), 9, np.uint8)]),
    "a PIL image of mode RGB": Image.fromarray(COLOURS),
    "a file of mode RGB": file_of(Image.fromarray(COLOURS), "PNG"),
    "a file of mode LA": file_of(Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (57, 41), 7)]), "PNG"),
    "a file of 16 bits": file_of(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
    "a .npy of an array": npy_of(GREY),
}


@pytest.mark.parametrize("form", GREY_FORMS)
def test_photographs_are_made_grey_by_pillow(form):
    image = load_image(GREY_FORMS[form], channels=1)
    assert isinstance(image, Image.Image)
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), GREY)


def test_a_grey_photograph_is_the_same_for_an_rgb_engine():
    np.testing.assert_array_equal(np.asarray(load_image(npy_of(GREY))), np.dstack([GREY] * 3))


def test_orientation_is_applied_to_grey_photographs():
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, format="PNG", exif=exif)
    np.testing.assert_array_equal(np.asarray(load_image(stream, channels=1)), np.rot90(GREY, -1))


@pytest.mark.parametrize("bits", [8, 12])
def test_16_bits_with_little_in_them_are_refused(bits):
    """Scaled by 1/257 they would be black but for 16 levels, and the answer about something else."""
    values = np.linspace(0, 2**bits - 1, 41 * 57).astype(np.uint16).reshape(41, 57)
    with pytest.raises(InputError, match=rf"image 2 has 16-bit pixels of at most {2**bits - 1}, of which 8 bits .*\.$"):
        load_image(Image.fromarray(values), 2, channels=1)
    values[0, 0] = 4096
    assert np.asarray(load_image(Image.fromarray(values), 2)).max() == 16
    assert not np.asarray(load_image(Image.fromarray(np.zeros((4, 4), np.uint16)))).any(), "black is black"


@pytest.mark.parametrize("crop_mode", CROP_MODES)
def test_channels_are_prepared_one_by_one(crop_mode):
    """Each as a grey photograph of its own, and that as RGB is: the resize, the crop and the padding."""
    mean, std = (0.1, 0.2, 0.3, 0.4, 0.5), (0.2, 0.3, 0.4, 0.5, 0.6)
    spec = InputSpec((32, 48), mean, std, crop_pct=1.0, crop_mode=crop_mode)
    got, view = np.empty(spec.shape, np.float32), np.empty(spec.view_shape, np.uint8)
    geometry = Preprocessor(spec)(BANDS, got, view, "bands")
    for channel in range(5):
        levels = mean[channel : channel + 1], std[channel : channel + 1]
        one = InputSpec((32, 48), *levels, crop_pct=1.0, crop_mode=crop_mode)
        alone, level = np.empty(one.shape, np.float32), np.empty(one.view_shape, np.uint8)
        grey = Image.fromarray(np.ascontiguousarray(BANDS[:, :, channel]))
        assert Preprocessor(one)(grey, alone, level, "band") == geometry
        np.testing.assert_array_equal(got[channel], alone[0])
        np.testing.assert_array_equal(view[:, :, channel], level[:, :, 0])
        rgb = InputSpec((32, 48), one.mean * 3, one.std * 3, crop_pct=1.0, crop_mode=crop_mode)
        three, levels = np.empty(rgb.shape, np.float32), np.empty(rgb.view_shape, np.uint8)
        Preprocessor(rgb)(grey.convert("RGB"), three, levels, "band")
        np.testing.assert_array_equal(alone[0], three[1])
    assert len(np.unique(view)) > 50


def explained(toy, images, **options) -> Explanation:
    with Engine(toy.path, threads=1) as engine:
        return engine.explain(images, target=1, references=[0], **options)


def test_explaining_photographs_in_grey(make_toy):
    toy = make_toy(channels=1)
    got = explained(toy, [COLOURS, GREY, Image.fromarray(COLOURS)])
    assert got.images.shape == (3, 32, 48, 1)
    inputs = ((got.images / np.float32(255) - 0.5) / 0.25).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(got.logits, toy.logits(inputs), rtol=1e-4, atol=1e-4)
    expected = toy.raw_map(inputs[0], 1, [0], 1.0)
    assert expected.any()
    np.testing.assert_allclose(got.saliency_map, np.stack([expected] * 3), rtol=1e-3, atol=1e-4)
    plain = np.asarray(got.overlay(0, opacity=0.0))
    np.testing.assert_array_equal(plain, np.repeat(got.images[0], 3, axis=2))
    np.testing.assert_array_equal(np.asarray(got.originals[1].load()), np.dstack([GREY] * 3))


def test_explaining_arrays_of_other_channels(make_toy, tmp_path):
    toy = make_toy(channels=5)
    path = tmp_path / "bands.npy"
    np.save(path, BANDS)
    got = explained(toy, [BANDS, path, str(path), path.read_bytes(), np.asfortranarray(BANDS)])
    assert got.names == ("image 0", str(path), str(path), "image 3", "image 4")
    assert got.images.shape == (5, 32, 48, 5)
    inputs = ((got.images / np.float32(255) - 0.5) / 0.25).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(got.logits, toy.logits(inputs), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(got.logits, got.logits[[0] * 5])
    assert got.status == ("ok",) * 5
    grey = np.rint(got.images[1].mean(axis=2)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(got.overlay(1, opacity=0.0)), np.dstack([grey] * 3))
    whole = np.rint(BANDS.mean(axis=2)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(got.originals[1].load()), np.dstack([whole] * 3))
    picture = got.overlay(1, coordinates="original")
    assert picture.size == (57, 41)
    left, top, right, bottom = (round(edge) for edge in got.geometry(1).visible)
    assert not np.array_equal(
        np.asarray(picture)[top:bottom, left:right], np.dstack([whole] * 3)[top:bottom, left:right]
    )
    assert np.isfinite(got.saliency_at(1, "original")[top + 1 : bottom - 1, left + 1 : right - 1]).all()
    np.save(path, BANDS[::-1])
    with pytest.raises(InputError, match="has changed since it was explained"):
        got.overlay(1, coordinates="original")


def test_the_frames_of_a_video_in_grey(make_toy, tmp_path):
    path = tmp_path / "two.gif"
    pictures = [Image.fromarray(COLOURS).convert("P"), Image.fromarray(COLOURS[::-1]).convert("P")]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40)
    with Engine(make_toy(channels=1).path, threads=1) as engine:
        got = [b.explanation for b in engine.explain_batches(frames(path), target=1, references=[0], batch_size=1)]
    assert [part.images.shape for part in got] == [(1, 32, 48, 1)] * 2
    grey = np.asarray(pictures[1].convert("RGB").convert("L"))
    np.testing.assert_array_equal(np.asarray(load_image(list(frames(path))[1], channels=1)), grey)
    assert not np.array_equal(got[0].logits, got[1].logits)


REFUSED = {
    "a photograph's file": (
        file_of(Image.fromarray(COLOURS), "JPEG"),
        "image 0 is a photograph, and the engine's images",
    ),
    "a PIL image": (
        Image.new("RGBA", (9, 9)),
        r"have 5 channels; give a uint8 array \(H,W,5\), or a \.npy file of one",
    ),
    "too few channels": (COLOURS, r"an array of shape \(41, 57, 3\); give \(H,W,5\), the channels last"),
    "no channels": (GREY, r"an array of shape \(41, 57\); give \(H,W,5\)"),
    "floats": (BANDS.astype(np.float32), "an array of float32; give uint8 from 0 to 255, or a normalised batch"),
    "a .npy of floats": (npy_of(BANDS / 255), "an array of float64; give uint8"),
    "a damaged .npy": (npy_of(BANDS)[:1000], "image 0 is a damaged .npy file"),
    "a .npy of objects": (npy_of(np.array([None])), r"is a damaged \.npy file \(Object arrays cannot be loaded"),
    "nothing": (BANDS[:0], r"image 0 has no pixels: its shape is \(0, 57, 5\)"),
    "text": (b"text", "image 0 is not an image that Pillow can read"),
    "another type": (
        3.5,
        r"image 0 is of type float; give a path, bytes, a PIL image or a uint8 NumPy array \(H,W,5\)",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_an_engine_of_five_channels_refuses(make_toy, what):
    source, says = REFUSED[what]
    with pytest.raises(InputError, match=says) as caught:
        explained(make_toy(channels=5), [source])
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_an_array_of_channels_for_an_engine_of_photographs():
    for channels in (1, 3):
        with pytest.raises(InputError, match=r"\(41, 57, 5\); give \(H,W\), \(H,W,1\), \(H,W,3\) or \(H,W,4\)"):
            load_image(BANDS, channels=channels)


def test_the_manifest_says_how_many(make_toy):
    toy = make_toy(channels=5)
    with Engine(toy.path) as engine:
        manifest = engine.manifest
    fields = json.loads(manifest.to_json())
    assert fields["input"]["channels"] == 5
    assert from_json(manifest.to_json(), "x") == manifest
    for change in ({"channels": 3}, {"channels": 0}, {"mean": [0.5]}, {"std": [0.5] * 6}, {"channels": None}):
        wrong = {**fields, "input": {**fields["input"], **change}}
        with pytest.raises(EngineError, match=r"x: its manifest is damaged \(.*\); export the engine again\."):
            from_json(json.dumps(wrong), "x")
    del fields["input"]["channels"]
    with pytest.raises(EngineError, match="its manifest is damaged"):
        from_json(json.dumps(fields), "x")


def test_a_graph_of_other_channels_than_its_manifest(make_toy, backend_name):
    wrong = InputSpec((32, 48), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(EngineError, match="images"):
        Engine(make_toy(channels=4, manifest={"input": wrong}).path)


def test_rise_runs_on_any_channels(make_toy):
    toy = make_toy(channels=2)
    images = batch(toy, 2)
    with Engine(toy.path, threads=1) as engine:
        source = Rise(engine, masks=20, seed=3)
        masks = np.concatenate(list(source._random_masks(images.shape[2:])))
        found = source.explain(images, np.array([2, 3]), np.full((2, 3), -2), 0.0).saliency_map
    for row, image in enumerate(images):
        logits = toy.logits(image * masks[:, None])
        p = np.exp(logits - logits.max(1, keepdims=True))
        expected = np.tensordot((p / p.sum(1, keepdims=True))[:, [2, 3][row]], masks, 1) / 10
        assert expected.max() > 1e-3
        np.testing.assert_allclose(found[row], expected, rtol=1e-3, atol=1e-6)


def test_pixels():
    assert [channels_of(p) for p in (Image.new("L", (2, 3)), Image.new("RGB", (2, 3)), BANDS)] == [1, 3, 5]
    assert [size_of(p) for p in (Image.new("L", (2, 3)), BANDS)] == [(3, 2), (41, 57)]
    assert resized(BANDS, (7, 9), Image.Resampling.BICUBIC).shape == (7, 9, 5)
    levels = np.array([[[0, 1]], [[255, 254]], [[3, 4]]], np.uint8)
    np.testing.assert_array_equal(as_rgb(levels)[:, 0], [[0] * 3, [254] * 3, [4] * 3])
    np.testing.assert_array_equal(as_rgb(COLOURS), COLOURS)
