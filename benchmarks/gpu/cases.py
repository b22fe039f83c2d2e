"""Which kernels are measured on which sizes: from one 2048 x 7 x 7 map to several times the L2."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from finercam_rt import _core, colormaps, ops
from gpu import formulas
from gpu.work import Draw, KernelCase, Work, bytes_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPACITY = 0.5
PREFIX_TOKENS = 1
REFERENCES = 3
STEPS = 10
"""Copies of an image that `remove` makes."""
SUMMED = ("layercam", "hirescam", "gradcamelementwise")
METHODS = ("gradcam", "channel_weights", "gradcam++", "xgradcam", "fem", *SUMMED)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_NARROW = {"gradcam++": 1e-3, "fem": 5e-3}
"""Tolerances of cam other than 1e-4: of quotients that nearly cancel, and of counts that jump."""


class Sizes(NamedTuple):
    """(N,C,h,w) of cam, by how they are laid out; (N,h,H) of render; N of the others' images, and so on."""

    planes: Sequence[tuple[int, int, int, int]]
    tokens: Sequence[tuple[int, int, int, int]]
    render: Sequence[tuple[int, int, int]]
    photographs: Sequence[tuple[int, int, int]]
    mask: Sequence[tuple[int, int]]
    images: Sequence[tuple[int, int]]
    logits: Sequence[tuple[int, int]]


FULL = Sizes(
    planes=(
        (1, 2048, 7, 7),
        (16, 2048, 7, 7),
        (64, 2048, 7, 7),
        (1024, 2048, 7, 7),
        (1, 512, 56, 56),
        (64, 512, 56, 56),
    ),
    tokens=((1, 768, 14, 14), (64, 768, 14, 14), (1024, 768, 14, 14)),
    render=((1, 7, 224), (16, 7, 224), (256, 14, 224), (2048, 7, 224)),
    photographs=((1, 480, 224), (16, 480, 224), (64, 480, 224), (256, 480, 224)),
    mask=((16, 224), (64, 224), (1024, 224)),
    images=((1, 224), (16, 224), (128, 224)),
    logits=((1, 1000), (64, 1000), (256, 1000), (64, 20000)),
)
TINY = Sizes(
    planes=((2, 40, 7, 7),),
    tokens=((2, 24, 3, 3),),
    render=((2, 7, 32),),
    photographs=((2, 96, 32),),
    mask=((3, 16),),
    images=((2, 16),),
    logits=((2, 50),),
)
"""For rehearsals on the CPU."""


def kernel_cases(sizes: Sizes) -> Iterator[KernelCase]:
    """Those of the goals first, then the rest: a run may end before its end."""
    first, rest = list(_cam(sizes)), list(_others(sizes))
    yield from (case for case in (*first, *rest) if case.kernel in ("cam", "render") and case.compiled)
    yield from (case for case in (*first, *rest) if not (case.kernel in ("cam", "render") and case.compiled))


def _cam(sizes: Sizes) -> Iterator[KernelCase]:
    for size in sizes.planes:
        for method in METHODS:
            compiled = method in ("gradcam", "layercam")
            yield cam_case(method, "nchw", torch.float32, size, compiled=compiled)
        yield cam_case("gradcam", "nchw", torch.float16, size, compiled=size == sizes.planes[0])
        yield cam_case("gradcam", "nchw", torch.bfloat16, size)
        yield cam_case("gradcam", "nhwc", torch.float32, size)
        yield cam_case("layercam", "nchw", torch.float16, size)
    for size in sizes.tokens:
        yield cam_case("gradcam", "tokens", torch.float32, size, compiled=True)
        yield cam_case("gradcam", "tokens", torch.float16, size)
        yield cam_case("gradcam", "tokens", torch.bfloat16, size)
        for method in METHODS[1:]:
            yield cam_case(method, "tokens", torch.float32, size)
        yield cam_case("layercam", "tokens", torch.bfloat16, size)


