"""Where a model could be explained: the outputs that everything the logits know of the image passes through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd.function import BackwardCFunction

from finercam_rt.errors import ExportError
from finercam_rt.export.eager import run_with_gradients
from finercam_rt.export.grids import ImageGrids, position_count
from finercam_rt.export.hooks import frozen, hooked
from finercam_rt.export.outputs import feature_map
from finercam_rt.export.refusal import check_finite, running

_Tensor = tuple[Any, int]
"""A value of the autograd graph: the node that made it, and which of its outputs it is."""

SUMMING = {
    *("Add", "Sub", "Neg", "Sum", "Mean", "Stack", "Cat", "Clone", "Alias", "ToCopy", "Select", "Slice", "Unbind"),
    *("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Expand", "Permute", "Transpose", "T", "Split"),
    *("Softmax", "LogSoftmax", "Logsumexp", "Log", "Exp", "Sigmoid"),
}
"""Autograd's operations through which scores of branches, or their shares, add up."""
SCALING = {"Mul", "Div"}
"""Those that scale them, where what they are multiplied with is no other branch."""


@dataclass(frozen=True)
class Place:
    """What one or several modules give, named by the best of them.

    names: all of them. shape: with the batch. step: its turn in the forward pass, from 0. cut: whether every path from
    the image to the logits (of several that are added up, to the last) passes through it, as it does through a block's
    output and not through a query or a gate.
    reads: the step of the place whose value it was given as it is; -1 where that is none.
    """

    name: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    step: int
    cut: bool
    reads: int = -1


@dataclass
class _Record:
    value: _Tensor
    names: list[str]
    plain: set[str]
    shape: tuple[int, ...]
    given: _Tensor | None


@dataclass
class _Trace:
    """Module outputs in order of completion, and how often each module ran."""

    records: dict[_Tensor, _Record] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)

    def hook(self, name: str, module: nn.Module) -> Callable[[nn.Module, Any, Any], None]:
        def enter(_module: nn.Module, inputs: Any, output: Any) -> None:
            self.runs[name] = self.runs.get(name, 0) + 1
            try:
                tensor = feature_map(output, name)
            except ExportError:
                return
            given = next((v for v in inputs if isinstance(v, torch.Tensor) and v.grad_fn is not None), None)
            if tensor.grad_fn is None or _computes_nothing(module, given, tensor):
                return
            value = (tensor.grad_fn, tensor.output_nr)
            if value not in self.records:
                source = None if given is None else (given.grad_fn, given.output_nr)
                self.records[value] = _Record(value, [], set(), tuple(tensor.shape), source)
            self.records[value].names.append(name)
            if output is tensor:
                self.records[value].plain.add(name)

        return enter


def find_places(model: nn.Module, example: torch.Tensor, image: ImageGrids) -> list[Place]:
    """The outputs of all modules that run once, in the order of the forward pass, from one run under autograd.

    Nothing is kept for a backward pass. A module that holds stages of several resolutions lends its output no
    name where another has it, nor does one that returns more than that.

    Args:
        model: images (N,C,H,W) -> logits (N,K), in evaluation mode.
        example: (N,C,H,W) float32.
        image: the grids of the example.

    Raises:
        ExportError: the model does not run on the example, or its logits are not finite.
    """
    trace = _Trace()
    images = example.clone().requires_grad_()
    with (
        hooked((module, trace.hook(name, module)) for name, module in model.named_modules() if name),
        frozen(model),
        running("the model", example),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(lambda _tensor: None, _never),
    ):
        logits = model(images)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise ExportError("the model must return one tensor of logits (N,K); wrap it so that it does.")
    check_finite(logits)
    if logits.grad_fn is None:
        raise ExportError(
            "the logits have no derivative with respect to the images, as behind .detach() or whole numbers, by which "
            "layers are found; name a layer behind that, or take it out of the forward."
        )
    whole = (logits.grad_fn, logits.output_nr)
    paths = _Paths(whole)
    cuts = paths.cuts(trace.records)
    joined = _joined(whole[0])
    exits = [
        value
        for value, r in trace.records.items()
        if r.shape == tuple(logits.shape) and value not in cuts and value[0] in joined
    ]
    for branch in _branches(paths, exits):
        cuts |= branch.cuts(trace.records)
    return _places(trace, cuts, image)


def written_derivatives(model: nn.Module, layers: Sequence[str], images: torch.Tensor) -> list[str]:
    """The names of the autograd functions behind the layers that are written by hand, in Python."""
    _, logits = run_with_gradients(model, layers, images)
    kinds = {type(node) for node in _topological(logits.grad_fn) if isinstance(node, BackwardCFunction)}
    return sorted(kind.__name__.removesuffix("Backward") for kind in kinds)


