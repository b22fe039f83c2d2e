"""The maps of all methods in float64, each written out as its paper has it: nothing of the export is used."""

from __future__ import annotations

import torch

EIGEN = "-eigen"
"""What ends the name of a method whose channels are projected on their first principal component, not summed."""


def signed_map(method: str, activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """The map (N,h,w) before its ReLU, from activations and gradients (N,C,h,w) in float64.

    Raises:
        ValueError: no such method.
    """
    name = {"eigencam": "plain-eigen", "eigengradcam": "hirescam-eigen"}.get(method, method)
    terms = _terms(name.removesuffix(EIGEN), activations, gradients)
    return _principal(terms) if name.endswith(EIGEN) else terms.sum(1)


def _terms(name: str, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """What is summed over the channels, (N,C,h,w); pytorch-grad-cam's formulas, epsilons included."""
    places = {"dim": (2, 3), "keepdim": True}
    if name == "plain":
        return a
    if name == "gradcam":
        return g.mean(**places) * a
    if name == "gradcam++":
        share = g**2 / (2 * g**2 + a.sum(**places) * g**3 + 1e-6)
        return (g.relu() * torch.where(g == 0, 0.0, share)).sum(**places) * a
    if name == "xgradcam":
        return (g * a).sum(**places) / (a.sum(**places) + 1e-7) * a
    if name == "layercam":
        return g.relu() * a
    if name == "hirescam":
        return g * a
    if name == "gradcamelementwise":
        return (g * a).relu()
    if name == "fem":
        bound = a.mean(**places) + 2 * a.std(dim=(2, 3), keepdim=True, correction=0)
        return (a > bound).double().mean(**places) * a
    raise ValueError(f"the oracle has no method {name!r}.")


def _principal(terms: torch.Tensor) -> torch.Tensor:
    """The centred positions-by-channels matrix times its first right singular vector, turned along the mean."""
    rows = terms.flatten(2).transpose(1, 2)
    mean = rows.mean(1, keepdim=True)
    _, _, vectors = torch.linalg.svd(rows - mean, full_matrices=False)
    first = vectors[:, :1]
    sign = torch.where((mean * first).sum(2, keepdim=True) < 0, -1.0, 1.0)
    found = ((rows - mean) * first * sign).sum(2)
    return found.unflatten(1, terms.shape[2:])
