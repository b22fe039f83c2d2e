"""One number for a set of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch


def weights_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a state dict, in its order: no matter the file it came from."""
    digest = hashlib.sha256()
    for key, tensor in state.items():
        digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
