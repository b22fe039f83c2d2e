"""Which runtime is faster for this engine on this machine: measured once, then remembered."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finercam_rt.backends.interface import Sizes, expected_interface
from finercam_rt.backends.protocol import Backend
from finercam_rt.embeddings import random_embeddings
from finercam_rt.errors import BackendError, EngineError, InputError
from finercam_rt.files import atomic_write, cache_folder
from finercam_rt.manifest import EMBEDDINGS, Manifest
from finercam_rt.processor import processor

_LOG = logging.getLogger(__name__)

Measure = Callable[[Sequence[Callable[[], object]]], list[float]]
"""Functions to the wall seconds of a call of each."""

_SCHEMA = 1
_CLASSES = 100
"""As many a zero-shot model is measured with."""
_CHOICES_KEPT = 256
_SECONDS, _ROUNDS_AT_LEAST, _ROUNDS_AT_MOST = 1.0, 5, 50
_MARGIN = 0.97
"""A runtime is preferred to the ones before it when it takes less than this share of their time: noise decides less."""
TOLERANCE = 1e-3
"""Relative error of logits and map above which a runtime is not trusted with this graph; rounding is below 1e-5."""


def choose(
    path: Path,
    manifest: Manifest,
    openers: Mapping[str, Callable[[], Backend]],
    threads: int,
    *,
    measure: Measure | None = None,
) -> Backend:
    """Open the engine in the fastest of the runtimes; the first of `openers` is the one that the others are held to.

    A runtime that cannot take the graph, or whose result differs from the first one's, is passed over. With more than
    one left they run in turns for about a second (`measure`), and the answer is kept in the user's cache folder
    for this engine, processor, number of threads and these versions. A cache that cannot be read or written costs
    only the time to measure again. It takes seconds, so the log says that it begins.
    """
    cache = _cache_file()
    key = _key(path, manifest, openers, threads)
    known = _read(cache).get(key)
    if known is not None and known in openers:
        try:
            return openers[known]()
        except (BackendError, EngineError):
            pass  # it worked when it was measured: find out again
    _LOG.info("measuring which of %s is faster for %s; the answer is remembered.", " and ".join(openers), path)
    name = _measured(openers, manifest, measure or in_turns)
    _remember(cache, key, name)
    return openers[name]()  # anew, without what the measurement has bound and compiled


def remembered(path: Path, manifest: Manifest, names: Sequence[str], threads: int) -> str | None:
    """The runtime that `choose` would take without measuring; None where it would measure."""
    name = _read(_cache_file()).get(_key(path, manifest, names, threads))
    return name if name in names else None


def _measured(openers: Mapping[str, Callable[[], Backend]], manifest: Manifest, measure: Measure) -> str:
    """The name of the fastest runtime among those to be trusted."""
    opened, failure = _open_all(openers)
    if not opened:
        assert failure is not None
        raise failure
    try:
        trusted = _that_agree(opened, manifest)
        if len(trusted) == 1:
            return trusted[0].name
        feeds = _feeds(manifest, trusted[0].fixed_batch or 1)
        seconds = measure([lambda backend=backend: backend.run(feeds) for backend in trusted])  # type: ignore[misc]
        return _fastest(trusted, seconds).name
    finally:
        for backend in opened:
            backend.close()


def in_turns(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Least wall seconds of each call, after one of each that does not count.

    In turns, so that all see one load; the least, because what another process takes away makes a call only slower.
    """
    for call in calls:
        call()
    clock = time.perf_counter
    seconds: list[list[float]] = [[] for _ in calls]
    began = clock()
    for rounds in range(_ROUNDS_AT_MOST):
        if rounds >= _ROUNDS_AT_LEAST and clock() - began > _SECONDS:
            break
        for call, samples in zip(calls, seconds, strict=True):
            before = clock()
            call()
            samples.append(clock() - before)
    return [min(samples) for samples in seconds]


def _open_all(openers: Mapping[str, Callable[[], Backend]]) -> tuple[list[Backend], Exception | None]:
    """The runtimes that take the graph, and the first refusal."""
    opened: list[Backend] = []
    failure: Exception | None = None
    for opener in openers.values():
        try:
            opened.append(opener())
        except (BackendError, EngineError) as error:
            failure = failure or error
    return opened, failure


