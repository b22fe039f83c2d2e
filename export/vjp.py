"""Stage 4: the tail, its seed, the VJP with respect to the perturbation, and the map, traced into one graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext
from torch.nn import functional
from torch.utils._python_dispatch import _disable_current_modes

from finercam_rt.errors import ExportError
from finercam_rt.export.broadcast import delay_broadcasts
from finercam_rt.export.capture import EXAMPLE_CLASSES
from finercam_rt.export.contrast import Contrast, contrast, dense_seed, softmax_seed
from finercam_rt.export.cut import Split
from finercam_rt.export.decompositions import decompositions
from finercam_rt.export.fold_scale import fold_scale
from finercam_rt.export.functionalize import purify
from finercam_rt.export.head import Head, take_head
from finercam_rt.export.lift import LiftedTail
from finercam_rt.export.lifted import CARRIED, Lifted
from finercam_rt.export.method import SCORES, as_map, mean_of_normalised, positions
from finercam_rt.export.refusal import first_line, refusing
from finercam_rt.export.rewriter import writes
from finercam_rt.export.scale_first import scale_first
from finercam_rt.export.sink import sink_selections
from finercam_rt.export.softmax_sums import sum_by_the_rest
from finercam_rt.export.staged import Staged
from finercam_rt.export.sums import sum_early
from finercam_rt.manifest import METHODS, LayerInfo, Needs, TapsInfo, ZeroShotInfo, map_grid


@dataclass(frozen=True)
class Request:
    """What is asked of the explanation; the fields are the manifest's. Of a zero-shot model the tail ends in z."""

    method: str
    objective: str
    references: int
    contrasts: int = 1
    layer_maps: bool = False
    zero_shot: ZeroShotInfo | None = None
    taps: TapsInfo | None = None

    @property
    def needs(self) -> Needs:
        """What is computed of the gradients."""
        if self.taps is None:
            return METHODS[self.method]
        return "gradients" if self.taps.gradients else "pooled"


@dataclass(frozen=True)
class ExplainedTail:
    """The traced graph, and what the passes did, a line each."""

    graph_module: fx.GraphModule
    passes: tuple[str, ...]


