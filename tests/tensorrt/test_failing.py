"""What goes wrong with plans that run: one sentence each, and the engine works on where the GPU does."""

from __future__ import annotations

import gc
import logging

import numpy as np
import pytest

from finercam_rt import BackendError, Engine, EngineError, _core
from finercam_rt.backends import device_finish
from finercam_rt.errors import DeviceMemoryError

from ..fakes.cuda import cuda_error
from .conftest import batch, same


def test_a_capture_that_fails(toy, gpu, caplog):
    engine, reference = Engine(gpu.plan(toy.path)), Engine(toy.path)
    gpu.device.refuses_captures = True
    with caplog.at_level(logging.WARNING, "finercam_rt"):
        for step in range(4):
            same(engine(batch(2, step)), reference(batch(2, step)))
    assert caplog.text.count("runs are not captured in a CUDA graph") == 1
    assert "capturing a graph on cuda:0 failed" in caplog.text
    assert gpu.device.count("capture") == 1, "it is not tried again"
    gpu.device.refuses_captures = False
    engine(batch(1))
    engine(batch(1))
    assert len(gpu.device.graphs) == 1, "other sizes are"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("of the host"), ValueError("of a kernel")])
def test_whatever_ends_a_capture_leaves_nothing_capturing(toy, gpu, monkeypatch, error):
    engine, reference = Engine(gpu.plan(toy.path)), Engine(toy.path)
    same(engine(batch(2)), reference(batch(2)))

    def fail(*arguments):
        raise error

    with monkeypatch.context() as failing:
        failing.setattr(device_finish.Finish, "_queue_status", fail)
        with pytest.raises(type(error)):
            engine(batch(2, 1))
    assert not [stream for stream in gpu.device.streams.values() if stream.captured is not None]
    for step in range(3):
        same(engine(batch(2, step)), reference(batch(2, step)))
    assert len(gpu.device.graphs) == 1, "it is tried again"


def test_a_plan_that_cannot_be_captured(toy, rtx_gpu, caplog):
    rtx_gpu.trt.capturable = False
    engine, reference = Engine(rtx_gpu.plan(toy.path)), Engine(toy.path)
    for step in range(3):
        same(engine(batch(2, step)), reference(batch(2, step)))
    assert rtx_gpu.device.count("capture") == 0
    assert "cannot be captured" in caplog.text


def test_a_library_that_fails(toy, gpu):
    engine = Engine(gpu.plan(toy.path), cuda_graphs=False)
    engine(batch(1))
    gpu.trt.failing = "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime\n(invalid argument)."
    with pytest.raises(BackendError) as caught:
        engine(batch(1))
    assert str(caught.value) == (
        "tensorrt 11.4.0.106 failed in a run (IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (invalid "
        "argument))."
    )
    gpu.trt.failing = None
    assert np.isfinite(engine(batch(1)).logits).all(), "it works on"
    gpu.trt.context_failing = "Requested size was 123456 bytes: Out of memory"
    with pytest.raises(DeviceMemoryError, match="does not suffice for a context") as caught:
        engine(batch(3))
    assert caught.value.bytes == 123456


def test_a_plan_that_the_library_refuses(toy, gpu):
    plan = gpu.plan(toy.path)
    gpu.trt.load_failing = "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed"
    with pytest.raises(EngineError, match=r"toy\.plan: tensorrt 11\.4\.0\.106 does not take it \(Serialization"):
        Engine(plan)
    gpu.trt.load_failing = "[defaultAllocator] Requested size was 7 bytes: CUDA out of memory."
    with pytest.raises(DeviceMemoryError, match="does not suffice for"):
        Engine(plan)


def test_an_error_that_takes_the_gpu_away(toy, gpu):
    engine, other = Engine(gpu.plan(toy.path)), Engine(gpu.plan(toy.path))
    other(batch(1))
    engine(batch(1))
    gpu.device.lost = cuda_error("waiting failed: an illegal memory access was encountered", fatal=True)
    for one in (engine, engine, other):
        with pytest.raises(BackendError, match="nothing of this process can use the GPU any more; start it again"):
            one(batch(1))
    gpu.device.lost = None  # which CUDA never does
    with pytest.raises(BackendError, match="start it again"):
        engine(batch(1))
    engine.close()
    gc.collect()


def test_a_failure_of_the_library_that_takes_the_gpu_away(toy, gpu):
    engine = Engine(gpu.plan(toy.path), cuda_graphs=False)
    engine(batch(1))
    gpu.trt.failing = "Error Code 1: Cuda Runtime (an illegal memory access was encountered)"

    def lose(handle=None):
        gpu.device.lost = cuda_error("waiting failed: an illegal memory access was encountered", fatal=True)
        raise gpu.device.lost

    gpu.device.stream = lose
    with pytest.raises(BackendError, match="can use the GPU any more"):
        engine(batch(1))


def test_what_a_plan_does_not_take(toy, gpu):
    plan = gpu.plan(toy.path)
    for arguments, says in (
        ({"backend": "onnxruntime"}, "is a TensorRT plan, which onnxruntime does not run; use backend='auto'"),
        ({"device": "cpu"}, "runs on a GPU; run its ONNX file on the CPU"),
        ({"device": "gpu"}, "there is no device 'gpu'; choose one of auto, cpu, cuda, cuda:N"),
        ({"device": "cuda:1"}, "there is none here"),
        ({"compute": "bf16"}, "computes in what it was built for"),
        ({"threads": 0}, "threads is 0"),
    ):
        with pytest.raises(BackendError, match=says):
            Engine(plan, **arguments)
    with pytest.raises(BackendError, match="is no TensorRT plan; make one of it with `finercam build`"):
        Engine(toy.path, backend="tensorrt")
    for device in ("cuda", "cuda:0"):
        assert Engine(plan, backend="tensorrt", device=device).device == "cuda:0"
        with pytest.raises(BackendError, match="has no CUDAExecutionProvider; install onnxruntime-gpu"):
            Engine(toy.path, device=device)


def test_a_plan_that_is_not_what_its_manifest_says(make_toy, gpu):
    with pytest.raises(EngineError, match="its input references is int64"):
        Engine(gpu.plan(make_toy(manifest={"references": 2}).path))


def test_the_real_library_without_a_gpu(toy, rtx, gpu, monkeypatch):
    """TensorRT-RTX itself is asked, by its own signatures, as far as it goes where there is no GPU."""
    if _core.cuda_status()[0]:
        pytest.skip("there is a GPU, and tests/tensorrt/test_gpu.py")
    gpu.library, gpu.capability = rtx, "SM89"
    with pytest.raises((EngineError, BackendError)) as caught:
        Engine(gpu.plan(toy.path))
    text = str(caught.value)
    assert "tensorrt-rtx 1.7" in text
    assert "it does not say why" not in text
    assert "\n" not in text
    print(text)
