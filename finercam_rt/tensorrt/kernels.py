"""What a plan runs, read from what the builder says of it: no GPU is needed, and no engine is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_LINE = re.compile(r"^Name: (?P<name>[^,]*), LayerType: (?P<kind>[^,]*), (?P<rest>.*)$")
_NAME = re.compile(r"\{ Name: ([^,]*),")
_NO_TACTIC = re.compile(r"TacticName: *(,|$)")
_COMPILED_THERE = "runtime_fusion"
"""Of the kernels, those that are compiled on the GPU are the only ones without a tactic. Otherwise a layer without one
computes a size on the host, or makes one stream wait for another."""


class Kernel(NamedTuple):
    """One launch: its name, its kind such as "gemm", and the tensors that it reads and writes."""

    name: str
    kind: str
    inputs: frozenset[str]
    outputs: frozenset[str]


def read_kernels(lines: Iterable[str]) -> tuple[Kernel, ...]:
    """The device kernels, in order, of the layer list that a builder of detailed verbosity logs; other lines do not
    matter. Empty where there is no such list.
    """
    found = []
    for line in lines:
        match = _LINE.match(line)
        if match is None or (_NO_TACTIC.search(match["rest"]) and match["kind"] != _COMPILED_THERE):
            continue
        before, _, after = match["rest"].partition("Outputs: ")
        found.append(Kernel(match["name"], match["kind"], _names(before), _names(after)))
    return tuple(found)


def behind(kernels: Sequence[Kernel], output: str) -> tuple[Kernel, ...]:
    """The kernels that an output of the graph does not need: of "logits", those of the explanation alone."""
    needed = {output}
    kept = []
    for kernel in reversed(kernels):
        if kernel.outputs & needed:
            needed |= kernel.inputs
        else:
            kept.append(kernel)
    return tuple(reversed(kept))


def _names(text: str) -> frozenset[str]:
    return frozenset(_NAME.findall(text))