@refusing("differentiating what follows the target layer")
def explained_tail(split: Split, layers: Sequence[LayerInfo], request: Request) -> ExplainedTail:
    """Trace (boundary, target, references, alpha) -> (logits, saliency_map, target_class, reference_classes, ...).

    The raw maps of the layers follow where they are asked for. With taps there is no map, and the activations and what
    was taken of the gradients end the outputs, in the layer's layout; channel weights are (N,C). Autograd runs once,
    here, over the tail only; the graph that comes out holds plain forward operations. It differentiates with respect to
    what the method needs: one number a channel, added at every position (DESIGN, section 2.1), or the activations
    themselves, or nothing. With several contrasts the VJP is taken of all seeds at once, over values that were computed
    once. Of a zero-shot model the class embeddings (K,D) are a fifth input, which takes the place of the last linear
    layer's weight.

    Raises:
        ExportError: the tail holds an operation that has no derivative.
    """
    method, needs, count = SCORES[request.method], request.needs, request.contrasts
    tail, sunk = sink_selections(split.tail)
    zero_shot = request.zero_shot
    head = take_head(tail) if zero_shot is None else None
    taps = _Taps(layers, needs)
    interpreter = LiftedTail(tail if head is None else head.features, taps.enter)

    def differentiate(boundary: tuple[Any, ...], seed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        activations = [value.detach() for value in boundary[: len(split.outer)]]
        with torch.enable_grad():
            starts = [taps.enter(value, index) for value, index in zip(activations, split.outer, strict=True)]
            (result,) = interpreter.run(*starts, *boundary[len(split.outer) :])
            result = result.merged() if isinstance(result, CARRIED) else result
        return result.detach(), *(value.detach() for value in taps.values()), *taps.gradients(result, seed)

    def run(
        boundary: tuple[Any, ...],
        target: torch.Tensor,
        reference_classes: torch.Tensor,
        alpha: torch.Tensor,
        *class_embeddings: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        derivative = Staged(traced, 1 + len(layers))
        result, *activations = derivative.start(boundary)
        weight = next(iter(class_embeddings), None) if head is None else head.weight
        logits = result if weight is None else functional.linear(result, weight, None if head is None else head.bias)
        if zero_shot is not None and zero_shot.logit_bias:
            logits = logits + zero_shot.logit_bias
        chosen = contrast(logits, target, reference_classes, alpha, request.objective)
        seed = _cotangent(chosen, logits, weight, request.objective)
        found = []
        if needs != "nothing":
            found = derivative.finish(seed) if count == 1 else derivative.finish_many(seed)
        if request.taps is not None:
            second = found[0] if needs == "gradients" else _pooled(found[0], layers[0])
            carried = boundary[len(split.outer) :] if request.taps.carried else ()
            tensors = (value for value in carried if isinstance(value, torch.Tensor))
            return logits, chosen.target, chosen.references, activations[0], second, *tensors
        values = [positions(value, layer) for value, layer in zip(activations, layers, strict=True)]
        if needs == "nothing":
            scores = [_repeated(method(value, value.data), count) for value in values]
        else:
            gradients = [
                positions(g, layer).data if needs == "gradients" else _pooled(g, layer)
                for g, layer in zip(found, layers, strict=True)
            ]
            scores = [method(value, g) for value, g in zip(values, gradients, strict=True)]
        maps = [as_map(score, layer) for score, layer in zip(scores, layers, strict=True)]
        whole = maps[0] if len(maps) == 1 else mean_of_normalised(maps, map_grid(layers))
        return logits, whole, chosen.target, chosen.references, *(maps if request.layer_maps else ())

    fake_mode = split.boundary[0].fake_mode
    batch = split.boundary[0].shape[0]
    lead = [batch] if count == 1 else [batch, count]
    try:
        with fake_mode:
            seed = torch.empty(batch, _width(tail, head))
            target = torch.empty(lead, dtype=torch.int64)
            reference_classes = torch.empty([*lead, request.references], dtype=torch.int64)
            alpha = torch.empty(lead)
        classes = [] if zero_shot is None else [_embeddings(fake_mode, zero_shot.embedding_dim)]
        traced, summed = sum_early(_trace(differentiate, split.boundary, seed))
        traced, rest = sum_by_the_rest(traced)
        traced, delayed = delay_broadcasts(scale_first(fold_scale(traced)))
        graph_module = _trace(run, split.boundary, target, reference_classes, alpha, *classes)
    except ExportError:
        raise
    except Exception as error:
        place = f" at {interpreter.at}" if interpreter.at else ""
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ExportError(
            f"what follows the target layer cannot be differentiated{place} ({reason}); choose a later target layer."
        ) from error
    report = (*sunk, *_report(interpreter.merged_at, _seed_form(head, request), needs), *summed, *rest, *delayed)
    return ExplainedTail(graph_module, report)


def _trace(function: Callable[..., Any], *inputs: Any) -> fx.GraphModule:
    """The function as a graph of core ATen operations."""
    traced = make_fx(
        function, tracing_mode="symbolic", decomposition_table=decompositions(), _allow_non_fake_inputs=True
    )(*inputs)
    traced.graph.eliminate_dead_code()
    purify(traced)
    for node in traced.graph.nodes:
        if not node.users and writes(node):
            raise ExportError(
                f"what follows the target layer writes in place ({node.target}), which the graph cannot do; choose a "
                "later target layer."
            )
    traced.recompile()
    return traced


def _embeddings(fake_mode: Any, dimension: int) -> torch.Tensor:
    """Stands for the class embeddings (K,D) while tracing; K is a symbol."""
    sizes: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, DimDynamic.STATIC])
    made: torch.Tensor = fake_mode.from_tensor(
        torch.empty(EXAMPLE_CLASSES, dimension), source=ConstantSource("class_embeddings"), symbolic_context=sizes
    )
    return made


