"""Stage 7: the engine's logits and maps against eager autograd; a file that fails is not kept."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from finercam_rt.contrast import Contrast, top_classes
from finercam_rt.embeddings import ClassEmbeddings
from finercam_rt.engine import Engine
from finercam_rt.errors import ExportError
from finercam_rt.export.candidates import written_derivatives
from finercam_rt.export.expected import Contrasts, Expected, Run, run_eagerly, run_in_float64
from finercam_rt.export.refusal import first_line, refusing
from finercam_rt.manifest import Manifest
from finercam_rt.outputs import Outputs

MAP_TOLERANCE = 1e-4
LOGIT_TOLERANCE = 1e-4
ROUNDING = 2.0
"""An engine further from PyTorch than the tolerance is right where it is at most so many times as far from float64 as
rounding moves PyTorch's own float32: on any image so far, or with weights and images that are rounded once more. The
engine's sums are the same, but not their order, and weights that batch norms were folded into were rounded again; and
at a kink, as of a ReLU or a hard swish, the last digit decides which derivative a position has."""
ROUNDED_AGAIN = 8
"""Draws of weights and images that are rounded once more."""
VERIFICATION_IMAGES = 5


class Errors(NamedTuple):
    """Of a run against another: relative L2 of the maps, largest difference of the logits over the largest logit."""

    maps: float
    logits: float

    def within(self, allowed: Errors) -> bool:
        """Whether neither is larger than what is allowed; what is not finite is larger."""
        return self.maps <= allowed.maps and self.logits <= allowed.logits


TOLERANCE = Errors(MAP_TOLERANCE, LOGIT_TOLERANCE)
LARGEST_ROUNDING = Errors(2e-2, 1e-3)
"""How far PyTorch's float32 and the engine may be from float64; beyond it float32 cannot hold the map, and only `force`
writes it. At early layers the last digit decides on which side of a kink some of a million rectifiers are: rounding
moves PyTorch's own maps of EfficientNet-lite0 there by up to 5e-3, those of Layer-CAM by 1.1e-2."""


