"""Methods by the first principal component, which needs a matrix's powers and so has no kernel, by NumPy. Formulas: as
in the compiled graph (export/method.py), which the tests and the verification of each export hold against these.

A is (N,C,L) over the map's positions, G (N,P,C,L), its channel weights (N,P,C), for P contrasts; scores are (N,P,L).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = NDArray[np.float32]
Score: TypeAlias = Callable[[Values, Values], Values]

_SQUARINGS, _PRODUCTS = 14, 3
"""Of the Gram matrix in Eigen-CAM: a column of its 65536th power, in which the first eigenvector is left alone."""


def host_map(method: str, activations: Values, second: Values) -> Values:
    """The raw map (N,P,L) of a method of SCORES: ReLU of its scores. NaN and infinities of the input show in it.

    Args:
        method: one of SCORES.
        activations: (N,C,L) float32.
        second: what the method needs, float32: gradients (N,P,C,L), or channel weights (N,P,C); where it needs nothing,
            either of them, for N and P.
    """
    with np.errstate(all="ignore"):
        return np.maximum(SCORES[method](activations, second), 0)


def _relu(values: Values) -> Values:
    return np.maximum(values, 0)


def _plus_plus_weights(a: Values, g: Values) -> Values:
    """w_k = sum ReLU(G) * alpha, alpha = G^2 / (2 G^2 + (sum A) G^3 + 1e-6)."""
    square = g * g
    denominator = 2 * square + a.sum(-1)[:, None, :, None] * square * g + np.float32(1e-6)
    alpha = np.where(g == 0, np.float32(0), square / denominator)
    weights: Values = (_relu(g) * alpha).sum(-1)
    return weights


def _xgradcam_weights(a: Values, g: Values) -> Values:
    """w_k = sum G A / (sum A + 1e-7)."""
    weights: Values = (g * a[:, None]).sum(-1) / (a.sum(-1)[:, None] + np.float32(1e-7))
    return weights


def _layercam_terms(a: Values, g: Values) -> Values:
    """ReLU(G) A."""
    return _relu(g) * a[:, None]


def _hirescam_terms(a: Values, g: Values) -> Values:
    """G A."""
    return g * a[:, None]


def _elementwise_terms(a: Values, g: Values) -> Values:
    """ReLU(G A)."""
    return _relu(_hirescam_terms(a, g))


def _scaled(a: Values, weights: Values) -> Values:
    """w_k A_k."""
    return weights[..., None] * a[:, None]


def _principal(terms: Score) -> Score:
    return lambda a, second: _principal_scores(terms(a, second))


def _principal_scores(x: Values) -> Values:
    """X v1 of the centred positions-by-channels matrix X; of the two signs the one along the mean. x is (...,C,L).

    v1 is the first eigenvector of X'X, and sigma times that of XX' is X v1: the smaller of the two matrices is taken.
    """
    x = x.swapaxes(-2, -1)
    mean = x.mean(-2, keepdims=True)
    centred = x - mean
    turned = centred.swapaxes(-2, -1)
    if centred.shape[-1] < centred.shape[-2]:
        v = _first_eigenvector(turned @ centred)
        scores = np.where(mean @ v < 0, np.float32(-1), np.float32(1)) * (centred @ v)
    else:
        u = _first_eigenvector(centred @ turned)
        projected = turned @ u  # sigma v1, (...,C,1)
        sigma = np.sqrt(np.square(projected).sum(-2, keepdims=True))
        scores = np.where(mean @ projected < 0, np.float32(-1), np.float32(1)) * sigma * u
    found: Values = scores.squeeze(-1)
    return found


def _first_eigenvector(gram: Values) -> Values:
    """(...,L,L), symmetric and not negative -> (...,L,1) of length 1, or 0 for a matrix of zeros; by squaring."""
    power = _of_trace_one(gram)
    for step in range(1, _SQUARINGS + 1):
        power = power @ power
        power = power if step % 2 else _of_trace_one(power)
    best = np.diagonal(power, axis1=-2, axis2=-1).argmax(-1)
    vector = np.take_along_axis(power, best[..., None, None], -1)
    for _ in range(_PRODUCTS):
        vector = power @ vector
    length: Values = np.maximum(np.sqrt(np.square(vector).sum(-2, keepdims=True)), np.float32(1e-30))
    found: Values = vector / length
    return found


def _of_trace_one(matrix: Values) -> Values:
    """The largest eigenvalue is then between 1/L and 1."""
    found: Values = matrix / np.maximum(np.trace(matrix, axis1=-2, axis2=-1), np.float32(1e-30))[..., None, None]
    return found


def _eigencam(a: Values, second: Values) -> Values:
    return _for_all(_principal_scores(a), second)


def _for_all(scores: Values, second: Values) -> Values:
    """Scores (N,L) that no contrast changes, for each of them."""
    return np.repeat(scores[:, None], second.shape[1], axis=1)


SCORES: dict[str, Score] = {
    "eigengradcam": _principal(_hirescam_terms),
    "eigencam": _eigencam,
    "gradcam-eigen": _principal(_scaled),
    "gradcam++-eigen": _principal(lambda a, g: _scaled(a, _plus_plus_weights(a, g))),
    "xgradcam-eigen": _principal(lambda a, g: _scaled(a, _xgradcam_weights(a, g))),
    "layercam-eigen": _principal(_layercam_terms),
    "gradcamelementwise-eigen": _principal(_elementwise_terms),
}
