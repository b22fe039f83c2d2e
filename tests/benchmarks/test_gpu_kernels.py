"""The kernels' cases at small sizes on the CPU: right, compared as on a GPU, and refused where they are wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from gpu.cases import FULL, TINY, KernelCase, kernel_cases  # noqa: E402
from gpu.clock import Chain, HostClock  # noqa: E402
from gpu.measuring import COMPILED, OURS, TORCH, measure  # noqa: E402
from gpu.work import Draw, Work, check_formula, check_ours  # noqa: E402

CASES = list(kernel_cases(TINY))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_kernel_is_its_formula(case: KernelCase) -> None:
    for seed in (0, 1):
        work = case.make(Draw("cpu", seed))
        assert check_ours(work) <= work.tolerance
        assert check_formula(work, work.formula) <= 3e-2
        if work.compiled is not None:
            check_formula(work, work.compiled)
        assert work.moved > 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_wrong_result_is_refused(case: KernelCase) -> None:
    """One that is not written, is shifted by a place, or is NaN in one place."""
    work = case.make(Draw("cpu", 0))
    with pytest.raises(ValueError, match="its result differs"):
        check_ours(replace(work, ours=lambda: None))

    def shifted() -> None:
        work.ours()
        for output in work.outputs:
            output.copy_(output.flatten().roll(1).view_as(output))

    with pytest.raises(ValueError, match="its result differs"):
        check_ours(replace(work, ours=shifted))

    def damaged() -> None:
        work.ours()
        last = work.outputs[-1]
        last.view(-1)[-1] = torch.nan if last.is_floating_point() else 99

    if work.tolerance < 1e-2 or work.outputs[-1].is_floating_point():  # one byte of a picture may be another
        with pytest.raises(ValueError, match="its result differs"):
            check_ours(replace(work, ours=damaged))


def test_a_record_has_times_errors_and_bandwidth() -> None:
    record = measure(replace(CASES[0], compiled=False), HostClock(), copied=1e9)
    assert record["kernel"] == "cam"
    own = record["contenders"][OURS]
    assert own["microseconds"]["n"] == 2
    assert own["relative_l2"] < 1e-6
    speed = record["moved_bytes"] / (1e-6 * own["microseconds"]["median"])
    assert record["share_of_copy"] == pytest.approx(speed / 1e9)
    assert record["warm_microseconds"]["median"] > 0
    assert set(record["contenders"]) == {OURS, TORCH}


def test_what_fails_has_an_error_and_the_others_have_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(draw: Draw) -> Work:
        return replace(CASES[0].make(draw), ours=lambda: None)

    record = measure(replace(CASES[0], make=broken, compiled=False), HostClock(), 1e9)
    assert "differs from the formula" in record["contenders"][OURS]["error"]
    assert "microseconds" in record["contenders"][TORCH]
    assert "share_of_copy" not in record

    def no_compiler(*_: object, **__: object) -> object:
        raise RuntimeError("no compiler here\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: no_compiler)
    record = measure(replace(CASES[0], compiled=True), HostClock(), 1e9)
    assert record["contenders"][COMPILED] == {"error": "RuntimeError: no compiler here"}
    assert "microseconds" in record["contenders"][OURS]


def test_a_gpu_that_is_lost_ends_the_process_and_one_that_is_not_does_not() -> None:
    class Failing(HostClock):
        def chain(self, *_: object, **__: object) -> Chain:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    record = measure(replace(CASES[0], compiled=False), Failing(), 1e9)
    assert "not permitted" in record["contenders"][OURS]["error"]

    class Lost(HostClock):
        def synchronize(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        measure(CASES[0], Lost(), 1e9)


def test_sizes_reach_from_one_map_to_several_caches() -> None:
    cases = list(kernel_cases(FULL))
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    assert "cam gradcam nchw float32, 1x2048x7x7" in names
    assert {case.kernel for case in cases} == {
        "cam",
        "render",
        "preprocess",
        "mask",
        "remove",
        "rank",
        "seed",
        "finite",
    }
    assert all(case.kernel in ("cam", "render") for case in cases[:20])  # those of the goals come first
    # 60 MB of L2: 3 times are 180 MB
    assert 1024 * 2048 * 49 * 8 > 4 * 180e6
    assert 2048 * 224 * 224 * 4 > 2 * 180e6
