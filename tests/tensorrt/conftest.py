"""TensorRT-RTX where it is installed, and a TensorRT of no substance where a GPU would be needed."""

from __future__ import annotations

import pytest

from finercam_rt.tensorrt import library
from finercam_rt.tensorrt.library import RTX, TENSORRT, Library

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
