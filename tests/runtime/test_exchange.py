"""csrc/graph/exchange.cpp over a CUDA runtime that keeps a journal, and the stand-in of the other tests held to it; and
the memory that kernels need on their way (csrc/core/workspace_cuda.cu).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ..fakes import null_cuda
from ..fakes.cuda import FakeDevice, FakeEvent, FakeGraph, FakeStream

CALLER, OTHER = 0x70000, 0x80000
A, B = b"a" * 256, b"b" * 256


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if null_cuda.compiler() is None:
        pytest.skip("g++ is not installed")
    return null_cuda.build(tmp_path_factory.mktemp("null"), "-O1")


class Real:
    """The compiled code, with its journal."""

    def __init__(self, core: Any) -> None:
        self.device, self.core = null_cuda.NullDevice(core), core
        core.keep_journal(True)
        stream = core.Stream(0)
        stream.begin_capture()
        self.graph = stream.end_capture()
        core.take_journal()

    def journal(self) -> list[str]:
        return [line for line in self.core.take_journal() if not line.startswith("new stream")]


class StandIn:
    """The stand-in, whose streams and events write the same words."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device, self.graph, self.written = FakeDevice(), FakeGraph([]), list[str]()
        for handle in (CALLER, OTHER):
            self.device.streams[handle] = FakeStream(self.device, handle)

        def note(of: type, name: str, words: Callable[..., str]) -> None:
            done = getattr(of, name)

            def noted(self_: Any, *arguments: Any) -> Any:
                self.written.append(words(self_, *arguments))
                return done(self_, *arguments)

            monkeypatch.setattr(of, name, noted)

        note(FakeStream, "copy", lambda s, to, source, size: f"copy {size} from {source:x} to {to:x} on {s.handle:x}")
        note(FakeStream, "record", lambda s, event: f"record {id(event):x} on {s.handle:x}")
        note(FakeStream, "wait", lambda s, event: f"wait for {id(event):x} on {s.handle:x}")
        note(FakeStream, "launch", lambda s, graph: f"launch {id(graph):x} on {s.handle:x}")
        note(FakeEvent, "synchronize", lambda event: f"wait on host for {id(event):x}")

    def journal(self) -> list[str]:
        found = list(self.written)
        self.written.clear()
        return found


class Stage:
    """An exchange, memory for all that it copies, and its journal with names for their addresses and handles."""

    def __init__(self, side: Real | StandIn) -> None:
        device = side.device
        self.side, self.graph = side, side.graph
        self.memory = {name: device.memory(1024) for name in ("images", "at", "questions", "values", "results")}
        at = {name: memory.address for name, memory in self.memory.items()}
        self.at = at
        self.exchange = device.exchange(at["questions"], len(A))
        self.copies = device.copies([(at["values"], 0, 512), (at["values"] + 768, 768, 256)])
        self._names = {f"{address:x}": name for name, address in at.items()}
        self._names |= {f"{at['values'] + 768:x}": "values+768", f"{at['results'] + 768:x}": "results+768"}
        self._names |= {f"{CALLER:x}": "caller", f"{OTHER:x}": "other", "0": "default", "2": "default of the thread"}
        self._names[f"{self.exchange.stream:x}"] = "own"
        self.journal()

    def journal(self) -> list[str]:
        lines = []
        for line in self.side.journal():
            words = line.split()
            for k, word in enumerate(words):
                if re.fullmatch(r"[0-9a-f]+", word) and (words[0] != "copy" or k != 1):
                    words[k] = self._names.setdefault(word, f"#{len(self._names)}")
            lines.append(" ".join(words))
        return lines

    def begin(self, questions: bytes | None, caller: int | None, in_place: bool = False) -> int:
        at = 0 if in_place else self.at["at"]
        return self.exchange.begin(self.at["images"], at, 1000, questions, caller)

    def end(self) -> None:
        self.exchange.end(self.copies, self.at["results"])

    def replay(self, questions: bytes | None, caller: int | None) -> None:
        self.exchange.replay(
            self.graph, self.at["images"], self.at["at"], 1000, questions, caller, self.copies, self.at["results"]
        )