def cam_case(
    method: str, layout: str, dtype: torch.dtype, size: tuple[int, int, int, int], *, compiled: bool = False
) -> KernelCase:
    """`cam` of (N,C,h,w) in a layout."""
    n, channels, height, width = size
    prefix = PREFIX_TOKENS if layout == "tokens" else 0
    shape = {
        "nchw": (n, channels, height, width),
        "nhwc": (n, height, width, channels),
        "tokens": (n, prefix + height * width, channels),
    }[layout]

    def make(draw: Draw) -> Work:
        # of a ReLU: quotients of sums that vanish would measure rounding
        a = draw.normal(*shape, dtype=dtype).abs_()
        given = method == "channel_weights"
        g = draw.normal(n, channels, dtype=dtype) if given else draw.normal(*shape, dtype=dtype)
        out = draw.empty(n, height, width)
        options: dict[str, Any] = {"layout": layout, "out": out}
        if layout == "tokens":
            options |= {"prefix_tokens": prefix, "grid": (height, width)}

        def ours() -> object:
            if given:
                return ops.cam(a, channel_weights=g, **options)
            return ops.cam(a, g, method=method, **options)

        tokens = n * channels * height * width * a.element_size()  # prefix tokens are not read
        read = tokens + (bytes_of(g) if given else 0 if method == "fem" else tokens)
        plain, fused = (formulas.cam(method, layout, prefix, (height, width), products=p) for p in (True, False))
        return Work((a, g), (out,), ours, plain, read + bytes_of(out), _NARROW.get(method, 1e-4), fused)

    name = f"{method} {layout} {str(dtype).removeprefix('torch.')}"
    return KernelCase("cam", name, _times(size), make, compiled)


def _others(sizes: Sizes) -> Iterator[KernelCase]:
    for size in sizes.render:
        for picture in ("values", "blend", "colours"):
            yield _render_case(picture, *size, compiled=picture != "colours")
    for size in sizes.photographs:
        for mode in ("bicubic", "bilinear"):
            yield _preprocess_case(mode, *size)
    for maps, side in sizes.mask:
        yield _mask_case(maps, side)
    for n, side in sizes.images:
        yield from (_remove_case(n, side), _rank_case(n, side), _finite_case(n, 3 * side * side))
    for n, classes in sizes.logits:
        yield _seed_case(n, classes)


def _render_case(picture: str, n: int, cells: int, side: int, *, compiled: bool) -> KernelCase:
    def make(draw: Draw) -> Work:
        maps = draw.normal(n, cells, cells)
        status = draw.empty(n, dtype=torch.uint8)
        table = colormaps.table("turbo")
        photos = draw.bytes(n, side, side, 3) if picture == "blend" else None
        out = draw.empty(n, side, side) if picture == "values" else draw.empty(n, side, side, 4, dtype=torch.uint8)
        common: dict[str, Any] = {"box": None, "value_range": None, "threads": 1}

        def ours() -> None:  # below ops.render, which allocates the status, and a capture forbids that
            if picture == "values":
                _core.render_values(maps, status, out, **common, stream=stream_of(maps))
            else:
                _core.render_rgba(
                    maps, status, out, colors=table, photos=photos, opacity=OPACITY, **common, stream=stream_of(maps)
                )

        colors = None if picture == "values" else torch.tensor(table, device=draw.device)
        inputs = (maps,) if photos is None else (maps, photos)
        moved = bytes_of(*inputs, out, status)
        # a colour on the edge of two may be either
        tolerance = 1e-5 if picture == "values" else 1e-2
        return Work(inputs, (out,), ours, formulas.render((side, side), colors, OPACITY), moved, tolerance)

    return KernelCase("render", picture, f"{n}x{cells}x{cells} to {side}x{side}", make, compiled)


