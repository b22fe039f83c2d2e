"""`finercam build`: an engine file in, a plan and its sidecar out, unless they are there and up to date."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from finercam_rt.errors import BackendError, EngineError, InputError
from finercam_rt.files import atomic_write, kind_of, sha256_of, system_reason
from finercam_rt.manifest import Manifest
from finercam_rt.onnx_metadata import read_manifest
from finercam_rt.tensorrt.builder import BuildOptions, build
from finercam_rt.tensorrt.kernels import behind
from finercam_rt.tensorrt.library import RTX, Library
from finercam_rt.tensorrt.plan import SUFFIX, PlanInfo, is_sidecar, read_plan_info, sidecar_of
from finercam_rt.tensorrt.plugin import PLUGIN, map_plugin, with_map


class Written(NamedTuple):
    """The sidecar of a plan; seconds: what the build took, None where the plan was up to date."""

    info: PlanInfo
    seconds: float | None


def build_plan(
    graph: Path,
    plan: Path,
    library: Library,
    options: BuildOptions,
    *,
    timing_cache: Path | None = None,
    force: bool = False,
    on_progress: Callable[[float, str], None] = lambda share, phase: None,
) -> Written:
    """Build `graph` into `plan`, and write its sidecar NAME.json; both appear whole or not at all.

    A plan that was built from this file, for this and by this version is kept, unless `force`. What goes in decides
    that, because two builds do not give the same bytes.

    Args:
        graph: the .onnx file that `finercam export` wrote.
        plan: where the plan goes, NAME.plan.
        library, options, on_progress: see `builder.build`.
        timing_cache: the file that holds what earlier builds have measured; written anew. Of TensorRT alone.
        force: build it anyway.

    Raises:
        EngineError: `graph` is no engine.
        InputError: a path that cannot be written.
        BackendError: see `builder.build`; an option that this library does not have; int8 with zero points; a kernel
            for the map that it cannot have, see `plugin.map_plugin`.
    """
    manifest = read_manifest(graph)
    check_precision(graph, manifest)
    _check(plan, library, options, timing_cache)
    plugin = map_plugin(graph, manifest, library) if options.map_kernel == PLUGIN else None
    onnx_sha256 = sha256_of(graph)
    key = cache_key(onnx_sha256, library, options, None if plugin is None else sha256_of(plugin.ptx))
    if not force and (known := _up_to_date(plan, key)) is not None:
        return Written(known, None)
    stored = None if timing_cache is None else _stored(timing_cache)
    built = build(graph, library, options, plugin=plugin, timing_cache=stored, on_progress=on_progress)
    counts = {"total": len(built.kernels), "behind_logits": len(behind(built.kernels, "logits"))}
    info = PlanInfo(
        manifest=manifest if plugin is None else with_map(manifest),
        onnx_sha256=onnx_sha256,
        plan_sha256=hashlib.sha256(built.plan).hexdigest(),
        plan_bytes=len(built.plan),
        flavour=library.flavour,
        version=library.version,
        capabilities=options.capabilities,
        batch=options.batch,
        classes=None if manifest.zero_shot is None else options.classes,
        options={
            name: getattr(options, name)
            for name in ("workspace_mib", "tf32", "optimization_level", "version_compatible", "map_kernel")
        },
        key=key,
        kernels=counts if built.kernels else None,
    )
    # The sidecar second: one without its plan would be taken for that of an older plan, which its hash refuses.
    with atomic_write(plan) as stream:
        stream.write(built.plan)
    with atomic_write(sidecar_of(plan)) as stream:
        stream.write(info.to_json().encode())
    if timing_cache is not None and built.timing_cache is not None:
        with atomic_write(timing_cache) as stream:
            stream.write(built.timing_cache)
    return Written(info, built.seconds)


def check_precision(graph: Path, manifest: Manifest) -> None:
    """Refuse what TensorRT cannot take, before any work.

    Raises:
        BackendError: int8 with zero points.
    """
    if manifest.precision == "int8":
        raise BackendError(
            f"{graph} is in int8 with zero points, which TensorRT does not take; export it with --precision "
            "int8-symmetric."
        )


def cache_key(onnx_sha256: str, library: Library, options: BuildOptions, kernel_sha256: str | None = None) -> str:
    """SHA-256 (hex) of what a plan is made from: the ONNX file, the options, the library with its version, a kernel."""
    facts = [onnx_sha256, library.flavour, library.version, asdict(options), kernel_sha256]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _check(plan: Path, library: Library, options: BuildOptions, timing_cache: Path | None) -> None:
    if plan.suffix != SUFFIX:
        raise InputError(f"{plan} does not end in {SUFFIX}; a plan is called NAME{SUFFIX}, and NAME.json tells of it.")
    if kind_of(plan) == "folder":
        raise InputError(f"{plan} is a folder; give the name of the file to write, such as model{SUFFIX}.")
    if kind_of(plan.parent) != "folder":
        raise InputError(f"the folder {plan.parent} does not exist; make it first.")
    if kind_of(sidecar_of(plan)) and not is_sidecar(sidecar_of(plan)):
        raise InputError(f"{sidecar_of(plan)} is there and tells of no plan; move it, or call the plan otherwise.")
    if not os.access(plan.parent, os.W_OK):
        raise InputError(f"the folder {plan.parent} cannot be written; choose another.")
    if library.flavour != RTX:
        return
    if timing_cache is not None:
        raise BackendError("TensorRT-RTX measures no kernels while it builds; leave the timing cache out.")
    if options.version_compatible:
        raise BackendError("TensorRT-RTX has no version-compatible plans; leave that out, or take --runtime tensorrt.")


def _up_to_date(plan: Path, key: str) -> PlanInfo | None:
    """The sidecar of the plan that is there, where it is what would be built."""
    try:
        info = read_plan_info(plan)
        same = info.key == key and plan.stat().st_size == info.plan_bytes and sha256_of(plan) == info.plan_sha256
    except (EngineError, OSError):
        return None
    return info if same else None


def _stored(timing_cache: Path) -> bytes:
    """What earlier builds have measured; empty where this is the first."""
    try:
        return timing_cache.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise InputError(f"{timing_cache} cannot be read ({system_reason(error)}).") from None
