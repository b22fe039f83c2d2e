"""The interpreter of PTX notices what it is there for: bugs that are planted in the kernels, and what it cannot run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ..fakes import ptx

BUGS = {
    "a barrier that is missing": (
        "seed_cuda.cu",
        "  __syncthreads();\n",
        "seed(a(4, 300), i(4), i(4, 3), a(4))",
        "a race in shared memory",
    ),
    "another one": (
        "preprocess_cuda.cu",
        "    __syncthreads();\n",
        "preprocess([put(np.zeros((40, 60, 3), 'u1'))], [ops.Frame((40, 60), 0, 0)], (40, 60), "
        "mean=(0, 0, 0), std=(1, 1, 1))",
        "a race in shared memory",
    ),
    "counters that are not cleared": (
        "cam_cuda.cu",
        '    FINERCAM_CUDA_CHECK_AS(cudaMemsetAsync(finished, 0, counters, stream), "clearing its counters");\n',
        "cam(a(1, 2048, 7, 7), a(1, 2048, 7, 7))",
        "that nothing has written",
    ),
    "vectors that are not aligned": (
        "remove_cuda.cu",
        " && reinterpret_cast<std::uintptr_t>(data) % 16 == 0",
        "remove(put(rng.random(2 * 3 * 64 + 1, dtype='f'))[1:].reshape(2, 3, 8, 8), ops.rank(a(2, 8, 8)), [10], 0.0)",
        "that is not aligned",
    ),
    "a variable that is too small": (
        "render_cuda.cu",
        "if (count <= kSharedCells)",
        "render(a(1, 66, 65), (33, 20))",
        "out of a variable in shared memory",
    ),
}
"""The file, the code that is taken out, a call that then goes wrong, and what is said."""

CALL = """
import sys, unittest.mock
import numpy as np
import finercam_rt._core as installed
from tests.fakes import ptx
from pathlib import Path
from finercam_rt import kernel_arrays, ops

interpreter = ptx.Interpreter(Path(sys.argv[1]))
rng, put = np.random.default_rng(0), interpreter.put
def a(*shape): return put((rng.random(shape) * 200).astype(np.float32))
def i(*shape): return put(np.full(shape, -1))
for module in list(sys.modules.values()):
    if module.__name__.startswith("finercam_rt.") and getattr(module, "_core", None) is installed:
        module._core = interpreter.core
"""


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str, tmp_path: Path) -> None:
    name, code, call, words = BUGS[bug]
    right = (ptx.CSRC / "kernels" / name).read_text()
    without = "if (true)" if code.startswith("if") else ""
    assert code in right
    wrong = tmp_path / name
    wrong.write_text(right.replace(code, without, 1))
    library = ptx.build(wrong)
    command = [sys.executable, "-c", f"{CALL}\nops.{call}", library]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode != 0
    said = done.stderr.splitlines()[-1]
    assert words in said
    assert name.split("_")[0] in said.rpartition(", in ")[2]
    assert "block (" in said
    assert "of the PTX" in said


KERNEL = """.version 9.0
.target sm_75
.address_size 64

.entry made(
\t.param .u64 made_param_0
)
{
\t.reg .b32 %r<4>;
\t.reg .b64 %rd<2>;
\tld.param.u64 %rd1, [made_param_0];
\tmov.u32 %r1, %tid.x;
\tBODY
\tret;
}
"""
FAULTS = {
    "sin.approx.f32 %r2, %r1;": "the interpreter does not know this instruction: line 13 of the PTX",
    "add.rp.f32 %r2, %r1, %r1;": "the interpreter does not know this form",
    "st.global.u32 [%rd1+4], %r1;": "4 bytes out of bounds, at byte 4 of an array of int32",
    "st.global.u32 [%rd1+2], %r1;": "an address of 4 bytes that is not aligned",
    "shfl.sync.bfly.b32 %r2, %r1, 1, 31, 15;": "a lane that its mask does not name",
}


@pytest.mark.parametrize("body", FAULTS)
def test_what_a_kernel_must_not_do_is_said(body: str) -> None:
    interpreter = ptx.interpreter()
    interpreter.reset()
    with pytest.raises(AssertionError) as caught:
        interpreter.run(KERNEL.replace("BODY", body), "made", (1, 1, 1), 32, [interpreter.put(np.zeros(1, np.int32))])
    assert FAULTS[body] in str(caught.value)


def test_a_kernel_of_many_threads() -> None:
    interpreter = ptx.interpreter()
    out = interpreter.put(np.zeros(64, np.int32))
    body = "mul.wide.u32 %rd0, %r1, 4;\n\tadd.s64 %rd0, %rd0, %rd1;\n\tst.global.u32 [%rd0], %r1;"
    with interpreter.watched():
        interpreter.run(KERNEL.replace("BODY", body), "made", (1, 1, 1), 64, [out])
    assert interpreter.get(out).tolist() == list(range(64))
    with pytest.raises(AssertionError, match="a write to an array"):
        interpreter.run(
            KERNEL.replace("BODY", body),
            "made",
            (1, 1, 1),
            64,
            [interpreter.put(np.zeros(64, np.int32), writable=False)],
        )
    interpreter.reset()
