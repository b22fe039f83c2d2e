"""ONNX Runtime's providers of GPUs, over a stand-in: their options, graphs and streams, and what goes wrong."""

from __future__ import annotations

import gc
import inspect
import logging
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from finercam_rt import BackendError, Engine, EngineError
from finercam_rt.backends import onnxruntime_gpu
from finercam_rt.errors import DeviceMemoryError

from ..fakes import onnxruntime as fake_onnxruntime
from ..fakes.frameworks import DeviceTensor, install
from ..fakes.gpu import Gpu
from ..fakes.onnxruntime import FakeOnnxRuntime
from ..fakes.taps import with_taps

BACKENDS = tuple(onnxruntime_gpu.PROVIDERS)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


@pytest.fixture
def ort(monkeypatch: pytest.MonkeyPatch, gpu: Gpu, tmp_path: Path) -> FakeOnnxRuntime:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return fake_onnxruntime.install(monkeypatch, gpu.device)


def _batch(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 32, 48)).astype(np.float32)


def _same(found: Any, wanted: Any) -> None:
    for name, a, b in zip(found._fields, found, wanted, strict=True):
        if isinstance(a, np.ndarray):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_it_gives_what_the_cpu_gives(toy, ort, backend, cuda_graphs):
    reference = Engine(toy.path, backend="onnxruntime")
    engine = Engine(toy.path, backend=backend, device="cuda", cuda_graphs=cuda_graphs)
    assert (engine.backend, engine.device) == (backend, "cuda:0")
    for step in range(4):
        images = _batch(2, seed=step)
        asked = {"references": [step], "target": 6}
        _same(engine(images, **asked), reference(images, **asked))
        _same(engine(images[:1]), reference(images[:1]))
    (session,) = ort.sessions
    assert len(session.graphs) == (2 if cuda_graphs else 0)
    assert session.options[onnxruntime_gpu.PROVIDERS[backend].graph_option] == str(int(cuda_graphs))
    engine.close()
    gc.collect()
    kept = weakref.ref(session)
    del session, ort.sessions[:]
    assert kept() is None, "and its graphs with it"


def test_taps_are_drawn_behind_the_run(make_toy, gpu, ort):
    toy = make_toy()
    taps = with_taps(toy, gradients=False)
    engine, reference = Engine(taps, device="cuda"), Engine(toy.path)
    for step in range(3):
        images = _batch(3, step)
        np.testing.assert_allclose(engine(images).saliency_map, reference(images).saliency_map, rtol=1e-4, atol=1e-5)
    assert gpu.device.count("kernel") == 2 * 2, (
        "the map and the status, of the first run, and captured behind the second"
    )
    (graph,) = gpu.device.graphs
    assert (graph.nodes, graph.launches) == (2, 2)
    assert len(ort.sessions[0].graphs) == 1, "its own part"


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize("contrasts", [1, 2])
def test_arrays_on_the_gpu(make_toy, gpu, ort, monkeypatch, contrasts, cuda_graphs):
    """Two graphs a run, ONNX Runtime's and ours behind it, on the caller's stream; without them nothing is copied."""
    install(monkeypatch, 0)
    path = with_taps(make_toy(contrasts=contrasts), gradients=True)
    engine, reference = Engine(path, device="cuda", cuda_graphs=cuda_graphs), Engine(path)
    stream = gpu.device.stream().handle
    kept = []
    for step in range(5):
        images = _batch(3, step)
        given = DeviceTensor(gpu.device, images, stream)
        del gpu.device.journal[:]
        kept.append((engine(given), given, reference(images)))
        assert (("copy", images.nbytes) in gpu.device.journal) == cuda_graphs
        assert gpu.device.count("launch") == (cuda_graphs and step > 0)
        assert gpu.device.count("kernel") == (2 if not cuda_graphs or step < 2 else 0)
    for found, _, wanted in kept:
        for name in ("logits", "saliency_map", "status", "activations", "gradients"):
            np.testing.assert_allclose(
                getattr(found, name).numpy(gpu.device), getattr(wanted, name), rtol=1e-4, atol=1e-5, err_msg=name
            )


