"""Which processor this is, and what it can do."""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_UNITS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def processor() -> str:
    """The model's name; where a hypervisor hides it, also family, model and the vector units that matter here."""
    fields = _fields()
    if not fields:
        return platform.processor() or platform.machine()
    flags = fields.get("flags", "").split()
    units = [unit for unit in _UNITS if unit in flags]
    name = fields.get("model name") or platform.machine()
    family = f" family {fields['cpu family']} model {fields['model']}" if {"cpu family", "model"} <= set(fields) else ""
    return f"{name}{family}" + (f" ({', '.join(units)})" if units else "")


def sums_of_int8_saturate() -> bool:
    """Whether products of uint8 and int8 are summed in 16 bits: on x86-64 without VNNI, or not known to have it."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return not {"avx_vnni", "avx512_vnni", "amx_int8"} & set(_fields().get("flags", "").split())


@lru_cache(maxsize=1)
def _fields() -> dict[str, str]:
    """What Linux says of the first processor; empty on other systems."""
    try:
        lines = _CPUINFO.read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
