"""The device layer: what it says where there is no GPU, and on one, copies, events, graphs and their failures."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from finercam_rt import _core, cuda
from finercam_rt.errors import BackendError, DeviceMemoryError

ABSENT = not _core.cuda_status()[0]


@pytest.fixture
def device():
    if ABSENT:
        pytest.skip(_core.cuda_status()[1])
    return cuda.open_device("cuda")


def put(device, stream, values):
    """Memory of the device with these values."""
    staged = device.pinned(values.nbytes)
    staged.array()[:] = values.view(np.uint8).ravel()
    memory = device.memory(values.nbytes)
    stream.copy(memory.address, staged.address, values.nbytes)
    stream.synchronize()
    return memory


def get(device, stream, memory, count):
    staged = device.pinned(4 * count)
    stream.copy(staged.address, memory.address, 4 * count)
    stream.synchronize()
    return staged.array().view(np.float32).copy()


@pytest.mark.skipif(not ABSENT, reason="there is a GPU")
@pytest.mark.parametrize(
    "make",
    [
        lambda: _core.DeviceMemory(16, 0),
        lambda: _core.PinnedMemory(16, 0),
        lambda: _core.Stream(0),
        lambda: _core.Event(0),
        lambda: _core.cuda_device_name(0),
        lambda: _core.cuda_memory_info(0),
        lambda: _core.cuda_make_current(0),
    ],
)
def test_without_a_gpu_every_call_raises(make):
    with pytest.raises((_core.CudaError, ValueError), match=r"cuda|CUDA"):
        make()


@pytest.mark.skipif(not ABSENT, reason="there is a GPU")
def test_without_a_gpu_there_is_no_device():
    with pytest.raises(BackendError, match="there is no CUDA device here"):
        cuda.open_device("cuda")


@pytest.mark.parametrize(
    ("name", "index"), [("cuda", 0), ("cuda:3", 3), ("cpu", None), ("cuda:", None), ("cuda:-1", None), ("auto", None)]
)
def test_names_of_devices(name, index):
    assert cuda.device_index(name) == index


def test_a_name_that_is_none():
    with pytest.raises(BackendError, match="'gpu', which is no CUDA device; give 'cuda' or 'cuda:N'"):
        cuda.open_device("gpu")


def _error(kind, text, **attributes):
    error = kind(text)
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def test_errors_become_sentences():
    short = _error(
        _core.CudaMemoryError, "[cuda] allocating 64 bytes of cuda:0 failed: out of memory (x.cu:1)", bytes=64
    )
    found = cuda.as_backend_error(short, "a run of 8 images")
    assert isinstance(found, DeviceMemoryError)
    assert isinstance(found, MemoryError)
    assert found.bytes == 64
    assert "for a run of 8 images: 64 bytes more were asked for" in str(found)
    lost = _error(_core.CudaError, "[cuda] copying 8 bytes failed: an illegal memory access", fatal=True)
    assert "can use the GPU any more; start it again." in str(cuda.as_backend_error(lost, "a run"))
    other = cuda.as_backend_error(_error(_core.CudaError, "[cuda] x failed: y", fatal=False), "a run")
    assert str(other) == "CUDA failed in a run (x failed: y)."


@pytest.mark.gpu
def test_copies_there_and_back(device):
    stream = device.stream()
    values = np.arange(1000, dtype=np.float32)
    memory = put(device, stream, values)
    assert memory.address % 256 == 0
    np.testing.assert_array_equal(get(device, stream, memory, 1000), values)
    stream.fill(memory.address, 0, 400)
    found = get(device, stream, memory, 1000)
    assert not found[:100].any()
    np.testing.assert_array_equal(found[100:], values[100:])


@pytest.mark.gpu
def test_events_take_the_time(device):
    stream, before, after = device.stream(), device.event(timing=True), device.event(timing=True)
    memory = device.memory(1 << 28)
    stream.record(before)
    stream.fill(memory.address, 1, 1 << 28)
    stream.record(after)
    after.synchronize()
    assert after.done()
    assert 0 < after.milliseconds_since(before) < 1e3


@pytest.mark.gpu
def test_a_graph_reads_what_is_there_when_it_is_launched(device):
    stream, other = device.stream(), device.stream()
    source, target = put(device, stream, np.ones(8, np.float32)), device.memory(32)
    stream.begin_capture()
    stream.copy(target.address, source.address, 32)
    graph = stream.end_capture()
    assert graph.nodes == 1
    for value in (2.0, 3.0):
        staged = device.pinned(32)
        staged.array().view(np.float32)[:] = value
        ready = device.event()
        other.copy(source.address, staged.address, 32)
        other.record(ready)
        stream.wait(ready)
        stream.launch(graph)
        np.testing.assert_array_equal(get(device, stream, target, 8), np.full(8, value))


@pytest.mark.gpu
def test_a_failed_capture_leaves_the_stream_usable(device):
    stream = device.stream()
    memory = put(device, stream, np.ones(8, np.float32))
    stream.begin_capture()
    with pytest.raises(_core.CudaError):
        stream.synchronize()  # not allowed in a capture, and ends it
    with pytest.raises(_core.CudaError, match="capturing a graph"):
        stream.end_capture()
    np.testing.assert_array_equal(get(device, stream, memory, 8), np.ones(8))
    stream.begin_capture()
    stream.abandon_capture()
    stream.abandon_capture()  # and where there is none
    np.testing.assert_array_equal(get(device, stream, memory, 8), np.ones(8))


@pytest.mark.gpu
def test_memory_may_be_freed_in_a_capture(device):
    stream = device.stream()
    memory = put(device, stream, np.ones(8, np.float32))
    other = device.memory(1 << 20)
    stream.begin_capture()
    stream.fill(memory.address, 0, 32)
    other.release()
    stream.launch(stream.end_capture())
    assert not get(device, stream, memory, 8).any()


@pytest.mark.gpu
def test_a_capture_of_another_thread_hinders_nothing(device):
    """Of the mode "global", as ONNX Runtime's are. Nor does what is done here end it."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")

    def work():
        stream, event = device.stream(), device.event()
        memory = put(device, stream, np.ones(8, np.float32))
        stream.record(event)
        event.synchronize()
        return event.done() and get(device, stream, memory, 8).all()

    values, graph = torch.zeros(8, device="cuda"), torch.cuda.CUDAGraph()
    with ThreadPoolExecutor(1) as other, torch.cuda.graph(graph, capture_error_mode="global"):
        assert other.submit(work).result()
        values += 1
    graph.replay()
    assert values.tolist() == [1.0] * 8