def _width(tail: fx.GraphModule, head: Head | None) -> int:
    """The size of what the seed is a cotangent of: the last linear layer's input, or the logits."""
    if head is not None:
        return int(head.weight.shape[1])
    outputs: Any = tail.graph.output_node().args[0]
    return int(outputs[0].meta["val"].shape[1])


class _Taps:
    """The activations of every target layer as the tail comes by, and what is differentiated with respect to."""

    def __init__(self, layers: Sequence[LayerInfo], needs: str) -> None:
        self._layers, self._needs = layers, needs
        self._values: dict[int, torch.Tensor] = {}
        self._leaves: dict[int, torch.Tensor] = {}

    def enter(self, activations: torch.Tensor, index: int) -> torch.Tensor | Lifted:
        """What the tail goes on with behind layer `index`."""
        self._values[index] = activations
        if self._needs == "pooled":
            layer = self._layers[index]
            delta = torch.zeros(_perturbation_shape(activations, layer)).requires_grad_()
            self._leaves[index] = delta
            return Lifted(activations, delta, _mask(activations, layer))
        if self._needs == "gradients":
            self._leaves[index] = activations.requires_grad_()
        return activations

    def values(self) -> list[torch.Tensor]:
        return [self._values[index] for index in range(len(self._layers))]

    def gradients(self, result: torch.Tensor, seed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the method needs of each layer: d(result)/d(activations), or /d(perturbation), times the seed."""
        if self._needs == "nothing":
            return ()
        return torch.autograd.grad(result, [self._leaves[index] for index in range(len(self._layers))], seed)


def _pooled(perturbation: torch.Tensor, layer: LayerInfo) -> torch.Tensor:
    """The mean of G over the map's positions, (N,C), from d/d(perturbation); an axis P stays behind N."""
    channels = perturbation.flatten(-3) if layer.layout != "tokens" else perturbation.flatten(-2)
    return channels / (layer.grid[0] * layer.grid[1])


def _repeated(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Scores (N,L) that no contrast changes, for each of them."""
    return scores if count == 1 else scores[:, None].expand(-1, count, -1)


def _perturbation_shape(activations: torch.Tensor, layer: LayerInfo) -> list[int]:
    """One number for each image and channel: size 1 along the positions."""
    channel = 1 if layer.layout == "nchw" else activations.ndim - 1
    return [size if i in (0, channel) else 1 for i, size in enumerate(activations.shape)]


def _mask(activations: torch.Tensor, layer: LayerInfo) -> torch.Tensor:
    """1 at the map's positions, 0 at prefix tokens; a real tensor, known when the graph is traced."""
    with _disable_current_modes():
        if layer.layout != "tokens" or layer.prefix_tokens == 0:
            return torch.ones([1] * activations.ndim)
        mask = torch.ones(1, int(activations.shape[1]), 1)
        mask[:, : layer.prefix_tokens] = 0
        return mask


def _cotangent(chosen: Contrast, logits: torch.Tensor, weight: torch.Tensor | None, objective: str) -> torch.Tensor:
    """The seed itself, or, behind a last linear layer, its product with the rows of the weight that it touches."""
    if objective == "softmax":
        seed = softmax_seed(chosen, logits)
        return seed if weight is None else seed @ weight
    if weight is None:
        return dense_seed(chosen, int(logits.shape[1]))
    rows = functional.embedding(chosen.classes, weight)
    return (chosen.cotangents[..., None, :] @ rows).squeeze(-2)


def _seed_form(head: Head | None, request: Request) -> str:
    if request.objective == "softmax" or (head is None and request.zero_shot is None):
        return "dense"
    rows = "the last linear layer" if request.zero_shot is None else "the class embeddings"
    return f"sparse, rows of {rows} gathered"


def _report(merged_at: Sequence[str], seed: str, needs: str) -> tuple[str, ...]:
    if needs == "nothing":
        return ("gradients: none, the method needs only activations",)
    if needs == "gradients":
        return ("gradients: at every position, as the method needs", f"seed: {seed}")
    merged = ", ".join(merged_at) or "nowhere: closed form"
    return (f"pooled perturbation: merged at {merged}", f"seed: {seed}")
