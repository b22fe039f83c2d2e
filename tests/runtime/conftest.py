"""What the tests of the engine and of its backends share."""

from __future__ import annotations

import pytest

BACKENDS = ("onnxruntime", "openvino")


@pytest.fixture(params=BACKENDS)
def backend_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each runtime in turn, as what "auto" is."""
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    monkeypatch.setenv("FINERCAM_BACKEND", request.param)
    return request.param
