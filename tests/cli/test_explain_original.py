"""`finercam explain` in the original's coordinates, and of every frame of animations and videos."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finercam_rt import Engine, InputError, frames, original
from finercam_rt.cli import pictures

SIZE = (60, 100)


def document(out: Path) -> dict:
    return json.loads((out / "explanations.json").read_text())


def frame(k: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(k).integers(0, 256, (*SIZE, 3), dtype=np.uint8))


@pytest.fixture
def clip(tmp_path) -> Path:
    path = tmp_path / "clip.webp"
    frame(0).save(path, save_all=True, append_images=[frame(k) for k in range(1, 5)], lossless=True)
    return path


def test_original_coordinates(finercam, toy, photographs, tmp_path):
    out = tmp_path / "out"
    arguments = ("-o", out, "--references", "none", "--coordinates", "original")
    assert finercam("explain", toy.path, photographs, *arguments).code == 0
    records = document(out)["images"]
    assert len(records) == 5
    explanation = Engine(toy.path).explain([record["image"] for record in records], references=[])
    for i, record in enumerate(records):
        with Image.open(record["image"]) as image:
            size = image.size
        assert record["original"]["size"] == [size[1], size[0]]
        assert tuple(record["original"]["box"]) == explanation.geometry(i).box
        assert record["saliency_map"]["shape"] == [4, 6]
        overlay = Image.open(out / record["files"]["overlay"])
        assert overlay.size == size
        assert np.array_equal(np.asarray(overlay), np.asarray(explanation.overlay(i, coordinates="original")))
        assert Image.open(out / record["files"]["heatmap"]).size == size
        saved = np.load(out / record["files"]["saliency_map"])
        np.testing.assert_array_equal(saved, explanation.saliency_at(i, "original"))
        assert np.isnan(saved).any()


def test_several_contrasts_of_the_whole_photograph(finercam, make_toy, tmp_path, monkeypatch):
    """The sheet's panels are the whole photograph, but not in the size of a camera's; it is loaded once for all."""
    loaded = []
    load = original.load_photograph
    monkeypatch.setattr(original, "load_photograph", lambda *source: loaded.append(source) or load(*source))
    path = tmp_path / "wide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 900, 3), dtype=np.uint8)).save(path)
    out = tmp_path / "out"
    arguments = ("-o", out, "--coordinates", "original")
    assert finercam("explain", make_toy(contrasts=2).path, path, *arguments).code == 0
    assert Image.open(out / "wide.contrast-2.overlay.png").size == (900, 300)
    assert Image.open(out / "wide.contrasts.png").width == 3 * 96 + 2 * 12 + 2 * 16
    assert len(loaded) == 1


def test_frames(finercam, toy, clip, tmp_path):
    out = tmp_path / "out"
    ran = finercam("explain", toy.path, clip, "-o", out, "--frames", "--references", "none", "--batch-size", 2)
    assert ran.code == 0
    records = document(out)["images"]
    assert [record["frame"] for record in records] == [0, 1, 2, 3, 4]
    assert {record["image"] for record in records} == {str(clip)}
    assert f"{clip} frame 3: " in ran.out
    explanation = Engine(toy.path).explain([frame(k) for k in range(5)], references=[])
    for k, record in enumerate(records):
        assert record["files"]["saliency_map"] == f"clip.frame-{k:06d}.npy"
        np.testing.assert_allclose(
            np.load(out / record["files"]["saliency_map"]), explanation.saliency_map[k], rtol=1e-4, atol=1e-6
        )
    every = tmp_path / "every"
    assert finercam("explain", toy.path, clip, "-o", every, "--frames", "--every", 2, "--references", "none").code == 0
    assert [record["frame"] for record in document(every)["images"]] == [0, 2, 4]
    assert (every / "clip.frame-000004.overlay.png").is_file()
    assert not (every / "clip.frame-000001.overlay.png").exists()


@pytest.mark.parametrize("size", [10**10, 10**20])
def test_a_batch_of_frames_that_does_not_fit(finercam, toy, clip, size):
    """How many there are is not known, so that memory for as many as are asked for is taken."""
    ran = finercam("explain", toy.path, clip, "--json", "--frames", "--batch-size", size)
    ran.refused(f"{size} images a run do not fit into memory; give a smaller batch size")


def test_frames_are_images_of_their_own(clip):
    """So that a batch of them can be held."""
    for k, image in enumerate(list(frames(clip))):
        assert image.mode == "RGB"
        assert np.array_equal(image, frame(k))


@pytest.mark.parametrize(("said", "quoted"), [("broken\n  data.", "broken data"), ("", "OSError")])
def test_a_damaged_frame_is_one_sentence(clip, monkeypatch, said, quoted):
    from PIL.WebPImagePlugin import WebPImageFile

    def seek(self, index):
        if index == 2:
            raise OSError(said)
        whole(self, index)

    whole = WebPImageFile.seek
    monkeypatch.setattr(WebPImageFile, "seek", seek)
    with pytest.raises(InputError, match=rf"frame 2 is damaged \({quoted}\)\.$"):
        list(frames(clip))


def test_without_frames_the_first_one_is_explained(finercam, toy, clip, tmp_path):
    assert finercam("explain", toy.path, clip, "-o", tmp_path / "out", "--references", "none").code == 0
    (record,) = document(tmp_path / "out")["images"]
    assert "frame" not in record


def test_the_same_colours_for_every_frame(finercam, toy, clip, tmp_path):
    ran = finercam("explain", toy.path, clip, "--json", "--frames", "--references", "none")
    highest = max(image["saliency_map"]["max"] for image in json.loads(ran.out)["images"])
    out = tmp_path / "out"
    arguments = ("--frames", "--references", "none", "--colormap", "gray", "--range", 0, 2 * highest)
    assert finercam("explain", toy.path, clip, "-o", out, *arguments).code == 0
    brightest = [np.asarray(Image.open(path))[..., 0].max() for path in sorted(out.glob("*.heatmap.png"))]
    assert len(brightest) == 5
    assert 100 < max(brightest) <= 128, "half of the scale"
    assert len(set(brightest)) > 1


def video(path: Path, count: int) -> None:
    av = pytest.importorskip("av", reason="PyAV writes and reads the video")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 96, 64, "yuv420p", 4_000_000
        for k in range(count):
            pixels = np.full((64, 96, 3), 20 * k + 20, np.uint8)
            pixels[:16, :16] = (250, 0, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def test_a_video(finercam, toy, tmp_path):
    path = tmp_path / "clip.mp4"
    video(path, 7)
    grey = [image.getpixel((60, 40))[1] for image in frames(path)]
    assert np.abs(np.array(grey) - (20 * np.arange(7) + 20)).max() <= 4
    out = tmp_path / "out"
    assert finercam("explain", toy.path, tmp_path, "-o", out, "--frames", "--references", "none").code == 0
    assert [record["frame"] for record in document(out)["images"]] == list(range(7))
    ran = finercam("explain", toy.path, path, "-o", tmp_path / "still")
    ran.refused("clip.mp4 is not an image but a video", "--frames")


def test_a_video_that_a_phone_holds_upright(tmp_path):
    """The display matrix (0, 1, -1, 0) of a telephone held upright turns the picture clockwise."""
    path = tmp_path / "clip.mp4"
    video(path, 2)
    content = path.read_bytes()
    at = content.index(b"tkhd") + 44
    one = 0x10000
    assert content[at : at + 36] == struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 0x40000000)
    for matrix, size, red in (
        ((0, one, -one, 0), (64, 96), (58, 5)),
        ((-one, 0, 0, -one), (96, 64), (90, 58)),
        ((0, -one, one, 0), (64, 96), (5, 90)),
    ):
        a, b, c, d = matrix
        path.write_bytes(content[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000) + content[at + 36 :])
        image = next(frames(path))
        assert image.size == size
        assert image.getpixel(red)[0] > 200
        assert image.getpixel((32, 32))[0] < 60


def test_damaged_animations_and_videos(finercam, toy, clip, tmp_path):
    """What comes before the damage is explained; a file without any frame is the command's error."""
    frame(0).save(tmp_path / "cut.gif", save_all=True, append_images=[frame(k) for k in range(1, 5)])
    content = (tmp_path / "cut.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(content[: len(content) // 2])
    out = tmp_path / "out"
    ran = finercam("explain", toy.path, clip, tmp_path / "cut.gif", "-o", out, "--frames", "--references", "none")
    assert ran.code == 1
    records = document(out)["images"]
    assert sum(record["error"] is None for record in records) >= 6
    (failed,) = (record for record in records if record["error"] is not None)
    assert failed["image"].endswith("cut.gif")
    assert f"frame {failed['frame']}" in failed["error"]
    assert len(ran.err.splitlines()) == 1

    (tmp_path / "text.mp4").write_text("no video")
    nothing = tmp_path / "nothing"
    ran = finercam("explain", toy.path, tmp_path / "text.mp4", "-o", nothing, "--frames")
    ran.refused("text.mp4")
    assert not nothing.exists()


@pytest.mark.parametrize("name", ["a\0b", "n" * 300], ids=["null character", "too long"])
def test_names_that_no_video_has(name):
    with pytest.raises(InputError, match="cannot be read"):
        next(frames(name))


def test_a_video_without_pyav(finercam, toy, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mkv").write_bytes(b"\x1aE\xdf\xa3" + bytes(100))
    ran = finercam("explain", toy.path, tmp_path / "clip.mkv", "-o", tmp_path / "out", "--frames")
    ran.refused("clip.mkv", 'pip install "finercam-rt[video]"')


def test_an_original_that_vanishes_is_one_images_error(finercam, toy, photographs, tmp_path, monkeypatch):
    """A file that is deleted between reading and drawing: the others are drawn, and nothing of it is written."""
    load = pictures.load_original

    def vanishing(explanation, row, style):
        if explanation.names[row].endswith("b.png"):
            (photographs / "b.png").unlink()
        return load(explanation, row, style)

    monkeypatch.setattr("finercam_rt.cli.explain.load_original", vanishing)
    out = tmp_path / "out"
    arguments = ("-o", out, "--coordinates", "original", "--references", "none")
    ran = finercam("explain", toy.path, photographs, *arguments)
    assert ran.code == 1
    assert "b.png: no such file" in ran.err
    assert not list(out.glob("b.*"))
    assert len(list(out.rglob("*.npy"))) == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--range", "2", "1"], "the range is 2 to 1"),
        (["--range", "-1", "1"], "0 <= LOW < HIGH"),
        (["--range", "0", "inf"], "0 <= LOW < HIGH"),
        (["--range", "nan", "1"], "0 <= LOW < HIGH"),
        (["--every", "2"], "needs --frames"),
        (["--every", "0", "--frames"], "N at least 1"),
        (["--frames", "--target", "1000"], "class 1000 is out of range"),
    ],
)
def test_wrong_arguments(finercam, toy, photographs, tmp_path, arguments, says):
    out = tmp_path / "out"
    finercam("explain", toy.path, photographs, "-o", out, *arguments).refused(says)
    assert not out.exists()
