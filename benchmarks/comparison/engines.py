"""The graphs of a case, exported once and kept: the engines, the same model exported plainly, and what is right."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from comparison.cases import SEED, Case, images_of, load
from comparison.memory import high_water_mib
from comparison.verification import CONTRASTS, oracle

if TYPE_CHECKING:
    import torch

    from finercam_rt.export import LoadedModel

OPSET = 20
ORACLE_IMAGES = 16
CALIBRATION_IMAGES = 16
FOLDER = Path(__file__).resolve().parents[2] / "build" / "benchmarks"
ENGINE, FORWARD = "engine", "forward"
FIVE, LAYERCAM, INT8, INT8_FORWARD, FP16, FP16_FORWARD = VARIANTS = (
    "five",
    "layercam",
    "int8",
    "int8_forward",
    "fp16",
    "fp16_forward",
)
"""In the order in which they can be made."""
_PREDICTS = {INT8_FORWARD: INT8, FP16_FORWARD: FP16}
"""Variants that are the predicting part of another."""
_PACKAGES = ("finercam-rt", "torch", "timm", "onnx", "onnxscript", "onnxruntime")
_SOURCES = (
    "finercam_rt.export",
    "finercam_rt.manifest",
    "comparison.cases",
    "comparison.engines",
    "comparison.verification",
)


@dataclass(frozen=True)
class Build:
    """Where the graphs of a case lie; `record` says how they were made."""

    folder: Path

    def graph(self, name: str) -> Path:
        """The ONNX file of this name.

        Raises:
            FileNotFoundError: it could not be made, and why.
        """
        path = self.path(name)
        if not path.exists():
            raise FileNotFoundError(f"there is no {name} graph: {self.left_out.get(name, 'it was not asked for')}")
        return path

    def path(self, name: str) -> Path:
        """Where the graph of this name belongs."""
        return self.folder / f"{name}.onnx"

    @property
    def left_out(self) -> dict[str, str]:
        """Variants that could not be made, and why."""
        return {path.stem: path.read_text() for path in self.folder.glob("*.txt")}

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of the graphs that nobody has tried to make yet."""
        return [name for name in names if name not in self.left_out and not self.path(name).exists()]

    @property
    def record(self) -> dict[str, Any]:
        """Seconds, bytes, MiB of the export."""
        content: dict[str, Any] = json.loads((self.folder / "build.json").read_text())
        return content

    def oracle(self) -> dict[str, NDArray[Any]]:
        """What verification.oracle said of the first images; see there."""
        with np.load(self.folder / "oracle.npz") as content:
            return dict(content)


def build_of(case: Case, folder: Path = FOLDER) -> Build:
    """Where the graphs of `case` belong for these sources and versions, made or not."""
    return Build(folder / f"{case.name}-{_key(case)}")


def build(case: Case, destination: Build, names: Iterable[str] = ()) -> None:
    """Export what is missing: engine, plain forward, oracle and record, all or nothing; then `names`, each by itself.

    A variant that cannot be made is left out, with the reason. Needs torch.

    Raises:
        ExportError: see export_model; of the engine.
    """
    began = time.perf_counter()
    loaded = load(case)
    load_seconds, loaded_mib = time.perf_counter() - began, high_water_mib()
    destination.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.folder.parent, prefix=f".{case.name}.") as name:
        draft = Build(Path(name) / "draft")
        draft.folder.mkdir()
        if not destination.folder.exists():
            record = {"load_s": load_seconds, "loaded_peak_mib": loaded_mib, **_build_base(case, loaded, draft)}
            (draft.folder / "build.json").write_text(json.dumps(record, indent=1))
            os.replace(draft.folder, destination.folder)
        for variant in destination.missing(names):
            path = Path(name) / f"{variant}.onnx"
            try:
                _build_variant(case, loaded, destination, variant, path)
            except Exception as error:
                path = Path(name) / f"{variant}.txt"
                path.write_text(f"{type(error).__name__}: {error}".splitlines()[0])
            os.replace(path, destination.folder / path.name)


