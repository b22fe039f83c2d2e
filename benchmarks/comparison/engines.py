"""The two graphs of a case, exported once and kept: the engine, and the same model exported plainly."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from comparison.cases import Case, load
from comparison.memory import high_water_mib

OPSET = 18
FOLDER = Path(__file__).resolve().parents[2] / "build" / "benchmarks"
_PACKAGES = ("finercam-rt", "torch", "timm", "onnx", "onnxscript")
_SOURCES = ("finercam_rt.export", "finercam_rt.manifest", "comparison.cases", "comparison.engines")


@dataclass(frozen=True)
class Build:
    """Where the graphs of a case lie; `record` says how they were made."""

    folder: Path

    @property
    def engine(self) -> Path:
        """The compiled classifier with its explanation."""
        return self.folder / "engine.onnx"

    @property
    def forward(self) -> Path:
        """The classifier alone: images -> logits."""
        return self.folder / "forward.onnx"

    @property
    def record(self) -> dict[str, Any]:
        """Seconds, bytes, MiB of the export."""
        content: dict[str, Any] = json.loads((self.folder / "build.json").read_text())
        return content


def build_of(case: Case, folder: Path = FOLDER) -> Build:
    """Where the graphs of `case` belong for these sources and versions, made or not."""
    return Build(folder / f"{case.name}-{_key(case)}")


def build(case: Case, destination: Build) -> None:
    """Export both graphs and write them with their record, all or nothing. Needs torch.

    Raises:
        ExportError: see export_model.
    """
    import torch

    from finercam_rt.export import export_model

    began = time.perf_counter()
    loaded = load(case)
    load_seconds, loaded_mib = time.perf_counter() - began, high_water_mib()
    destination.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.folder.parent, prefix=f".{case.name}.") as name:
        draft = Build(Path(name) / "draft")
        draft.folder.mkdir()
        began, cpu = time.perf_counter(), time.process_time()
        options: dict[str, Any] = {"target_layer": case.target_layer, "input": loaded.input, "name": loaded.name}
        manifest = export_model(loaded.model, draft.engine, opset=OPSET, **options)
        export_seconds, export_cpu = time.perf_counter() - began, time.process_time() - cpu
        export_mib = high_water_mib()
        began = time.perf_counter()
        # two images, because torch.export takes a batch of one for a constant
        example = torch.zeros(2, 3, *loaded.input.size)
        torch.onnx.export(
            loaded.model,
            (example,),
            draft.forward,
            dynamo=True,
            verbose=False,
            external_data=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1 << 16)},),
        )
        record = {
            "load_s": load_seconds,
            "export_s": export_seconds,
            "export_cpu_s": export_cpu,
            "plain_export_s": time.perf_counter() - began,
            "loaded_peak_mib": loaded_mib,
            "export_peak_mib": export_mib,
            "weights_mib": sum(p.numel() * p.element_size() for p in loaded.model.state_dict().values()) / 2**20,
            "engine_bytes": draft.engine.stat().st_size,
            "forward_bytes": draft.forward.stat().st_size,
            "layer": manifest.layers[0].name,
            "verification": manifest.verification,
        }
        (draft.folder / "build.json").write_text(json.dumps(record, indent=1))
        shutil.rmtree(destination.folder, ignore_errors=True)
        os.replace(draft.folder, destination.folder)


def _key(case: Case) -> str:
    """Changes with the case, with the versions that export, and with every source that shapes a graph."""
    digest = hashlib.sha256(json.dumps([case.describe(), OPSET], sort_keys=True).encode())
    for package in _PACKAGES:
        digest.update(f"{package} {metadata.version(package)}\n".encode())
    for module in _SOURCES:
        for source in _files(module):
            digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:12]


def _files(module: str) -> list[Path]:
    found = importlib.util.find_spec(module)
    assert found is not None
    if found.submodule_search_locations:
        return sorted(file for folder in found.submodule_search_locations for file in Path(folder).rglob("*.py"))
    return [Path(str(found.origin))]
