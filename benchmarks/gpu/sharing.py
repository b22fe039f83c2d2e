"""The forms of the kernel of `cam` side by side, on each size: which one to choose there (docs/cam-on-cuda.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any, NamedTuple

import torch
from comparison.timing import spread

from finercam_rt import _core
from gpu.cases import cam_case, stream_of
from gpu.clock import Clock
from gpu.measuring import LEAST_CALLS, make_works
from gpu.work import KernelCase, Work, check_ours

BY_SIZE = "by size"
ROUNDS = 2
"""Times that the forms take turns."""
_BLOCKS = (1, 2, 4, 8, 16, 32, 64)
_CLUSTERS = (2, 4, 8)
_MOST_CHANNELS, _STEP = 512, 8
"""Of a block, as csrc/kernels/cam_cuda.cu has them."""


class SharingCase(NamedTuple):
    """`work` draws by size; forms: blocks and whether they are a cluster, by name."""

    work: KernelCase
    method: str
    layout: str
    forms: dict[str, tuple[int, bool]]

    @property
    def name(self) -> str:
        """Not that of the same size among the kernels."""
        return f"sharing {self.work.variant}, {self.work.size}"


def sharing_cases(*, rehearsal: bool) -> Iterator[SharingCase]:
    """Batches of 1 to 256 maps of the last layers of ResNets, MobileNets and ViTs, small batches first."""
    batches = (2,) if rehearsal else (1, 4, 16, 64, 256)
    planes = ((40, 7, 7),) if rehearsal else ((2048, 7, 7), (512, 7, 7), (512, 28, 28))
    tokens = ((40, 3, 3),) if rehearsal else ((768, 14, 14), (1024, 16, 16))
    for n in batches:
        for layout, shapes in (("nchw", planes), ("tokens", tokens)):
            for shape in shapes:
                for method, dtype in (
                    ("gradcam", torch.float32),
                    ("layercam", torch.float32),
                    ("gradcam", torch.float16),
                ):
                    case = cam_case(method, layout, dtype, (n, *shape))
                    yield SharingCase(case, method, layout, dict(_forms(shape, dtype)))


def _forms(shape: tuple[int, int, int], dtype: torch.dtype) -> Iterator[tuple[str, tuple[int, bool]]]:
    """Those that a size can have, each number of blocks once."""
    channels, positions = shape[0], shape[1] * shape[2]
    for blocks in _BLOCKS:
        chunk = math.ceil(channels / blocks / _STEP) * _STEP
        if chunk > _MOST_CHANNELS or math.ceil(channels / chunk) != blocks:
            continue
        yield "one block" if blocks == 1 else f"{blocks} blocks", (blocks, False)
        if blocks in _CLUSTERS and positions <= 4096 // dtype.itemsize:
            yield f"cluster of {blocks}", (blocks, True)


def measure(case: SharingCase, clock: Clock) -> dict[str, Any]:
    """The record of a case: each form's time in a CUDA graph, with a cold cache and, where the arrays fit into it, with
    a warm one, as a network leaves it behind; the forms take turns. One that fails or is wrong has an error.
    """
    works = make_works(case.work, clock)
    moved = works[0].moved
    fits = moved < clock.cache_bytes
    forms = {BY_SIZE: (0, False), **case.forms}
    found: dict[str, Any] = {}
    calls: dict[str, list[Work]] = {}
    for name, (blocks, cluster) in forms.items():
        own = [_by(case, work, blocks, cluster) for work in works]
        try:
            check_ours(own[0])
            clock.synchronize()
        except (ValueError, RuntimeError) as error:  # refused, wrong, or CUDA's
            clock.synchronize()  # which fails where nothing of this process can use the GPU any more
            found[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            continue
        calls[name] = own
    samples: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in calls}
    for _ in range(ROUNDS):
        for name, own in calls.items():
            cold, warm = samples[name]
            queue = [work.ours for work in islice(cycle(own), max(len(own), LEAST_CALLS))]
            cold += clock.chain(queue).microseconds
            warm += clock.chain([own[0].ours] * len(queue)).microseconds if fits else []
    for name, (cold, warm) in samples.items():
        found[name] = {"cold_us": spread(cold), **({"warm_us": spread(warm)} if warm else {})}
    return {
        "variant": case.work.variant,
        "size": case.work.size,
        "moved_bytes": moved,
        "forms": {name: found[name] for name in forms},
        "state": clock.state(),
    }


def _by(case: SharingCase, work: Work, blocks: int, cluster: bool) -> Work:
    """The same work by one form, below ops.cam, which leaves the choice to the size."""
    (a, g), (out,) = work.inputs, work.outputs
    options: dict[str, Any] = {
        "method": _core.Method[case.method.upper()],
        "layout": _core.Layout[case.layout.upper()],
        "prefix_tokens": a.shape[1] - math.prod(out.shape[1:]) if case.layout == "tokens" else 0,
        "blocks": blocks,
        "cluster": cluster,
    }

    def ours() -> None:
        _core.cam(a, g, out, threads=1, stream=stream_of(a), **options)

    return replace(work, ours=ours)


def best(forms: Mapping[str, Any]) -> tuple[str, float, float] | None:
    """The fastest form, its microseconds and those of what is chosen now; of warm caches, where the arrays fit."""
    timed = {name: time_of(found) for name, found in forms.items() if "cold_us" in found}
    if BY_SIZE not in timed:
        return None
    name = min(timed, key=lambda name: timed[name])
    return name, timed[name], timed[BY_SIZE]


def time_of(found: Mapping[str, Any]) -> float:
    """The median that counts."""
    return float(found.get("warm_us", found["cold_us"])["median"])


def choices(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Variant, size, the form to choose, its time, that of what is chosen now, their ratio, and the best of each form
    with its number of blocks: a row for each record that has been measured.
    """
    rows = []
    for record in records:
        found = best(record["forms"])
        if found is None:
            continue
        name, fastest, chosen = found
        row = [record["variant"], record["size"], name, f"{fastest:.2f}", f"{chosen:.2f}", f"{chosen / fastest:.2f}"]
        for kind in ("one block", "blocks", "cluster"):
            own = {form: time_of(of) for form, of in record["forms"].items() if kind in form and "cold_us" in of}
            if kind == "blocks":
                own.pop("one block", None)
            least = min(own, key=lambda form: own[form], default=None)
            row.append("-" if least is None else f"{own[least]:.2f} ({least})")
        rows.append(row)
    return rows


HEAD = ["map", "size", "fastest", "us", "chosen now, us", "ratio", "one block", "two levels", "a cluster"]
