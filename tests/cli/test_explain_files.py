"""`finercam explain` and the names of files: shared, hidden, no text, too long, of an earlier run; and who reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finercam_rt import Engine, InputError
from finercam_rt.cli import files
from finercam_rt.cli.pictures import Style, write_sheet

NOT_TEXT = os.fsdecode(b"caf\xe9.jpg")


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def explained(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "explanations.json").read_text(encoding="utf-8"))["images"]


def photograph(path: Path) -> Path:
    """A new file of noise; its name is what matters."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    try:
        with path.open("wb") as stream:
            Image.fromarray(noise).save(stream, format="PNG")
    except OSError:
        pytest.skip("the file system does not take such a name")
    return path


@pytest.fixture
def named(tmp_path: Path) -> Callable[..., list[str]]:
    """The names in the output of a folder of files that are called so, in the order of the files."""

    def find(*names: str) -> list[str]:
        for name in names:
            (tmp_path / "names" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "names" / name).touch()
        return [name.as_posix() for name in files.find_photographs([tmp_path / "names"], None).values()]

    return find


def test_a_name_with_suffix_that_is_anothers_without(named):
    assert named("a.jpg", "a.jpg.png", "a.png") == ["a.jpg", "a.jpg.png", "a.png"]


@pytest.mark.parametrize("part", ["contrast-1", "layer-conv", "frame-000001"])
def test_a_name_that_is_a_part_of_anothers(named, part):
    """x.contrast-1.npy would be the map of x.contrast-1.jpg, and that of the first contrast of x.jpg."""
    every = sorted([f"x.{part}.jpg", "x.jpg", "y.jpg"])
    assert named(*every) == every


def test_a_name_that_only_looks_like_a_part(named):
    assert named("x.contrast-1.jpg", "x.layered.jpg", "y.jpg") == ["x.contrast-1", "x.layered", "y"]


def test_no_picture_is_written_over_anothers(finercam, make_toy, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.jpg", "a.png", "a.jpg.png", "a.contrast-1.jpg"):
        photograph(folder / name)
    assert finercam("explain", make_toy(contrasts=2).path, folder, "-o", out).code == 0
    records = explained(out)
    written = [path for record in records for part in record["contrasts"] for path in part["files"].values()]
    written += [record["files"]["contrasts"] for record in records]
    assert len(set(written)) == len(written) == 4 * (2 * 3 + 1)
    assert tree(out) == {"explanations.json", *written}


def test_what_is_hidden_is_left_out(named):
    """As in data sets: macOS's ._1.jpg, notebooks' checkpoints and wastebaskets."""
    assert named("1.jpg", "._1.jpg", ".Trash/2.jpg", "deep/.ipynb_checkpoints/3.jpg", "deep/4.jpg") == ["1", "deep/4"]


def test_a_folder_that_cannot_be_read_is_not_passed_over(finercam, toy, photographs, tmp_path, monkeypatch):
    """As root, who may run these tests, everything can be read: the system's answer is made up."""
    scandir, out = os.scandir, tmp_path / "out"

    def refusing(path: Any = ".") -> Any:
        if str(path).endswith("er"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    ran = finercam("explain", toy.path, photographs, "-o", out)
    ran.refused(str(photographs / "deep" / "er"), "cannot be read (Permission denied)")
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "says"), [("n" * 300, "File name too long"), ("a\0b", "null")], ids=["too long", "null character"]
)
def test_paths_that_cannot_be_looked_at(finercam, toy, photographs, tmp_path, name, says):
    out = tmp_path / "out"
    finercam("explain", toy.path, tmp_path / name, "-o", out).refused("cannot be read", says)
    finercam("explain", tmp_path / name, photographs, "-o", out).refused("cannot be read", says)
    finercam("explain", toy.path, photographs, "-o", tmp_path / name).refused("cannot be read", says)
    finercam("explain", toy.path, photographs, "-o", tmp_path / name / "below").refused("cannot be read", says)
    finercam("inspect", tmp_path / name).refused("cannot be read", says)
    finercam("evaluate", toy.path, "--data", tmp_path / name, "-o", out).refused("cannot be read", says)
    assert not out.exists()


def test_records_that_are_a_folder(finercam, toy, photographs, tmp_path):
    """A mistake of the system that no other sentence tells of is one all the same."""
    (tmp_path / "out" / "explanations.json").mkdir(parents=True)
    ran = finercam("explain", toy.path, photographs / "a.jpg", "-o", tmp_path / "out")
    ran.refused(str(tmp_path / "out" / "explanations.json"))
    assert tree(tmp_path / "out") == set()


def test_names_that_are_not_text(finercam, toy, tmp_path):
    """Linux has bytes for names: those that are not UTF-8 go through JSON and back, and are printed escaped."""
    folder, out = tmp_path / "in", tmp_path / "out"
    path = photograph(folder / NOT_TEXT)
    photograph(folder / "näin.png")
    ran = finercam("explain", toy.path, folder, "-o", out)
    assert ran.code == 0, ran.err
    assert "caf\\udce9.jpg: " in ran.out
    stem = path.stem
    assert tree(out) == {
        "explanations.json",
        *(f"{name}{suffix}" for name in (stem, "näin") for suffix in (".overlay.png", ".heatmap.png", ".npy")),
    }
    record = explained(out)[0]
    assert os.fsencode(record["image"]) == os.fsencode(path)
    assert Image.open(out / record["files"]["overlay"]).size == (48, 32)
    assert "näin".encode() in (out / "explanations.json").read_bytes(), "text stays text"
    printed = json.loads(finercam("explain", toy.path, folder, "--json").out)["images"]
    assert [record["image"] for record in printed] == [str(path), str(folder / "näin.png")]
    finercam("explain", toy.path, folder / os.fsdecode(b"\xff.jpg"), "-o", out).refused("\\udcff.jpg: no such file")