def _preprocess_case(mode: str, n: int, height: int, side: int) -> KernelCase:
    width = height * 4 // 3
    short = side * 8 // 7
    resized = (short, short * width // height)
    crop = ((resized[0] - side) // 2, (resized[1] - side) // 2)

    def make(draw: Draw) -> Work:
        photographs = draw.bytes(n, height, width, 3)
        out = draw.empty(n, 3, side, side)
        each = list(photographs)
        frames = [ops.Frame(resized, *crop)] * n

        def ours() -> object:
            return ops.preprocess(each, frames, (side, side), mean=MEAN, std=STD, interpolation=mode, out=out)

        mean, std = (torch.tensor(values, device=draw.device) for values in (MEAN, STD))
        read = math.prod(round(side * of / to) for of, to in zip((height, width), resized, strict=True)) * 3 * n
        formula = formulas.preprocess(resized, crop, (side, side), mode, mean, std)
        # ours rounds between the axes, as Pillow does, torch does not: a level of 255 here and there
        return Work((photographs,), (out,), ours, formula, read + bytes_of(out), 5e-2)

    return KernelCase("preprocess", mode, f"{n}x{height}x{width} to {side}x{side}", make)


def _mask_case(maps: int, side: int) -> KernelCase:
    def make(draw: Draw) -> Work:
        images, cells, out = (
            draw.normal(1, 3, side, side),
            draw.normal(1, maps, 7, 7),
            draw.empty(1, maps, 3, side, side),
        )
        moved = bytes_of(images, cells, out)
        return Work((images, cells), (out,), lambda: ops.mask(images, cells, out=out), formulas.mask, moved, 1e-5)

    return KernelCase("mask", "7x7 maps", f"{maps} copies of 3x{side}x{side}", make)


def _remove_case(n: int, side: int) -> KernelCase:
    def make(draw: Draw) -> Work:
        images, ranks = draw.normal(n, 3, side, side), draw.order(n, side * side).view(n, side, side)
        out = draw.empty(n, STEPS, 3, side, side)
        counts = np.ascontiguousarray(np.broadcast_to(np.linspace(0, side * side, STEPS).astype(np.int32), (n, STEPS)))
        fill = np.array([0.5, -0.5, 0.25], np.float32)
        on_device = [torch.from_numpy(values).to(draw.device) for values in (counts, fill)]

        def ours() -> None:
            _core.remove_values(images, ranks, counts, fill, out, threads=1, stream=stream_of(images))

        moved = bytes_of(images, ranks, out)
        # it brings counts and fill over from the host
        return Work((images, ranks), (out,), ours, formulas.remove(*on_device), moved, 1e-7, capture=False)

    return KernelCase("remove", f"{STEPS} steps", f"{n}x3x{side}x{side}", make)


def _rank_case(n: int, side: int) -> KernelCase:
    def make(draw: Draw) -> Work:
        maps, out = draw.normal(n, side, side), draw.empty(n, side, side, dtype=torch.int32)
        # it waits, to say which map is not finite
        return Work(
            (maps,), (out,), lambda: ops.rank(maps, out=out), formulas.rank, bytes_of(maps, out), 0, capture=False
        )

    return KernelCase("rank", "float32", f"{n}x{side}x{side}", make)


def _finite_case(n: int, columns: int) -> KernelCase:
    def make(draw: Draw) -> Work:
        values, status = draw.normal(n, columns), draw.empty(n, 1, dtype=torch.uint8)
        values[n // 2, columns // 3] = torch.inf

        def ours() -> None:  # it writes where it finds something
            status.zero_()
            _core.mark_non_finite(values, status, threads=1, stream=stream_of(values))

        return Work((values,), (status,), ours, formulas.finite, bytes_of(values), 0)

    return KernelCase("finite", "float32", f"{n}x{columns}", make)


def _seed_case(n: int, classes: int) -> KernelCase:
    def make(draw: Draw) -> Work:
        logits = draw.normal(n, classes)
        target = torch.full((n,), -1, device=draw.device)
        references = torch.full((n, REFERENCES), -1, device=draw.device)
        alpha = torch.ones(n, device=draw.device)
        whole = {"dtype": torch.int64}
        out = ops.Seed(
            draw.empty(n, **whole),
            draw.empty(n, REFERENCES, **whole),
            draw.empty(n, 1 + REFERENCES, **whole),
            draw.empty(n, 1 + REFERENCES),
        )
        outputs = (out.target_class, out.reference_classes, out.values)
        moved = bytes_of(logits, target, references, alpha, *outputs, out.classes)
        call = lambda: ops.seed(logits, target, references, alpha, out=out)  # noqa: E731
        return Work((logits,), outputs, call, formulas.seed(REFERENCES), moved, 1e-5)

    return KernelCase("seed", f"{REFERENCES} references", f"{n}x{classes}", make)


def stream_of(tensor: Tensor) -> int:
    """The handle of torch's current stream; 0 on the CPU."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def _times(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
