"""How many threads this process may use with profit: physical cores, within its affinity and its cgroup's quota."""

from __future__ import annotations

import os
from pathlib import Path

from finercam_rt.errors import BackendError

MOST_THREADS = 1024
"""More are a slip of the finger; the system would refuse them, or the runtime."""


def physical_cores_granted(system: Path = Path("/sys"), process: Path = Path("/proc/self")) -> int:
    """Number of physical cores that this process may keep busy, at least 1.

    Two hardware threads of one core count once: matrix kernels fill a core's units, and a second thread on it only
    evicts the first one's cache. A cgroup quota (containers) is rounded down, because threads above it are throttled
    in the middle of a run. `system` and `process` are where sysfs and procfs are mounted.
    """
    cores = _physical_cores(_affinity(), system)
    quota = _cgroup_quota(system / "fs" / "cgroup", process)
    return max(1, cores if quota is None else min(cores, int(quota)))


def threads_granted(asked: int | None) -> int:
    """The number that the caller asked for; None is the physical cores.

    Raises:
        BackendError: it is not from 1 to MOST_THREADS.
    """
    if asked is None:
        return physical_cores_granted()
    if not 1 <= asked <= MOST_THREADS:
        raise BackendError(
            f"the number of threads is {asked}; give 1 to {MOST_THREADS}, or leave it out for the physical cores."
        )
    return asked


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _physical_cores(cpus: set[int], system: Path) -> int:
    siblings = set()
    for cpu in cpus:
        text = _read(system / "devices" / "system" / "cpu" / f"cpu{cpu}" / "topology" / "thread_siblings_list")
        siblings.add(text or str(cpu))
    return len(siblings)


def _cgroup_quota(root: Path, process: Path) -> float | None:
    """The least CPU quota, in cores, of this process's cgroup and the ones above it; None where there is none."""
    quotas = []
    for line in (_read(process / "cgroup") or "").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if hierarchy == "0":
            base = root
        elif "cpu" in controllers.split(","):
            base = next((root / name for name in (controllers, "cpu") if (root / name).is_dir()), root / controllers)
        else:
            continue
        folder = base / group.lstrip("/")
        # In a container the group's path may be the host's, which is not mounted here: the root then holds the quota.
        for level in (folder, *folder.parents):
            quotas.append(_quota_of(level))
            if level == base:
                break
    found = [quota for quota in quotas if quota is not None]
    return min(found) if found else None


def _quota_of(folder: Path) -> float | None:
    limit, period = [*(_read(folder / "cpu.max") or "").split(), "", ""][:2]
    if not limit:
        limit, period = _read(folder / "cpu.cfs_quota_us") or "", _read(folder / "cpu.cfs_period_us") or ""
    if limit.isdigit() and period.isdigit() and int(limit) > 0 and int(period) > 0:
        return int(limit) / int(period)
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