def test_a_name_that_is_too_long_with_a_suffix(finercam, toy, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    long = photograph(folder / f"{'ä' * 125}.png")
    photograph(folder / "b.png")
    ran = finercam("explain", toy.path, folder, "-o", out)
    assert ran.code == 1
    assert "would be longer than the 255 bytes" in ran.err
    assert tree(out) == {"explanations.json", "b.overlay.png", "b.heatmap.png", "b.npy"}
    records = {record["image"]: record for record in explained(out)}
    assert records[str(folder / "b.png")]["error"] is None
    assert "rename it" in records[str(long)]["error"]
    finercam("explain", toy.path, long, "-o", out / "alone").refused("would be longer than the 255 bytes")
    assert finercam("explain", toy.path, long, "--json").code == 0, "which writes no files"


def test_the_longest_name_that_fits(finercam, toy, tmp_path):
    stem = "a" * (255 - len(".overlay.png"))
    assert finercam("explain", toy.path, photograph(tmp_path / f"{stem}.png"), "-o", tmp_path / "out").code == 0
    assert f"{stem}.overlay.png" in tree(tmp_path / "out")


def test_arrays_with_long_names(finercam, make_toy, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for stem in ("a" * 250, "b"):
        np.save(folder / f"{stem}.npy", np.random.default_rng(1).integers(0, 256, (40, 60, 5), dtype=np.uint8))
    assert finercam("explain", make_toy(channels=5).path, folder, "-o", out).code == 1
    assert [record["error"] is None for record in explained(out)] == [False, True]


MAIN = "import sys; from finercam_rt.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_reader_that_goes_away_leaves_no_records_of_an_earlier_run(finercam, toy, photographs, tmp_path, more):
    """The pictures are new ones by then; the exit code tells scripts that not all of them are."""
    arguments = ["explain", toy.path, photographs, "-o", tmp_path / "out", "--references", "none", *more]
    assert finercam(*arguments, "--target", "magpie").code == 0
    command = [sys.executable, "-u", "-c", MAIN, *map(str, arguments), "--target", "kite"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (141, b"")
    if more:
        assert {record["target"]["name"] for record in explained(tmp_path / "out")} == {"kite"}
    else:
        assert not (tmp_path / "out" / "explanations.json").exists()


def test_a_second_run_does_not_explain_the_sheets(finercam, make_toy, photographs):
    toy = make_toy(contrasts=2)
    for out in (photographs, photographs / "out"):
        for _ in range(2):
            assert finercam("explain", toy.path, photographs, "-o", out).code == 0
            assert len(explained(out)) == 5
    assert "b.contrasts.png" in tree(photographs)


def test_fewer_contrasts_than_before(finercam, make_toy, photographs, tmp_path):
    """None is left of the former question, and what is another image's, or not ours, stays."""
    toy, out = make_toy(contrasts=3), tmp_path / "out"
    assert finercam("explain", toy.path, photographs, "-o", out).code == 0
    before = tree(out)
    suffixes = (".overlay.png", ".heatmap.png", ".npy")
    kept = {"b.contrast-3.txt", "b.jpg.contrast-3.npy", "b.npy", "deep/b.contrast-3.npy", "b.layers.npy"}
    for name in (*kept, *(f"b.contrast-12.layer-a.b{suffix}" for suffix in suffixes), "b.layer-conv.npy"):
        (out / name).touch()
    question = ("--why-not", "jay, blue jay", "kite")
    assert finercam("explain", toy.path, photographs / "b.png", "-o", out, *question).code == 0
    assert tree(out) == (before | kept) - {f"b.contrast-3{suffix}" for suffix in suffixes}
    assert finercam("explain", toy.path, photographs, "-o", out, *question).code == 0
    assert tree(out) == {name for name in before if ".contrast-3" not in name} | kept
    one = make_toy("one.onnx")
    assert finercam("explain", one.path, photographs, "-o", out).code == 0
    assert not [name for name in tree(out) - kept if ".contrast" in name]


def test_a_reference_that_is_the_class_of_a_rank(finercam, make_toy, photographs):
    """The sentence names the rank that clashes, which need not be the first."""
    toy, path = make_toy(contrasts=3), photographs / "a.jpg"
    with Engine(toy.path) as engine:
        ranked = engine.explain([path]).target[0]
        for rank, index in enumerate(ranked.tolist(), 1):
            says = "the predicted class" if rank == 1 else f"the class of rank {rank},"
            words = f"{path}: {says} {engine.classes.name(index)!r} is one of the references; "
            finercam("explain", toy.path, path, "--json", "--references", index).refused(words)
            with pytest.raises(InputError) as caught:
                engine.explain([path], references=[index], contrasts=None)
            assert words in str(caught.value)


def test_a_sheet_does_not_draw_what_its_logits_forbid(make_toy, tmp_path):
    """The map itself may be finite: its status says that the logits were not."""
    import dataclasses

    source = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    whole = Engine(make_toy(contrasts=2).path).explain([source])
    assert whole.status == (("ok", "ok"),)
    style, record = Style("turbo", 0.5, "crop", None), whole.record(0)

    def sheet(name: str, **changes: Any) -> np.ndarray:
        path = write_sheet(tmp_path, name, dataclasses.replace(whole, **changes), 0, record, style, None)
        return np.asarray(Image.open(tmp_path / path))

    without = whole.saliency_map.copy()
    without[0, 1] = np.nan
    found = sheet("status", status=(("ok", "non_finite"),))
    np.testing.assert_array_equal(found, sheet("map", saliency_map=without, status=(("ok", "non_finite"),)))
    assert (found != sheet("drawn")).any()
