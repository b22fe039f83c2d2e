"""What nvcc made of the CUDA kernels: no stack, no local memory, 16-byte loads in the loops. Needs no GPU."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from importlib import util
from pathlib import Path
from typing import NamedTuple

import pytest

from finercam_rt import _core

CMAKE = Path(__file__).parents[2] / "CMakeLists.txt"
KERNELS = {"cam_kernel": 24, "mask_kernel": 1, "remove_kernel": 2, "render_kernel": 8, "seed_kernel": 1}
"""How many instances of each kernel there are: eight methods of three dtypes, a vector and a scalar form, ..."""
DISASSEMBLED = ["80", "90", "120"]
WITHOUT_CUDA = "this build of finercam-rt has no CUDA kernels"


@functools.cache
def tools() -> Path:
    """The folder of cuobjdump and nvdisasm: of their wheels, or on PATH."""
    package = util.find_spec("nvidia")
    folders = [Path(p) / "cu13" / "bin" for p in (package.submodule_search_locations or [])] if package else []
    for name in ("cuobjdump", "nvdisasm"):
        found = shutil.which(name)
        folders += [Path(found).parent] if found else []
    for folder in folders:
        if (folder / "cuobjdump").exists() and (folder / "nvdisasm").exists():
            return folder
    pytest.skip("cuobjdump and nvdisasm are not installed")


@functools.cache
def dump(*options: str) -> str:
    """What cuobjdump says of the compiled module."""
    if _core.cuda_status()[1] == WITHOUT_CUDA:
        pytest.skip("finercam-rt was built without CUDA")
    environment = {**os.environ, "PATH": f"{tools()}{os.pathsep}{os.environ['PATH']}"}
    command = [str(tools() / "cuobjdump"), *options, _core.__file__]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


class Kernel(NamedTuple):
    """One kernel of one architecture, and what it uses: REG, STACK, SHARED, LOCAL, ..."""

    arch: str
    name: str
    uses: dict[str, int]


@functools.cache
def kernels() -> list[Kernel]:
    found, arch, name = [], "", ""
    for line in dump("-res-usage").splitlines():
        if line.startswith("arch = sm_"):
            arch = line.removeprefix("arch = sm_")
        elif line.strip().startswith("Function "):
            name = line.strip().removeprefix("Function ").rstrip(":")
        elif "STACK:" in line:
            found.append(Kernel(arch, name, {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", line)}))
    return found


def test_every_architecture_is_there():
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("nvcc is not on PATH, and the architectures that it knows are not known")
    known = subprocess.run([compiler, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    named = re.search(r'FINERCAM_CUDA_ARCHITECTURES "([\d;]+)"', CMAKE.read_text())
    assert named is not None
    wanted = {arch for arch in named[1].split(";") if f"sm_{arch}" in known}
    assert len(wanted) >= 5
    assert {kernel.arch for kernel in kernels()} == wanted, "built for other architectures than CMakeLists.txt names"


def test_every_kernel_is_there():
    assert kernels()
    for arch in {kernel.arch for kernel in kernels()}:
        for name, count in KERNELS.items():
            assert sum(name in kernel.name for kernel in kernels() if kernel.arch == arch) == count, (arch, name)


def test_no_kernel_has_a_stack_or_local_memory():
    wrong = [kernel for kernel in kernels() if kernel.uses["STACK"] or kernel.uses["LOCAL"]]
    assert not wrong


def test_registers_leave_room_for_two_blocks():
    """Of 256 threads, on the 65536 registers of every architecture."""
    assert not [kernel for kernel in kernels() if kernel.uses["REG"] > 128]


ADDRESS = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d\s+)?(\S+)(.*)")


def vector_loads_in_loops(arch: str) -> dict[str, int]:
    """How many 16-byte loads from global memory each kernel has between a backward branch and where it goes to."""
    found: dict[str, int] = {}
    loads: list[int] = []
    spans: list[tuple[int, int]] = []
    name = ""

    def close() -> None:
        if name:
            found[name] = sum(any(first <= load <= last for first, last in spans) for load in loads)

    for line in dump("-sass", "-arch", f"sm_{arch}").splitlines():
        if "Function :" in line:
            close()
            name, loads, spans = line.split(":")[1].strip(), [], []
        elif ("LDG" in line or "BRA" in line) and (parts := ADDRESS.match(line)):
            address, operation = int(parts[1], 16), parts[2]
            if operation.startswith("LDG") and ".128" in operation:
                loads.append(address)
            elif operation.startswith("BRA") and (target := re.search(r"0x([0-9a-f]+)", parts[3])):
                spans.append((int(target[1], 16), address))  # of a branch forward, nothing lies between
    close()
    return found


@pytest.mark.parametrize("arch", DISASSEMBLED)
def test_main_loops_load_sixteen_bytes(arch):
    if arch not in {kernel.arch for kernel in kernels()}:
        pytest.skip(f"not built for sm_{arch}")
    found = vector_loads_in_loops(arch)
    cam = {name: count for name, count in found.items() if "cam_kernel" in name}
    assert len(cam) == KERNELS["cam_kernel"]
    # two forms of the map's loop, each with several loads on their way
    assert all(count >= 8 for count in cam.values()), cam
    removing = {name: count for name, count in found.items() if "remove_kernelILi4E" in name}
    assert all(count >= 2 for count in removing.values()), removing
    assert removing


@pytest.mark.parametrize("arch", DISASSEMBLED)
def test_clusters_are_where_the_architecture_has_them(arch):
    """Their barrier, in every kernel of `cam` from 9.0 on and in no other."""
    if arch not in {kernel.arch for kernel in kernels()}:
        pytest.skip(f"not built for sm_{arch}")
    parts = dump("-sass", "-arch", f"sm_{arch}").split("Function :")[1:]
    found = sorted(part.split()[0] for part in parts if "CGABAR_WAIT" in part)
    of_cam = sorted(part.split()[0] for part in parts if "cam_kernel" in part.split()[0])
    assert len(of_cam) == KERNELS["cam_kernel"]
    assert found == (of_cam if int(arch) >= 90 else [])
