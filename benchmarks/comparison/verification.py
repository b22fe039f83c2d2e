"""Whether a contender's answer is right, against eager autograd with its own objective; nothing wrong is timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finercam_rt.manifest import DEFAULT_ALPHA, LayerInfo

if TYPE_CHECKING:
    import torch

REFERENCES = 3
CONTRASTS = 5
_FEATURES = "last_hidden_state"
_AT_ONCE = 4
"""Images for which the oracle keeps autograd's record at the same time."""


@dataclass(frozen=True)
class Tolerance:
    """The largest relative error of the logits; of the normalised map in L2, or the least median cosine of the maps."""

    logits: float
    map_l2: float | None = None
    cosine: float | None = None


EXACT = Tolerance(1e-4, map_l2=2e-3)
"""grad-cam adds 1e-7 to each divisor and interpolates by another library."""
REDUCED = Tolerance(0.25, cosine=0.8)
"""bf16 and int8 on random weights; how near they come to real ones is for `finercam compare`."""
SANE = Tolerance(0.25)
"""Another method in another precision, with nothing to compare with: the map is finite, of its shape, not constant."""


def oracle(model: torch.nn.Module, layer: LayerInfo, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """What is right for `images`, by autograd.

    Returns:
        "logits" (N,K); raw Grad-CAM maps (N,h,w) of the predicted class against the nearest ones: "weighted", "mean"
        (the objectives, each with its usual alpha); "layercam", the same by Layer-CAM with the weighted objective; and
        "five" (N,5,h,w), weighted Grad-CAM maps of the five best classes, each against the classes nearest to it.
    """
    import torch

    parts = [_oracle(model, layer, part) for part in torch.from_numpy(images).split(_AT_ONCE)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _oracle(model: torch.nn.Module, layer: LayerInfo, images: torch.Tensor) -> dict[str, NDArray[Any]]:
    import torch

    activations, logits = run_with_leaf(model, layer.name, images)
    scores = logits.detach()
    best = scores.argsort(dim=1, descending=True, stable=True)

    def gradients(rank: int, objective: str) -> torch.Tensor:
        target = best[:, rank : rank + 1]
        distance = (scores - scores.gather(1, target)).abs().scatter(1, target, torch.inf)
        references = logits.gather(1, distance.argsort(dim=1, stable=True)[:, :REFERENCES])
        weights = references.softmax(1) if objective == "weighted" else torch.full_like(references, 1 / REFERENCES)
        value = logits.gather(1, target).sum() - DEFAULT_ALPHA[objective] * (weights * references).sum()
        (found,) = torch.autograd.grad(value, activations, retain_graph=True)
        return torch.as_tensor(channels_first(found, layer))

    features = channels_first(activations.detach(), layer)

    def gradcam(rank: int, objective: str) -> NDArray[Any]:
        weights = gradients(rank, objective).mean((2, 3), keepdim=True)
        return np.asarray(torch.relu((weights * features).sum(1)))

    return {
        "logits": scores.numpy(),
        "weighted": gradcam(0, "weighted"),
        "mean": gradcam(0, "mean"),
        "layercam": np.asarray(torch.relu((torch.relu(gradients(0, "weighted")) * features).sum(1))),
        "five": np.stack([gradcam(rank, "weighted") for rank in range(CONTRASTS)], axis=1),
    }


def run_with_leaf(model: torch.nn.Module, layer: str, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer's output as a leaf, and the logits that autograd has followed from it."""
    taps: list[torch.Tensor] = []

    def hook(_module: object, _inputs: object, output: Any) -> Any:
        taps.append(features_of(output).detach().clone().requires_grad_())
        value = taps[-1].clone()  # what follows may work in place, which a leaf forbids
        if output is features_of(output):
            return value
        if isinstance(output, tuple):
            return (value, *output[1:])
        output[_FEATURES] = value
        return output

    handle = model.get_submodule(layer).register_forward_hook(hook)
    try:
        logits = model(images)
    finally:
        handle.remove()
    return taps[0], logits


def features_of(output: Any) -> Any:
    """A layer's output, or where it has several values, as of transformers, the one with the features."""
    if isinstance(output, tuple):
        return output[0]
    return output[_FEATURES] if isinstance(output, Mapping) else output


def channels_first(tensor: Any, layer: LayerInfo) -> Any:
    """A layer's output (N,C,h,w), (N,h,w,C) or tokens (N,L,C), or one that is arranged as one of them, as (N,C,h,w)."""
    how = layer.arrangement
    if how is not None:
        tensor = tensor.reshape(how.split).permute(how.axes).reshape(how.merged)
        tensor = tensor.roll(how.shifts, tuple(range(1, tensor.ndim)))
    if layer.layout == "nchw":
        return tensor
    if layer.layout == "tokens":
        tensor = tensor[:, layer.prefix_tokens :].reshape(len(tensor), *layer.grid, -1)
    return tensor.permute(0, 3, 1, 2)


def check(
    answer: Any, expected: Mapping[str, NDArray[Any]], map_of: str | None, tolerance: Tolerance
) -> dict[str, float]:
    """Errors of the logits and of the maps that are not degenerate, for the images that the oracle knows.

    Args:
        answer: logits (N,K) or None; saliency_map (N,h,w), (N,H,W) or (N,5,h,w), raw or normalised.
        expected: what `oracle` returned.
        map_of: which of its maps is expected, "other" where there is none to compare with, None for no map.

    Raises:
        ValueError: an error above its tolerance, or a map that says nothing.
    """
    measured: dict[str, float] = {}
    if answer.logits is not None:
        logits = _on_host(answer.logits)[: len(expected["logits"])]
        right = expected["logits"][: len(logits)]
        measured["logits_relative_max"] = float(np.abs(logits - right).max() / np.abs(right).max())
        measured["same_class"] = float((logits.argmax(1) == right.argmax(1)).mean())
        error = measured["logits_relative_max"]
        _require(error <= tolerance.logits, f"its logits differ by {error:.1e}")
    if map_of is None:
        return measured
    maps = _on_host(answer.saliency_map).astype(np.float64)[: len(expected["logits"])]
    _require(bool(np.isfinite(maps).all()), "its map differs from any that can be drawn: it is not finite")
    if map_of == "other":
        _require(maps.ndim == 3 and bool((np.ptp(maps, axis=(1, 2)) > 0).all()), "its map is constant")
        return measured
    return {**measured, **_check_maps(maps, expected[map_of][: len(maps)].astype(np.float64), tolerance)}


def _on_host(values: Any) -> NDArray[Any]:
    """Of NumPy, or of torch on any device."""
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values)


def _check_maps(got: NDArray[Any], expected: NDArray[Any], tolerance: Tolerance) -> dict[str, float]:
    got, expected = (_normalised(maps.reshape(-1, *maps.shape[-2:])) for maps in (got, expected))
    if got.shape[1:] != expected.shape[1:]:
        expected = _normalised(_resized(expected, got.shape[1:]))
    speaking = expected.max((1, 2)) > 0
    _require(bool(speaking.any()), "no map of the model says anything, so there is nothing to compare")
    got, expected = got[speaking], expected[speaking]
    lengths = np.linalg.norm(expected, axis=(1, 2))
    worst = float((np.linalg.norm(got - expected, axis=(1, 2)) / lengths).max())
    cosines = (got * expected).sum((1, 2)) / np.maximum(np.linalg.norm(got, axis=(1, 2)) * lengths, 1e-30)
    cosine = float(np.median(cosines))
    if tolerance.map_l2 is not None:
        _require(worst <= tolerance.map_l2, f"its map differs from autograd's by {worst:.1e}")
    if tolerance.cosine is not None:
        _require(cosine >= tolerance.cosine, f"its map differs from autograd's: the cosine is {cosine:.2f}")
    return {"normalised_map_relative_l2": worst, "map_cosine_median": cosine, "maps": float(len(got))}


def _resized(maps: NDArray[Any], size: tuple[int, ...]) -> NDArray[Any]:
    import torch

    scaled = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[:, None], size, mode="bilinear", align_corners=False
    )
    return np.asarray(scaled[:, 0])


def _normalised(maps: NDArray[Any]) -> NDArray[Any]:
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return np.asarray((maps - low) / np.maximum(high - low, 1e-30))


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise ValueError(reason)
