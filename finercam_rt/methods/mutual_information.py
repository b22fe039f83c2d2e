"""MI-CAM and MI-Grad: a channel weighs how much its activations tell of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from finercam_rt import ops
from finercam_rt.engine import Engine
from finercam_rt.manifest import RGB
from finercam_rt.methods.classifier import DEFAULT_MEMORY, Classifier
from finercam_rt.methods.objective import Values
from finercam_rt.methods.protocol import Asked, Classes, Floats, Maps, Together

BINS = 32
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


class Information(NamedTuple):
    """In nats: mutual (k,), what each map tells of the image; of_image, of_maps (k,), the entropies of both."""

    mutual: Values
    of_image: float
    of_maps: Values

    @property
    def normalised(self) -> Values:
        """(k,) 2 MI / (H_x + H_u), from 0 to 1; 0 where both are constant."""
        entropies = self.of_image + self.of_maps
        return np.divide(2 * self.mutual, entropies, out=np.zeros_like(entropies), where=entropies != 0)


def information(gray: Floats, maps: Floats) -> Information:
    """Of an image (H,W) and maps (k,H,W), from histograms of 32 equal bins between each one's least and greatest value.

    A constant has no information; NaN where a map is not finite.
    """
    damaged = np.asarray(~np.isfinite(maps).all(axis=(1, 2), keepdims=True))
    of_map = _bins(np.where(damaged, np.float32(0), maps))
    joint_bin = (np.arange(len(maps))[:, None] * BINS + _bins(gray[None])) * BINS + of_map
    counts = np.bincount(joint_bin.ravel(), minlength=len(maps) * BINS * BINS).reshape(len(maps), BINS, BINS)
    of_image, of_maps = _entropy(counts.sum(axis=2)), _entropy(counts.sum(axis=1))
    mutual = np.maximum(of_image + of_maps - _entropy(counts.reshape(len(maps), -1)), 0)
    mutual[damaged[:, 0, 0]] = of_maps[damaged[:, 0, 0]] = np.nan
    return Information(mutual, float(of_image[0]), of_maps)


def _bins(values: Floats) -> NDArray[np.int64]:
    """(k,H*W) the bin of each value between the least and the greatest of its row."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    low = rows.min(axis=1, keepdims=True)
    span = rows.max(axis=1, keepdims=True) - low
    shares = np.divide(rows - low, span, out=np.zeros_like(rows), where=span != 0)
    return np.asarray(np.minimum((shares * BINS).astype(np.int64), BINS - 1))


def _entropy(counts: NDArray[np.int64]) -> Values:
    """(k,) nats, of counts (k,m)."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    logs = np.log(shares, out=np.zeros_like(shares), where=counts > 0)
    return np.asarray(-(shares * logs).sum(axis=1))


class MiCam(Together):
    """ReLU(sum_k w_k A_k), w_k = MI(gray(x), U_k): no class, no gradient and no further run of the classifier.

    U_k is A_k resized bilinearly to the image, gray(x) the luminance of the photograph, or the mean of other channels
    than RGB; see `information`. The paper (arXiv 2507.09092) says that the weight is the mutual information; its
    estimator, bins and normalisation are not public, and those here are ours. The map is the same for every class, so
    the contrast changes nothing.

    Args:
        engine: of head "taps".
        memory: bytes of images and of resized activations at once.

    Raises:
        InputError: see `Classifier`.
    """

    name = "micam"
    _reads_gradients = False

    def __init__(self, engine: Engine, *, memory: int = DEFAULT_MEMORY) -> None:
        """Take the classifier."""
        self._classifier = Classifier(engine, memory)
        self._memory = memory

    def explain_each(self, images: Floats, target: Classes | None, asked: Sequence[Asked]) -> list[Maps]:
        """See MapSource.explain_each.

        Raises:
            InputError: an engine without activations; see `Engine.__call__` for the others.
        """
        found = self._classifier.explained_each(
            images, target, asked, activations=True, gradients=self._reads_gradients
        )
        activations = self._classifier.feature_maps(found[0].activations)
        maps = np.empty((len(asked), len(images), *activations.shape[2:]), np.float32)
        for row, (image, features) in enumerate(zip(images, activations, strict=True)):
            told = self._information(image, features)
            for place, one in enumerate(found):
                pooled = None if one.channel_weights is None else one.channel_weights[row]
                weights = self._weights(told, pooled)
                maps[place, row] = np.maximum(np.tensordot(weights, features.astype(np.float64), 1), 0)
        return [one.maps(maps[place]) for place, one in enumerate(found)]

    def _weights(self, found: Information, pooled: Floats | None) -> Values:
        """(C,) of one image."""
        return found.mutual

    def _information(self, image: Floats, features: Floats) -> Information:
        """Of all channels (C,h,w), a part at a time."""
        spec = self._classifier.engine.manifest.input
        photograph = image.transpose(1, 2, 0) * np.array(spec.std, np.float32) + np.array(spec.mean, np.float32)
        gray = photograph @ _LUMINANCE if spec.channels == RGB else photograph.mean(axis=2)
        size = max(1, self._memory // (gray.size * np.dtype(np.int64).itemsize))
        white = np.ones((1, 1, *gray.shape), np.float32)
        parts = [
            information(gray, ops.mask(white, features[None, start : start + size])[0, :, 0])
            for start in range(0, len(features), size)
        ]
        return Information(
            np.concatenate([part.mutual for part in parts]),
            parts[0].of_image,
            np.concatenate([part.of_maps for part in parts]),
        )


class MiGrad(MiCam):
    """ReLU(sum_k w_k A_k), w_k = NMI(gray(x), U_k) * mean of G_k: as MI-CAM, but of a class and its contrast.

    G is the gradient of the engine's seed, so alpha makes it Finer. NMI = 2 MI / (H_x + H_u), see `information`. That
    the weight is the normalised mutual information times the gradient is public (MI-Grad-CAM, OpenReview C5Dgtmk7ho);
    how the two are computed is not, and is ours here.
    """

    name = "migradcam"
    _reads_gradients = True

    def _weights(self, found: Information, pooled: Floats | None) -> Values:
        """(C,) of one image."""
        assert pooled is not None
        return np.asarray(found.normalised * pooled)
