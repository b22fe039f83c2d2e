"""What "auto" is: pinned, the only one installed, or measured once and remembered; never one whose results differ."""

from __future__ import annotations

import json
import os
import sys
import threading
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finercam_rt import Engine
from finercam_rt.backends import describe_auto, selection
from finercam_rt.backends.interface import Sizes, expected_interface
from finercam_rt.backends.selection import choose, in_turns, remembered
from finercam_rt.errors import BackendError, EngineError
from finercam_rt.onnx_metadata import read_manifest

NAMES = ("onnxruntime", "openvino")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FINERCAM_BACKEND")


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache" / "finercam-rt" / "backends.json"


class Fake:
    """A runtime of made-up results: `error` is added to the logits of batches that it is asked for."""

    device, fixed_batch = "cpu", None

    def __init__(self, name, manifest, error=0.0, wrong_batch=None, fails=False):
        self.name, self.manifest, self.error, self.wrong_batch, self.fails = name, manifest, error, wrong_batch, fails
        self.closed = False

    def run(self, feeds):
        if self.fails:
            raise BackendError("it failed.")
        count = len(feeds["images"])
        _, outputs = expected_interface(self.manifest).buffers(Sizes(count))
        for value in outputs.values():
            value[...] = 3
        if self.wrong_batch in (None, count):
            outputs["logits"] += self.error
        return outputs

    def close(self):
        self.closed = True


@pytest.fixture
def world(toy):
    """choose() on fake runtimes; `seconds` is what is measured, `opened` what was opened, `measured` how often."""

    class World:
        path, manifest = toy.path, read_manifest(toy.path)

        def __init__(self):
            self.seconds = {"onnxruntime": 2.0, "openvino": 1.0}
            self.kinds: dict[str, dict] = {}
            self.refuses: tuple[str, ...] = ()
            self.opened: list[Fake] = []
            self.measured = 0

        def opener(self, name):
            def open_it():
                if name in self.refuses:
                    raise EngineError(f"{name} cannot load it.")
                self.opened.append(Fake(name, self.manifest, **self.kinds.get(name, {})))
                return self.opened[-1]

            return open_it

        def measure(self, calls):
            self.measured += 1
            for call in calls:
                call()
            return [self.seconds[name] for name in NAMES]

        def choose(self, threads=1):
            openers = {name: self.opener(name) for name in NAMES}
            return choose(self.path, self.manifest, openers, threads, measure=self.measure).name

    return World()


@pytest.mark.parametrize(
    ("seconds", "chosen"), [((2, 1), "openvino"), ((1, 2), "onnxruntime"), ((1, 0.98), "onnxruntime")]
)
def test_the_faster_one_is_chosen_and_noise_is_not(world, seconds, chosen):
    world.seconds = dict(zip(NAMES, seconds, strict=True))
    assert world.choose() == chosen
    assert [fake.closed for fake in world.opened] == [True, True, False], "what was opened to measure is closed"


def test_it_is_measured_once_and_remembered(world, cache):
    assert remembered(world.path, world.manifest, NAMES, 1) is None
    assert world.choose() == "openvino"
    world.seconds = {"onnxruntime": 0.1, "openvino": 1.0}
    assert world.choose() == "openvino"
    assert world.measured == 1
    assert len(world.opened) == 4, "the second time only the chosen one is opened"
    assert remembered(world.path, world.manifest, NAMES, 1) == "openvino"
    assert json.loads(cache.read_text())["schema"] == 1
    assert os.listdir(cache.parent) == [cache.name], "no draft is left"


def test_anything_that_may_change_the_answer_is_measured_anew(world, monkeypatch):
    world.choose(threads=1)
    world.choose(threads=2)
    assert world.measured == 2
    os.utime(world.path, (1, 1))  # another file at the same path
    world.choose()
    monkeypatch.setattr(selection, "processor", lambda: "another")
    world.choose()
    monkeypatch.setattr(metadata, "version", lambda name: "99")
    world.choose()
    assert world.measured == 5
    world.choose()
    assert world.measured == 5


