"""What is queued behind a run of the graph on a GPU: the map, where the graph has none, and what the maps are worth."""

from __future__ import annotations

import math

from finercam_rt import _core, ops
from finercam_rt.backends.device_block import Block
from finercam_rt.backends.device_slot import DeviceSlot
from finercam_rt.cuda import Device, Stream
from finercam_rt.manifest import ACTIVATIONS, CHANNEL_WEIGHTS, GRADIENTS, Manifest

MAP = "saliency_map"
STATUS = "status"


class Finish:
    """Of one method. It knows no backend: a slot that held its own would be freed by the garbage collector alone."""

    def __init__(self, manifest: Manifest, device: Device, method: str | None) -> None:
        """method: how maps are drawn from the taps; None for not at all."""
        self._manifest, self._device, self._method = manifest, device, method
        self._image_values = math.prod(manifest.input.shape)

    def __call__(self, slot: DeviceSlot, stream: Stream, images: int) -> None:
        """Queue it, behind the run of the images at an address."""
        if slot.taps is not None and self._method is not None:
            self._queue_maps(self._method, slot, slot.taps, stream)
        if STATUS in slot.values.values:
            self._queue_status(slot, stream, images)

    def _queue_maps(self, method: str, slot: DeviceSlot, taps: Block, stream: Stream) -> None:
        """`cam`, one launch for all contrasts."""
        (layer,) = self._manifest.layers
        activations, out = taps.view(ACTIVATIONS), slot.values.view(MAP)
        name = GRADIENTS if GRADIENTS in taps.values else CHANNEL_WEIGHTS
        second = {name: taps.view(name)}

        def draw(handle: int) -> None:
            ops.cam(
                activations,
                **second,
                method=method,
                layout=layer.layout,
                prefix_tokens=layer.prefix_tokens,
                grid=layer.grid if layer.layout == "tokens" else None,
                out=out,
                stream=handle,
            )

        self._device.queue(stream, draw)

    def _queue_status(self, slot: DeviceSlot, stream: Stream, images: int) -> None:
        """That images or logits are not finite need not show in the maps."""
        manifest, rows, values = self._manifest, slot.rows, slot.values
        maps = values.view(MAP, (rows * manifest.contrasts, *manifest.grid))
        flat = values.view(STATUS)
        marked = values.view(STATUS, (rows, manifest.contrasts))
        logits = values.view("logits")
        given = self._device.view(images, "float32", (rows, self._image_values))

        def queue(handle: int) -> None:
            _core.map_status(maps, flat, threads=1, stream=handle)
            for seen in (given, logits):
                _core.mark_non_finite(seen, marked, threads=1, stream=handle)

        self._device.queue(stream, queue)
