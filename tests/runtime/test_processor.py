"""What is read of the processor."""

from __future__ import annotations

import platform

import pytest

from finercam_rt import processor as module

INTEL = """processor\t: 0
model name\t: Some CPU
cpu family\t: 6
model\t\t: 85
flags\t\t: fpu avx2 avx512f{}

processor\t: 1
"""


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(module, "_CPUINFO", path)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    module._fields.cache_clear()
    yield path
    module._fields.cache_clear()


def test_the_name_with_what_matters(cpuinfo):
    cpuinfo.write_text(INTEL.format(" avx512_vnni"))
    assert module.processor() == "Some CPU family 6 model 85 (avx2, avx512f, avx512_vnni)"


@pytest.mark.parametrize(("flag", "saturate"), [("", True), (" avx512_vnni", False), (" avx_vnni", False)])
def test_int8_without_vnni_saturates(cpuinfo, flag, saturate):
    cpuinfo.write_text(INTEL.format(flag))
    assert module.sums_of_int8_saturate() is saturate


def test_what_is_not_known_is_taken_for_the_worst(cpuinfo, monkeypatch):
    assert module.sums_of_int8_saturate()
    assert module.processor()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not module.sums_of_int8_saturate()
