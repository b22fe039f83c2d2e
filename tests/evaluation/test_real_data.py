"""Data sets as users have them: every kind of image file, damaged ones, tables out of spreadsheets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from finercam_rt.classes import Classes
from finercam_rt.errors import InputError
from finercam_rt.evaluation import Results, evaluate
from finercam_rt.evaluation.dataset import read_dataset

CLASSES = Classes(("magpie", "kite", "linnet", "crane"), 4)


def _photograph(seed: int = 0, size: tuple[int, int] = (60, 40)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def _save(path: Path, image: Image.Image | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or _photograph(len(str(path)))).save(path, **options)
    return path


def _one_row(results: Results, name: str) -> float:
    return float(results.values[results.names.index(name), 0, 0])


def test_every_kind_of_image(make_toy: Callable[..., Any], tmp_path: Path) -> None:
    """Grey of 8 and of 16 bits is the same picture; so is what is stored turned, and what has an alpha channel."""
    root, image = tmp_path / "d", _photograph()
    grey = np.asarray(image.convert("L"))
    _save(root / "kite" / "grey 8.png", Image.fromarray(grey))
    _save(root / "kite" / "grey 16.PNG", Image.fromarray(grey.astype(np.uint16) * 257))
    _save(root / "magpie" / "ünïcode.TIFF", image)
    _save(root / "magpie" / "alpha.png", image.convert("RGBA"))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    _save(root / "magpie" / "turned.png", image.transpose(Image.Transpose.ROTATE_90), exif=exif)
    _save(root / "magpie" / "cmyk.JPEG", image.convert("CMYK"))
    _save(root / "magpie" / "palette.gif", image.convert("P"))
    _save(root / "magpie" / "two.bmp", image.convert("1"))
    results = evaluate(make_toy().path, root, metrics=["rd@10"])
    assert len(results.names) == 8
    assert results.left_out == ()
    assert results.statuses(0) == {"ok": 8}
    assert _one_row(results, "kite/grey 8.png") == _one_row(results, "kite/grey 16.PNG")
    upright = _one_row(results, "magpie/ünïcode.TIFF")
    assert _one_row(results, "magpie/turned.png") == upright == _one_row(results, "magpie/alpha.png")


def test_damaged_files_are_listed_with_what_is_wrong(make_toy: Callable[..., Any], tmp_path: Path) -> None:
    root = tmp_path / "d"
    whole = [_save(root / "kite" / f"{k}.jpg", _photograph(k)) for k in range(3)]
    asked: dict[str, Any] = {"metrics": ["rd@10", "deletion"]}
    before = evaluate(make_toy().path, root, **asked)
    (root / "kite" / "cut.jpg").write_bytes(whole[0].read_bytes()[:400])
    (root / "kite" / "empty.jpg").write_bytes(b"")
    (root / "kite" / "text.jpg").write_text("no image\n")
    (root / "kite" / "gone.jpg").symlink_to(root / "nothing.jpg")
    (root / "dodo").mkdir()
    _save(root / "dodo" / "x.jpg")
    results = evaluate(make_toy().path, root, **asked)
    assert {item.name: item.kind for item in results.left_out} == {
        "dodo/x.jpg": "unknown class",
        **dict.fromkeys(("kite/cut.jpg", "kite/empty.jpg", "kite/gone.jpg", "kite/text.jpg"), "unreadable"),
    }
    said = [item.sentence for item in results.left_out]
    assert "kite/empty.jpg is empty: it is not an image." in said
    assert "kite/text.jpg is not an image that Pillow can read." in said
    assert "kite/gone.jpg: no such file." in said
    assert not any("\n" in text or str(tmp_path) in text for text in said)
    assert int(results.read.sum()) == 3
    assert str(results.summary) == str(before.summary)
    assert np.isnan(results.values[~results.read]).all()


def test_a_damaged_photograph_is_no_tile_of_a_grid(make_toy: Callable[..., Any], tmp_path: Path) -> None:
    """The grids take the others of its class; where there is none, there is no grid."""
    root = tmp_path / "d"
    for name in ("magpie", "house finch", "indigo bunting", "kite"):
        for k in range(3):
            _save(root / name / f"{k}.png", _photograph(7 * k + len(name)))
    asked: dict[str, Any] = {"metrics": ["grid_pointing_game"], "target": "label", "methods": ["gradcam"]}
    whole = evaluate(make_toy().path, root, **asked)
    for damaged, found in ((1, True), (3, False)):
        for k in range(damaged):
            (root / "kite" / f"{k}.png").write_bytes(b"")
        results = evaluate(make_toy().path, root, **asked)
        assert len(results.left_out) == damaged
        others = [k for k, name in enumerate(results.names) if not name.startswith("kite")]
        assert np.isfinite(results.values[others]).any() == found
    assert np.isfinite(whole.values[others]).any()


def test_folders(tmp_path: Path) -> None:
    root = tmp_path / "d"
    _save(root / "1" / "a.png")
    _save(root / "kite" / "2024" / "spring" / "b c.JPG")
    _save(tmp_path / "elsewhere" / "c.png")
    (root / "magpie").symlink_to(tmp_path / "elsewhere")
    (root / "kite" / "round").symlink_to(root)  # goes in circles
    for hidden in ("kite/._a.png", ".ipynb_checkpoints/a.png", "kite/.trash/a.png"):
        _save(root / hidden)
    (root / "kite" / "folder.png").mkdir()
    found = read_dataset(root, CLASSES)
    assert [(sample.name, sample.label) for sample in found.samples] == [
        ("1/a.png", 1),
        ("kite/2024/spring/b c.JPG", 1),
        ("magpie/c.png", 0),
    ]
    assert found.left_out == ()


def test_folders_that_are_not_by_class(tmp_path: Path) -> None:
    _save(tmp_path / "sets" / "train" / "kite" / "a.png")
    with pytest.raises(InputError, match=r"give \S*sets/train if its folders are the classes"):
        read_dataset(tmp_path / "sets", CLASSES)
    (tmp_path / "empty" / "kite").mkdir(parents=True)
    with pytest.raises(InputError, match="no image in this folder"):
        read_dataset(tmp_path / "empty", CLASSES)


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na/ü 1.png,kite\n",
        "\ufeffpath,label\na/ü 1.png,kite\n",
        "path;label\r\na/ü 1.png;kite\r\n\r\n",
        "path\tlabel\na/ü 1.png\tkite\n",
        ' Path , Label \n"a/ü 1.png", kite\n',
        "label,path,more\n1,./a/ü 1.png,x\n1,a/ü 1.png,y,z\n",
        "path,label\n{root}/a/ü 1.png,kite\n",
    ],
)
def test_tables_out_of_spreadsheets(tmp_path: Path, text: str) -> None:
    path = _save(tmp_path / "a" / "ü 1.png")
    (tmp_path / "t.csv").write_text(text.format(root=tmp_path), encoding="utf-8")
    (sample,) = read_dataset(tmp_path / "t.csv", CLASSES).samples
    assert sample.label == 1
    assert sample.path.samefile(path)
    assert not os.path.isabs(sample.name)


def test_absolute_paths_are_named_from_the_folder_that_they_share(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"path,label\n{tmp_path}/x/kite/1.png,1\n{tmp_path}/x/crane/1.png,3\nown.png,0\n")
    found = read_dataset(tmp_path / "t.csv", CLASSES).samples
    assert [sample.name for sample in found] == ["kite/1.png", "crane/1.png", "own.png"]
    assert found[0].path == tmp_path / "x" / "kite" / "1.png"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("path,label\nä.png,kite\n".encode("latin-1"), "is not text in UTF-8"),
        ("path,label\na.png,kite\n".encode("utf-16"), "is not text in UTF-8"),
        (b"path,label\na.png,\n", "it has no label"),
        (b"path,label,x0,y0,x1,y1\na.png,1,0.1,0.2,0.9,1\n", "boxes between 0 and 1"),
        (b"path,label,x0,y0,x1,y1\na.png,1,1,2,3,\n", "line 2: '1 2 3' is no box"),
        (b"path,label\n", "has no rows"),
        (b"", "no column 'path'; it has none"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=says) as error:
        read_dataset(tmp_path / "t.csv", CLASSES)
    assert str(error.value).count("\n") == 0


def test_annotations_that_do_not_fit_their_photograph(make_toy: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png", "d.png", "e.png"):
        _save(tmp_path / name, _photograph(ord(name[0])))
    _save(tmp_path / "small.png", Image.new("L", (30, 20), 255))
    (tmp_path / "t.csv").write_text(
        "path,label,boxes,mask\n"
        "a.png,kite,-9 -9 30 90,\n"  # beyond the edges: what is inside counts
        "b.png,kite,60 0 90 40,\n"
        "c.png,kite,,small.png\n"
        "d.png,kite,,none.png\n"
        "e.png,kite,,\n"
        "a\0.png,kite,,\n"
    )
    results = evaluate(make_toy().path, tmp_path / "t.csv", metrics=["energy", "rd@10"])
    assert np.isfinite(results.values[0, 0]).all()
    assert 0 < results.values[0, 0, 0] < 1
    said = [item.sentence for item in results.left_out]
    assert said[:3] == [
        "b.png: the box 60 0 90 40 lies outside of its photograph of 60x40 pixels; give pixels of the upright "
        "photograph.",
        "c.png: mask small.png is 30x20 pixels and its photograph 60x40; give a mask of the photograph's size.",
        "d.png: mask none.png: no such file.",
    ]
    assert len(said) == 4
    assert results.summary[0]["energy"].images == 1  # e.png has no annotation
    assert results.summary[0]["rd@10"].images == 2
    _save(tmp_path / "d" / "kite" / "a.png")
    with pytest.raises(InputError, match="energy needs boxes or masks, and d has none"):
        evaluate(make_toy().path, tmp_path / "d", metrics=["energy"])
