"""Every form of photograph arrives as upright 8-bit RGB, or is refused in one sentence."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from finercam_rt.errors import InputError
from finercam_rt.images import load_image, load_photograph, open_image
from finercam_rt.pixels import checksum

RGB = np.random.default_rng(3).integers(0, 256, (21, 34, 3), dtype=np.uint8)


def encoded(image: Image.Image, format_: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format_, **options)
    return buffer.getvalue()


def refused(source) -> str:
    with pytest.raises(InputError) as caught:
        load_image(source, position=4)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert text.count(str(source) if isinstance(source, os.PathLike) else "image 4") == 1
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


def tagged(orientation: int | str, resolution: bytes = b"") -> bytes:
    """A JPEG with EXIF of the orientation and, as Pillow would not write it, an entry of XResolution."""
    kind, value = (3, struct.pack("<HH", orientation, 0)) if isinstance(orientation, int) else (2, b"6\0\0\0")
    entries = [struct.pack("<HHI", 0x0112, kind, 1 if kind == 3 else 2) + value] + [resolution] * bool(resolution)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    return encoded(Image.fromarray(RGB), "JPEG", exif=exif)


@pytest.mark.parametrize("orientation", [*range(10), "6"])
def test_turned_as_pillow_does(orientation):
    """Also where the tag is none of the eight, or a text."""
    content = tagged(orientation)
    assert np.array_equal(load_image(content), ImageOps.exif_transpose(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize(
    "resolution",
    [struct.pack("<HHI", 0x011A, 2, 3) + b"72\0\0", struct.pack("<HHIi", 0x011A, 9, 1, -72)],
    ids=["text", "negative"],
)
def test_odd_tags_beside_the_orientation(resolution):
    assert load_image(tagged(6, resolution)).size == (21, 34)


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
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb(tmp_path, monkeypatch, limit):
    path = tmp_path / "bomb.png"
    Image.new("1", (100, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    text = refused(path)
    assert "decompression bomb" in text
    assert f"more than {limit} pixels" in text
    assert "scale the file down first, or, in Python, raise PIL.Image.MAX_IMAGE_PIXELS" in text


@pytest.mark.parametrize("format_", ["PNG", "JPEG"])
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_no_one_elses_warnings(monkeypatch, format_, action):
    """They are the whole process's: not changed while an image is opened, and of no meaning for what is refused."""
    content, seen = encoded(Image.fromarray(RGB), format_), []

    class Stream(io.BytesIO):
        def read(self, *size):
            seen.append(list(warnings.filters))
            return super().read(*size)

    warnings.simplefilter(action)
    for limit in (None, RGB.size // 3):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert open_image(Stream(content), "x").format == format_
    for limit in (RGB.size // 3 - 1, 2):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(InputError, match="decompression bomb"):
            open_image(Stream(content), "x")
    assert seen
    assert all(filters == list(warnings.filters) for filters in seen)


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
        (b"bytes", "not an image"),
        (b"", "is empty"),
        (io.BytesIO(), "is empty"),
        (io.StringIO("text"), "gives str when read; open it in binary mode"),
        (None, "NoneType"),
        (7, "int"),
        ([[1, 2], [3, 4]], "list"),
        (Image.fromarray(RGB[:, :, 0].astype(np.float32)), "floating-point"),
        (Image.fromarray(RGB[:, :, 0].astype(np.int32) * 1000), "32-bit"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_refused_sources(source, says):
    assert says in refused(source)


def test_the_callers_image_is_not_changed():
    image = photograph().convert("RGBA")
    before = image.tobytes()
    load_image(image)
    assert image.mode == "RGBA"
    assert image.tobytes() == before


def test_bytes_and_streams(tmp_path):
    """As a web framework hands an upload over: bytes, an open file, or an object that was read before."""
    content = encoded(Image.fromarray(RGB))
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    read_before = io.BytesIO(content)
    read_before.read()

    class Upload:
        """Cannot be rewound."""

        def read(self) -> bytes:
            return content

    with path.open("rb") as stream:
        for source in (content, bytearray(content), memoryview(content), io.BytesIO(content), read_before, stream):
            assert np.array_equal(load_image(source), RGB)
        assert np.array_equal(load_image(Upload()), RGB)
    again = load_photograph(io.BytesIO(content)).source
    assert again == content, "what can be loaded again, when the stream is at its end"


def test_a_stream_that_cannot_be_read(tmp_path):
    closed = io.BytesIO(b"x")
    closed.close()
    assert "cannot be read (I/O operation on closed file)" in refused(closed)

    class Broken:
        def read(self) -> bytes:
            raise ConnectionResetError("the client went away")

    assert "the client went away" in refused(Broken())


@pytest.mark.parametrize(
    "url", ["https://example.org/a.jpg", "HTTP://example.org/a.jpg", "s3://bucket/a.jpg", "data:image/png;base64,iVBOR"]
)
def test_urls_are_refused(url):
    with pytest.raises(InputError, match="is a URL; download it and give the file, or its bytes") as caught:
        load_image(url)
    assert str(caught.value).startswith(url)


def test_names_that_no_file_has():
    """What the system says of them is no traceback."""
    for name in ("a\0b.jpg", "x" * 5000):
        with pytest.raises(InputError) as caught:
            load_image(name)
        assert len(str(caught.value)) < 400
        assert "\n" not in str(caught.value)


def test_tensors_are_refused_with_the_way_out():
    torch = pytest.importorskip("torch")
    for tensor in (torch.zeros(3, 8, 9), torch.zeros(3, 8, 9, dtype=torch.uint8)):
        text = refused(tensor)
        assert "a torch Tensor" in text
        assert "tensor.permute(1, 2, 0).cpu().numpy()" in text
        assert "engine(batch)" in text
    shown = torch.full((3, 8, 9), 7, dtype=torch.uint8).permute(1, 2, 0).cpu().numpy()
    assert load_image(shown).size == (9, 8)


def heic() -> bytes:
    buffer = io.BytesIO()
    pytest.importorskip("pillow_heif").from_pillow(photograph()).save(buffer)
    return buffer.getvalue()


def test_heic_with_its_package(tmp_path):
    """In a fresh interpreter, because the package registers itself with Pillow."""
    path = tmp_path / "phone.heic"
    path.write_bytes(heic())
    code = (
        "import sys, numpy; from finercam_rt.images import load_image; "
        "numpy.save(sys.argv[2], load_image(sys.argv[1])); load_image(open(sys.argv[1], 'rb').read())"
    )
    subprocess.run([sys.executable, "-c", code, path, tmp_path / "loaded.npy"], check=True)
    loaded = np.load(tmp_path / "loaded.npy").astype(int)
    assert np.abs(loaded - np.asarray(photograph())).max() < 16


def test_heic_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "phone.heic"
    path.write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(100))
    text = refused(path)
    assert "is a HEIC image" in text
    assert "pip install pillow-heif" in text
    assert "HEIC" in refused(path.read_bytes())


@pytest.mark.parametrize(
    "start", [b"\x00\x00\x00\x20ftypisom", b"\x1aE\xdf\xa3", b"RIFF\x00\x00\x00\x00AVI "], ids=["mp4", "mkv", "avi"]
)
def test_videos_are_refused_with_the_way_out(tmp_path, start):
    path = tmp_path / "clip"
    path.write_bytes(start + bytes(200))
    assert "not an image but a video; give its frames: finercam_rt.frames(path), or --frames" in refused(path)


@pytest.mark.parametrize("mode", ["LAB", "HSV", "La", "RGBa", "RGBX", "PA"])
def test_rare_modes_work_or_are_refused(mode):
    image = Image.new(mode, (4, 5))
    try:
        expected = image.convert("RGB")
    except ValueError:
        assert "conversion" in refused(image)
    else:
        assert np.array_equal(load_image(image), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1)])
