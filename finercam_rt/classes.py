"""Classes by name or index."""

from __future__ import annotations

import difflib
import operator
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TypeAlias

import numpy as np

from finercam_rt.errors import InputError

ClassSpec: TypeAlias = "int | str"
"""A class: its index, or its name."""


class Classes:
    """The classes of an engine, found by index or by name.

    A name matches, in this order: exactly; without regard to case; one of the comma-separated synonyms of a name in
    the manner of ImageNet ("magpie" or "tailed frog" in "tailed frog, bell toad"). A name of several classes is
    refused, with their indices.
    """

    def __init__(self, names: Sequence[str] | None, count: int) -> None:
        """Take the names, one a class, or None where the engine has none."""
        self.names = None if names is None else tuple(names)
        self.count = count

    def index(self, value: ClassSpec) -> int:
        """The index of a class given by index or name.

        Raises:
            InputError: out of range, unknown (the message has the nearest names), ambiguous, a name where the engine
                has none, or another type.
        """
        if isinstance(value, str):
            return self._index_of_name(value)
        try:
            index = operator.index(value)
        except TypeError:
            index = None
        if index is None or isinstance(value, (bool, np.bool_)):
            raise InputError(f"a class is an index or a name, and {value!r} is neither.")
        return self.checked(index)

    def checked(self, index: int) -> int:
        """The index itself, if there is such a class."""
        if not 0 <= index < self.count:
            raise InputError(
                f"class {index} is out of range: the model has {self.count} classes, 0 to {self.count - 1}."
            )
        return index

    def name(self, index: int) -> str:
        """The name of a class, or "class 12" where the engine has no names."""
        self.checked(index)
        return f"class {index}" if self.names is None else self.names[index]

    def short_name(self, index: int) -> str:
        """The first comma-separated synonym where it is no other class's too, for a line of text; else the name."""
        short = self.name(index).split(",")[0].strip()
        return short if self.names is None or self._synonyms.get(short.casefold()) == [index] else self.name(index)

    def _index_of_name(self, name: str) -> int:
        if self.names is None:
            raise InputError(
                f"the engine has no class names, so {name!r} says nothing to it; give an index from 0 to "
                f"{self.count - 1}."
            )
        wanted = name.strip()
        for table, key in (
            (self._exact, wanted),
            (self._folded, wanted.casefold()),
            (self._synonyms, wanted.casefold()),
        ):
            found = table.get(key, ())
            if len(found) == 1:
                return found[0]
            if found:
                listed = ", ".join(f"{index} ({self.names[index]})" for index in found[:5])
                raise InputError(f"the class name {name!r} is ambiguous; give the index of the one you mean: {listed}.")
        raise InputError(f"there is no class {name!r}; {self._advice(wanted)}")

    def _advice(self, wanted: str) -> str:
        names, key = list(self._synonyms), wanted.casefold()
        # Several where all are close, one where the closest is not.
        keys = difflib.get_close_matches(key, names, n=3, cutoff=0.8) or difflib.get_close_matches(key, names, n=1)
        near = dict.fromkeys(index for key in keys for index in self._synonyms[key])
        if not near:
            return "`finercam inspect ENGINE --classes` lists them."
        assert self.names is not None
        return f"the nearest is {' or '.join(f'{self.names[index]!r} ({index})' for index in list(near)[:3])}."

    @cached_property
    def _exact(self) -> Mapping[str, list[int]]:
        return _table((name.strip(), index) for index, name in enumerate(self.names or ()))

    @cached_property
    def _folded(self) -> Mapping[str, list[int]]:
        return _table((name.strip().casefold(), index) for index, name in enumerate(self.names or ()))

    @cached_property
    def _synonyms(self) -> Mapping[str, list[int]]:
        """Whole names and their parts, so that the nearest name is looked for among both."""
        pairs: list[tuple[str, int]] = []
        for index, name in enumerate(self.names or ()):
            folded = name.strip().casefold()
            parts = {folded, *(part.strip() for part in folded.split(","))} - {""}
            pairs.extend((part, index) for part in parts)
        return _table(iter(pairs))


def _table(pairs: Iterator[tuple[str, int]]) -> Mapping[str, list[int]]:
    table: dict[str, list[int]] = defaultdict(list)
    for key, index in pairs:
        table[key].append(index)
    return dict(table)
