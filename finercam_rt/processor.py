"""Which processor this is."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """The model's name; where a hypervisor hides it, also family, model and the vector units that matter here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", "").split())
    units = [unit for unit in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if unit in flags]
    name = fields.get("model name") or platform.machine()
    family = f" family {fields['cpu family']} model {fields['model']}" if {"cpu family", "model"} <= set(fields) else ""
    return f"{name}{family}" + (f" ({', '.join(units)})" if units else "")
