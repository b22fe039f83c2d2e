"""A table of families and records of cases, as a sweep makes them."""

from __future__ import annotations

from typing import Any

from sweep.cases import BASE
from sweep.families import Member

FAMILIES = {
    "timm/a": [Member("timm/a", "timm:a1", 100), Member("timm/a", "timm:a2", 200)],
    "timm/b": [Member("timm/b", "timm:b1", 900)],
    "torchvision/a": [Member("torchvision/a", "torchvision:a", 50)],
}


def record_of(family: str = "timm/a", variant: str = BASE, **stages: Any) -> dict[str, Any]:
    found = {
        "model": {"size": [224, 224], "parameters": 1_500_000},
        "export": {
            "layers": [{"name": "blocks.1", "layout": "tokens", "grid": [14, 14], "prefix_tokens": 1}],
            "passes": [
                "batch norm: folded 0 of 3",
                "select sinking: 1 of 9",
                "select sinking: 1 of 9",
                "seed: sparse, x",
            ],
        },
        "oracle": {"degenerate": None, "placement": 0.99},
        "onnxruntime": {"status": "right", "map_error": 1.2e-6, "logit_error": 3e-7, "rounding": None},
        "cost": {"ratio": 0.956},
        "tensorrt-rtx": {"status": "builds", "seconds": 3.4, "bytes": 5},
    }
    for name, value in stages.items():
        found[name.replace("_", "-")] = value
    keys = ("cpu", "logical_cpus", "commit", "sources_changed")
    return {
        "identity": f"{family} timm:x {variant}",
        "key": "0",
        "family": family,
        "specification": "timm:x",
        "variant": variant,
        "runtimes": ["onnxruntime"],
        "environment": {**dict.fromkeys(keys), "versions": {"python": "3"}},
        "stages": {name: value for name, value in found.items() if value is not None},
        "ended": {},
    }
