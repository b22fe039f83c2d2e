"""Threads by default: physical cores, within affinity and cgroup quota, in made-up sysfs and procfs trees."""

from __future__ import annotations

import os

import pytest

from finercam_rt import BackendError, Engine, threads
from finercam_rt.backends import open_graph
from finercam_rt.threads import physical_cores_granted


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Four cores of two hardware threads each: CPU k and k + 4 are siblings."""

    def write(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    system, process = tmp_path / "sys", tmp_path / "proc"
    for cpu in range(8):
        siblings = f"{cpu % 4},{cpu % 4 + 4}"
        write(system / "devices/system/cpu" / f"cpu{cpu}" / "topology/thread_siblings_list", siblings)
    monkeypatch.setattr(threads, "_affinity", lambda: set(range(8)))

    class Machine:
        def cores(self) -> int:
            return physical_cores_granted(system, process)

        def cgroup(self, line: str, **files: str) -> None:
            write(process / "cgroup", line)
            for path, text in files.items():
                write(system / "fs/cgroup" / path.replace("__", "/").replace("_DOT_", "."), text)

        def affinity(self, *cpus: int) -> None:
            monkeypatch.setattr(threads, "_affinity", lambda: set(cpus))

    return Machine()


def test_hardware_threads_count_once(machine):
    assert machine.cores() == 4


def test_affinity(machine):
    machine.affinity(0, 4)
    assert machine.cores() == 1
    machine.affinity(0, 1, 5)
    assert machine.cores() == 2


@pytest.mark.parametrize(("limit", "cores"), [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1)])
def test_cgroup_v2(machine, limit, cores):
    machine.cgroup("0::/job/step", job__cpu_DOT_max=limit)
    assert machine.cores() == cores


def test_cgroup_v2_takes_the_least_of_all_levels(machine):
    machine.cgroup("0::/job/step", job__cpu_DOT_max="200000 100000", job__step__cpu_DOT_max="300000 100000")
    assert machine.cores() == 2


def test_cgroup_v2_of_a_container_whose_path_is_the_hosts(machine):
    machine.cgroup("0::/not/mounted/here", cpu_DOT_max="100000 100000")
    assert machine.cores() == 1


def test_cgroup_v1(machine):
    files = {"cpu__job__cpu_DOT_cfs_quota_us": "300000", "cpu__job__cpu_DOT_cfs_period_us": "100000"}
    machine.cgroup("4:cpu,cpuacct:/job\n1:name=systemd:/", **files)
    assert machine.cores() == 3
    machine.cgroup("4:cpu,cpuacct:/job", **files | {"cpu__job__cpu_DOT_cfs_quota_us": "-1"})
    assert machine.cores() == 4


def test_without_sysfs(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "_affinity", lambda: {0, 1, 2})
    assert physical_cores_granted(tmp_path / "none", tmp_path / "none") == 3


@pytest.mark.parametrize("threads", [0, -1, 1025, 10**11])
def test_numbers_of_threads_that_are_refused(toy, backend_name, threads):
    """More than a machine has is a slip of the finger, and more than an int has would be a runtime's own error."""
    with pytest.raises(BackendError, match=f"number of threads is {threads}; give 1 to 1024, or leave"):
        Engine(toy.path, threads=threads)
    with pytest.raises(BackendError, match=f"number of threads is {threads}; give 1 to 1024, or leave"):
        open_graph(toy.path, backend="onnxruntime", threads=threads)


def test_this_machine():
    assert 1 <= physical_cores_granted() <= (os.cpu_count() or 1)