def _build_base(case: Case, loaded: LoadedModel, draft: Build) -> dict[str, Any]:
    began, cpu = time.perf_counter(), time.process_time()
    manifest = _export(case, loaded, draft.path(ENGINE), {})
    export_seconds, export_cpu = time.perf_counter() - began, time.process_time() - cpu
    export_mib = high_water_mib()
    began = time.perf_counter()
    export_plainly(loaded.model, loaded.input.size, draft.path(FORWARD))
    plain_seconds = time.perf_counter() - began
    images = images_of(ORACLE_IMAGES, loaded.input.size)
    np.savez(draft.folder / "oracle.npz", **oracle(loaded.model, manifest.layers[0], images))
    return {
        "export_s": export_seconds,
        "export_cpu_s": export_cpu,
        "plain_export_s": plain_seconds,
        "export_peak_mib": export_mib,
        "weights_mib": sum(p.numel() * p.element_size() for p in loaded.model.state_dict().values()) / 2**20,
        "engine_bytes": draft.path(ENGINE).stat().st_size,
        "forward_bytes": draft.path(FORWARD).stat().st_size,
        "layer": manifest.layers[0].name,
        "verification": manifest.verification,
    }


def _build_variant(case: Case, loaded: LoadedModel, base: Build, name: str, path: Path) -> None:
    if name in _PREDICTS:
        logits_alone(base.graph(_PREDICTS[name]), path)
        return
    noise = np.random.default_rng(SEED).integers(0, 256, (CALIBRATION_IMAGES, *loaded.input.size, 3), np.uint8)
    options: dict[str, dict[str, Any]] = {
        FIVE: {"contrasts": CONTRASTS},
        LAYERCAM: {"method": "layercam"},
        # forced, because how near it comes is a question to real weights and photographs, and not asked here
        INT8: {"precision": "int8", "calibration": list(noise), "force": True},
        FP16: {"precision": "fp16", "calibration": list(noise), "force": True},
    }
    _export(case, loaded, path, options[name])


def _export(case: Case, loaded: LoadedModel, path: Path, options: Mapping[str, Any]) -> Any:
    from finercam_rt.export import export_model

    common: dict[str, Any] = {"target_layer": case.target_layer, "input": loaded.input, "name": loaded.name}
    return export_model(loaded.model, path, opset=OPSET, **common, **options)


def export_plainly(model: torch.nn.Module, size: tuple[int, int], path: Path) -> None:
    """The model alone as an ONNX graph, `images` to `logits`, with a dynamic batch. Needs torch."""
    import torch

    # two images, because torch.export takes a batch of one for a constant
    example = torch.zeros(2, 3, *size)
    torch.onnx.export(
        model,
        (example,),
        path,
        dynamo=True,
        verbose=False,
        external_data=False,
        opset_version=OPSET,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1 << 16)},),
    )


def logits_alone(engine: Path, path: Path) -> None:
    """The part of an engine that predicts: what the plain forward is where its precision is the engine's own doing."""
    import onnx.utils

    onnx.utils.extract_model(str(engine), str(path), ["images"], ["logits"])


def _key(case: Case) -> str:
    """Changes with the case, with the versions that export, and with every source that shapes a graph."""
    return digest_of(json.dumps([case.describe(), OPSET], sort_keys=True), _PACKAGES, _SOURCES)


def digest_of(asked: str, packages: Iterable[str], modules: Iterable[str]) -> str:
    """Twelve digits that change with what was asked, the packages' versions, and the sources of modules and folders."""
    digest = hashlib.sha256(asked.encode())
    for package in packages:
        digest.update(f"{package} {version_of(package)}\n".encode())
    for module in modules:
        for source in _files(module):
            digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:12]


def version_of(package: str) -> str | None:
    """The version that is installed, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _files(module: str) -> list[Path]:
    found = importlib.util.find_spec(module)
    assert found is not None
    if found.submodule_search_locations:
        return sorted(file for folder in found.submodule_search_locations for file in Path(folder).rglob("*.py"))
    return [Path(str(found.origin))]
