"""What a thread binds once for the sizes of a run and then uses again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from finercam_rt.backends.interface import Sizes

BATCH_SIZES_KEPT = 4
"""Bindings kept for each thread; a service sees few batch sizes, and the buffers of the rest go."""

Slot = TypeVar("Slot")


class Slots(threading.local, Generic[Slot]):
    """The calling thread's slots by the sizes of a run; the least recently used goes first."""

    def __init__(self) -> None:
        """Called once for each thread that uses it."""
        self._slots: OrderedDict[Sizes, Slot] = OrderedDict()

    def get(self, sizes: Sizes, make: Callable[[Sizes], Slot]) -> Slot:
        """The slot of these sizes, made where there is none."""
        slot = self._slots.get(sizes)
        if slot is None:
            slot = self._slots[sizes] = make(sizes)
            if len(self._slots) > BATCH_SIZES_KEPT:
                self._slots.popitem(last=False)
        self._slots.move_to_end(sizes)
        return slot
