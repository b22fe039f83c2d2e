"""The slots of a thread, as many as its GPU memory repays."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from finercam_rt import _core
from finercam_rt.backends.device_slot import DeviceSlot
from finercam_rt.backends.slots import BATCH_SIZES_KEPT
from finercam_rt.errors import DeviceMemoryError

MEMORY_KEPT = 4 << 30
"""Bytes of the GPU that the slots of one thread keep at most, but for the one in use."""


class DeviceSlots(threading.local):
    """The calling thread's slots; the least recently used goes first, by number and by memory."""

    def __init__(self, limit: int = MEMORY_KEPT) -> None:
        """Called once for each thread that uses it."""
        self._slots: OrderedDict[Hashable, DeviceSlot] = OrderedDict()
        self._limit = limit

    def get(self, key: Hashable) -> DeviceSlot | None:
        """The slot of this key, where there is one."""
        slot = self._slots.get(key)
        if slot is not None:
            self._slots.move_to_end(key)
        return slot

    def put(self, key: Hashable, make: Callable[[], DeviceSlot]) -> DeviceSlot:
        """A new one of this key; the others make room where memory is short."""
        slot = self._fitting(make)
        if slot is None:
            while self._slots:
                self._drop()
            slot = make()
        self._slots[key] = slot
        while len(self._slots) > 1 and (len(self._slots) > BATCH_SIZES_KEPT or self._bytes() > self._limit):
            self._drop()
        return slot

    def last(self, fits: Callable[[Any], bool], otherwise: Any) -> Any:
        """The key of the slot that was used last among those whose keys fit."""
        return next((key for key in reversed(self._slots) if fits(key)), otherwise)

    def _fitting(self, make: Callable[[], DeviceSlot]) -> DeviceSlot | None:
        """None where memory is short and the others could make room.

        A function of its own: while an error is handled, what had been allocated when it came is still held.
        """
        try:
            return make()
        except (_core.CudaMemoryError, DeviceMemoryError):
            if not self._slots:
                raise
            return None

    def _bytes(self) -> int:
        return sum(slot.total_bytes for slot in self._slots.values())

    def _drop(self) -> None:
        self._slots.popitem(last=False)[1].close()
