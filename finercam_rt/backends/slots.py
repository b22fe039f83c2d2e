"""What a thread binds once for a batch size and then uses again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

BATCH_SIZES_KEPT = 4
"""Bindings kept for each thread; a service sees few batch sizes, and the buffers of the rest go."""

Slot = TypeVar("Slot")


class Slots(threading.local, Generic[Slot]):
    """The calling thread's slots by batch size; the least recently used goes first."""

    def __init__(self) -> None:
        """Called once for each thread that uses it."""
        self._slots: OrderedDict[int, Slot] = OrderedDict()

    def get(self, batch: int, make: Callable[[int], Slot]) -> Slot:
        """The slot of this batch size, made where there is none."""
        slot = self._slots.get(batch)
        if slot is None:
            slot = self._slots[batch] = make(batch)
            if len(self._slots) > BATCH_SIZES_KEPT:
                self._slots.popitem(last=False)
        self._slots.move_to_end(batch)
        return slot