@pytest.mark.gpu
def test_too_little_memory(device):
    with pytest.raises(_core.CudaMemoryError, match=f"allocating {1 << 50} bytes of cuda:0") as caught:
        device.memory(1 << 50)
    assert caught.value.bytes == 1 << 50
    assert device.memory(1 << 10).address, "the device works on"


@pytest.mark.gpu
def test_views_stay_inside(device):
    memory = device.memory(64)
    assert _core.describe(memory.view("float32", (2, 8)))[:3] == ((2, 8), "float32", "cuda:0")
    assert _core.describe(memory.view("float32", (2, 3, 4), strides=(8, 0, 1)))[0] == (2, 3, 4)
    with pytest.raises(ValueError, match="at most 64 bytes, got 68"):
        memory.view("float32", (17,))
    with pytest.raises(ValueError, match="at most 64 bytes"):
        memory.view("int64", (4, 2), offset=8)


def test_a_view_of_memory_that_someone_else_holds():
    view = _core.cuda_view(256 * 1000, "float32", (2, 3), 1)
    for _ in range(2):  # a capsule could be read once
        assert _core.describe(view) == ((2, 3), "float32", "cuda:1", True, True)
        assert view.__dlpack__(stream=None, max_version=(1, 0), dl_device=None, copy=None)
    assert view.__dlpack_device__() == (2, 1)
    with pytest.raises(ValueError, match="expected float32, int64, int32 or uint8, got float16"):
        _core.cuda_view(256, "float16", (2, 3), 0)