def _play(stage: Stage) -> Iterator[list[str]]:
    """All that may follow one another."""
    stage.begin(A, None)
    stage.end()
    yield stage.journal()
    for questions, caller in (
        *((None, CALLER), (A, CALLER), (B, 0), (B, None), (None, 2), (A, OTHER)),
        *((bytes([k]) * len(A), CALLER) for k in range(5)),
    ):
        stage.replay(questions, caller)
        yield stage.journal()
    stage.begin(None, CALLER, in_place=True)
    stage.exchange.abandon()
    yield stage.journal()
    stage.replay(None, OTHER)
    stage.exchange.synchronize()
    yield stage.journal()


def test_a_run_of_each_kind_of_caller(core):
    stage = Stage(Real(core))
    results = ["copy 512 from values to results", "copy 256 from values+768 to results+768"]

    def told(stream: str, *, before: tuple[str, ...] = (), asked: bool, behind: tuple[str, ...] = ()) -> None:
        """The journal, in which events and staging memory have numbers."""
        found = [re.sub("#[0-9]+", "#", line) for line in stage.journal()]
        wanted = [*before, f"copy 1000 from images to at on {stream}"]
        if asked:
            wanted += ["wait on host for #", f"copy 256 from # to questions on {stream}", f"record # on {stream}"]
        wanted += [f"launch # on {stream}", *(f"{line} on {stream}" for line in results), f"record # on {stream}"]
        assert found == [*wanted, *behind]

    stage.replay(A, None)
    told("own", asked=True)
    stage.replay(A, None)
    told("own", asked=False)
    stage.replay(None, CALLER)
    told("caller", before=("wait for # on caller",), asked=False)
    stage.replay(B, CALLER)
    told("caller", asked=True)
    stage.replay(None, 0)
    told(
        "own",
        before=("record # on default", "wait for # on own", "wait for # on own"),
        asked=False,
        behind=("wait for # on default",),
    )


def test_the_stand_in_makes_the_same_calls(core, monkeypatch):
    real, stand_in = Stage(Real(core)), Stage(StandIn(monkeypatch))
    for step, (ours, theirs) in enumerate(zip(_play(real), _play(stand_in), strict=True)):
        assert ours == theirs, step
        assert ours


@pytest.mark.parametrize("call", ["copy ", "wait for ", "record ", "launch "])
def test_what_fails_is_asked_again(core, call):
    """And the next run waits for what had been queued before the failure."""
    stage = Stage(Real(core))
    stage.replay(A, CALLER)
    stage.journal()
    core.fail_at(call)
    with pytest.raises(core.CudaError, match="failed: it was told to fail"):
        stage.replay(B, OTHER)
    told = stage.journal()
    assert told[-1].endswith(" on other")
    assert told[-1].startswith("wait for " if call == "wait for " else "record "), "behind what had been queued, if any"
    stage.replay(None, CALLER)
    found = stage.journal()
    assert [line for line in found if line.endswith("to questions on caller")], "nobody knows what the device has"
    if call != "wait for ":
        assert found[0].startswith("wait for ")
        assert found[0].endswith(" on caller")


def test_replays_of_the_host(core):
    """The images go by way of pinned memory, and the results are there on return."""
    side = Real(core)
    stage = Stage(side)
    images = np.arange(250, dtype=np.float32)
    staging, mirror = side.device.pinned(1000), side.device.pinned(1024)
    mirror.array()[:] = np.arange(1024) % 251
    out = np.zeros(1024, np.uint8)

    def replay(images: np.ndarray, out: np.ndarray) -> None:
        arguments = stage.graph, images, staging, stage.at["at"], A, stage.copies, mirror, out
        stage.exchange.replay_host(*arguments)

    replay(images, out)
    np.testing.assert_array_equal(staging.array().view(np.float32), images)
    np.testing.assert_array_equal(out, np.arange(1024) % 251)
    assert stage.journal()[-1].startswith("wait on host")
    with pytest.raises(ValueError, match="images of at most 1000 bytes, got 1004"):
        replay(np.zeros(251, np.float32), out)
    with pytest.raises(ValueError, match="results of at most 1024 bytes"):
        replay(images, np.zeros(1025, np.uint8))
    for wrong, where in ((images[::2], out), (images.astype(np.float64), out), (images, out[::2])):
        with pytest.raises(TypeError):
            replay(wrong, where)


def test_questions_of_another_size(core):
    stage = Stage(Real(core))
    with pytest.raises(ValueError, match="expected 256 bytes of questions, got 3"):
        stage.replay(b"abc", None)


