"""Every form of photograph arrives as upright 8-bit RGB, or is refused in one sentence."""

from __future__ import annotations

import io
import os
import warnings

import numpy as np
import pytest
from PIL import Image

from finercam_rt.errors import InputError
from finercam_rt.images import load_image

RGB = np.random.default_rng(3).integers(0, 256, (21, 34, 3), dtype=np.uint8)


def refused(source) -> str:
    with pytest.raises(InputError) as caught:
        load_image(source, position=4)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert (str(source) if isinstance(source, os.PathLike) else "image 4") in text
    return text


def photograph() -> Image.Image:
    """Smooth, so that a JPEG of it is close to it, and without symmetry."""
    rows, columns = np.mgrid[0:48, 0:64]
    return Image.fromarray(np.stack([rows * 5, columns * 3, rows + columns], axis=-1).astype(np.uint8))


def test_arrays():
    for array in (RGB, np.asfortranarray(RGB), RGB[::-1, ::2]):
        assert np.array_equal(load_image(array), array)
    grey = RGB[:, :, 0]
    for array in (grey, grey[:, :, None]):
        assert np.array_equal(load_image(array), np.repeat(grey[:, :, None], 3, axis=2))
    rgba = np.dstack([RGB, np.zeros_like(grey)])
    assert np.array_equal(load_image(rgba), RGB), "alpha is dropped, not composited, as in timm"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_pil_modes_convert_as_timm_does(mode):
    image = Image.fromarray(RGB).convert(mode)
    result = load_image(image)
    assert result.mode == "RGB"
    assert np.array_equal(result, image.convert("RGB"))


def test_palette_with_transparency_file(tmp_path):
    path = tmp_path / "palette.png"
    Image.fromarray(RGB).quantize(16).save(path, transparency=3)
    assert np.array_equal(load_image(path), Image.open(path).convert("RGB"))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_is_scaled(tmp_path, suffix):
    values = np.linspace(0, 65535, 21 * 34).round().astype(np.uint16).reshape(21, 34)
    path = tmp_path / f"deep{suffix}"
    Image.fromarray(values).save(path)
    result = np.asarray(load_image(path))
    expected = np.rint(values / 257.0).astype(np.uint8)
    assert np.array_equal(result, np.repeat(expected[:, :, None], 3, axis=2))
    assert result.max() == 255
    assert result.min() == 0


def test_big_endian_sixteen_bit_grey():
    values = np.array([[0, 257, 65535, 300]], dtype=np.uint16)
    image = Image.frombytes("I;16B", (4, 1), values.astype(">u2").tobytes())
    assert np.asarray(load_image(image))[0, :, 0].tolist() == [0, 1, 255, 1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """Stored turned, tagged with the way back: what is loaded must be the photograph."""
    upright = photograph()
    stored_by = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = upright if stored_by is None else upright.transpose(Image.Transpose(stored_by))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    stored.save(path, quality=95, exif=exif)
    loaded = np.asarray(load_image(path)).astype(int)
    assert loaded.shape == (48, 64, 3)
    assert np.abs(loaded - np.asarray(upright)).max() < 16


def test_exif_that_cannot_be_parsed_is_ignored(tmp_path):
    path = tmp_path / "bad_exif.jpg"
    photograph().save(path, exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load_image(path).size == (64, 48)


def test_animation_gives_its_first_frame(tmp_path):
    path = tmp_path / "two.gif"
    first, second = Image.new("P", (8, 8), 0), Image.new("P", (8, 8), 1)
    for frame in (first, second):
        frame.putpalette([255, 0, 0, 0, 255, 0])
    first.save(path, save_all=True, append_images=[second])
    assert np.asarray(load_image(path))[0, 0].tolist() == [255, 0, 0]


def test_no_such_file(tmp_path):
    assert "no such file" in refused(tmp_path / "nothing.jpg")


def test_folder(tmp_path):
    assert "is a folder" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image at all", bytes(1000)], ids=["empty", "text", "zeros"])
def test_not_an_image(tmp_path, content):
    path = tmp_path / "wrong.jpg"
    path.write_bytes(content)
    assert "not an image" in refused(path)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_truncated(tmp_path, format_, share):
    buffer = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format=format_)
    path = tmp_path / f"cut.{format_.lower()}"
    path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * share)])
    assert "truncated" in refused(path) or "not an image" in refused(path) or "damaged" in refused(path)


@pytest.mark.parametrize("limit", [4_000, 6_000], ids=["above twice the limit", "between once and twice"])
def test_decompression_bomb(tmp_path, monkeypatch, limit, recwarn):
    path = tmp_path / "bomb.png"
    Image.new("1", (100, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    text = refused(path)
    assert "decompression bomb" in text
    assert str(limit) in text
    assert len(recwarn) == 0


def test_no_pixels():
    assert "no pixels" in refused(np.zeros((0, 5, 3), np.uint8))
    assert "no pixels" in refused(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (RGB.astype(np.float32) / 255, "uint8"),
        (RGB.astype(np.int64), "uint8"),
        (RGB > 100, "uint8"),
        (RGB.transpose(2, 0, 1), "channels last"),
        (RGB[None], "channels last"),
        (RGB[:, :, :2], "channels last"),
        (b"bytes", "bytes"),
        (None, "NoneType"),
        (Image.fromarray(RGB[:, :, 0].astype(np.float32)), "floating-point"),
        (Image.fromarray(RGB[:, :, 0].astype(np.int32) * 1000), "32-bit"),
    ],
    ids=["float", "int64", "bool", "channels first", "batch", "two channels", "bytes", "none", "F", "I"],
)
def test_refused_sources(source, says):
    assert says in refused(source)


def test_the_callers_image_is_not_changed():
    image = photograph().convert("RGBA")
    before = image.tobytes()
    load_image(image)
    assert image.mode == "RGBA"
    assert image.tobytes() == before