def test_the_current_device_is_put_back(monkeypatch):
    """As what was before, whatever is raised inside."""
    told = []
    monkeypatch.setattr(_core, "cuda_make_current", lambda device: told.append(device) or (0, 2))
    monkeypatch.setattr(_core, "cuda_restore_current", lambda *former: told.append(former), raising=False)
    with pytest.raises(KeyboardInterrupt), cuda.CudaDevice(3).current():
        raise KeyboardInterrupt
    assert told == [3, (0, 2)]


FLOAT, INT, LONG, BYTE = "float32", "int32", "int64", "uint8"


def _view(dtype: str, *shape: int) -> object:
    return _core.cuda_view(256, dtype, shape, 0)


@pytest.mark.skipif(not ABSENT, reason="there is a GPU")
@pytest.mark.parametrize(
    ("named", "call"),
    [
        (
            "cam of (2, 1, 8, 3, 4)",
            lambda **options: _core.cam(
                _view(FLOAT, 2, 8, 3, 4),
                _view(FLOAT, 2, 8, 3, 4),
                _view(FLOAT, 2, 3, 4),
                method=_core.Method.GRADCAM,
                layout=_core.Layout.NCHW,
                prefix_tokens=0,
                **options,
            ),
        ),
        (
            "render of (2, 3, 4)",
            lambda **options: _core.map_status(_view(FLOAT, 2, 3, 4), _view(BYTE, 2), **options),
        ),
        (
            "finite of (2, 12)",
            lambda **options: _core.mark_non_finite(_view(FLOAT, 2, 12), _view(BYTE, 2, 1), **options),
        ),
        ("rank of (2, 5, 6)", lambda **options: _core.rank(_view(FLOAT, 2, 5, 6), _view(INT, 2, 5, 6), **options)),
        (
            "preprocess of (1, 3, 8, 9)",
            lambda **options: _core.preprocess(
                [_view(BYTE, 5, 6, 3)],
                [(8, 9, 0, 0)],
                _view(FLOAT, 1, 3, 8, 9),
                None,
                filter=_core.ResizeFilter.BILINEAR,
                mean=(0, 0, 0),
                std=(1, 1, 1),
                fill=(0, 0, 0),
                **options,
            ),
        ),
        (
            "mask of (2, 4, 3, 8, 9)",
            lambda **options: _core.mask(
                _view(FLOAT, 2, 3, 8, 9),
                _view(FLOAT, 2, 4, 5, 6),
                _view(FLOAT, 2, 4, 3, 8, 9),
                align_corners=False,
                **options,
            ),
        ),
    ],
)
def test_the_kernels_take_such_views_and_name_themselves(named, call):
    """They get as far as CUDA itself, which is not there."""
    for _ in range(2):
        with pytest.raises((_core.CudaError, ValueError)) as caught:
            call(threads=1, stream=0)
        text = str(caught.value)
        assert "without CUDA" in text or text.startswith(f"[cuda] {named} on cuda:0: using the device cuda:0 failed: ")


def test_every_kernel_is_queued_under_its_name():
    """So that no failure of one comes without its operation, shape and device."""
    kernels = Path(__file__).parents[2] / "csrc" / "kernels"
    entries = {
        name
        for file in kernels.glob("*_cuda.cu")
        for name in re.findall(r"^\S+ (\w+_cuda)\(const \w+& args, int device, void\* stream\)", file.read_text(), re.M)
    }
    assert len(entries) == len(list(kernels.glob("*_cuda.cu"))) >= 8
    calls = [
        (name, text[: match.start()].rpartition(";")[2])
        for text in (file.read_text() for file in kernels.glob("*.cpp"))
        for name in entries
        for match in re.finditer(rf"\b{name}\(args, execution", text)
    ]
    assert sorted(name for name, _ in calls) == sorted(entries)
    for name, before in calls:
        assert re.search(r"on_cuda\(\"\w+\", \{.*\}, execution\.device,\s*\[&\] \{ (return )?$", before, re.S), name
