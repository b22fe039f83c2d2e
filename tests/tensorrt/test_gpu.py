"""Plans on a real GPU with a real TensorRT: what the tests over stand-ins cannot prove."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from finercam_rt import BackendError, Engine, _core, ops, top_classes
from finercam_rt.errors import DeviceMemoryError
from finercam_rt.manifest import InputSpec
from finercam_rt.ops import Status
from finercam_rt.tensorrt.build import build_plan
from finercam_rt.tensorrt.builder import BuildOptions
from finercam_rt.tensorrt.library import RTX, Library, load_library, targets

from ..fakes.taps import with_taps
from .test_photographs import photograph

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def real() -> Library:
    devices, reason = _core.cuda_status()
    if not devices:
        pytest.skip(reason)
    here = f"SM{_core.cuda_compute_capability(0)}"
    try:
        library = load_library("auto")
        if library.flavour == RTX:
            targets(library, (here,))
    except BackendError as error:
        pytest.skip(f"no TensorRT for this GPU: {error}")
    return library


@pytest.fixture
def plan_of(real):
    def make(path, batch=(1, 4, 8), **options):
        plan = path.with_suffix(".plan")
        here = f"SM{_core.cuda_compute_capability(0)}"
        build_plan(path, plan, real, BuildOptions(batch, (1, 10, 100), (here,), **options), force=True)
        return plan

    return make


def batch(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 32, 48)).astype(np.float32)


def host(value: Any) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else value.cpu().numpy()


def same(found, wanted) -> None:
    for name, value in wanted._asdict().items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(host(getattr(found, name)), value, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize("contrasts", [1, 3])
@pytest.mark.parametrize("head", ["graph", "channel_weights", "gradients"])
def test_it_gives_what_onnx_runtime_gives(make_toy, plan_of, cuda_graphs, contrasts, head):
    toy = make_toy(contrasts=contrasts)
    path = toy.path if head == "graph" else with_taps(toy, gradients=head == "gradients", carried=True)
    reference, engine = Engine(path), Engine(plan_of(path), cuda_graphs=cuda_graphs)
    for step, count in enumerate((2, 2, 2, 1, 11, 2, 11)):
        asked = {"alpha": 0.5} if contrasts == 1 else {"contrasts": top_classes(2, alpha=0.5)}
        same(engine(batch(count, step), **asked), reference(batch(count, step), **asked))
    with engine.device_times() as times:
        engine(batch(2))
    assert (times[0].graph_nodes is not None) == cuda_graphs
    assert min(times[0][:4]) > 0


@pytest.mark.parametrize("method", ops.KERNEL_METHODS)
def test_every_method_that_has_a_kernel(make_toy, plan_of, method):
    path = with_taps(make_toy(contrasts=2), gradients=True)
    reference, engine = Engine(path, method=method), Engine(plan_of(path), method=method)
    for step, count in enumerate((2, 2, 2, 1)):
        same(engine(batch(count, step)), reference(batch(count, step)))


@pytest.mark.parametrize("contrasts", [1, 3])
@pytest.mark.parametrize("gradients", [True, False])
def test_the_map_by_a_kernel_inside_the_plan(make_toy, real, plan_of, gradients, contrasts):
    if real.flavour == RTX:
        pytest.skip("TensorRT-RTX has no plug-ins")
    toy = make_toy(contrasts=contrasts)
    reference = Engine(toy.path)
    engine = Engine(plan_of(with_taps(toy, gradients=gradients), map_kernel="plugin"))
    for step, count in enumerate((2, 2, 1, 11)):
        asked = {"alpha": 0.5} if contrasts == 1 else {"contrasts": top_classes(2, alpha=0.5)}
        same(engine(batch(count, step), **asked), reference(batch(count, step), **asked))


@pytest.mark.parametrize("own_stream", [True, False])
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_torch_tensors_stay_on_the_gpu(toy, plan_of, own_stream, cuda_graphs):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    reference, engine = Engine(toy.path), Engine(plan_of(toy.path), cuda_graphs=cuda_graphs)
    with torch.cuda.stream(torch.cuda.Stream() if own_stream else torch.cuda.current_stream()):
        for step in range(20):
            images = batch(4, step)
            images[1, 0, 0, 0] = np.nan if step % 2 else 0
            found = engine(torch.from_numpy(images).cuda(non_blocking=True), target=step % 7)
            assert found.logits.is_cuda
            if step % 2:
                assert int(found.status[1]) == Status.NON_FINITE
            else:
                same(found, reference(images, target=step % 7))
                np.testing.assert_allclose(
                    host(engine.logits(torch.from_numpy(images).cuda())), reference.logits(images), rtol=1e-3, atol=1e-4
                )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("where", ["host", "device"])
def test_photographs_are_resized_there(make_toy, plan_of, interpolation, where):
    """Against the host's; levels may be two off, see tests/tensorrt/test_photographs.py."""
    spec = InputSpec((32, 48), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), interpolation, 0.9)
    path = make_toy(manifest={"input": spec}).path
    engine, reference = Engine(plan_of(path)), Engine(path)
    images = [photograph(size, k) for k, size in enumerate([(48, 64), (90, 41), (33, 200), (20, 20), (600, 800)])]
    given = images
    if where == "device":
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available() or interpolation == "lanczos":
            pytest.skip("torch sees no CUDA device, or the host resizes")
        given = [torch.from_numpy(image).cuda() if k % 2 else image for k, image in enumerate(images)]
    for _ in range(3):
        found, wanted = (
            engine.explain(given, target=1, references=[2]),
            reference.explain(images, target=1, references=[2]),
        )
        assert np.abs(found.images.astype(int) - wanted.images).max() <= (0 if interpolation == "lanczos" else 2)
        np.testing.assert_allclose(found.logits, wanted.logits, atol=0.05 * np.abs(wanted.logits).max())
        assert found.status == wanted.status
    for row in (1, 3):
        assert found.overlay(row, coordinates="original").size == images[row].shape[1::-1]


