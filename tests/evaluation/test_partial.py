"""The file of an unfinished evaluation, where names are no text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from finercam_rt.errors import InputError
from finercam_rt.evaluation.partial import Partial

NOT_TEXT = os.fsdecode(b"caf\xe9.jpg")


def test_names_that_are_not_text_are_gone_on_from(tmp_path: Path) -> None:
    """Linux has bytes for names, and those that are not UTF-8 must not end an evaluation of hours."""
    path, question, batch = tmp_path / "unfinished.jsonl", {"data": NOT_TEXT}, {"images": [[NOT_TEXT, "näin.png"]]}
    with Partial(path, question, fresh=False) as begun:
        begun.append(batch)
    with Partial(path, question, fresh=False) as again:
        assert again.batches == 1
        assert list(again.read()) == [batch]
    with pytest.raises(InputError, match="with other data;"):
        Partial(path, {"data": "cafe.jpg"}, fresh=False)


@pytest.mark.parametrize("damage", [b"\0" * 20, b"[]", b'{"images": ['])
def test_a_damaged_line_is_measured_again(tmp_path: Path, damage: bytes) -> None:
    """A power failure leaves zeros where a line was; what lies behind it cannot be told from another batch."""
    path = tmp_path / "unfinished.jsonl"
    with Partial(path, {"data": "x"}, fresh=False) as begun:
        for number in range(3):
            begun.append({"batch": number})
    lines = path.read_bytes().splitlines()
    lines[2] = damage
    path.write_bytes(b"\n".join(lines) + b"\n")
    with Partial(path, {"data": "x"}, fresh=False) as again:
        assert list(again.read()) == [{"batch": 0}]
        again.append({"batch": 1})
        assert [record["batch"] for record in again.read()] == [0, 1]


@pytest.mark.parametrize("first", ['{"question": 3}', '{"question": null}', "[]", "{}", "[" * 100_000, "\0"])
def test_a_first_line_that_is_no_question(tmp_path: Path, first: str) -> None:
    path = tmp_path / "unfinished.jsonl"
    path.write_text(f"{first}\n")
    with pytest.raises(InputError, match=r"unfinished\.jsonl is damaged; give --fresh to begin anew"):
        Partial(path, {"data": "x"}, fresh=False)
    assert path.read_text() == f"{first}\n"
