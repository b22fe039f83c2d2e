"""What is evaluated: folders by class, tables, labels, boxes and masks in the coordinates of the input."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finercam_rt.classes import Classes
from finercam_rt.errors import InputError
from finercam_rt.evaluation.annotations import object_mask
from finercam_rt.evaluation.dataset import UNKNOWN_CLASS, read_dataset, read_label_mapping
from finercam_rt.evaluation.labels import LabelFinder
from finercam_rt.evaluation.table import read_table
from finercam_rt.geometry import Geometry

CLASSES = Classes(
    (
        "Falco sparverius (American Kestrel)",
        "Bucephala islandica (Barrow's Goldeneye)",
        "tailed frog, bell toad",
        "Bay-breasted Warbler",
        "crane",
        "crane",
    ),
    6,
)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of images of 8 x 8 pixels with these paths."""

    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(path)
        return tmp_path / "data"

    return make


@pytest.mark.parametrize(
    ("label", "index"),
    [
        ("american_kestrel", 0),
        ("Falco sparverius", 0),
        ("barrows_goldeneye", 1),
        ("bell toad", 2),
        ("012.Bay_breasted_Warbler", 3),
        ("bay-breasted warbler", 3),
        ("4", 4),
    ],
)
def test_labels_as_data_sets_write_them(label: str, index: int) -> None:
    assert LabelFinder(CLASSES).index(label) == index


