"""What the kernels do where memory runs out, where subnormal numbers are 0, and with tensors no protocol describes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from finercam_rt import InputError, ops

LITTLE_MEMORY = """
import resource
import numpy as np
from finercam_rt import ops

small = np.arange(128, dtype=np.float32).reshape(2, 8, 8)
expected = ops.rank(small, threads=2)
maps = np.zeros((2, 6000, 6000), np.float32)
ranks = np.empty(maps.shape, np.int32)
with open("/proc/self/status") as status:
    taken = next(int(line.split()[1]) for line in status if line.startswith("VmSize")) * 1024
_, most = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (taken + 200 * 2**20, most))
for threads in (1, 2, 4):
    try:
        ops.rank(maps, out=ranks, threads=threads)
    except MemoryError:
        print("refused")
    assert (ops.rank(small, threads=2) == expected).all()
resource.setrlimit(resource.RLIMIT_AS, (most, most))
ops.rank(maps, out=ranks, threads=2)
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's size from procfs and limits it")
def test_memory_that_a_thread_does_not_get_is_an_exception():
    """Not the end of the process, as an exception that leaves a thread is; the sort needs 720 MB a map."""
    done = subprocess.run([sys.executable, "-c", LITTLE_MEMORY], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["refused"] * 3 + ["done"], "")


WITHOUT_SUBNORMALS = """
import sys
import numpy as np
import torch
from finercam_rt import ops

if not torch.set_flush_denormal(True):
    sys.exit(77)
maps = np.linspace(1.2e-38, 1.3e-38, 49, dtype=np.float32).reshape(1, 7, 7)
photographs = np.full((1, 40, 30, 3), 7, np.uint8)
for extra in ({}, {"colormap": "turbo"}, {"colormap": "turbo", "images": photographs}):
    for threads in (1, 2):
        image, status = ops.render(maps, (40, 30), threads=threads, **extra)
        assert ops.Status(int(status[0])) == ops.Status.CONSTANT, status
        assert (image[..., :3] == (7 if "images" in extra else 0)).all()
# a range of the caller's that is no wider, around a map of its own range
wide = np.linspace(0, 1, 49, dtype=np.float32).reshape(1, 7, 7)
for extra in ({}, {"colormap": "turbo"}):
    image = ops.render(wide, (40, 30), value_range=(1.2e-38, 1.3e-38), threads=1, **extra).image
    assert (image[..., 3] == 255).all() if "colormap" in extra else ((0 <= image) & (image <= 1)).all()
"""


def test_a_range_that_is_0_where_subnormal_numbers_are():
    """The colours of 0 / 0 would be read from outside of their table."""
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", WITHOUT_SUBNORMALS], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("torch cannot set this on this processor")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("call", ["render", "status", "rank", "cam"])
def test_torch_tensors_that_no_protocol_describes(call):
    """Of a negated view they give the memory, in which every value has the other sign."""
    torch = pytest.importorskip("torch")
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 3)).astype(np.float32))
    run = {
        "render": lambda maps: ops.render(maps, (8, 9)).image,
        "status": ops.status,
        "rank": ops.rank,
        "cam": lambda maps: ops.cam(maps[None], channel_weights=torch.ones(1, 2)),
    }[call]
    for negated in (torch._neg_view(values), torch.complex(values, values).conj().imag):
        with pytest.raises(InputError, match=r"resolve_neg\(\)"):
            run(negated)
        assert torch.equal(run(negated.resolve_neg()), run(-values))
    with pytest.raises(InputError, match="cannot be read as an array"):
        run(values.to("meta"))
