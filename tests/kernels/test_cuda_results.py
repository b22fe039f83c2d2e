"""Results that lie in our own memory of a CUDA device: ordered with whoever reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finercam_rt import _core, cuda, kernel_arrays
from finercam_rt.kernel_arrays import Array

from ..fakes.cuda import FakeDevice
from ..fakes.frameworks import DeviceTensor, Given, UnorderedTensor

MADE_ON, READER = 0x2000, 0x3000
LIKE = Array("maps", (1,), "float32", "cuda:0", True, True)
VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    device = FakeDevice()
    for handle in (MADE_ON, READER):
        device.streams[handle] = type(device.streams[0])(device, handle)
    monkeypatch.setattr(cuda, "CudaDevice", lambda index: device)
    return device


def made(device: FakeDevice) -> Any:
    """As an operation gives it, whose kernel is queued on a stream."""
    result = kernel_arrays.allocate("float32", VALUES.shape, LIKE)
    written = device.view(result.address, "float32", VALUES.shape)
    device.queue(device.stream(MADE_ON), lambda stream: np.copyto(written, VALUES))
    return kernel_arrays.to_caller(result, _core.cuda_view(256, "float32", (1,), 0), MADE_ON)


@pytest.mark.parametrize("reader", [READER, 0])
def test_a_reader_on_another_stream_waits(device, reader):
    given = Given(made(device), reader)
    assert given.interface["typestr"] == "<f4"
    assert given.interface["stream"] == MADE_ON
    device.stream(reader).synchronize()
    found = device.at(given.interface["data"][0], VALUES.nbytes).view(np.float32)
    np.testing.assert_array_equal(found, VALUES.ravel())


def test_nothing_waits_on_the_stream_that_made_it(device):
    """Which may be captured. Nor does a reader who orders the work itself."""
    for reader in (MADE_ON, -1):
        result = made(device)
        before = {handle: len(stream._work) for handle, stream in device.streams.items()}
        result.__dlpack__(stream=reader)
        assert {handle: len(stream._work) for handle, stream in device.streams.items()} == before
    assert result.__dlpack_device__() == (2, 0)


@pytest.mark.parametrize("stream", [READER, 0])
def test_a_kernel_on_another_stream_waits_for_them(device, stream):
    """The compiled module asks for them without a stream, which orders the default one alone."""
    result = made(device)
    assert kernel_arrays.stream_of(stream, LIKE, None, result) == stream
    device.stream(stream).synchronize()
    found = device.at(result.address, VALUES.nbytes).view(np.float32)
    np.testing.assert_array_equal(found, VALUES.ravel())


def test_arrays_that_may_go_early_are_waited_for(device):
    given = UnorderedTensor(device, VALUES, MADE_ON)
    queued = device.stream(READER)
    queued.put(lambda: None)
    kernel_arrays.finish(READER, LIKE, DeviceTensor(device, VALUES), None)
    assert queued.ended == 0
    kernel_arrays.finish(READER, LIKE, DeviceTensor(device, VALUES), given)
    assert queued.ended == 1


def test_results_of_the_host_stay_as_they_are():
    result = kernel_arrays.allocate("int32", (2, 3), LIKE._replace(device="cpu"))
    assert isinstance(result, np.ndarray)
    assert kernel_arrays.to_caller(result, result, 0) is result