@pytest.mark.parametrize(("label", "says"), [("dodo", "no class"), ("crane", "ambiguous"), ("6", "out of range")])
def test_labels_that_mean_no_class(label: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        LabelFinder(CLASSES).index(label)


def test_classes_that_are_called_by_numbers() -> None:
    """A number is one of the names, never the place of another."""
    finder = LabelFinder(Classes(("1", "2", "3", "4"), 4))
    assert [finder.index(label) for label in ("1", "01", "002", " 4")] == [0, 0, 1, 3]
    for label in ("0", "00", "5", "_", " "):
        with pytest.raises(InputError):
            finder.index(label)
    with pytest.raises(InputError):
        LabelFinder(Classes(("magpie, ", "kite (x)", "jay"), 3)).index("---")


def test_a_mapping_goes_first() -> None:
    assert LabelFinder(CLASSES, {"dodo": "bell toad", "american_kestrel": "5"}).index("dodo") == 2
    assert LabelFinder(CLASSES, {"american_kestrel": "5"}).index("american_kestrel") == 5


def test_a_folder_by_class(folder: Callable[..., Path]) -> None:
    root = folder("american_kestrel/2.png", "american_kestrel/1.png", "dodo/a.png", "bell toad/deep/x.png")
    (root / "american_kestrel" / "notes.txt").write_text("no image")
    data = read_dataset(root, CLASSES)
    assert [(s.name, s.label) for s in data.samples] == [
        ("american_kestrel/1.png", 0),
        ("american_kestrel/2.png", 0),
        ("bell toad/deep/x.png", 2),
    ]
    assert [(left.name, left.kind) for left in data.left_out] == [("dodo/a.png", UNKNOWN_CLASS)]
    assert "no class 'dodo'" in data.left_out[0].reason
    everything = read_dataset(root, CLASSES, unlabelled=True)
    assert len(everything.samples) == 4
    assert {s.label for s in everything.samples} == {None}
    assert everything.sha256 != data.sha256


def test_a_folder_without_classes_has_no_labels(folder: Callable[..., Path]) -> None:
    assert [s.label for s in read_dataset(folder("a.png", "b.png"), CLASSES).samples] == [None, None]


def test_a_limit_is_drawn_once_for_a_seed(folder: Callable[..., Path]) -> None:
    root = folder(*(f"american_kestrel/{k}.png" for k in range(9)))

    def drawn(seed: int) -> list[str]:
        return [s.name for s in read_dataset(root, CLASSES, limit=4, seed=seed).samples]

    assert drawn(0) == drawn(0) == sorted(drawn(0))
    assert len(drawn(0)) == 4
    assert len({tuple(drawn(seed)) for seed in range(9)}) > 1


def test_a_table_with_boxes_and_masks(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(
        "path,label,x0,y0,x1,y1,boxes,mask\n"
        "a.png,0,1,2,3,4,,\n"
        "a.png,0,5,6,7,8.5,,\n"
        "b.png,bell toad,,,,,0 0 2 2; 3 3 4 4,b.mask.png\n"
        "c.png,dodo,,,,,,\n"
    )
    data = read_dataset(table, CLASSES)
    assert [(s.name, s.label, s.boxes) for s in data.samples] == [
        ("a.png", 0, ((1, 2, 3, 4), (5, 6, 7, 8.5))),
        ("b.png", 2, ((0, 0, 2, 2), (3, 3, 4, 4))),
    ]
    assert data.samples[1].mask == tmp_path / "b.mask.png"
    assert data.samples[0].path == tmp_path / "a.png"
    assert [left.name for left in data.left_out] == ["c.png"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file,label\na,0\n", "no column 'path'"),
        ("path,species\na,0\n", "--label-column"),
        ("path,label\n", "no rows"),
        ("path,label\n,0\n", "line 2: there is no path"),
        ("path,label,x0,y0,x1,y1\na,0,5,0,1,1\n", "line 2: '5 0 1 1' is no box"),
        ("path,label,boxes\na,0,1 2 3\n", "is no box"),
        ("path,label\na,0\na,1\n", "line 3: a is '1' here and '0' above"),
        ("path,label,references\na,0,1;2\na,0,1\n", "line 3: a has other references above"),
    ],
)
def test_tables_that_say_nothing(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=says) as error:
        read_dataset(tmp_path / "t.csv", CLASSES)
    assert str(error.value).count("\n") == 0


def test_mistakes(folder: Callable[..., Path], tmp_path: Path) -> None:
    for data, says in (
        (tmp_path / "none", "no such file or folder"),
        (folder("loose.png", "crane/x.png"), "beside its class folders"),
        (tmp_path, "beside its class folders|is a class of the engine"),
    ):
        with pytest.raises(InputError, match=says):
            read_dataset(data, CLASSES)
    with pytest.raises(InputError, match="the limit is 0"):
        read_dataset(tmp_path, CLASSES, limit=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image"):
        read_dataset(tmp_path / "empty", CLASSES)


@pytest.mark.parametrize("name", ["n" * 300, "a\0b"], ids=["too long", "null character"])
def test_paths_that_cannot_be_looked_at(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be read") as error:
        read_dataset(tmp_path / name, CLASSES)
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize("read", [read_label_mapping, lambda path: read_table(path, None)], ids=["labels", "table"])
def test_the_system_is_quoted_without_its_number(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    with pytest.raises(InputError, match=r"cannot be read[a-zA-Z ]* \(Is a directory\)\.$"):
        read(tmp_path)


def test_a_folder_that_cannot_be_read_is_not_passed_over(
    folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its images the figures would be those of another data set."""
    root = folder("crane/x.png", "bell toad/y.png")
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if str(path).endswith("crane"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match=r"crane cannot be read \(Permission denied\)"):
        read_dataset(root, CLASSES)


def test_label_files(tmp_path: Path) -> None:
    for name, text in (("a.json", json.dumps({"x": "crane", "y": 3})), ("a.csv", "x,crane\ny,3\n")):
        (tmp_path / name).write_text(text)
        assert read_label_mapping(tmp_path / name) == {"x": "crane", "y": "3"}
    (tmp_path / "bad").write_text("x\n")
    for name, says in (("bad", "label,class"), ("none", "no such file")):
        with pytest.raises(InputError, match=says):
            read_label_mapping(tmp_path / name)


def test_a_table_with_references(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("path,label,references\na,0,bell toad ;1;0\nb,1,\nb,1,0\nc,2,2\nd,2,dodo\n")
    data = read_dataset(table, CLASSES)
    assert [(s.name, s.label, s.references) for s in data.samples] == [("a", 0, (2, 1)), ("b", 1, (0,))]
    assert [(left.name, left.kind) for left in data.left_out] == [("c", "no reference"), ("d", "unknown class")]
    other = tmp_path / "u.csv"
    other.write_text(table.read_text().replace("bell toad ;1;0", "bell toad"))
    assert read_dataset(other, CLASSES).sha256 != data.sha256


def test_boxes_and_masks_in_the_input(tmp_path: Path) -> None:
    """A photograph of 40 x 20 pixels, of which the model sees the middle 20 x 20 at half the size."""
    geometry = Geometry((20, 40), (10, 10), (10.0, 0.0, 30.0, 20.0))
    box = object_mask(geometry, [(10, 0, 14, 6)], None)
    assert np.array_equal(np.argwhere(box), [(r, c) for r in range(3) for c in range(2)])
    assert not object_mask(geometry, [(0, 0, 10, 20)], None).any()  # what was cropped away
    both = object_mask(geometry, [(10, 0, 14, 6), (28, 18, 40, 20)], None)
    assert both.sum() == 7
    assert both[9, 9]
    drawn = np.zeros((20, 40), np.uint8)
    drawn[0:6, 10:14] = 255
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    assert np.array_equal(object_mask(geometry, [], tmp_path / "mask.png"), box)
    Image.fromarray(drawn[:10]).save(tmp_path / "small.png")
    with pytest.raises(InputError, match="40x10 pixels and its photograph 40x20"):
        object_mask(geometry, [], tmp_path / "small.png")
