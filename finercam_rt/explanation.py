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
from finercam_rt.geometry import CROP, ORIGINAL, Geometry, check_coordinates
from finercam_rt.ops import Box
from finercam_rt.ops.rendering import checked_size
from finercam_rt.original import Original
from finercam_rt.pixels import as_rgb


@dataclass(frozen=True, eq=False)
class Explanation:
    """The predictions of N photographs and why: one row an image in every array.

    logits (N,K) float32; saliency_map (N,h,w) float32, raw, so comparable between images (of several layers it is the
    mean of their normalised maps, which is not); target (N,) int64; references (N,R) int64, -2 where unused; alpha (N,)
    float32; status, N strings: "ok", or "no_positive_evidence", "constant" or "non_finite" for a map that explains
    nothing; names, N strings: each photograph's path or position; classes; size, the (H,W) of the model's input in
    pixels; images (N,H,W,C) uint8, the crops that the model saw, or None; layer_maps, the raw map (N,h,w) of each of
    several layers by its name, where the engine gives them; originals, where each crop lies in its photograph and what
    that can be loaded from again, or None.

    Maps, pictures and points are in the coordinates of the crop, (0, 0) to `size`, or, where asked for, of the
    original: the whole photograph in its own size, upright (with its EXIF orientation applied).

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
    originals: tuple[Original, ...] | None = None

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
        coordinates: str = CROP,
        value_range: tuple[float, float] | None = None,
        photograph: Image.Image | None = None,
    ) -> Image.Image:
        """Photograph i under its map: round(opacity * colour + (1 - opacity) * photograph), an RGB image.

        A map whose status is not "ok" is not drawn: the photograph comes back unchanged. What of an original the model
        did not see lies under black. Of images of one channel the photograph is grey, and so is that of other
        channels than three: their mean.

        Args:
            i: which photograph.
            colormap: "turbo", "jet", "gray", or a (256,3) uint8 table.
            opacity: the map's share, 0 to 1.
            size: (height, width) in pixels; None is the model's input size, or the original's.
            coordinates: "crop", what the model saw, or "original", the whole photograph, which is loaded again.
            value_range: (low, high), the raw values drawn as the ends of the colour map, for pictures to be compared,
                such as the frames of a video; None is each map's own least and greatest.
            photograph: with coordinates "original", what `originals[i].load()` gave, so that several maps of it load it
                once; None loads it.

        Raises:
            InputError: no such photograph, colour map or opacity, or the explanation carries no photographs; an
                original that is gone or has changed.
        """
        self._check_one_contrast()
        i = self._checked(i)
        pixels = self._photograph(i, coordinates, photograph)
        shape, box = self._frame(i, size, coordinates)
        if shape != pixels.shape[:2]:
            pixels = np.asarray(Image.fromarray(pixels).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))
        rendered = ops.render(
            self._drawable(i),
            shape,
            images=pixels[None],
            colormap=colormap,
            opacity=opacity,
            box=box,
            value_range=value_range,
        )
        # a third of the time that Pillow's own conversion from RGBA takes
        return Image.frombytes("RGB", (shape[1], shape[0]), rendered.image, "raw", "RGBX")

    def heatmap(
        self,
        i: int,
        colormap: str | NDArray[np.uint8] = "turbo",
        size: tuple[int, int] | None = None,
        coordinates: str = CROP,
        value_range: tuple[float, float] | None = None,
    ) -> Image.Image:
        """Map i alone in colours, an RGBA image; transparent throughout where its status is not "ok".

        Transparent also where the model did not see the original, which is not loaded again. Arguments and errors as
        for `overlay`.
        """
        self._check_one_contrast()
        i = self._checked(i)
        shape, box = self._frame(i, size, coordinates)
        maps = self._drawable(i)
        return Image.fromarray(ops.render(maps, shape, colormap=colormap, box=box, value_range=value_range).image[0])

    def saliency_at(self, i: int, coordinates: str = CROP, size: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """Raw map i resized, (H,W) float32, bilinear; NaN where the model did not see the original.

        Values stay raw, so comparable between images; where the status is "non_finite" all are NaN. Arguments and
        errors as for `overlay`; the photograph is not loaded again.
        """
        self._check_one_contrast()
        i = self._checked(i)
        shape, box = self._frame(i, size, coordinates)
        raw = self.saliency_map[i]
        values: NDArray[np.float32] = ops.render(raw[None], shape, box=box).image[0]
        if self.status[i] == "non_finite":
            values[...] = np.nan
            return values
        low = np.float32(max(raw.min(), 0))
        values *= np.float32(max(raw.max(), 0)) - low
        values += low
        return values

    def peak(self, i: int, coordinates: str = CROP) -> tuple[float, float]:
        """(x, y) in pixels: the centre of the cell with the largest value of map i, the first of several.

        Raises:
            InputError: the map explains nothing (its status is not "ok"), or see `overlay`.
        """
        self._check_one_contrast()
        i = self._checked(i)
        check_coordinates(coordinates)
        if self.status[i] != "ok":
            raise InputError(f"the map of {self.names[i]} has no peak: its status is {self.status[i]}.")
        raw = self.saliency_map[i]
        row, column = np.unravel_index(int(raw.argmax()), raw.shape)
        point = ((column + 0.5) * self.size[1] / raw.shape[1], (row + 0.5) * self.size[0] / raw.shape[0])
        x, y = point if coordinates == CROP else self.geometry(i).to_original(point)
        return float(x), float(y)

    def geometry(self, i: int) -> Geometry:
        """Where the crop lies in photograph i; maps points and boxes between the two.

        Raises:
            InputError: no such photograph, or the explanation knows no originals.
        """
        return self._original(self._checked(i)).geometry

    def record(self, i: int) -> dict[str, Any]:
        """Photograph i as plain JSON values; what is not finite becomes null.

        logit_margin is the target's logit less the largest of its references', in nats, null without references. With
        several contrasts, "contrasts" lists what belongs to each.
        """
        i = self._checked(i)
        shares, predicted = self.probabilities[i], int(np.argmax(self.logits[i]))
        photograph = {"image": self.names[i], "predicted": self._class_record(i, predicted, shares)}
        if self.originals is not None:
            photograph["original"] = self.originals[i].record()
        if self.contrasts is None:
            return {**photograph, **self._contrast_record((i,), shares)}
        each = [self._contrast_record((i, p), shares) for p in range(self.contrasts)]
        return {**photograph, "contrasts": each}

    def _contrast_record(self, at: tuple[int, ...], shares: NDArray[np.float32]) -> dict[str, Any]:
        """Of photograph i: `at` is (i,), or (i, p) with several contrasts."""
        i, status = at[0], self.status[at[0]]
        references = [self._class_record(i, int(index), shares) for index in self.references[at] if index >= 0]
        target = self._class_record(i, int(self.target[at]), shares)
        margin = None
        if references:
            margin = _finite(self.logits[i, target["index"]] - max(self.logits[i, r["index"]] for r in references))
        raw = self.saliency_map[at]
        return {
            "target": target,
            "references": references,
            "logit_margin": margin,
            "alpha": float(self.alpha[at]),
            "status": status if len(at) == 1 else status[at[1]],
            "saliency_map": {"shape": list(raw.shape), "min": _finite(raw.min()), "max": _finite(raw.max())},
        }

    def _class_record(self, i: int, index: int, shares: NDArray[np.float32]) -> dict[str, Any]:
        return {
            "index": index,
            "name": None if self.classes.names is None else self.classes.names[index],
            "probability": _finite(shares[index]),
            "logit": _finite(self.logits[i, index]),
        }

    def _drawable(self, i: int) -> NDArray[np.float32]:
        """Map i as (1,h,w), without evidence where its status is not ok, which may be for the sake of the logits."""
        maps = self.saliency_map[i : i + 1]
        return maps if self.status[i] == "ok" else np.zeros_like(maps)

    def _original(self, i: int) -> Original:
        if self.originals is None:
            raise InputError("this explanation knows no originals; use the crop's coordinates.")
        return self.originals[i]

    def _photograph(self, i: int, coordinates: str, loaded: Image.Image | None) -> NDArray[np.uint8]:
        """(H,W,3)."""
        check_coordinates(coordinates)
        if coordinates == ORIGINAL:
            return np.asarray(self._original(i).load() if loaded is None else loaded)
        if self.images is None:
            raise InputError("this explanation carries no photographs; draw the map alone with heatmap().")
        return as_rgb(self.images[i])

    def _frame(self, i: int, size: tuple[int, int] | None, coordinates: str) -> tuple[tuple[int, int], Box | None]:
        """(height, width) of a picture, and where the map lies in it."""
        check_coordinates(coordinates)
        if coordinates == CROP:
            return self.size if size is None else checked_size(size), None
        geometry = self._original(i).geometry
        if size is not None:
            geometry = geometry.resized(checked_size(size))
        elif max(geometry.size) > ops.MAX_SIDE:
            height, width = geometry.size
            raise InputError(
                f"{self.names[i]} has {width}x{height} pixels, and a picture at most {ops.MAX_SIDE} a side; give a "
                "smaller size, or draw the crop."
            )
        return geometry.size, geometry.box

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
        originals=None if first.originals is None else tuple(o for part in parts for o in part.originals or ()),
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
