"""Both runtimes: bindings are made once for each thread and batch size, and the steady state allocates nothing."""

from __future__ import annotations

import gc
import sys
import threading
import weakref

import numpy as np
import pytest

from finercam_rt import backends
from finercam_rt.backends.protocol import DeviceBackend
from finercam_rt.backends.slots import BATCH_SIZES_KEPT
from finercam_rt.errors import BackendError
from finercam_rt.onnx_metadata import read_manifest


@pytest.fixture
def backend(toy, backend_name):
    return opened(toy, backend_name)


def opened(toy, name, compute="f32"):
    manifest = read_manifest(toy.path)
    return backends.open_backend(
        toy.path, manifest, backend=name, device="auto", threads=1, spinning=False, compute=compute
    )


def feeds(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {
        "images": np.random.default_rng(seed).normal(size=(count, 3, 32, 48)).astype(np.float32),
        "target": np.full(count, -1, np.int64),
        "references": np.full((count, 3), -1, np.int64),
        "alpha": np.ones(count, np.float32),
    }


def addresses(backend, outputs) -> dict[str, int]:
    """Where a backend of the CPU has its outputs; those of GPUs are copied to new memory."""
    if isinstance(backend, DeviceBackend):
        pytest.skip("what a GPU's backend keeps is looked at in tests/tensorrt")
    return {name: buffer.ctypes.data for name, buffer in outputs.items()}


def test_outputs_are_bound_once_and_reused(backend):
    first = addresses(backend, backend.run(feeds(2, seed=1)))
    backend.run(feeds(3))
    again = backend.run(feeds(2, seed=2))
    assert addresses(backend, again) == first
    assert not np.array_equal(again["logits"], backend.run(feeds(2, seed=3))["logits"].copy()[::-1])


def test_results_follow_the_images_given(backend):
    """The images are bound by address: a batch at another address must not give the old batch's result."""
    a, b = feeds(1, seed=1), feeds(1, seed=2)
    first = backend.run(a)["logits"].copy()
    second = backend.run(b)["logits"].copy()
    assert not np.array_equal(first, second)
    assert np.array_equal(backend.run(a)["logits"], first)


def test_few_batch_sizes_are_kept(backend):
    first = addresses(backend, backend.run(feeds(1)))
    kept = weakref.ref(backend.run(feeds(1))["logits"])
    for count in range(2, 2 + BATCH_SIZES_KEPT - 1):
        backend.run(feeds(count))
    assert addresses(backend, backend.run(feeds(1))) == first
    for count in range(10, 10 + BATCH_SIZES_KEPT):
        backend.run(feeds(count))
    gc.collect()
    assert kept() is None, "the least recently used went"


def test_the_least_recently_used_goes_first(backend):
    first = addresses(backend, backend.run(feeds(1)))
    second = weakref.ref(backend.run(feeds(2))["logits"])
    for count in range(3, 1 + BATCH_SIZES_KEPT):
        backend.run(feeds(count))
    backend.run(feeds(1))
    backend.run(feeds(1 + BATCH_SIZES_KEPT))
    gc.collect()
    assert second() is None
    assert addresses(backend, backend.run(feeds(1))) == first


def test_each_thread_has_its_own_buffers(backend):
    mine = addresses(backend, backend.run(feeds(1)))
    theirs: list[dict[str, int]] = []
    worker = threading.Thread(target=lambda: theirs.append(addresses(backend, backend.run(feeds(1)))))
    worker.start()
    worker.join()
    assert mine != theirs[0]
    assert addresses(backend, backend.run(feeds(1))) == mine


def test_the_callers_batch_is_not_kept(backend):
    given = feeds(1)
    before = [sys.getrefcount(value) for value in given.values()]
    backend.run(given)
    assert [sys.getrefcount(value) for value in given.values()] == before


def test_close_frees_the_buffers(backend):
    kept = weakref.ref(backend.run(feeds(1))["logits"])
    backend.close()
    gc.collect()
    assert kept() is None
    with pytest.raises(BackendError, match="closed"):
        backend.run(feeds(1))


def test_a_failing_run_is_one_quiet_sentence(backend, capfd):
    wrong = feeds(1) | {"target": np.array([99])}  # the engine checks the range; the graph does not
    if backend.name == "openvino":  # which reads a row of zeros there
        wrong = feeds(1) | {"alpha": np.ones(3, np.float32)}
    with pytest.raises(BackendError) as caught:
        backend.run(wrong)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert np.isfinite(backend.run(feeds(1))["logits"]).all(), "the backend works on"