def verification_images(shape: tuple[int, int, int]) -> torch.Tensor:
    """(5,C,H,W) float32 of seeded noise, coarse and fine, of unit variance; shape is (C,H,W).

    White noise alone is all alike to a classifier, whose pooled features are then the same for every image, and so far
    from photographs that some trained norms blow its rounding up.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(VERIFICATION_IMAGES, shape[0], 5, 5, generator=generator)
    try:
        fine = torch.randn(VERIFICATION_IMAGES, *shape, generator=generator)
    except RuntimeError as error:
        message = f"images of {shape[1]} x {shape[2]} pixels do not fit into memory; give a smaller input size."
        raise ExportError(message) from error
    images = nn.functional.interpolate(coarse, shape[1:], mode="bicubic") + 0.5 * fine
    return images / images.std((1, 2, 3), keepdim=True)


@refusing("verifying the engine")
def verify(
    engine: Engine,
    model: nn.Module,
    images: torch.Tensor,
    class_embeddings: ClassEmbeddings | None = None,
    *,
    force: bool = False,
) -> dict[str, Any]:
    """Run the engine on batches of one and of all images, with automatic and pinned contrasts, and compare.

    Args:
        engine: a finercam_rt.Engine of the file under test.
        model: the model it was made from.
        images: (N,C,H,W) float32, normalised, N >= 2.
        class_embeddings: of a zero-shot model; the first few of them are another set, of fewer classes than the
            references need.
        force: whether an engine passes, too, whose maps float32 cannot hold: rounding moves PyTorch's own as far.

    Returns:
        What was measured: errors (relative L2 of the maps, largest relative difference of the logits), images, cases.

    Raises:
        ExportError: an error above the tolerance, or an automatic choice that eager logits do not support.
    """
    manifest = engine.manifest
    sets = [None] if class_embeddings is None else [class_embeddings, _few(class_embeddings, manifest.references)]
    runs = [run for classes in sets for run in _runs(engine, classes, images)]
    worst, rounding = Errors(0.0, 0.0), _Rounding(model, manifest)
    for asked, classes, batch, cases in runs:
        answers = [asked(batch.numpy(), **arguments) for arguments in cases]
        contrasts = [list(_contrasts(outputs)) for outputs in answers]
        # once for all cases, which differ in their contrasts: the model's forward pass is what takes the time
        eager = run_eagerly(model, manifest, batch, list(chain(*contrasts)), classes)
        expected = _parts(eager, [len(of_case) for of_case in contrasts])
        found = [_engine_run(outputs, manifest, part) for outputs, part in zip(answers, expected, strict=True)]
        errors = [_errors(run, part) for run, part in zip(found, expected, strict=True)]
        beyond = [case for case, error in enumerate(errors) if not error.within(TOLERANCE)]
        if beyond:
            theirs, own = (_joined([parts[case] for case in beyond]) for parts in (found, expected))
            asked_for = list(chain(*(contrasts[case] for case in beyond)))
            explained, held = rounding.explains(theirs, own, batch, asked_for, classes)
            if not explained or not (held or force):
                largest = functools.reduce(_larger, errors)
                written = written_derivatives(model, [layer.name for layer in manifest.layers], batch)
                raise ExportError(_difference(largest, eager, rounding, explained, written))
        for outputs, arguments, error in zip(answers, cases, errors, strict=True):
            worst = _larger(worst, error)
            _check_choices(outputs, eager.logits, arguments, max(LOGIT_TOLERANCE, error.logits))
    measured = {
        "map_relative_l2": worst.maps,
        "logits_relative_max": worst.logits,
        "images": len(images),
        "cases": sum(len(cases) for *_, cases in runs),
        "against": "eager autograd, float32",
    }
    # of the runs above the tolerance
    return {**measured, "rounding_of_pytorch": rounding.moved._asdict()} if any(rounding.moved) else measured


class _Rounding:
    """What float32 makes of the model's logits and maps, at most of all that it was asked about."""

    def __init__(self, model: nn.Module, manifest: Manifest) -> None:
        self.moved = Errors(0.0, 0.0)
        """How far PyTorch's are from float64, those of weights and images that are rounded once more included."""
        self.unknown = ""
        """Why that could not be found; empty where it was."""
        self._model, self._manifest = model, manifest
        self._own = Errors(0.0, 0.0)

    def explains(
        self, found: Run, eager: Run, images: torch.Tensor, contrasts: Contrasts, classes: ClassEmbeddings | None
    ) -> tuple[bool, bool]:
        """Whether the engine is about as near to float64 as rounding leaves PyTorch's own, and whether both are near
        enough: whether float32 holds the map."""
        try:
            exact = run_in_float64(self._model, self._manifest, images, contrasts, classes)
        except Exception as error:  # of the model's own code
            self.unknown = first_line(error)
            return False, False
        engine = _errors(found, exact)
        self._own = _larger(self._own, _errors(eager, exact))
        self.moved = _larger(self.moved, self._own)
        for seed in range(ROUNDED_AGAIN):
            if self._allows(engine):
                break
            model, moved = _rounded_again(self._model, images, seed)
            again = run_eagerly(model, self._manifest, moved, contrasts, classes)
            self.moved = _larger(self.moved, _errors(again, exact))
        return self._allows(engine), _larger(self._own, engine).within(LARGEST_ROUNDING)

    def _allows(self, engine: Errors) -> bool:
        maps, logits = (ROUNDING * error for error in self.moved)
        return engine.within(Errors(max(MAP_TOLERANCE, maps), max(LOGIT_TOLERANCE, logits)))


def _few(embeddings: ClassEmbeddings, references: int) -> ClassEmbeddings:
    """So few classes that an image lacks a reference, or two."""
    count = min(max(2, references), len(embeddings))
    return replace(embeddings, values=embeddings.values[:count], names=embeddings.names[:count])