def test_sizes_that_a_provider_builds_for(toy, make_toy, ort):
    """Larger batches run in parts, and the shapes are those of the inputs."""
    reference, engine = Engine(toy.path), Engine(toy.path, backend="onnxruntime-tensorrt")
    options = ort.sessions[0].options
    assert options["trt_profile_max_shapes"] == "images:16x3x32x48,target:16,references:16x3,alpha:16"
    assert "profile" not in " ".join(ort.sessions[0]._providers[1][1])
    images = _batch(35)
    _same(engine(images), reference(images))
    fixed = make_toy("fixed.onnx", batch=2)
    engine = Engine(fixed.path, backend="onnxruntime-tensorrt-rtx")
    assert engine.fixed_batch == 2
    assert not any("profile" in name for name in ort.sessions[-1].options)
    _same(engine(_batch(2)), Engine(fixed.path)(_batch(2)))


def test_what_is_kept_is_kept_by_graph(toy, make_toy, ort, tmp_path):
    other = make_toy("other.onnx", references=2)
    for path in (toy.path, toy.path, other.path):
        Engine(path, backend="onnxruntime-tensorrt")
        Engine(path, backend="onnxruntime-tensorrt-rtx")
    places = [session.options.get("trt_engine_cache_path") for session in ort.sessions[::2]]
    assert places[0] == places[1] != places[2]
    assert all(Path(place).is_dir() and tmp_path in Path(place).parents for place in places)
    assert [session.options["nv_runtime_cache_path"] for session in ort.sessions[1::2]] == places


@pytest.mark.parametrize("backend", [name for name, provider in onnxruntime_gpu.PROVIDERS.items() if provider.builds])
def test_a_cache_folder_that_cannot_be_made_costs_only_the_building(toy, ort, tmp_path, backend):
    (tmp_path / "cache").write_text("not a folder")
    engine = Engine(toy.path, backend=backend)
    assert not any("cache" in name for name in ort.sessions[0].options)
    _same(engine(_batch(2)), Engine(toy.path, backend="onnxruntime", device="cpu")(_batch(2)))


def test_a_graph_that_cannot_be_captured(toy, ort, caplog):
    ort.captures = False
    with caplog.at_level(logging.WARNING, logger="finercam_rt"):
        engine = Engine(toy.path, device="cuda")
    assert "not captured in a CUDA graph" in caplog.text
    _same(engine(_batch(2)), Engine(toy.path)(_batch(2)))
    assert not ort.sessions[-1].graphs


def test_the_graphs_of_a_session_are_bounded(toy, ort, monkeypatch, caplog):
    """Each lives as long as the session, though its size is no longer used."""
    monkeypatch.setattr(onnxruntime_gpu, "_MOST_GRAPHS", 6)
    reference, engine = Engine(toy.path), Engine(toy.path, device="cuda")
    with caplog.at_level(logging.WARNING, logger="finercam_rt"):
        for step in range(12):
            for _ in range(3):
                images = _batch(1 + step % 5, step)
                _same(engine(images), reference(images))
    assert len(ort.sessions[0].graphs) == 6
    assert caplog.text.count("has 6 of other sizes") == 1


