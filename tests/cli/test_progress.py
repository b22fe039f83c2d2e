"""A bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import io

from finercam_rt.cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines(capsys):
    stream = io.StringIO()
    bar = Progress(3, "images", "explaining", stream, interval=0)
    for _ in range(3):
        bar.advance()
    bar.write("a result")
    bar.close()
    assert stream.getvalue().splitlines() == [f"explaining: {k} of 3 images" for k in (1, 2, 3)]
    assert capsys.readouterr().out == "a result\n"


def test_details_within_a_step():
    stream, terminal = io.StringIO(), Terminal()
    for where in (stream, terminal):
        bar = Progress(3, "images", "evaluating", where, interval=0)
        bar.advance()
        bar.detail("scorecam 8 of 20 runs")
        bar.close()
    assert stream.getvalue().splitlines()[1:] == ["evaluating: 1 of 3 images, scorecam 8 of 20 runs"]
    assert "scorecam 8 of 20 runs" in terminal.getvalue()


def test_plain_lines_are_few():
    stream = io.StringIO()
    bar = Progress(10_000, "images", "explaining", stream, interval=3600)
    for _ in range(10_000):
        bar.advance()
    assert stream.getvalue() == ""


def test_bar_on_a_terminal():
    stream = Terminal()
    bar = Progress(4, "images", "explaining", stream)
    bar.advance(2)
    bar.close()
    assert "explaining" in stream.getvalue()
    assert "\r" in stream.getvalue()
    assert "0/4" in stream.getvalue()


def test_one_step_needs_no_bar():
    stream = Terminal()
    bar = Progress(1, "images", "explaining", stream, interval=0)
    bar.advance()
    bar.close()
    assert stream.getvalue() == ""
