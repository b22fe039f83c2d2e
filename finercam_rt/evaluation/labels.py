"""Which class of the engine a folder's or a table's label means."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from finercam_rt.classes import Classes
from finercam_rt.errors import InputError

_BRACKETS = re.compile(r"\(([^()]*)\)")
_NUMBERED = re.compile(r"^\d+[._ -]+(?=\D)")


class LabelFinder:
    """Finds classes by labels as data sets write them.

    A label means, in this order: what `mapping` says; a class as `Classes` finds it, name or synonym; where it is a
    number, an index, or of classes that are called by numbers the one with that number; the class whose name, synonym,
    or part within or before brackets is the same letters and digits, a leading number left aside: "american_kestrel" is
    "Falco sparverius (American Kestrel)", "016.Painted_Bunting" is "Painted Bunting".
    """

    def __init__(self, classes: Classes, mapping: Mapping[str, str] | None = None) -> None:
        """Take the engine's classes, and labels to classes (names or indices) where they are known."""
        self._classes, self._mapping = classes, dict(mapping or {})
        self._known: dict[str, int | InputError] = {}
        table: dict[str, set[int]] = defaultdict(set)
        for index, name in enumerate(classes.names or ()):
            for form in filter(None, map(_simplified, _forms(name))):
                table[form].add(index)
        self._forms = table
        numbers = [(name.strip(), index) for index, name in enumerate(classes.names or ())]
        self._numbers = {int(name): index for name, index in reversed(numbers) if name.isdecimal()}

    def index(self, label: str) -> int:
        """The index of the class.

        Raises:
            InputError: there is none, or more than one.
        """
        if label not in self._known:
            try:
                self._known[label] = self._find(self._mapping.get(label, label))
            except InputError as error:
                self._known[label] = error
        found = self._known[label]
        if isinstance(found, InputError):
            raise found
        return found

    def _find(self, label: str) -> int:
        try:
            return self._classes.index(label)
        except InputError as error:
            refusal = error
        if label.strip().isdecimal():
            if not self._numbers:
                return self._classes.checked(int(label))
            if int(label) in self._numbers:  # with zeros in front; an index would be of another class
                return self._numbers[int(label)]
            raise refusal
        for form in (label, _NUMBERED.sub("", label)):
            found = self._forms.get(_simplified(form), set())
            if len(found) == 1:
                return next(iter(found))
        raise refusal


def _forms(name: str) -> list[str]:
    """The name, its synonyms between commas, and what stands within and outside of brackets."""
    return [name, *name.split(","), *_BRACKETS.findall(name), _BRACKETS.sub(" ", name)]


def _simplified(name: str) -> str:
    """Letters and digits alone, words apart by one space."""
    return " ".join(re.findall(r"[^\W_]+", re.sub("['\u2019`]", "", name.casefold())))
