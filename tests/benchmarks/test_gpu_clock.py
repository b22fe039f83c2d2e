"""How work on a GPU is timed: the order of what is asked of torch.cuda, over a stand-in, and on a GPU itself."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from gpu.clock import LEAST, CudaClock, HostClock, copy_bandwidth, open_clock, query  # noqa: E402


class FakeCuda:
    """Runs everything at once, keeps a log, and counts a microsecond for each call of a replayed graph."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.now = 0.0
        self.capturing: FakeGraph | None = None

    def Stream(self) -> str:  # noqa: N802
        return "stream"

    def CUDAGraph(self) -> FakeGraph:  # noqa: N802
        return FakeGraph(self)

    def Event(self, *, enable_timing: bool) -> FakeEvent:  # noqa: N802
        assert enable_timing
        return FakeEvent(self)

    def synchronize(self) -> None:
        assert self.capturing is None, "a capture forbids it"
        self.log.append("synchronize")

    @contextmanager
    def stream(self, stream: str) -> Any:
        assert stream == "stream"
        yield

    @contextmanager
    def graph(self, graph: FakeGraph, *, stream: str) -> Any:
        assert stream == "stream"
        self.capturing = graph
        try:
            yield
        finally:
            self.capturing = None

    def work(self) -> None:
        if self.capturing is not None:
            self.capturing.size += 1
        else:
            self.now += 1e-3
            self.log.append("work")


class FakeGraph:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.size = cuda, 0

    def replay(self) -> None:
        self.cuda.now += 1e-3 * self.size
        self.cuda.log.append("replay")


class FakeEvent:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.at = cuda, -1.0

    def record(self) -> None:
        self.at = self.cuda.now
        self.cuda.log.append("record")

    def synchronize(self) -> None:
        self.cuda.log.append("wait")

    def elapsed_time(self, later: FakeEvent) -> float:
        return later.at - self.at


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    monkeypatch.setattr(CudaClock, "device", "cpu")
    return FakeCuda()


def test_a_chain_is_warmed_up_captured_and_replayed_between_events(fake: FakeCuda) -> None:
    found = CudaClock(fake).chain([fake.work] * 7)
    assert found.graph
    assert len(found.microseconds) >= LEAST
    assert found.microseconds == pytest.approx([1.0] * len(found.microseconds))
    head = ["synchronize", "work", "work", "synchronize", "replay"]
    assert fake.log[: len(head)] == head
    assert fake.log[len(head) :] == ["record", "replay", "record", "wait"] * len(found.microseconds)


def test_what_cannot_be_captured_is_queued_call_by_call(fake: FakeCuda) -> None:
    found = CudaClock(fake).chain([fake.work] * 3, capture=False)
    assert not found.graph
    assert "replay" not in fake.log
    # the cache is cleared before the clock starts: nothing hides what the host takes to queue the calls
    turn = ["synchronize", "record", "work", "work", "work", "record", "wait"]
    assert fake.log[-len(turn) * len(found.microseconds) :] == turn * len(found.microseconds)
    assert found.microseconds == pytest.approx([1.0] * len(found.microseconds))


def test_a_capture_that_fails_is_no_failure(fake: FakeCuda) -> None:
    def forbidden() -> None:
        if fake.capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        fake.work()

    found = CudaClock(fake).chain([fake.work, forbidden])
    assert not found.graph
    assert found.microseconds == pytest.approx([1.0] * len(found.microseconds))


def test_torch_has_what_is_asked_of_it() -> None:
    assert "stream" in inspect.signature(torch.cuda.graph.__init__).parameters
    assert {"replay", "capture_begin"} <= set(dir(torch.cuda.CUDAGraph))
    assert "enable_timing" in inspect.signature(torch.cuda.Event.__new__).parameters
    for name in ("_sleep", "mem_get_info", "memory_stats", "synchronize", "get_device_properties"):
        assert callable(getattr(torch.cuda, name))
    assert callable(torch.compiler.reset)


def test_without_a_gpu_the_host_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = open_clock("cpu")
    assert isinstance(clock, HostClock)
    calls: list[int] = []
    assert len(clock.chain([lambda: calls.append(1)] * 5).microseconds) == 2
    assert len(calls) == 10
    assert copy_bandwidth(clock) > 0
    monkeypatch.setenv("PATH", "")
    assert query("name") == {}


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    clock = open_clock("cuda")
    a, b = (torch.ones(1 << 28, device="cuda") for _ in range(2))  # 1 GiB each
    work = [lambda: b.copy_(a)] * 3
    captured, queued = (clock.chain(work, capture=capture) for capture in (True, False))
    assert captured.graph
    assert not queued.graph
    assert min(captured.microseconds) == pytest.approx(min(queued.microseconds), rel=0.2)
    speed = 2 * a.numel() * 4 / (1e-6 * min(captured.microseconds))
    assert speed == pytest.approx(copy_bandwidth(clock), rel=0.2)
    assert clock.cache_bytes > 1 << 20
    assert "clocks.sm" in clock.state()