def test_strips(size):
    assert load_image(encoded(Image.new("RGB", size))).size == size


def test_formats_of_cameras_and_the_web():
    """16-bit colour, CMYK JPEG, animated WebP, JPEG 2000, AVIF, a stereo pair (MPO): upright RGB of the same size."""
    image = photograph()
    forms = {
        "CMYK": encoded(image.convert("CMYK"), "JPEG"),
        "progressive": encoded(image, "JPEG", progressive=True),
        "MPO": encoded(image, "MPO", save_all=True, append_images=[image]),
        "TIFF pages": encoded(image, "TIFF", save_all=True, append_images=[Image.new("RGB", (3, 3))]),
        "WebP": encoded(image, "WEBP", save_all=True, append_images=[Image.new("RGB", image.size)], lossless=True),
        "bilevel": encoded(image.convert("1"), "TIFF", compression="group4"),
    }
    for format_, feature in (("AVIF", "avif"), ("JPEG2000", "jpg_2000")):
        if features.check(feature):
            forms[format_] = encoded(image, format_)
    for name, content in forms.items():
        loaded = load_image(content)
        assert loaded.mode == "RGB"
        assert loaded.size == image.size, name
        if name != "bilevel":
            assert np.abs(np.asarray(loaded).astype(int) - np.asarray(image)).mean() < 6, name


def test_checksum_tells_photographs_apart():
    image = photograph()
    assert checksum(image) == checksum(image.copy())
    assert checksum(image) != checksum(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert checksum(Image.fromarray(RGB)) != checksum(Image.fromarray(RGB + 1))


@pytest.mark.parametrize("height", [1, 100, 128, 129, 375, 1080])
def test_checksum_of_an_array_reads_the_same_rows(height):
    array = np.random.default_rng(height).integers(0, 256, (height, 7, 3), dtype=np.uint8)
    assert checksum(array) == checksum(Image.fromarray(array))
    assert checksum(np.asfortranarray(array)) == checksum(array)
