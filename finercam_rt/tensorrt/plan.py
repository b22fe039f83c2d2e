"""A plan and its sidecar: NAME.plan holds exactly what TensorRT wrote, NAME.json beside it says what that is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finercam_rt.errors import EngineError
from finercam_rt.files import opened, system_reason
from finercam_rt.manifest import DAMAGE, Manifest, from_json
from finercam_rt.tensorrt.builder import Range
from finercam_rt.tensorrt.library import FLAVOURS

SCHEMA = 1
"""The sidecar's version; a newer one is refused."""
SUFFIX = ".plan"


@dataclass(frozen=True)
class PlanInfo:
    """What a sidecar says.

    manifest: of the ONNX file, or that of head "graph" where a plug-in draws the map from the file's taps. onnx_sha256,
    plan_sha256: of the files (hex). plan_bytes: the plan's size. flavour, version: of the library that built it, and
    that it needs. capabilities: GPUs that it runs on, such as "SM89". batch, classes: least, usual and largest; classes
    only of a zero-shot model. options: the others of the build. key: made from all that goes in, see `cache_key`.
    kernels: how many it launches, in all and behind the logits, where known.
    """

    manifest: Manifest
    onnx_sha256: str
    plan_sha256: str
    plan_bytes: int
    flavour: str
    version: str
    capabilities: tuple[str, ...]
    batch: Range
    classes: Range | None
    options: dict[str, Any]
    key: str
    kernels: dict[str, int] | None
    schema: int = SCHEMA

    def to_json(self) -> str:
        """As JSON text with sorted keys."""
        fields = asdict(self) | {"manifest": self.manifest.to_dict()}
        return json.dumps(fields, sort_keys=True, ensure_ascii=False, indent=1)


def sidecar_of(plan: Path) -> Path:
    """Where the sidecar of a plan lies."""
    return plan.with_suffix(".json")


def is_sidecar(file: Path) -> bool:
    """Whether a JSON file tells of a plan, of whatever version."""
    try:
        return "plan_sha256" in json.loads(file.read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def read_plan_info(plan: Path) -> PlanInfo:
    """The sidecar of a plan, checked by itself; the plan is not opened.

    Raises:
        EngineError: no plan, no sidecar, or a damaged or a newer one.
    """
    with opened(plan, "the .plan file that `finercam build` wrote"):
        pass
    sidecar = sidecar_of(plan)
    try:
        text = sidecar.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise EngineError(
            f"{plan} has no {sidecar.name} beside it, which says what it is; copy that too, or build the plan with "
            "`finercam build`."
        ) from None
    except OSError as error:
        raise EngineError(f"{sidecar} cannot be read ({system_reason(error)}).") from None
    except UnicodeDecodeError:
        raise EngineError(f"{sidecar} is damaged; build the plan again.") from None
    return _from_json(text, sidecar)


def read_checked_plan(plan: Path) -> tuple[bytes, PlanInfo]:
    """The bytes of a plan, once they are known to be those that its sidecar tells of.

    Raises:
        EngineError: what `read_plan_info` refuses; a plan that is truncated, damaged, or of another sidecar.
    """
    info = read_plan_info(plan)
    try:
        data = plan.read_bytes()
    except OSError as error:
        raise EngineError(f"{plan} cannot be read ({system_reason(error)}).") from None
    if len(data) < info.plan_bytes:
        raise EngineError(f"{plan} is truncated, {len(data)} of {info.plan_bytes} bytes; copy it or build it again.")
    if hashlib.sha256(data).hexdigest() != info.plan_sha256:
        raise EngineError(
            f"{plan} is not the plan that {sidecar_of(plan).name} tells of, or it has been changed; copy both again, "
            "or build it again."
        )
    return data, info


def _from_json(text: str, sidecar: Path) -> PlanInfo:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raise EngineError(f"{sidecar} is not valid JSON; build the plan again.") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("schema"), int) or "plan_sha256" not in raw:
        raise EngineError(f"{sidecar} does not tell of a plan; build the plan again.")
    if raw["schema"] > SCHEMA:
        raise EngineError(
            f"{sidecar} has schema {raw['schema']}, newer than the {SCHEMA} that this finercam_rt reads; upgrade "
            "finercam-rt."
        )
    manifest = from_json(json.dumps(raw.get("manifest")), str(sidecar))
    try:
        info = PlanInfo(
            manifest=manifest,
            onnx_sha256=str(raw["onnx_sha256"]),
            plan_sha256=str(raw["plan_sha256"]),
            plan_bytes=int(raw["plan_bytes"]),
            flavour=str(raw["flavour"]),
            version=str(raw["version"]),
            capabilities=tuple(str(name) for name in raw["capabilities"]),
            batch=_range(raw["batch"]),
            classes=None if raw["classes"] is None else _range(raw["classes"]),
            options=dict(raw["options"]),
            key=str(raw["key"]),
            kernels=None if raw["kernels"] is None else {str(k): int(v) for k, v in raw["kernels"].items()},
            schema=raw["schema"],
        )
    except DAMAGE as error:
        raise EngineError(f"{sidecar} is damaged ({error}); build the plan again.") from None
    if info.flavour not in FLAVOURS:
        raise EngineError(f"{sidecar}: its runtime is {info.flavour!r}, which this version does not know; upgrade it.")
    return info


def _range(values: Any) -> Range:
    least, usual, most = (int(value) for value in values)
    if not 1 <= least <= usual <= most:
        raise ValueError(f"a range of {least}, {usual}, {most}")
    return least, usual, most