@pytest.mark.parametrize(
    ("version", "backend", "captured"),
    [
        ("1.29.2", "onnxruntime", False),
        ("1.30.0.dev20260801", "onnxruntime", True),
        ("2.0.0", "onnxruntime", True),
        ("1.24.0", "onnxruntime-tensorrt-rtx", True),
    ],
)
def test_versions_whose_graphs_are_wrong_capture_none(toy, ort, monkeypatch, caplog, version, backend, captured):
    monkeypatch.setattr(FakeOnnxRuntime, "__version__", version)
    if version < "1.30":
        monkeypatch.delattr(fake_onnxruntime.FakeSession, "release_captured_graph")
    with caplog.at_level(logging.WARNING, logger="finercam_rt"):
        engine = Engine(toy.path, backend=backend, device="cuda")
    assert ("install 1.30 or later" in caplog.text) != captured
    for step in range(12):  # of more sizes than are kept
        _same(engine(_batch(1 + step // 2, step)), Engine(toy.path)(_batch(1 + step // 2, step)))
    assert bool(ort.sessions[0].graphs) == captured
    assert ort.sessions[0].options["enable_cuda_graph"] == str(int(captured))
    engine.close()


def test_threads_take_turns(toy, ort):
    reference, engine = Engine(toy.path), Engine(toy.path, device="cuda")
    wrong: list[int] = []

    def work(seed: int) -> None:
        for step in range(5):
            images = _batch(2, 10 * seed + step)
            if not np.allclose(engine(images).saliency_map, reference(images).saliency_map, rtol=1e-4, atol=1e-5):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(ort.sessions) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_missing(toy, ort, monkeypatch, backend):
    if backend == "onnxruntime-tensorrt-rtx":
        monkeypatch.setitem(__import__("sys").modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
        says = "is not installed; install onnxruntime-ep-nv-tensorrt-rtx"
    else:
        ort.providers = ["CPUExecutionProvider"]
        says = "install onnxruntime-gpu in the place of onnxruntime"
    with pytest.raises(BackendError, match=says) as error:
        Engine(toy.path, backend=backend, device="cuda")
    assert str(error.value).count("\n") == 0


def test_it_never_goes_on_with_the_cpu_unasked(toy, ort):
    ort.starts = False
    with pytest.raises(BackendError, match="CUDAExecutionProvider of ONNX Runtime does not start here"):
        Engine(toy.path, device="cuda")


def test_failures(toy, ort):
    ort.refusing = "no kernel for Foo"
    with pytest.raises(EngineError, match="does not take it"):
        Engine(toy.path, device="cuda")
    ort.refusing = None
    engine = Engine(toy.path, device="cuda")
    ort.failing = "Failed to allocate memory for requested buffer of size 4096"
    with pytest.raises(DeviceMemoryError, match="memory does not suffice for a run"):
        engine(_batch(2))
    ort.failing = "something else"
    with pytest.raises(BackendError, match="failed in a run"):
        engine(_batch(2))
    ort.failing = None
    _same(engine(_batch(2)), Engine(toy.path)(_batch(2)))


def test_wrong_words(toy, ort):
    for arguments, says in (
        ({"backend": "onnxruntime-tensorrt", "device": "cpu"}, "runs on a GPU; use device='auto'"),
        ({"backend": "openvino", "device": "cuda"}, "openvino runs on the CPU"),
        ({"device": "cuda", "compute": "bf16"}, "export the engine with --precision"),
        ({"backend": "onnxruntime-rocm"}, "there is no backend"),
    ):
        with pytest.raises(BackendError, match=says):
            Engine(toy.path, **arguments)


def test_the_stand_in_is_called_as_the_real_one():
    """Names of methods and parameters, of what the CPU build of ONNX Runtime has too."""
    fake, real = fake_onnxruntime.FakeSession, onnxruntime.InferenceSession
    # graphs are captured in as recent a version as knows how to let them go
    recent = tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= onnxruntime_gpu._GRAPHS_FROM
    released = ["release_captured_graph"] if recent else []
    for name in ("run_with_iobinding", "io_binding", "get_providers", "disable_fallback", *released):
        count = [len(inspect.signature(getattr(of, name)).parameters) for of in (fake, real)]
        assert count[0] <= count[1], name
    for name in ("bind_input", "bind_output"):
        ours = inspect.signature(getattr(fake_onnxruntime.FakeBinding, name)).parameters
        theirs = inspect.signature(getattr(onnxruntime.IOBinding, name)).parameters
        assert len(ours) == len(theirs), name
    assert hasattr(onnxruntime.RunOptions, "add_run_config_entry")
    assert hasattr(onnxruntime.SessionOptions, "add_provider_for_devices")
    for name in ("preload_dlls", "get_available_providers", "register_execution_provider_library", "get_ep_devices"):
        assert hasattr(onnxruntime, name)


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_on_a_gpu(make_toy, cuda_graphs):
    """The real CUDA provider against the CPU, with arrays of the host and of the device."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider; install onnxruntime-gpu")
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    toy = make_toy(contrasts=2)
    for path in (toy.path, with_taps(toy, gradients=True)):
        reference, engine = Engine(path), Engine(path, device="cuda", cuda_graphs=cuda_graphs)
        for step in range(4):
            for count in (1, 3):
                images = _batch(count, step)
                wanted = reference(images)
                for found in (engine(images), engine(torch.from_numpy(images).cuda())):
                    np.testing.assert_allclose(
                        np.asarray(torch.as_tensor(found.saliency_map).cpu()), wanted.saliency_map, rtol=1e-3, atol=1e-4
                    )