@pytest.mark.parametrize("error", [0.1, -0.1, np.nan, np.inf])
@pytest.mark.parametrize("wrong_batch", [None, 1, 2])
def test_a_result_that_differs_is_never_chosen(world, error, wrong_batch):
    """However fast; for one image and for two, which may run in different graphs."""
    world.kinds = {"openvino": {"error": error, "wrong_batch": wrong_batch}}
    assert world.choose() == "onnxruntime"
    assert world.measured == 0
    assert world.choose() == "onnxruntime"


@pytest.mark.parametrize("wrong_batch", [None, 1, 2])
def test_where_no_result_is_a_number_the_first_is_taken(world, wrong_batch):
    """NaN differs from itself: a model that gives it for noise would leave none that agrees with the first."""
    world.kinds = {name: {"error": np.nan, "wrong_batch": wrong_batch} for name in NAMES}
    assert world.choose() == "onnxruntime"
    assert world.measured == 0


def test_rounding_is_not_a_difference(world):
    world.kinds = {"openvino": {"error": 3e-5}}
    assert world.choose() == "openvino"


@pytest.mark.parametrize("how", ["refuses", "fails"])
def test_one_that_cannot_is_passed_over(world, how):
    if how == "refuses":
        world.refuses = ("openvino",)
    else:
        world.kinds = {"openvino": {"fails": True}}
    assert world.choose() == "onnxruntime"
    world.refuses, world.kinds = NAMES, {}
    with pytest.raises(EngineError, match="onnxruntime cannot load it"):
        world.choose()


def test_a_remembered_one_that_no_longer_loads_is_found_out_again(world):
    world.choose()
    world.refuses = ("openvino",)
    assert world.choose() == "onnxruntime"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"schema": 1}', b'{"schema": 99, "choices": {}}', b"[" * 100_000],
    ids=["empty", "cut", "list", "bytes", "bare", "newer", "deep"],
)
def test_a_damaged_cache_costs_only_the_measurement(world, cache, content):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    assert world.choose() == "openvino"
    assert world.choose() == "openvino"
    assert world.measured == 1, "the damaged file was replaced"


def test_a_remembered_name_that_is_no_runtime_is_ignored(world, cache):
    world.choose()
    text = cache.read_text()
    cache.write_text(text.replace("openvino", "tensorflow"))
    assert world.choose() == "openvino"
    assert world.measured == 2
    cache.write_text(text.replace('"openvino"', "7"))
    assert world.choose() == "openvino"


@pytest.mark.parametrize("how", ["file in the way", "folder in the way", "no home"])
def test_a_cache_that_cannot_be_written_costs_only_the_measurement(world, cache, tmp_path, monkeypatch, how):
    if how == "file in the way":
        (tmp_path / "cache").write_text("not a folder")
    elif how == "folder in the way":
        (cache / "inside").mkdir(parents=True)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert world.choose() == "openvino"
    assert world.choose() == "openvino"
    assert world.measured == 2
    if how == "folder in the way":
        assert os.listdir(cache.parent) == [cache.name], "no draft is left"


def test_a_read_only_cache_folder(world, cache, monkeypatch):
    """As root, who may run these tests, everything can be written: the system's answer is made up."""

    real = Path.open

    def refuse(path, *args, **kwargs):
        if cache.parent in path.parents:
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    assert world.choose() == "openvino"
    assert not cache.exists()


def test_the_oldest_choices_go(world, cache, monkeypatch):
    monkeypatch.setattr(selection, "_CHOICES_KEPT", 3)
    for threads in (1, 2, 3, 1, 4):
        world.choose(threads)
    assert world.measured == 4
    assert len(json.loads(cache.read_text())["choices"]) == 3
    world.choose(4)
    assert world.measured == 4