def _computes_nothing(module: nn.Module, given: torch.Tensor | None, output: torch.Tensor) -> bool:
    """Whether a module hands on what it was given, or a view of it: dropout, a permutation."""
    if isinstance(module, (nn.Identity, nn.Dropout, nn.Dropout2d)):
        return True
    leaf = next(module.children(), None) is None and next(module.parameters(), None) is None
    return leaf and given is not None and output is not given and output.data_ptr() == given.data_ptr()


def _never(_packed: object) -> torch.Tensor:
    raise AssertionError("nothing is differentiated here")


def _places(trace: _Trace, cuts: set[_Tensor], image: ImageGrids) -> list[Place]:
    counts = {name: position_count(record.shape, image) for record in trace.records.values() for name in record.names}
    steps = {value: step for step, value in enumerate(trace.records)}
    places = []
    for value, record in trace.records.items():
        names = [name for name in record.names if trace.runs[name] == 1]
        if names:
            usual = [name for name in names if not _is_odd(name, record, counts)]
            # what returns more may have made that of the value already, as a pooling: the innermost has not
            best = min(reversed(usual), key=lambda name: name.count(".")) if usual else names[0]
            reads = -1 if record.given is None else steps.get(record.given, -1)
            places.append(Place(best, tuple(names), record.shape, steps[value], value in cuts, reads))
    return places


def _is_odd(name: str, record: _Record, counts: dict[str, int]) -> bool:
    """Whether a child's name is better: a module returns more than the value, or holds several resolutions."""
    inside = [count for inner, count in counts.items() if inner.rpartition(".")[0] == name and count]
    return name not in record.plain or (bool(inside) and max(inside) >= 2 * min(inside))


class _Paths:
    """The paths of the autograd graph from a tensor to the image, counted."""

    def __init__(self, tensor: _Tensor) -> None:
        order = _topological(tensor[0])
        self._to_image: dict[Any, int] = {}
        for node in reversed(order):
            sources = _sources(node)
            self._to_image[node] = sum(self._to_image[source] for source, _ in sources) if sources else 1
        self._from_tensor: dict[_Tensor, int] = {tensor: 1}
        behind: dict[Any, int] = {tensor[0]: 1}
        for node in order:
            for source in _sources(node):
                self._from_tensor[source] = self._from_tensor.get(source, 0) + behind[node]
                behind[source[0]] = behind.get(source[0], 0) + behind[node]
        self.total = self._to_image[tensor[0]]

    def through(self, value: _Tensor) -> int:
        """How many of them pass through a value."""
        return self._from_tensor.get(value, 0) * self._to_image.get(value[0], 0)

    def cuts(self, values: Iterable[_Tensor]) -> set[_Tensor]:
        """Which of the values all of them pass through."""
        return {value for value in values if self.through(value) == self.total}


def _joined(root: Any) -> set[Any]:
    """The nodes whose values come to a node by sums, means and numbers: of weights or features they are no parts."""
    found = {root}
    entered = [root]
    while entered:
        node = entered.pop()
        sources = [source for source, _ in _sources(node)]
        kind = type(node).__name__.partition("Backward")[0]
        if kind in SUMMING or (kind in SCALING and len(sources) == 1):
            new = [source for source in sources if source not in found]
            found.update(new)
            entered += new
    return found


def _branches(whole: _Paths, exits: Sequence[_Tensor]) -> list[_Paths]:
    """Of tensors in the shape of the logits, in the order in which they were computed: those that the logits add up.

    Where they are not the sum of all: the last, which is the whole of what is deepest.
    """
    found: dict[_Tensor, _Paths] = {}
    for value in reversed(exits):
        if not any(branch.through(value) for branch in found.values()):
            found[value] = _Paths(value)
    branches = list(found.values())
    return branches if sum(map(whole.through, found)) == whole.total else branches[:1]


def _sources(node: Any) -> list[_Tensor]:
    return [(source, index) for source, index in node.next_functions if source is not None]


def _topological(root: Any) -> list[Any]:
    """All nodes behind a root, each before those that it was computed from."""
    done: dict[Any, None] = {}
    entered = {root}
    stack = [(root, iter(_sources(root)))]
    while stack:
        node, sources = stack[-1]
        for source, _ in sources:
            if source not in entered:
                entered.add(source)
                stack.append((source, iter(_sources(source))))
                break
        else:
            done[node] = None
            stack.pop()
    return list(reversed(done))
