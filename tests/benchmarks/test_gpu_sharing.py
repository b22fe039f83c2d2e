"""The forms of `cam` side by side: which are timed, what is refused, and what the table says to choose."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from gpu import sharing, tables  # noqa: E402
from gpu.clock import HostClock  # noqa: E402
from gpu.sharing import BY_SIZE, SharingCase, best, choices, measure, sharing_cases  # noqa: E402

SOURCE = Path(__file__).parents[2] / "csrc" / "kernels" / "cam_cuda.cu"
CASES = list(sharing_cases(rehearsal=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_form_is_timed_with_a_cold_and_a_warm_cache(case: SharingCase) -> None:
    record = measure(case, HostClock())
    assert list(record["forms"]) == [BY_SIZE, "one block", "2 blocks", "cluster of 2"]
    for found in record["forms"].values():
        assert found["cold_us"]["n"] == found["warm_us"]["n"] == 4
    assert best(record["forms"]) is not None


def test_a_form_that_is_refused_or_wrong_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = sharing._core.cam

    def cam(a: Any, g: Any, out: Any, *, blocks: int, cluster: bool, **options: Any) -> None:
        if cluster:
            raise ValueError("[cam] expected a GPU that has clusters\nand more")
        drawn(a, g, out, **options)
        if blocks == 2:
            out += 1

    monkeypatch.setattr(sharing._core, "cam", cam)
    record = measure(CASES[0], HostClock())
    assert record["forms"]["cluster of 2"] == {"error": "ValueError: [cam] expected a GPU that has clusters"}
    assert "its result differs" in record["forms"]["2 blocks"]["error"]
    found = best(record["forms"])
    assert found is not None
    assert found[0] in (BY_SIZE, "one block")
    text = tables.forms_of_cam([record])
    assert "- cluster of 2: ValueError: [cam] expected a GPU that has clusters" in text
    assert re.search(r"\| - \| - \|$", text, re.MULTILINE)  # neither two levels nor a cluster


def test_the_table_names_the_fastest_and_what_it_gains() -> None:
    def times(**found: float) -> dict[str, Any]:
        return {name.replace("_", " "): {"cold_us": {"median": value}} for name, value in found.items()}

    forms = times(by_size=6.0, two_blocks=7.0, four_blocks=5.0, cluster_of_2=4.0, cluster_of_8=8.0, one_block=9.0)
    forms["cluster of 8"]["warm_us"] = {"median": 3.0}  # which counts, where it was measured
    record = {"variant": "gradcam", "size": "1x2048x7x7", "forms": forms}
    row = ["gradcam", "1x2048x7x7", "cluster of 8", "3.00", "6.00", "2.00"]
    row += ["9.00 (one block)", "5.00 (four blocks)", "3.00 (cluster of 8)"]
    assert choices([record, {**record, "forms": {BY_SIZE: {"error": "lost"}}}]) == [row]


def test_the_forms_are_those_that_the_kernel_has() -> None:
    source = {
        name: int(re.search(rf"constexpr int {name} = (\d+);", text)[1])  # type: ignore[index]
        for name, text in (
            ("kMaxChunk", SOURCE.read_text()),
            ("kMaxCluster", SOURCE.read_text()),
            ("kChunkStep", SOURCE.with_name("cam_block.cuh").read_text()),
        )
    }
    assert source == {
        "kMaxChunk": sharing._MOST_CHANNELS,
        "kMaxCluster": max(sharing._CLUSTERS),
        "kChunkStep": sharing._STEP,
    }
    cases = {case.name: case.forms for case in sharing_cases(rehearsal=False)}
    assert len(cases) == 75
    large = cases["sharing gradcam nchw float32, 1x2048x7x7"]
    assert set(large) == {"4 blocks", "8 blocks", "16 blocks", "32 blocks", "64 blocks", "cluster of 4", "cluster of 8"}
    tokens = cases["sharing layercam tokens float32, 256x768x14x14"]
    assert tokens["2 blocks"] == (2, False)
    assert tokens["cluster of 8"] == (8, True)
    assert "one block" in cases["sharing gradcam nchw float16, 64x512x28x28"]
