"""What an engine says about photographs, and how it looks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finercam_rt import ops
from finercam_rt.classes import Classes
from finercam_rt.errors import InputError


@dataclass(frozen=True, eq=False)
class Explanation:
    """The predictions of N photographs and why: one row an image in every array.

    logits (N,K) float32; saliency_map (N,h,w) float32, raw, so comparable between images; target (N,) int64;
    references (N,R) int64, -2 where unused; alpha (N,) float32; status, N strings: "ok", or "no_positive_evidence",
    "constant" or "non_finite" for a map that explains nothing; names, N strings: each photograph's path or position;
    classes; size, the (H,W) of the model's input in pixels; images (N,H,W,3) uint8, the crops that the model saw, or
    None.
    """

    logits: NDArray[np.float32]
    saliency_map: NDArray[np.float32]
    target: NDArray[np.int64]
    references: NDArray[np.int64]
    alpha: NDArray[np.float32]
    status: tuple[str, ...]
    names: tuple[str, ...]
    classes: Classes
    size: tuple[int, int]
    images: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        """N, the number of photographs."""
        return len(self.logits)

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """exp(y_k) / sum_j exp(y_j), (N,K) float32, from the logits y."""
        with np.errstate(invalid="ignore"):  # logits that are not finite give NaN, which status and record report
            powers = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
            return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)

    def class_name(self, index: int) -> str:
        """The name of a class, or "class 12" where the engine has no names."""
        return self.classes.name(index)

    def overlay(
        self,
        i: int,
        colormap: str | NDArray[np.uint8] = "turbo",
        opacity: float = 0.5,
        size: tuple[int, int] | None = None,
    ) -> Image.Image:
        """Photograph i under its map: round(opacity * colour + (1 - opacity) * photograph), an RGB image.

        A map whose status is not "ok" is not drawn: the photograph comes back unchanged.

        Args:
            i: which photograph.
            colormap: "turbo", "jet", "gray", or a (256,3) uint8 table.
            opacity: the map's share, 0 to 1.
            size: (height, width) in pixels; None is the model's input size.

        Raises:
            InputError: no such photograph, colour map or opacity, or the explanation carries no photographs.
        """
        if self.images is None:
            raise InputError("this explanation carries no photographs; draw the map alone with heatmap().")
        i = self._checked(i)
        photograph = self.images[i]
        if size is not None and tuple(size) != photograph.shape[:2]:
            resized = Image.fromarray(photograph).resize((size[1], size[0]), Image.Resampling.BICUBIC)
            photograph = np.asarray(resized)
        rendered = ops.render(
            self.saliency_map[i : i + 1],
            photograph.shape[:2],
            images=photograph[None],
            colormap=colormap,
            opacity=opacity,
        )
        return Image.fromarray(np.ascontiguousarray(rendered.image[0, :, :, :3]))

    def heatmap(
        self, i: int, colormap: str | NDArray[np.uint8] = "turbo", size: tuple[int, int] | None = None
    ) -> Image.Image:
        """Map i alone in colours, an RGBA image; transparent throughout where its status is not "ok".

        Arguments and errors as for `overlay`.
        """
        i = self._checked(i)
        return Image.fromarray(ops.render(self.saliency_map[i : i + 1], size or self.size, colormap=colormap).image[0])

    def record(self, i: int) -> dict[str, Any]:
        """Photograph i as plain JSON values; what is not finite becomes null.

        logit_margin is the target's logit less the largest of its references', in nats, null without references.
        """
        i = self._checked(i)
        references = [self._class_record(i, int(index)) for index in self.references[i] if index >= 0]
        target = self._class_record(i, int(self.target[i]))
        margin = None
        if references:
            margin = _finite(self.logits[i, self.target[i]] - max(self.logits[i, r["index"]] for r in references))
        raw = self.saliency_map[i]
        return {
            "image": self.names[i],
            "predicted": self._class_record(i, int(np.argmax(self.logits[i]))),
            "target": target,
            "references": references,
            "logit_margin": margin,
            "alpha": float(self.alpha[i]),
            "status": self.status[i],
            "saliency_map": {"shape": list(raw.shape), "min": _finite(raw.min()), "max": _finite(raw.max())},
        }

    def _class_record(self, i: int, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "name": None if self.classes.names is None else self.classes.names[index],
            "probability": _finite(self.probabilities[i, index]),
            "logit": _finite(self.logits[i, index]),
        }

    def _checked(self, i: int) -> int:
        if not -len(self) <= i < len(self):
            raise InputError(f"there is no image {i}: the explanation has {len(self)}.")
        return i % len(self)


def concatenate(parts: list[Explanation]) -> Explanation:
    """The explanations of one engine's batches as one."""
    first = parts[0]
    if len(parts) == 1:
        return first
    images = [part.images for part in parts if part.images is not None]
    return Explanation(
        logits=np.concatenate([part.logits for part in parts]),
        saliency_map=np.concatenate([part.saliency_map for part in parts]),
        target=np.concatenate([part.target for part in parts]),
        references=np.concatenate([part.references for part in parts]),
        alpha=np.concatenate([part.alpha for part in parts]),
        status=tuple(label for part in parts for label in part.status),
        names=tuple(name for part in parts for name in part.names),
        classes=first.classes,
        size=first.size,
        images=np.concatenate(images) if len(images) == len(parts) else None,
    )


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None