def _runs(
    engine: Engine, classes: ClassEmbeddings | None, images: torch.Tensor
) -> list[tuple[Engine, ClassEmbeddings | None, torch.Tensor, list[dict[str, Any]]]]:
    """The engine with these classes, the classes, a batch, and the arguments of each case."""
    asked = engine if classes is None else engine.with_classes(classes)
    cases = _cases(asked.classes.count, engine.manifest.contrasts, len(images))
    # one image last: how far its rounding goes, one image alone does not say
    return [(asked, classes, images, cases), (asked, classes, images[:1], [{"alpha": 0.6}])]


def _cases(classes: int, several: int, count: int) -> list[dict[str, Any]]:
    """Arguments of the engine: targets and references chosen by it, with an alpha an image from 0 on, and pinned."""
    automatic: dict[str, Any] = {"alpha": np.linspace(0, 2, count, dtype=np.float32)}
    if several == 1:
        pinned = [(3 * i) % classes for i in range(count)]
        others = [[(target + 1) % classes] for target in pinned]
        return [
            automatic,
            {"target": pinned, "alpha": 1.0},
            {"target": pinned, "references": others, "alpha": 1.0},
        ]
    rows = [[(3 * i + p) % classes for p in range(several)] for i in range(count)]
    return [
        automatic,
        {"contrasts": top_classes(1, alpha=1.0)},
        {"contrasts": [[Contrast(c, alpha=0.3 * p) for p, c in enumerate(row)] for row in rows]},
        {"contrasts": [[Contrast(c, [(c + 1) % classes], 1.0) for c in row] for row in rows]},
    ]


def _contrasts(outputs: Outputs) -> Iterator[tuple[Any, Any, Any]]:
    """What was asked of the engine, as Contrasts."""
    if outputs.target.ndim == 1:
        yield outputs.target, outputs.references, outputs.alpha
        return
    for p in range(outputs.target.shape[1]):
        yield outputs.target[:, p], outputs.references[:, p], outputs.alpha[:, p]


def _given(outputs: Outputs) -> list[Any]:
    """The taps that the engine gives."""
    taps = (outputs.activations, outputs.gradients, outputs.channel_weights)
    return [values for values in taps if values is not None]


def _engine_run(outputs: Outputs, manifest: Manifest, eager: Run) -> Run:
    """The engine's logits, maps and taps in the form of an eager run, with that one's scales."""

    def rows(values: Sequence[Any], expected: list[list[Expected]]) -> list[list[Expected]]:
        found = []
        for contrast, row in enumerate(expected):
            shared = [manifest.contrasts == 1 or value is outputs.activations for value in values]
            arrays = [value if one else value[:, contrast] for value, one in zip(values, shared, strict=True)]
            tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
            found.append([Expected(value, want.scale) for value, want in zip(tensors, row, strict=False)])
        return found

    maps = rows((outputs.saliency_map, *outputs.layer_maps.values()), eager.maps)
    return Run(torch.from_numpy(outputs.logits), maps, rows(_given(outputs), eager.taps))


def _parts(run: Run, counts: Sequence[int]) -> list[Run]:
    """A run's contrasts by cases of so many."""
    ends = list(accumulate(counts))
    rows = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    return [Run(run.logits, run.maps[part], run.taps[part]) for part in rows]


def _joined(runs: Sequence[Run]) -> Run:
    """The contrasts of several cases as one run, whose logits are (cases,N,K)."""
    maps, taps = (list(chain(*rows)) for rows in ([run.maps for run in runs], [run.taps for run in runs]))
    return Run(torch.stack([run.logits for run in runs]), maps, taps)


def _errors(found: Run, right: Run) -> Errors:
    largest = right.logits.abs().max().clamp(min=1e-30)
    rows = [*zip(found.maps, right.maps, strict=True), *zip(found.taps, right.taps, strict=True)]
    # an engine gives the maps of several layers only where it was asked to
    values = [_error(a.values, b) for row, others in rows for a, b in zip(row, others, strict=False)]
    return Errors(max(values), _largest((found.logits - right.logits).abs() / largest))


def _error(got: torch.Tensor, want: Expected) -> float:
    difference = (got - want.values).flatten(1).norm(dim=1)
    # a map of zero scale must be matched exactly
    return _largest(torch.where(want.scale > 0, difference / want.scale.clamp(min=1e-30), difference))


