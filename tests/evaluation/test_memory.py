"""An evaluation of many images holds no more memory than one of some."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="the report is drawn with it")
pytest.importorskip("jinja2", reason="the report is made with it")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

IMAGES, ALLOWED = 1500, 6 << 20
"""The inputs of these images are 26 MB in all."""
SCRIPT = """
import json, sys
from pathlib import Path
from finercam_rt.evaluation import evaluate

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))

seen = {}
engine, data, out = sys.argv[1:]
evaluate(engine, data, metrics=["rd@10", "adcc"], out=out, batch_size=16, threads=1,
         on_progress=lambda done, total: seen.__setitem__(done, resident()))
print(json.dumps(seen))
"""


def test_memory_is_flat(make_toy: Callable[..., Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "birds" / "kite"
    folder.mkdir(parents=True)
    for k in range(IMAGES):
        if k < 20:
            coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
            coarse.resize((48, 32), Image.Resampling.BICUBIC).save(folder / f"{k}.png")
        else:
            (folder / f"{k}.png").symlink_to(folder / f"{k % 20}.png")
    out = tmp_path / "out"
    command = [sys.executable, "-c", SCRIPT, str(make_toy().path), str(tmp_path / "birds"), str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    seen = {int(done): resident for done, resident in json.loads(ran.stdout).items()}
    assert max(seen) == 2 * IMAGES  # two rows
    early, late = (
        max(r for done, r in seen.items() if start <= done < stop) for start, stop in ((600, 900), (2700, 3000))
    )
    assert late - early < ALLOWED
    assert (out / "results.json").stat().st_size < 600 * IMAGES
