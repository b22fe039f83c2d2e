"""TensorRT-RTX where it is installed, and a TensorRT of no substance where a GPU would be needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from finercam_rt.tensorrt import library
from finercam_rt.tensorrt.library import RTX, TENSORRT, Library

from ..fakes.gpu import Gpu
from ..fakes.tensorrt import FakeTensorRT


@pytest.fixture(scope="session")
def rtx() -> Library:
    if not library.is_installed(RTX):
        pytest.skip("TensorRT-RTX is not installed")
    return library.import_flavour(RTX)


@pytest.fixture
def fake() -> FakeTensorRT:
    return FakeTensorRT()


@pytest.fixture
def tensorrt(fake: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> Library:
    """The fake, as TensorRT on a machine with a GPU."""
    monkeypatch.setattr(library, "compute_capability", lambda device=0: "SM90")
    return Library(TENSORRT, fake.__version__, fake)


@pytest.fixture
def gpu(monkeypatch) -> Gpu:
    return Gpu(monkeypatch)


@pytest.fixture
def rtx_gpu(monkeypatch) -> Gpu:
    return Gpu(monkeypatch, RTX)


@contextmanager
def done_elsewhere(work: Callable[[], object]) -> Iterator[None]:
    """It is done by another thread, which lives until the block ends."""
    done, over = threading.Event(), threading.Event()

    def run() -> None:
        try:
            work()
        finally:
            done.set()
        over.wait()

    worker = threading.Thread(target=run)
    worker.start()
    done.wait()
    try:
        yield
    finally:
        over.set()
        worker.join()


def batch(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 32, 48)).astype(np.float32)


def same(found, wanted) -> None:
    for name, a, b in zip(found._fields, found, wanted, strict=True):
        if isinstance(a, np.ndarray):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=name)