def _largest(errors: torch.Tensor) -> float:
    return float(errors.nan_to_num(nan=torch.inf).max())


def _rounded_again(model: nn.Module, images: torch.Tensor, seed: int) -> tuple[nn.Module, torch.Tensor]:
    """A copy of both whose float32 numbers are a last digit larger or smaller at random, or as they were."""
    generator = torch.Generator().manual_seed(seed)

    def moved(values: torch.Tensor) -> torch.Tensor:
        steps = torch.randint(-1, 2, values.shape, generator=generator)
        return values * (1 + torch.finfo(values.dtype).eps * steps)

    copied = copy.deepcopy(model)
    for values in filter(torch.is_floating_point, copied.parameters()):
        values.data = moved(values.data)
    return copied, moved(images)


def _larger(one: Errors, other: Errors) -> Errors:
    return Errors(*map(max, one, other))


def _difference(errors: Errors, eager: Run, rounding: _Rounding, explained: bool, written: Sequence[str]) -> str:
    """What a difference is due to. A map float32 cannot hold is refused as a wrong one is.

    Two causes are known, both of weights that were never trained or of a layer where nothing is left of the image: a
    map that is a small difference of large terms (behind it a layer norm, before it the same values at all positions),
    and logits so large that their last digit decides the softmax over the references.
    """
    logits = float(eager.logits.abs().max())
    digits = logits * torch.finfo(torch.float32).eps > MAP_TOLERANCE / 2 and errors.logits <= LOGIT_TOLERANCE
    own = rounding.moved
    if digits or explained or not own.within(LARGEST_ROUNDING):
        ways = ["check that the weights are trained ones", "choose another target layer"]
        if explained:  # nearer than PyTorch's own map there is none in float32
            ways.append("write it all the same with --force")
        what, by, found = "map of this layer", own.maps, errors.maps
        if errors.maps <= MAP_TOLERANCE and not digits:
            what, by, found = "logits of this model", own.logits, errors.logits
        return (
            f"float32 cannot hold the {what}: the logits reach {logits:.1e}, rounding moves PyTorch's own "
            f"{what.split()[0]} by {by:.1e}, and the engine's differ by {found:.1e}, where {MAP_TOLERANCE:.0e} is "
            f"allowed; {', '.join(ways[:-1])}, or {ways[-1]}."
        )
    advice = "please report it"
    if written:
        advice = (
            f"its forward has derivatives of its own ({', '.join(written)}), which are not captured: take them out, or "
            "choose a later target layer"
        )
    unknown = f", and float64 does not show how much of it is rounding ({rounding.unknown})" if rounding.unknown else ""
    return (
        f"the compiled engine does not equal the model: relative error {errors.maps:.1e} of the maps and "
        f"{errors.logits:.1e} of the logits, where {MAP_TOLERANCE:.0e} is allowed{unknown}; nothing was written, "
        f"{advice}."
    )


def _check_choices(outputs: Outputs, logits: torch.Tensor, arguments: dict[str, Any], tolerance: float) -> None:
    """Automatic targets are the largest logits and automatic references the nearest, up to rounding."""
    if "contrasts" in arguments:
        return
    margin = float(logits.abs().max().clamp(min=1e-30)) * tolerance
    for rank, (targets, references, _) in enumerate(_contrasts(outputs)):
        for row, target, others in zip(logits, targets.tolist(), references.tolist(), strict=True):
            if "target" not in arguments and row.sort(descending=True).values[rank] - row[target] > margin:
                raise ExportError("the compiled engine predicts another class than the model; nothing was written.")
            if "references" in arguments:
                continue
            distance = (row - row[target]).abs()
            distance[target] = torch.inf
            used = [index for index in others if index >= 0]
            if len(used) < min(len(others), len(row) - 1):
                raise ExportError("the compiled engine leaves references out; nothing was written, please report it.")
            nearest = distance.sort().values[: len(used)]
            if (distance[used] - nearest).abs().max() > 2 * margin:
                raise ExportError("the compiled engine chooses other references than the model; nothing was written.")