def test_many_at_once_leave_a_whole_file(world, cache):
    """Threads stand for processes: each writes its own draft and puts it in place at once."""
    stop, broken = threading.Event(), []

    def read():
        while not stop.is_set():
            if cache.exists():
                try:
                    json.loads(cache.read_text())
                except ValueError as error:
                    broken.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    writers = [threading.Thread(target=world.choose, args=(threads,)) for threads in range(1, 17)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    stop.set()
    reader.join()
    assert not broken
    assert json.loads(cache.read_text())["choices"]
    assert os.listdir(cache.parent) == [cache.name]


def test_in_turns_tells_the_slower_one():
    order: list[str] = []
    event = threading.Event()

    def call(name, seconds):
        order.append(name)
        event.wait(seconds)

    slow, fast = in_turns([lambda: call("slow", 0.03), lambda: call("fast", 0.002)])
    assert slow > 0.029 > fast
    assert order[:4] == ["slow", "fast", "slow", "fast"]


class TestRealRuntimes:
    @pytest.fixture(autouse=True)
    def _both(self):
        for name in NAMES:
            pytest.importorskip(name, reason=f"{name} is not installed")

    def test_auto_chooses_remembers_and_says_so(self, toy, cache):
        manifest = read_manifest(toy.path)
        assert "not chosen yet" in describe_auto(toy.path, manifest)
        with Engine(toy.path) as engine:
            first = engine.backend
        assert first in NAMES
        assert list(json.loads(cache.read_text())["choices"].values()) == [first]
        assert describe_auto(toy.path, manifest).startswith(f"{first}, the one chosen here")
        with Engine(toy.path) as engine:
            assert engine.backend == first

    @pytest.mark.parametrize("name", NAMES)
    def test_pinned_by_the_environment_or_the_argument(self, toy, cache, monkeypatch, name):
        with Engine(toy.path, backend=name) as engine:
            assert engine.backend == name
        monkeypatch.setenv("FINERCAM_BACKEND", name)
        with Engine(toy.path) as engine:
            assert engine.backend == name
        assert name in describe_auto(toy.path, read_manifest(toy.path))
        assert not cache.exists(), "nothing was measured"

    def test_a_wrong_pin_is_one_sentence(self, toy, monkeypatch):
        monkeypatch.setenv("FINERCAM_BACKEND", "tensorflow")
        with pytest.raises(BackendError, match="FINERCAM_BACKEND is 'tensorflow'; set it to one of auto"):
            Engine(toy.path)

    @pytest.mark.parametrize("missing", NAMES)
    def test_the_only_one_installed_needs_no_measurement(self, toy, cache, monkeypatch, missing):
        monkeypatch.setitem(sys.modules, missing, None)
        with Engine(toy.path) as engine:
            assert engine.backend != missing
            assert describe_auto(toy.path, engine.manifest).startswith(f"{engine.backend}, the only one")
        assert not cache.exists()

    def test_none_installed(self, toy, monkeypatch):
        for name in NAMES:
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(BackendError, match="no runtime is installed"):
            Engine(toy.path)
        assert describe_auto(toy.path, read_manifest(toy.path)) == "none is installed"

    def test_bf16_is_openvino_and_never_unasked(self, toy, monkeypatch):
        with Engine(toy.path) as engine:
            assert engine.compute == "f32"
        with pytest.raises(BackendError, match="backend is 'onnxruntime', which computes in f32"):
            Engine(toy.path, backend="onnxruntime", compute="bf16")
        monkeypatch.setenv("FINERCAM_BACKEND", "onnxruntime")
        with pytest.raises(BackendError, match="FINERCAM_BACKEND is 'onnxruntime', which computes in f32"):
            Engine(toy.path, compute="bf16")
        with pytest.raises(BackendError, match="no compute 'fp16'"):
            Engine(toy.path, compute="fp16")


def test_the_command_says_that_it_measures_and_only_then(toy, tmp_path, capfd):
    """On stderr, so that --json stays JSON."""
    pytest.importorskip("openvino")
    from finercam_rt.cli.main import main

    photograph = tmp_path / "a.png"
    Image.new("RGB", (48, 32), (90, 20, 200)).save(photograph)
    errors = []
    for _ in range(2):
        assert main(["explain", str(toy.path), str(photograph), "--json"]) == 0
        out, err = capfd.readouterr()
        assert json.loads(out)["images"]
        errors.append(err)
    assert "finercam: measuring which of onnxruntime and openvino is faster" in errors[0]
    assert "measuring" not in errors[1]
