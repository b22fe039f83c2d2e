"""A shell script that builds an engine file with trtexec, for a device that has TensorRT and no Python of ours."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from finercam_rt.backends.interface import Sizes, expected_interface
from finercam_rt.errors import BackendError, InputError
from finercam_rt.files import atomic_write, kind_of, sha256_of
from finercam_rt.manifest import Manifest
from finercam_rt.onnx_metadata import read_manifest
from finercam_rt.tensorrt.build import check_precision
from finercam_rt.tensorrt.builder import BuildOptions
from finercam_rt.tensorrt.plan import SUFFIX
from finercam_rt.tensorrt.plugin import PLUGIN

_SCRIPT = """\
#!/bin/sh
# Builds {plan} from {onnx} with trtexec of TensorRT 10 or 11, on the device where it will run.
# Written by `finercam build --script`; put the two beside each other, then: sh {name}
set -eu
cd "$(dirname "$0")"
onnx={onnx_quoted}
plan={plan_quoted}
fail() {{ echo "$1" >&2; exit 2; }}
[ -f "$onnx" ] || fail "$onnx is not here; copy it to the folder of this script."
echo "{sha256}  $onnx" | sha256sum -c --status || fail "$onnx is not the file that this script was written for."
trtexec=$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)  # the latter on JetPack
[ -x "$trtexec" ] || fail "there is no trtexec; put TensorRT's folder of programs on PATH."
# TensorRT 10 is asked for what 11 does in any case: the precision of every tensor is the file's
typed=$("$trtexec" --help 2>&1 | grep -q -e --stronglyTyped && echo --stronglyTyped || true)
trap 'rm -f "$plan.part"' EXIT
"$trtexec" --onnx="$onnx" --saveEngine="$plan.part" $typed \\
  {options}
mv "$plan.part" "$plan"
ls -l "$plan"
"""


def write_script(graph: Path, script: Path, options: BuildOptions, timing_cache: Path | None = None) -> None:
    """Write the script; it makes NAME.plan of `graph`, NAME.onnx, in its own folder, as `finercam build` would.

    Args:
        graph: the .onnx file that `finercam export` wrote; the script takes it by its name and its SHA-256.
        script: where the script goes.
        options: the batch and class ranges, workspace, TF32, optimisation level and version compatibility.
        timing_cache: the file on the device that keeps what builds measure.

    Raises:
        EngineError: `graph` is no engine.
        BackendError: an engine that TensorRT does not take.
        InputError: a name that is taken, or a folder that is not there.
    """
    manifest = read_manifest(graph)
    check_precision(graph, manifest)
    if options.map_kernel == PLUGIN:
        raise BackendError(
            "trtexec does not know the plug-in; leave --map-kernel out, or take `finercam build` on the device."
        )
    if script.suffix in (SUFFIX, ".onnx") or kind_of(script) == "folder":
        raise InputError(f"{script} is no name for a script; call it NAME.sh.")
    if kind_of(script.parent) != "folder":
        raise InputError(f"the folder {script.parent} does not exist; make it first.")
    plan = graph.with_suffix(SUFFIX).name
    text = _SCRIPT.format(
        name=script.name,
        onnx=graph.name,
        plan=plan,
        onnx_quoted=shlex.quote(graph.name),
        plan_quoted=shlex.quote(plan),
        sha256=sha256_of(graph),
        options=" \\\n  ".join(shlex.quote(option) for option in trtexec_options(manifest, options, timing_cache)),
    )
    with atomic_write(script) as stream:
        stream.write(os.fsencode(text))


def trtexec_options(manifest: Manifest, options: BuildOptions, timing_cache: Path | None = None) -> list[str]:
    """What trtexec is to do beside reading and writing: what `builder.build` asks of the library, in its words."""
    chosen = ["--skipInference", "--maxAuxStreams=0"]
    for bound, position in (("min", 0), ("opt", 1), ("max", 2)):
        sizes = Sizes(options.batch[position], options.classes[position])
        shapes = {name: sizes.of(shape) for name, (_, shape) in expected_interface(manifest).inputs.items()}
        listed = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
        chosen.append(f"--{bound}Shapes={listed}")
    if not options.tf32:
        chosen.append("--noTF32")
    if options.workspace_mib is not None:
        chosen.append(f"--memPoolSize=workspace:{options.workspace_mib}")
    if options.optimization_level is not None:
        chosen.append(f"--builderOptimizationLevel={options.optimization_level}")
    if options.version_compatible:
        chosen.append("--versionCompatible")
    if timing_cache is not None:
        chosen.append(f"--timingCacheFile={timing_cache}")
    return chosen
