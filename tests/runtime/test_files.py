"""Files that appear whole or not at all, and what a path is."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from finercam_rt.errors import InputError
from finercam_rt.files import atomic_write, files_below, json_bytes, kind_of


def test_many_at_once_write_one_path(tmp_path: Path) -> None:
    """Threads of one process, whose drafts must not be each other's."""
    path, rounds = tmp_path / "map.npy", 200
    contents = [bytes([letter]) * 100_000 for letter in b"ab"]
    errors: list[BaseException] = []

    def work(content: bytes) -> None:
        try:
            for _ in range(rounds):
                with atomic_write(path) as stream:
                    stream.write(content[: len(content) // 2])
                    stream.write(content[len(content) // 2 :])
        except BaseException as error:
            errors.append(error)

    writers = [threading.Thread(target=work, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            seen.add(path.read_bytes())
    for writer in writers:
        writer.join()
    assert not errors
    assert seen | {path.read_bytes()} <= set(contents)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("name", ["n" * 250, "ä" * 125, "n" * 255])
def test_a_name_as_long_as_the_file_system_takes(tmp_path: Path, name: str) -> None:
    with atomic_write(tmp_path / name) as stream:
        stream.write(b"all")
    assert (tmp_path / name).read_bytes() == b"all"
    assert os.listdir(tmp_path) == [name]


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "x"

    def write(content: bytes, error: Exception | None = None) -> None:
        with atomic_write(path) as stream:
            stream.write(content)
            if error is not None:
                raise error

    write(b"first")
    with pytest.raises(ZeroDivisionError):
        write(b"second", ZeroDivisionError())
    with pytest.raises(InputError, match=r"x cannot be written \(No space left on device\)"):
        write(b"third", OSError(28, "No space left on device"))
    assert path.read_bytes() == b"first"
    assert os.listdir(path.parent) == ["x"]
    with pytest.raises(InputError, match="cannot be written"), atomic_write(path / "below"):
        pass


def test_a_link_stays_one(tmp_path: Path) -> None:
    """Of links to links, too, and where the file is not there yet."""
    (tmp_path / "there").mkdir()
    (tmp_path / "first").symlink_to("second")
    (tmp_path / "second").symlink_to(Path("there") / "file")
    for content in (b"new", b"again"):
        with atomic_write(tmp_path / "first") as stream:
            stream.write(content)
        assert (tmp_path / "there" / "file").read_bytes() == content
        assert os.readlink(tmp_path / "first") == "second"
        assert os.listdir(tmp_path / "there") == ["file"]


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    """As a device would be, which root may replace; a pipe also behind the link that /dev/stdout is."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "folder").mkdir()
    read, write = os.pipe()
    for path in (tmp_path / "pipe", tmp_path / "link", tmp_path / "folder", Path(f"/dev/fd/{write}")):
        with pytest.raises(InputError, match=f"{path} cannot be written: it is not a regular file"), atomic_write(path):
            pytest.fail("nothing is written")
    os.close(read)
    os.close(write)
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "pipe"]


def test_what_a_path_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "to file").symlink_to("file")
    (tmp_path / "to nothing").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    assert kind_of(tmp_path) == "folder"
    assert kind_of(tmp_path / "file") == kind_of(tmp_path / "to file") == "file"
    assert (
        kind_of(tmp_path / "none") is kind_of(tmp_path / "to nothing") is kind_of(tmp_path / "file" / "below") is None
    )
    for name in ("loop", "n" * 300, "a\0b"):
        with pytest.raises(InputError, match="cannot be read"):
            kind_of(tmp_path / name)


def test_files_below_a_folder(tmp_path: Path) -> None:
    """Each once, though links go in circles, and none that is hidden."""
    for name in ("a", "deep/b", ".hidden/c", "deep/.d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    (tmp_path / "same").symlink_to(tmp_path / "deep")
    assert sorted(files_below(tmp_path)) == [tmp_path / "a", tmp_path / "deep" / "b"]


@pytest.mark.parametrize("name", [b"caf\xe9.jpg", "näin 日 🐦.jpg".encode(), b"\xff\\u00e9\xfe"])
def test_json_of_any_name_gives_it_back(name: bytes) -> None:
    text = json_bytes(json.dumps({"image": os.fsdecode(name)}, ensure_ascii=False))
    assert os.fsencode(json.loads(text.decode())["image"]) == name