def test_errors_name_the_operation_its_shape_and_the_device(core):
    begins = r"^\[cuda\] rank of \(2, 31, 7\) on cuda:1: "
    with pytest.raises(core.CudaError, match=begins + r"its launch failed: it was told to fail \(") as lost:
        core.fail_in_operation(700, 0)
    assert lost.value.fatal
    with pytest.raises(core.CudaMemoryError, match=begins + "allocating 4096 bytes failed: ") as short:
        core.fail_in_operation(2, 4096)
    assert short.value.bytes == 4096
    with pytest.raises(core.CudaError, match=begins + "allocating 64 bytes failed: ") as other:
        core.fail_in_operation(214, 64)
    assert other.value.fatal
    for error in (226, 721, 810, 911):
        with pytest.raises(core.CudaError) as lost:
            core.fail_in_operation(error, 0)
        assert lost.value.fatal, error
    with pytest.raises(core.CudaError) as passing:
        core.fail_in_operation(1, 0)
    assert not passing.value.fatal
    assert core.fail_in_operation(0, 64) == 5


def test_the_same_operations_again_take_no_memory_of_the_device(core):
    """Though the host waits behind each: what the pool has is kept, up to a bound, and a device has one pool."""
    core.keep_journal(True)
    sizes, bound = [4096, 1 << 20, 0, 300], 256 << 20
    core.take_journal()
    core.take_workspace(sizes, 0)
    first = [line for line in core.take_journal() if not line.startswith("synchronize")]
    assert first == ["new pool of 0", "take 4096", "take 1048576"]  # 300 fit into the first
    core.take_workspace(sizes * 5, 0)
    assert {line.split()[0] for line in core.take_journal()} == {"synchronize"}
    core.take_workspace([bound + 1], 0)
    assert next(line for line in core.take_journal() if line.startswith("give up")) == f"give up {bound + 1}"
    core.take_workspace(sizes, 1)
    assert "new pool of 1" in core.take_journal()


def test_memory_that_there_is_not(core):
    core.keep_journal(True)
    core.take_workspace([16], 2)
    core.fail_at("take ")
    with pytest.raises(core.CudaMemoryError, match="allocating 99 bytes failed") as caught:
        core.take_workspace([99], 2)
    assert caught.value.bytes == 99
    core.take_workspace([99], 2)  # and the pool is what it was


@pytest.fixture
def thread(core: Any) -> Iterator[Callable[[bool], None]]:
    """Begins one: see begin_thread."""
    yield core.begin_thread
    core.exchange_mode(GLOBAL)
    core.begin_thread(False)


GLOBAL, RELAXED = 0, 2


@pytest.mark.parametrize("device", [0, 1])
def test_a_capture_of_another_thread_hinders_nothing(core, thread, device):
    """As those of ONNX Runtime would, which are of the mode "global"."""
    thread(True)
    core.DeviceMemory(64, device)
    core.PinnedMemory(64, device)
    stream, event = core.Stream(device), core.Event(device, timing=True)
    stream.record(event)
    stream.synchronize()
    event.synchronize()
    assert event.done()
    assert event.milliseconds_since(event) == 1
    assert core.exchange_mode(GLOBAL) == GLOBAL, "as it was"
    core.exchange_mode(RELAXED)
    core.PinnedMemory(64, device)
    assert core.exchange_mode(GLOBAL) == RELAXED


def test_what_fails_leaves_the_thread_as_it_was(core, thread):
    core.keep_journal(True)
    core.DeviceMemory(64, 0)
    core.fail_at("new stream ")
    with pytest.raises(core.CudaError):
        core.Stream(1)
    assert core.current() == 0
    assert core.exchange_mode(GLOBAL) == GLOBAL


def test_no_context_is_made_on_a_device_that_is_not_used(core, thread):
    """It would take hundreds of megabytes there. What the thread used before is the current device again."""
    thread(False)
    memory, event = core.DeviceMemory(64, 1), core.Event(1)
    assert core.contexts() == [1]
    thread(False)  # as one that has used no device
    event.synchronize()
    assert event.done()
    memory.release()
    assert core.contexts() == [1]
    thread(False)
    core.DeviceMemory(64, 0)
    core.DeviceMemory(64, 1)
    assert core.current() == 0
    assert core.contexts() == [0, 1]
