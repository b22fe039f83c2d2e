"""The command line, run in this process: exit code, stdout and stderr."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from finercam_rt.cli.main import main


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    def refused(self, *says: str) -> None:
        """A mistake of the user: exit code 2, one sentence, no traceback."""
        assert self.code == 2, self
        assert self.out == ""
        assert self.err.startswith("finercam: ")
        assert self.err.count("\n") == 1
        assert self.err.endswith(".\n")
        assert "Traceback" not in self.err
        for text in says:
            assert text in self.err


@pytest.fixture
def finercam(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run(*arguments: object) -> Ran:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse's own exits
            code = int(stop.code or 0)
        return Ran(code, *capfd.readouterr())

    return run


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder with sub-folders: five photographs of different sizes, and a text file."""
    folder = tmp_path / "photographs"
    rng = np.random.default_rng(2)
    for k, name in enumerate(("b.png", "a.jpg", "deep/er/c.webp", "deep/a.jpg", "d.BMP")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40 + k, 60 - k, 3), dtype=np.uint8)).save(path)
    (folder / "notes.txt").write_text("not an image")
    return folder
