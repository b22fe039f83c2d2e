"""The committed stub of the compiled module is what nanobind generates from it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

STUB = Path(__file__).parents[2] / "finercam_rt" / "_core.pyi"


def _statements(text: str) -> list[str]:
    """The statements of a stub without its formatting; imports sorted, as ruff sorts those of the committed one."""
    body = ast.parse(text).body
    imports = [s for s in body if isinstance(s, ast.Import | ast.ImportFrom)]
    return [ast.unparse(s) for s in sorted(imports, key=ast.unparse)] + [
        ast.unparse(s) for s in body if s not in imports
    ]


def test_stub_is_current(tmp_path):
    generated = tmp_path / "_core.pyi"
    command = [sys.executable, "-m", "nanobind.stubgen", "-m", "finercam_rt._core", "-o", str(generated)]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    assert _statements(STUB.read_text()) == _statements(generated.read_text()), (
        "run: python -m nanobind.stubgen -m finercam_rt._core -o finercam_rt/_core.pyi && "
        "ruff check --fix finercam_rt/_core.pyi && ruff format finercam_rt/_core.pyi"
    )