def test_a_launch_that_fails_names_itself(real):
    """On a device that is not there; the one that is works on."""
    view = _core.DeviceMemory(4 * 2 * 8 * 3 * 4, 0).view("float32", (2, 8, 3, 4))
    out = _core.DeviceMemory(4 * 2 * 3 * 4, 0).view("float32", (2, 3, 4))
    options = {"layout": _core.Layout.NCHW, "prefix_tokens": 0, "threads": 1}
    _core.cam(view, view, out, method=_core.Method.GRADCAM, stream=0, **options)
    elsewhere = _core.cuda_view(256, "float32", (2, 3, 4), 63)
    with pytest.raises(_core.CudaError, match=r"render of \(2, 3, 4\) on cuda:63: using the device cuda:63 failed"):
        _core.map_status(elsewhere, _core.cuda_view(256, "uint8", (2,), 63), threads=1, stream=0)
    _core.cam(view, view, out, method=_core.Method.GRADCAM, stream=0, **options)


def test_cupy_arrays(toy, plan_of):
    cupy = pytest.importorskip("cupy")
    engine = Engine(plan_of(toy.path))
    for step in range(3):
        found = engine(cupy.asarray(batch(2, step)))
        assert isinstance(found.saliency_map, cupy.ndarray)
        np.testing.assert_allclose(found.saliency_map.get(), Engine(toy.path)(batch(2, step)).saliency_map, atol=1e-4)


def test_threads(toy, plan_of):
    engine, reference = Engine(plan_of(toy.path)), Engine(toy.path)
    wrong: list[str] = []

    def work(k: int) -> None:
        wanted = reference(batch(1 + k % 3, k))
        try:
            for _ in range(50):
                same(engine(batch(1 + k % 3, k)), wanted)
        except Exception as error:  # of another thread, which pytest would not see
            wrong.append(str(error))

    workers = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_too_little_memory(toy, plan_of):
    engine = Engine(plan_of(toy.path))
    free, _ = _core.cuda_memory_info(0)
    hog = [_core.DeviceMemory(free - (64 << 20), 0)]
    while True:
        try:
            hog.append(_core.DeviceMemory(1 << 16, 0))
        except _core.CudaMemoryError:
            break
    with pytest.raises(DeviceMemoryError, match="does not suffice"):
        engine(batch(8))
    hog.clear()
    same(engine(batch(8)), Engine(toy.path)(batch(8)))
