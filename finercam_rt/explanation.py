"""What an engine says about photographs, and how it looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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

    logits (N,K) float32; saliency_map (N,h,w) float32, raw, so comparable between images (of several layers it is the
    mean of their normalised maps, which is not); target (N,) int64; references (N,R) int64, -2 where unused; alpha (N,)
    float32; status, N strings: "ok", or "no_positive_evidence", "constant" or "non_finite" for a map that explains
    nothing; names, N strings: each photograph's path or position; classes; size, the (H,W) of the model's input in
    pixels; images (N,H,W,3) uint8, the crops that the model saw, or None; layer_maps, the raw map (N,h,w) of each of
    several layers by its name, where the engine gives them.

    Of an engine of several contrasts, saliency_map, target, references, alpha, status and layer_maps have an axis for
    them behind N. `contrast(p)` is the explanation by one of them, which can be drawn.
    """

    logits: NDArray[np.float32]
    saliency_map: NDArray[np.float32]
    target: NDArray[np.int64]
    references: NDArray[np.int64]
    alpha: NDArray[np.float32]
    status: tuple[Any, ...]
    names: tuple[str, ...]
    classes: Classes
    size: tuple[int, int]
    images: NDArray[np.uint8] | None = None
    layer_maps: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        """N, the number of photographs."""
        return len(self.logits)

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """exp(y_k) / sum_j exp(y_j), (N,K) float32, from the logits y."""
        with np.errstate(invalid="ignore"):  # logits that are not finite give NaN, which status and record report
            powers = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
            return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)

    @property
    def contrasts(self) -> int | None:
        """How many contrasts each image has, None for an engine of one, whose arrays have no axis for them."""
        return self.target.shape[1] if self.target.ndim == 2 else None

    def contrast(self, p: int) -> Explanation:
        """The explanation by contrast p alone, without an axis for it; the arrays are views.

        Raises:
            InputError: the engine computes one contrast an image, or there is no such contrast.
        """
        if self.contrasts is None:
            raise InputError("this explanation has one contrast an image, and is itself what contrast() would give.")
        if not -self.contrasts <= p < self.contrasts:
            raise InputError(f"there is no contrast {p}: the explanation has {self.contrasts}.")
        return replace(
            self,
            saliency_map=self.saliency_map[:, p],
            target=self.target[:, p],
            references=self.references[:, p],
            alpha=self.alpha[:, p],
            status=tuple(row[p] for row in self.status),
            layer_maps={name: maps[:, p] for name, maps in self.layer_maps.items()},
        )

    def layer(self, name: str) -> Explanation:
        """The explanation by the raw map of one of several target layers.

        Raises:
            InputError: the engine gives no map of such a layer.
        """
        if name not in self.layer_maps:
            known = f"it has {', '.join(self.layer_maps)}" if self.layer_maps else "export it with --layer-maps"
            raise InputError(f"the engine gives no map of layer {name!r}; {known}.")
        maps = self.layer_maps[name]
        return replace(self, saliency_map=maps, status=labels(status_of(maps)), layer_maps={})

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
        self._check_one_contrast()
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
        self._check_one_contrast()
        i = self._checked(i)
        return Image.fromarray(ops.render(self.saliency_map[i : i + 1], size or self.size, colormap=colormap).image[0])

    def record(self, i: int) -> dict[str, Any]:
        """Photograph i as plain JSON values; what is not finite becomes null.

        logit_margin is the target's logit less the largest of its references', in nats, null without references. With
        several contrasts, "contrasts" lists what belongs to each.
        """
        i = self._checked(i)
        photograph = {"image": self.names[i], "predicted": self._class_record(i, int(np.argmax(self.logits[i])))}
        if self.contrasts is None:
            return {**photograph, **self._contrast_record(i)}
        each = [self.contrast(p)._contrast_record(i) for p in range(self.contrasts)]
        return {**photograph, "contrasts": each}

    def _contrast_record(self, i: int) -> dict[str, Any]:
        references = [self._class_record(i, int(index)) for index in self.references[i] if index >= 0]
        target = self._class_record(i, int(self.target[i]))
        margin = None
        if references:
            margin = _finite(self.logits[i, self.target[i]] - max(self.logits[i, r["index"]] for r in references))
        raw = self.saliency_map[i]
        return {
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

    def _check_one_contrast(self) -> None:
        if self.contrasts is not None:
            raise InputError(f"this explanation has {self.contrasts} contrasts an image; draw one with contrast(p).")

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
        layer_maps={name: np.concatenate([part.layer_maps[name] for part in parts]) for name in first.layer_maps},
    )


def status_of(maps: NDArray[np.float32]) -> NDArray[np.uint8]:
    """`ops.status` of maps (N,h,w) or (N,P,h,w)."""
    return ops.status(maps) if maps.ndim == 3 else ops.status(maps.reshape(-1, *maps.shape[2:])).reshape(maps.shape[:2])


def labels(status: NDArray[np.uint8]) -> tuple[Any, ...]:
    """The words for status codes (N,) or (N,P)."""
    return tuple(
        ops.Status(code).label if isinstance(code, int) else tuple(ops.Status(c).label for c in code)
        for code in status.tolist()
    )


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None
