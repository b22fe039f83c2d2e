"""A tail file, loaded: activations in, logits out, without the trunk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from finercam_rt.backends import open_graph
from finercam_rt.errors import EngineError, InputError
from finercam_rt.manifest import Manifest
from finercam_rt.onnx_metadata import read_tail_manifest

if TYPE_CHECKING:
    from finercam_rt.engine import Engine


class Tail:
    """The part of a model behind its target layer, which answers what the logits are if the activations were others.

    Args:
        path: what `finercam export --head taps --tail FILE` wrote beside an engine.
        engine: the engine whose activations it is given, or its manifest.
        backend: "onnxruntime", "openvino", or "auto": the first one that is installed.
        threads: threads of one run; None is the number of physical cores granted to this process.

    Raises:
        EngineError: not a tail, a damaged one, or one that does not belong to the engine.
        BackendError: a runtime that is missing or not supported.
    """

    def __init__(
        self, path: str | os.PathLike[str], engine: Engine | Manifest, backend: str = "auto", threads: int | None = None
    ) -> None:
        """Read the manifest, refuse what does not fit, then load the graph."""
        self.path = Path(path)
        self.manifest = read_tail_manifest(self.path)
        taps = (engine if isinstance(engine, Manifest) else engine.manifest).taps
        if taps is None or taps.cut_sha256 is None:
            raise EngineError(
                f"{self.path}: the engine gives no taps for a tail; export it with --head taps --tail FILE."
            )
        if taps.cut_sha256 != self.manifest.cut_sha256:
            raise EngineError(
                f"{self.path} belongs to another engine, of {self.manifest.model} at {self.manifest.layer}; give the "
                "tail that was exported with this one."
            )
        self._run = open_graph(self.path, backend=backend, threads=threads)

    def logits(
        self, activations: NDArray[np.float32], carried: Sequence[NDArray[np.float32]] = ()
    ) -> NDArray[np.float32]:
        """The logits (M,K) float32 of M feature maps, of any number of images.

        Args:
            activations: (M,...) float32, as `Outputs.activations` but for what is to be tried.
            carried: what `Outputs.carried` has, (M,...) float32 each: a row for each feature map, its image's.

        Raises:
            InputError: another number of arrays, a wrong shape or dtype.
            BackendError: the runtime failed.
        """
        wanted = self.manifest.inputs
        given = [activations, *carried]
        if len(given) != len(wanted):
            raise InputError(f"the tail reads {len(wanted) - 1} carried values, and {len(carried)} were given.")
        for (name, shape), values in zip(wanted.items(), given, strict=True):
            expected = (len(activations), *shape)
            if values.shape != expected or values.dtype != np.float32:
                raise InputError(f"{name} is {values.shape} {values.dtype}; give {expected} float32.")
        if not len(activations):
            raise InputError("there are no activations; give at least one feature map.")
        feeds = {name: np.ascontiguousarray(values) for name, values in zip(wanted, given, strict=True)}
        return self._run(feeds)["logits"]