def _that_agree(backends: list[Backend], manifest: Manifest) -> list[Backend]:
    """The first runtime, and those whose logits and maps are the same up to rounding."""
    # One image and two: a runtime may hold different graphs for them.
    counts = [backends[0].fixed_batch] if backends[0].fixed_batch else [1, 2]
    trusted = backends
    for count in counts:
        feeds = _feeds(manifest, count)
        results = [_result(backend, feeds) for backend in trusted]
        reference = next((result for result in results if result is not None), None)
        if reference is None:
            return backends[:1]
        trusted = [
            backend
            for backend, result in zip(trusted, results, strict=True)
            if result is not None and _equal(result, reference)
        ]
    return trusted or backends[:1]  # where all give NaN


def _result(backend: Backend, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]] | None:
    """Its outputs; None where it fails."""
    try:
        return {name: value.copy() for name, value in backend.run(feeds).items()}
    except (BackendError, EngineError):  # the latter where a graph for this batch size is compiled only now
        return None


def _equal(result: Mapping[str, NDArray[Any]], reference: Mapping[str, NDArray[Any]]) -> bool:
    for name, values in reference.items():
        if values.dtype != np.float32:
            if not np.array_equal(result[name], values):
                return False
        elif not np.linalg.norm(result[name] - values) <= TOLERANCE * np.linalg.norm(values):  # also where it is NaN
            return False
    return True


def _feeds(manifest: Manifest, count: int) -> dict[str, NDArray[Any]]:
    """Images of noise; target and references are given, because noise may leave the nearest ones to rounding."""
    interface = expected_interface(manifest)
    feeds, _ = interface.buffers(Sizes(count, max(_CLASSES, manifest.references + 1)))
    feeds["images"][...] = np.random.default_rng(0).standard_normal(feeds["images"].shape, np.float32)
    if manifest.zero_shot is not None:
        feeds[EMBEDDINGS] = random_embeddings(len(feeds[EMBEDDINGS]), manifest.zero_shot.embedding_dim)
    feeds["target"][...] = 0
    feeds["references"][...] = np.arange(1, manifest.references + 1)
    feeds["alpha"][...] = 1
    return feeds


def _fastest(backends: Sequence[Backend], seconds: Sequence[float]) -> Backend:
    best, least = backends[0], seconds[0]
    for backend, taken in zip(backends[1:], seconds[1:], strict=True):
        if taken < _MARGIN * least:
            best, least = backend, taken
    return best


def _key(path: Path, manifest: Manifest, names: Iterable[str], threads: int) -> str:
    """Changes with anything that may change the answer. Size and time stand for the file: reading it all costs more."""
    stat = path.stat()
    facts = {
        "engine": [manifest.model.weights_sha256, stat.st_size, stat.st_mtime_ns],
        "processor": processor(),
        "threads": threads,
        "versions": {name: _version(name) for name in names},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _version(module: str) -> str:
    """The version of what provides this module, without importing it."""
    from importlib import metadata  # slow to import, and not every backend is chosen

    try:
        return metadata.version(module)
    except metadata.PackageNotFoundError:  # it comes in a package of another name, such as onnxruntime-gpu
        packages = metadata.packages_distributions().get(module, [])
        return ", ".join(f"{package} {metadata.version(package)}" for package in packages)


def _cache_file() -> Path | None:
    """None where there is no home."""
    folder = cache_folder()
    return None if folder is None else folder / "backends.json"


def _read(cache: Path | None) -> dict[str, str]:
    """Key to runtime, oldest first; empty where the file is missing, damaged or of another schema."""
    if cache is None:
        return {}
    try:
        document = json.loads(cache.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(document, dict) or document.get("schema") != _SCHEMA:
        return {}
    choices = document.get("choices")
    if not isinstance(choices, dict):
        return {}
    return {key: name for key, name in choices.items() if isinstance(name, str)}


def _remember(cache: Path | None, key: str, name: str) -> None:
    if cache is None:
        return
    choices = _read(cache)
    choices.pop(key, None)  # so that it is the newest
    choices[key] = name
    kept = dict(list(choices.items())[-_CHOICES_KEPT:])
    with suppress(InputError), atomic_write(cache) as stream:
        stream.write(json.dumps({"schema": _SCHEMA, "choices": kept}, indent=1).encode())
