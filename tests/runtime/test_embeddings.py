"""Class embeddings and their file: what they hold, what they refuse, and that they are written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finercam_rt import ClassEmbeddings, InputError
from finercam_rt.embeddings import random_embeddings

VALUES = np.array([[3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]])


def test_rows_are_normalised_and_cannot_be_changed() -> None:
    made = ClassEmbeddings(VALUES, ("a", "b", "c"))
    np.testing.assert_allclose(made.values, [[0.6, 0.8], [0, 1], [-1, 0]], rtol=1e-6)
    assert made.values.dtype == np.float32
    assert len(made) == 3
    with pytest.raises(ValueError, match="read-only"):
        made.values[0] = 0
    assert VALUES[0, 0] == 3


def test_the_file_keeps_everything(tmp_path: Path) -> None:
    made = ClassEmbeddings(VALUES, ("magpie", "ärö\n", "日"), ("a photo of a {}.", "{}"), "clip", "ab" * 32)
    path = tmp_path / "birds.npz"
    path.write_bytes(b"what was there before")
    made.save(path)
    again = ClassEmbeddings.load(path)
    assert np.array_equal(again.values, made.values)
    assert (again.names, again.templates, again.model, again.text_sha256) == (
        made.names,
        made.templates,
        "clip",
        "ab" * 32,
    )
    assert [file.name for file in tmp_path.iterdir()] == ["birds.npz"]
    anonymous = ClassEmbeddings(VALUES, ("a", "b", "c"))
    anonymous.save(path)
    assert ClassEmbeddings.load(path).text_sha256 is None


@pytest.mark.parametrize(
    ("values", "names", "says"),
    [
        (VALUES[0], "a", "are (K,D) numbers"),
        (np.array([["x"]]), "a", "are (K,D) numbers"),
        (VALUES[:1], "a", "at least 2"),
        (VALUES * [[1], [np.nan], [1]], "abc", "not finite"),
        (VALUES * [[1], [0], [1]], "abc", "the embedding of class 1 is zero"),
        (VALUES, "ab", "2 names for 3 embeddings"),
        (VALUES, ("a", " ", "c"), "a name of its own"),
        (VALUES, "aba", "'a' is given twice"),
    ],
)
def test_refused_values(values: Any, names: Any, says: str) -> None:
    with pytest.raises(InputError) as caught:
        ClassEmbeddings(values, tuple(names))
    assert says in str(caught.value)


def _damaged(path: Path) -> None:
    ClassEmbeddings(VALUES, ("a", "b", "c")).save(path)
    path.write_bytes(path.read_bytes()[:-40])


def _with_byte(signature: bytes, offset: int, value: int) -> Callable[[Path], None]:
    """Writes a file one byte of whose first ZIP header of a kind is another."""

    def write(path: Path) -> None:
        ClassEmbeddings(VALUES, ("a", "b", "c")).save(path)
        content = bytearray(path.read_bytes())
        content[content.index(signature) + offset] = value
        path.write_bytes(content)

    return write


_CENTRAL = b"PK\x01\x02"


def _with_record(path: Path, change: dict[str, Any]) -> None:
    record = {"schema": 1, "names": ["a", "b", "c"], "templates": [], "model": None, "text_sha256": None} | change
    np.savez(path, class_embeddings=VALUES, finercam=np.array(json.dumps(record)))


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: path.write_text("magpie\njay\n"), "holds no class embeddings, or is damaged"),
        (lambda path: path.write_bytes(b""), "holds no class embeddings, or is damaged"),
        (_damaged, "holds no class embeddings, or is damaged"),
        (_with_byte(_CENTRAL, 8, 1), "holds no class embeddings, or is damaged"),
        (_with_byte(_CENTRAL, 10, 99), "holds no class embeddings, or is damaged"),
        (lambda path: np.savez(path, other=VALUES), "holds no class embeddings, or is damaged"),
        (lambda path: np.save(path.open("wb"), VALUES), "holds no class embeddings, or is damaged"),
        (lambda path: np.savez(path, class_embeddings=VALUES, finercam=np.array("{")), "holds no class embeddings"),
        (lambda path: _with_record(path, {"names": "abc"}), "holds no class embeddings"),
        (lambda path: _with_record(path, {"schema": 2}), "has schema 2, newer than the 1"),
        (lambda path: _with_record(path, {"names": ["a", "b"]}), "2 names for 3 embeddings"),
    ],
)
def test_refused_files(tmp_path: Path, write: Any, says: str) -> None:
    path = tmp_path / "birds.npz"
    write(path)
    with pytest.raises(InputError) as caught:
        ClassEmbeddings.load(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        ClassEmbeddings(VALUES, ("a", "b", "c")).save(tmp_path / "file" / "birds.npz")
    with pytest.raises(InputError, match="cannot be written"):
        ClassEmbeddings(VALUES, ("a", "b", "c")).save(tmp_path / "folder.npz")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder.npz"]


def test_random_directions() -> None:
    made = random_embeddings(5, 8)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-6)
    assert np.array_equal(made, random_embeddings(5, 8))
    assert not np.array_equal(made, random_embeddings(5, 8, seed=1))
