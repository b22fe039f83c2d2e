"""The manifest of a tail file: the graph from the target layer's activations to the logits, for Ablation-CAM."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from finercam_rt.errors import EngineError
from finercam_rt.manifest import DAMAGE

TAIL_KEY = "finercam-tail"
"""The key of the manifest in a tail file's metadata_props. An engine has another, so that it is not taken for one."""

SCHEMA = 1


@dataclass(frozen=True)
class TailManifest:
    """What a tail takes and gives: activations (M,...) and carried_<i> (M,...), float32, to logits (M,K).

    activations, carried: shapes without M. cut_sha256: that of the engines that it belongs to, `TapsInfo.cut_sha256`.
    """

    model: str
    layer: str
    activations: tuple[int, ...]
    carried: tuple[tuple[int, ...], ...]
    num_classes: int
    cut_sha256: str
    opset: int
    verification: dict[str, Any] = field(default_factory=dict)
    producer: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """The names of the graph's inputs, in order, with their shapes without M."""
        return {"activations": self.activations, **{f"carried_{i}": shape for i, shape in enumerate(self.carried)}}

    def to_json(self) -> str:
        """The manifest as JSON text with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)


def from_json(text: str, source: str) -> TailManifest:
    """Parse and check a tail's manifest; `source` names the file in errors.

    Raises:
        EngineError: not JSON, a newer schema, or a field that is missing or damaged.
    """
    try:
        raw = json.loads(text)
        schema = int(raw["schema"])
        if schema <= SCHEMA:
            return TailManifest(
                model=str(raw["model"]),
                layer=str(raw["layer"]),
                activations=_shape(raw["activations"]),
                carried=tuple(_shape(shape) for shape in raw["carried"]),
                num_classes=int(raw["num_classes"]),
                cut_sha256=str(raw["cut_sha256"]),
                opset=int(raw["opset"]),
                verification=dict(raw["verification"]),
                producer={str(k): str(v) for k, v in raw["producer"].items()},
                schema=schema,
            )
    except DAMAGE as error:
        raise EngineError(f"{source}: its manifest is damaged ({error}); export the engine again.") from None
    raise EngineError(
        f"{source}: its manifest has schema {schema}, newer than the {SCHEMA} that this finercam_rt reads; upgrade "
        "finercam-rt."
    )


def _shape(sizes: Any) -> tuple[int, ...]:
    shape = tuple(int(size) for size in sizes)
    if not shape or min(shape) < 1:
        raise ValueError(f"a shape of {sizes}")
    return shape
