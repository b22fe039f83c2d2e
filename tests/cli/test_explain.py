"""`finercam explain`: what is written, what is printed, and every mistake in one sentence with nothing written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finercam_rt import Engine
from finercam_rt.cli import files


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def three(*names: str) -> set[str]:
    return {name + suffix for name in names for suffix in (".overlay.png", ".heatmap.png", ".npy")}


def test_a_folder(finercam, toy, photographs, tmp_path):
    out = tmp_path / "new" / "out"
    ran = finercam("explain", toy.path, photographs, "-o", out, "--batch-size", 2, "--references", "none")
    assert ran.code == 0
    assert tree(out) == {"explanations.json", *three("a", "b", "d", "deep/a", "deep/er/c")}
    document = json.loads((out / "explanations.json").read_text())
    sources = [photographs / name for name in ("a.jpg", "b.png", "d.BMP", "deep/a.jpg", "deep/er/c.webp")]
    assert [record["image"] for record in document["images"]] == [str(path) for path in sources]
    explanation = Engine(toy.path).explain(sources, references=[])
    for i, record in enumerate(document["images"]):
        assert record["error"] is None
        assert record["target"]["index"] == explanation.target[i]
        assert record["status"] == explanation.status[i]
        raw = np.load(out / record["files"]["saliency_map"])
        assert raw.dtype == np.float32
        assert np.abs(raw - explanation.saliency_map[i]).max() < 1e-5
        overlay = np.asarray(Image.open(out / record["files"]["overlay"])).astype(int)
        assert np.abs(overlay - np.asarray(explanation.overlay(i))).max() <= 1
        assert Image.open(out / record["files"]["heatmap"]).size == (48, 32)
    assert document["engine"]["model"] == "toy"
    for path in sources:
        assert str(path) in ran.out
    assert "explained 5 images" in ran.out
    assert str(out) in ran.out


def test_one_file_by_name_and_index(finercam, toy, photographs, tmp_path):
    out = tmp_path / "out"
    ran = finercam(
        "explain", toy.path, photographs / "b.png", "-o", out, "--target", "Magpie", "--references", "linnet", "6"
    )
    assert ran.code == 0
    record = json.loads((out / "explanations.json").read_text())["images"][0]
    assert record["target"]["index"] == 0
    assert [reference["index"] for reference in record["references"]] == [1, 6]
    assert "explained magpie" in ran.out or "predicted" not in ran.out
    assert "house finch" in ran.out


def test_json_prints_the_records_and_needs_no_folder(finercam, toy, photographs, tmp_path):
    before = tree(tmp_path)
    ran = finercam("explain", toy.path, photographs, "--json", "--alpha", 0)
    document = json.loads(ran.out)
    assert len(document["images"]) == 5
    assert all(record["files"] is None and record["alpha"] == 0 for record in document["images"])
    assert tree(tmp_path) == before


def test_bad_images_in_a_folder_do_not_stop_the_others(finercam, toy, photographs, tmp_path):
    content = (photographs / "a.jpg").read_bytes()
    (photographs / "cut.jpg").write_bytes(content[: len(content) // 2])
    (photographs / "text.png").write_text("no")
    out = tmp_path / "out"
    ran = finercam("explain", toy.path, photographs, "-o", out, "--references", "none")
    assert ran.code == 1
    lines = ran.err.splitlines()
    assert len(lines) == 2
    assert "cut.jpg is truncated" in lines[0]
    assert "text.png is not an image" in lines[1]
    assert tree(out) == {"explanations.json", *three("a", "b", "d", "deep/a", "deep/er/c")}
    records = {Path(r["image"]).name: r for r in json.loads((out / "explanations.json").read_text())["images"]}
    assert "truncated" in records["cut.jpg"]["error"]
    assert records["b.png"]["error"] is None
    assert "2 could not be" in ran.out


def test_a_second_run_does_not_explain_the_first_ones_pictures(finercam, toy, photographs):
    for out in (photographs, photographs / "out"):
        for _ in range(2):
            assert finercam("explain", toy.path, photographs, "-o", out, "--references", "none").code == 0
            assert len(json.loads((out / "explanations.json").read_text())["images"]) == 5


def test_a_map_that_explains_nothing_is_said(finercam, make_toy, tmp_path):
    """A black photograph with the mean at 0 makes all activations 0, and the map with them."""
    from finercam_rt.manifest import InputSpec

    toy = make_toy(manifest={"input": InputSpec((32, 48), (0.0,) * 3, (1.0,) * 3)})
    path = tmp_path / "black.png"
    Image.new("RGB", (48, 32)).save(path)
    out = tmp_path / "out"
    ran = finercam("explain", toy.path, path, "-o", out)
    assert ran.code == 0
    assert "warning" in ran.err
    assert "no_positive_evidence" in ran.err
    assert "map no_positive_evidence" in ran.out
    assert not np.asarray(Image.open(out / "black.overlay.png")).any()


def test_nothing_half_written(finercam, toy, photographs, tmp_path, monkeypatch):
    """A disk that fills up in the middle of a picture leaves no part of it."""
    out = tmp_path / "out"

    def save(image, stream, **_):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    ran = finercam("explain", toy.path, photographs / "a.jpg", "-o", out, "--references", "none")
    ran.refused("cannot be written", "No space left")
    assert tree(out) == set()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--target", "1000"], ["class 1000 is out of range", "0 to 6"]),
        (["--target", "-1"], ["class -1 is out of range"]),
        (["--target", "magpei"], ["no class 'magpei'", "'magpie' (0)"]),
        (["--target", "crane"], ["ambiguous", "3 (crane)"]),
        (["--references", "0", "1", "2", "6"], ["R = 3"]),
        (["--references", "linnet", "1"], ["given twice"]),
        (["--references", "kit"], ["'kite' (6)"]),
        (["--references", "none", "kite"], ["--references none stands alone"]),
        (["--target", "kite", "--references", "6"], ["is the target"]),
        (["--references", "0", "1", "2", "--alpha", "-1"], ["alpha is -1"]),
        (["--alpha", "nan"], ["alpha is nan"]),
        (["--alpha", "inf"], ["alpha is inf"]),
        (["--batch-size", "0"], ["batch size is 0"]),
        (["--threads", "0"], ["number of threads is 0; give 1 to 1024, or leave it out"]),
        (["--threads", "100000000000"], ["number of threads is 100000000000; give 1 to 1024"]),
        (["--opacity", "1.5"], ["opacity is 1.5"]),
    ],
)
def test_wrong_arguments(finercam, toy, photographs, tmp_path, arguments, says):
    out = tmp_path / "out"
    finercam("explain", toy.path, photographs, "-o", out, *arguments).refused(*says)
    assert not out.exists()


def test_reference_that_is_the_predicted_class(finercam, toy, photographs, tmp_path):
    path, out = photographs / "a.jpg", tmp_path / "out"
    predicted = int(Engine(toy.path).explain(path).target[0])
    finercam("explain", toy.path, path, "-o", out, "--references", predicted).refused("a.jpg", "predicted class")
    assert not out.exists()


def bad_images(folder: Path) -> dict[str, Path]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(folder / "whole.jpg")
    content = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(content[: len(content) // 2])
    (folder / "text.jpg").write_text("hello")
    (folder / "empty.jpg").touch()
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    return {
        "no such file": folder / "missing.jpg",
        "truncated": folder / "cut.jpg",
        "not an image": folder / "text.jpg",
        "is not an": folder / "empty.jpg",
        "decompression bomb": folder / "bomb.png",
    }


def test_one_bad_image(finercam, toy, tmp_path):
    out = tmp_path / "out"
    for says, path in bad_images(tmp_path / "bad").items():
        finercam("explain", toy.path, path, "-o", out).refused(path.name, says)
        assert not out.exists()


def test_grey_rgba_and_sixteen_bit_images_work(finercam, toy, tmp_path):
    folder = tmp_path / "kinds"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (50, 60), dtype=np.uint8)).save(folder / "grey.png")
    Image.fromarray(rng.integers(0, 256, (50, 60, 4), dtype=np.uint8)).save(folder / "rgba.png")
    Image.fromarray(rng.integers(0, 65536, (50, 60), dtype=np.uint16)).save(folder / "deep.png")
    ran = finercam("explain", toy.path, folder, "-o", tmp_path / "out", "--references", "none")
    assert ran.code == 0
    assert tree(tmp_path / "out") == {"explanations.json", *three("grey", "rgba", "deep")}


def test_every_image_bad(finercam, toy, tmp_path):
    folder, out = tmp_path / "bad", tmp_path / "out"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_text("no")
    ran = finercam("explain", toy.path, folder, "-o", out)
    assert ran.code == 2
    assert ran.err.splitlines()[-1] == "finercam: none of the 2 images could be explained."
    assert not out.exists()


def test_folder_without_images(finercam, toy, tmp_path):
    (tmp_path / "empty").mkdir()
    finercam("explain", toy.path, tmp_path / "empty", "-o", tmp_path / "out").refused("no image in this folder")


def test_output_that_is_a_file_or_below_one(finercam, toy, photographs, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for out in (taken, taken / "sub" / "folder"):
        finercam("explain", toy.path, photographs, "-o", out).refused(str(taken), "is a file")
    assert taken.read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_output_without_permission(finercam, toy, photographs, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    finercam("explain", toy.path, photographs, "-o", locked / "out").refused("cannot be written")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no procfs, which takes no files from anyone")
def test_output_folder_that_takes_no_files(finercam, toy, photographs):
    finercam("explain", toy.path, photographs, "-o", "/proc/self/out").refused("cannot be written")


def test_no_output_and_no_json(finercam, toy, photographs):
    finercam("explain", toy.path, photographs).refused("-o OUT")


def test_engines_that_are_none(finercam, make_toy, photographs, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "text.onnx").write_text("hello")
    foreign = make_toy("foreign.onnx", metadata=None).path
    newer = make_toy("newer.onnx", metadata='{"schema": 7}').path
    for path, says in (
        (tmp_path / "missing.onnx", "no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "text.onnx", "not an ONNX file"),
        (foreign, "without a finercam manifest"),
        (newer, "schema 7"),
    ):
        finercam("explain", path, photographs, "-o", out).refused(str(path), says)
        finercam("inspect", path).refused(str(path), says)
        assert not out.exists()


def test_names_of_files_that_share_one(tmp_path):
    """Shell globs give the same file name from many folders, and stems may differ by suffix only."""
    for name in ("x/1.jpg", "y/1.jpg", "y/1.png", "z/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def named(*paths: str) -> list[str]:
        found = files.find_photographs([tmp_path / path for path in paths], None)
        return [name.as_posix() for name in found.values()]

    assert named("x/1.jpg", "z/2.jpg") == ["1", "2"]
    assert named("x/1.jpg", "y/1.jpg") == ["x/1", "y/1"]
    assert named("x", "z") == ["1", "2"]
    assert named("x", "y") == ["x/1", "y/1.jpg", "y/1.png"]
    assert named("y") == ["1.jpg", "1.png"]
    assert named("x/1.jpg", "x", "x/../x/1.jpg") == ["1"]


def test_output_is_the_same_for_any_batch_size(finercam, toy, photographs, tmp_path):
    maps = []
    for size in (1, 3, 50):
        out = tmp_path / f"out{size}"
        assert finercam("explain", toy.path, photographs, "-o", out, "--batch-size", size).code == 0
        maps.append(np.stack([np.load(path) for path in sorted(out.rglob("*.npy"))]))
    assert np.abs(maps[0] - maps[1]).max() < 1e-5
    assert np.abs(maps[0] - maps[2]).max() < 1e-5


def test_several_contrasts(finercam, make_toy, photographs, tmp_path):
    """The top classes by default; then pairs of classes; then strengths: each with its own files and record."""
    toy, out = make_toy(contrasts=6), tmp_path / "out"
    parts = three(*(f"b.contrast-{p}" for p in range(1, 7)))
    ran = finercam("explain", toy.path, photographs / "b.png", "-o", out)
    assert ran.code == 0
    assert tree(out) == {"explanations.json", "b.contrasts.png", *parts}
    record = json.loads((out / "explanations.json").read_text())["images"][0]
    logits = [part["target"]["logit"] for part in record["contrasts"]]
    assert logits == sorted(logits, reverse=True)
    assert record["predicted"]["index"] == record["contrasts"][0]["target"]["index"]
    explanation = Engine(toy.path).explain([photographs / "b.png"])
    for p, part in enumerate(record["contrasts"]):
        assert np.abs(np.load(out / part["files"]["saliency_map"]) - explanation.saliency_map[0, p]).max() < 1e-6
        overlay = np.asarray(Image.open(out / part["files"]["overlay"])).astype(int)
        assert np.abs(overlay - np.asarray(explanation.contrast(p).overlay(0))).max() <= 1
    assert Image.open(out / record["files"]["contrasts"]).size[0] > 6 * 48
    assert ran.out.count("alpha 1; map") == 6

    ran = finercam("explain", toy.path, photographs / "b.png", "--json", "--why-not", "magpie", "linnet", 6)
    pairs = json.loads(ran.out)["images"][0]["contrasts"]
    asked = [(part["target"]["index"], *(item["index"] for item in part["references"])) for part in pairs]
    assert asked == [(0, 1), (0, 6), (1, 0), (1, 6), (6, 0), (6, 1)]

    arguments = ("--alpha", 0, "--alpha", 2, "--target", "magpie", "--target", 6)
    ran = finercam("explain", toy.path, photographs / "b.png", "--json", *arguments)
    sweep = json.loads(ran.out)["images"][0]["contrasts"]
    assert [(part["target"]["index"], part["alpha"]) for part in sweep] == [(0, 0), (0, 2), (6, 0), (6, 2)]


@pytest.mark.parametrize(
    ("contrasts", "arguments", "says"),
    [
        (1, ("--alpha", 0, "--alpha", 1), "explains one contrast an image"),
        (1, ("--top", 1), "export it with --contrasts"),
        (3, ("--top", 4), "4 contrasts are too many"),
        (3, ("--top", 0), "--top is 0; give at least 1"),
        (3, ("--why-not", "magpie"), "at least two classes"),
        (3, ("--why-not", "magpie", "kite", "linnet"), "6 contrasts are too many"),
        (3, ("--why-not", "magpie", "kite", "--target", "linnet"), "leave --target"),
        (3, ("--why-not", "magpie", "kite", "--references", "linnet"), "leave --references out"),
        (3, ("--top", "999999999"), "--top is 999999999, and there are 7 classes; give at most as many"),
        (3, ("--why-not", "magpie", "magpye"), "magpye"),
    ],
)
def test_contrasts_refused(finercam, make_toy, photographs, tmp_path, contrasts, arguments, says):
    out = tmp_path / "out"
    ran = finercam("explain", make_toy(contrasts=contrasts).path, photographs / "b.png", "-o", out, *arguments)
    ran.refused(says)
    assert tree(out) == set()
