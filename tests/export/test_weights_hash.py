"""The number of a set of weights: of the same bytes in any strides and dtype, and without a copy of them."""

from __future__ import annotations

import hashlib
import tracemalloc

import torch

from finercam_rt.export.weights_hash import weights_sha256


def test_it_is_of_names_dtypes_shapes_and_bytes() -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    state = {
        "a": whole.t(),
        "b": whole[:, ::2].bfloat16(),
        "count": torch.tensor(3),
        "none": torch.empty(0, 2),
        "extra": None,
    }
    said = (
        b"a|torch.float32|(6, 4)|" + whole.t().numpy().tobytes(),
        b"b|torch.bfloat16|(4, 3)|" + whole[:, ::2].bfloat16().view(torch.int16).numpy().tobytes(),
        b"count|torch.int64|()|" + torch.tensor(3).numpy().tobytes(),
        b"none|torch.float32|(0, 2)|",
        b"extra|",
    )
    assert weights_sha256(state) == hashlib.sha256(b"".join(said)).hexdigest()


def test_nothing_is_copied() -> None:
    state = {"a": torch.zeros(1 << 20)}
    tracemalloc.start()
    try:
        weights_sha256(state)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
