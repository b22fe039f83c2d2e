"""The dependency directions of DESIGN, section 5: core <- kernels <- bindings <- finercam_rt <- cli; export apart."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RUNTIME, EXPORT, CSRC = ROOT / "finercam_rt", ROOT / "export", ROOT / "csrc"

ALLOWED_ANYWHERE = {"numpy", "PIL", "finercam_rt"}
ALLOWED_IN = {
    "backends/onnxruntime.py": {"onnxruntime"},
    "backends/onnxruntime_gpu.py": {"onnxruntime"},
    "backends/openvino.py": {"openvino"},
    "cli/progress.py": {"tqdm"},
    "evaluation/evaluate.py": {"jinja2", "matplotlib"},
    "evaluation/report/charts.py": {"matplotlib"},
    "evaluation/report/page.py": {"jinja2"},
    "evaluation/metrics/imputation.py": {"scipy"},
    "evaluation/metrics/noise.py": {"skimage"},
    "evaluation/metrics/perturbed.py": {"scipy"},
    "images.py": {"pillow_heif"},
    "video.py": {"av"},
}
"""The third-party modules that one file of the runtime may import besides."""
EXPORT_ONLY = {"torch", "torchvision", "timm", "open_clip", "transformers", "onnx", "onnxscript", "sympy"}
DROP_IN = "compat/"
"""The opt-in package of the runtime that compiles PyTorch models: it imports torch and the export, and nothing imports
it."""
EXPORT_COMMANDS = {"cli/export.py", "cli/embed_text.py", "cli/demo.py"}
"""The subcommands that need the export stage; they load it when they run, not when they are imported."""

VERIFYING = {
    "verify.py": {"engine", "outputs", "contrast", "embeddings"},
    "expected.py": {"embeddings"},
    "export_model.py": {"engine", "files", "images", "embeddings", "tensorrt"},
    "check_tensorrt.py": {"tensorrt"},
    "embed_text.py": {"embeddings"},
    "tail.py": {"engine", "tail"},
}
COMPARING = {
    "gate.py": {"comparison", "ops", "outputs"},
    "reduce.py": {"images", "preprocess"},
    "processors.py": {"preprocess", "pixels"},
}
"""What files of the export stage use of the runtime besides: an engine, photographs, how far two engines agree."""

INCLUDES = {
    "core": {"core"},
    "kernels": {"core", "kernels"},
    "graph": {"core", "kernels", "graph"},
    "bindings": {"core", "kernels", "graph", "bindings"},
}
"""What each folder of csrc may include."""


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether importing the file imports it) for every import statement, absolute names."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and "TYPE_CHECKING" in ast.unparse(guard.test)
        for node in ast.walk(guard)
    }

    def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if id(child) in typing_only:
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                yield child.module or "", at_import
                yield from ((f"{child.module}.{alias.name}", at_import) for alias in child.names)
            lazy = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from walk(child, at_import and not lazy)

    yield from walk(tree, True)


def third_party(path: Path) -> set[str]:
    names = {module.partition(".")[0] for module, _ in imports(path)}
    return {name for name in names if name not in sys.stdlib_module_names}


def runtime_files() -> list[str]:
    return sorted(path.relative_to(RUNTIME).as_posix() for path in RUNTIME.rglob("*.py"))


def test_the_scan_sees_imports(tmp_path):
    """So that the tests below can fail."""
    path = tmp_path / "module.py"
    path.write_text("import torch\nif 1:\n    import onnx.helper as h\ndef f():\n    from timm.data import x\n")
    assert third_party(path) == {"torch", "onnx", "timm"}
    assert dict(imports(path))["timm.data"] is False
    assert dict(imports(path))["onnx.helper"] is True
    assert len(runtime_files()) > 15


@pytest.mark.parametrize("name", runtime_files())
def test_runtime_imports(name):
    allowed = ALLOWED_ANYWHERE | ALLOWED_IN.get(name, set()) | ({"torch"} if name.startswith(DROP_IN) else set())
    assert third_party(RUNTIME / name) <= allowed


@pytest.mark.parametrize("name", runtime_files())
def test_runtime_does_not_import_the_export_stage_or_the_command_line(name):
    for module, at_import in imports(RUNTIME / name):
        if module.startswith("finercam_rt.compat"):
            assert name.startswith(DROP_IN), f"{name} imports {module}"
        if module.startswith("finercam_rt.export") and not name.startswith(DROP_IN):
            assert name in EXPORT_COMMANDS, f"{name} imports {module}"
            assert not at_import, f"{name} imports {module} before it is run"
        if module.startswith("finercam_rt.cli"):
            assert name.startswith("cli/"), f"{name} imports {module}"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tensorrt"])
def test_backends_are_loaded_only_when_chosen(backend):
    for module, at_import in imports(RUNTIME / "backends" / f"{backend}.py"):
        assert not (at_import and module.partition(".")[0] == backend)
    for name in runtime_files():
        for module, at_import in imports(RUNTIME / name):
            assert not (at_import and module == f"finercam_rt.backends.{backend}"), name


@pytest.mark.parametrize("path", sorted(EXPORT.rglob("*.py")), ids=lambda path: path.name)
def test_export_imports(path):
    """The export stage uses the manifests of the runtime; an engine is loaded where it is verified."""
    allowed = {"arrangement", "manifest", "tail_manifest", "errors", "export"} | (VERIFYING | COMPARING).get(
        path.name, set()
    )
    for module, _ in imports(path):
        parts = module.split(".")
        if parts[0] == "finercam_rt" and len(parts) > 1:
            assert parts[1] in allowed, f"{path.name} imports {module}"


def test_torch_and_onnx_are_imported_by_export_and_the_drop_in_alone():
    found = {name for name in runtime_files() if third_party(RUNTIME / name) & EXPORT_ONLY}
    assert {name for name in found if not name.startswith(DROP_IN)} == set()
    assert {name for name in found if third_party(RUNTIME / name) & EXPORT_ONLY != {"torch"}} == set()


@pytest.mark.parametrize(
    "path",
    sorted(path for suffix in ("*.h", "*.cpp", "*.cu", "*.cuh") for path in CSRC.rglob(suffix)),
    ids=lambda path: path.relative_to(CSRC).as_posix(),
)
def test_csrc_includes(path):
    layer = path.relative_to(CSRC).parts[0]
    text = path.read_text()
    for include in re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, re.MULTILINE):
        target = (path.parent / include).resolve()
        if not target.exists():
            target = (CSRC / include).resolve()
        assert target.exists(), f"{include} is not in csrc"
        assert target.relative_to(CSRC).parts[0] in INCLUDES[layer], f"{layer} includes {include}"
    if layer != "bindings":
        assert not re.search(r"#\s*include\s*<(nanobind|Python|pybind11)", text), "only bindings know Python"


def test_importing_the_package_is_light():
    heavy = (
        "('torch', 'torchvision', 'timm', 'onnx', 'onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx_bindings', "
        "'tqdm', 'scipy', 'matplotlib', 'jinja2', 'finercam_rt.export', 'finercam_rt.compat', 'importlib.metadata')"
    )
    code = f"import sys, finercam_rt, finercam_rt.cli.main; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_running_an_engine_needs_neither_torch_nor_onnx(toy):
    code = (
        "import sys, numpy, finercam_rt; "
        "e = finercam_rt.Engine(sys.argv[1]).explain(numpy.zeros((50, 60, 3), numpy.uint8), references=[]); "
        "e.overlay(0); print([m for m in ('torch', 'onnx', 'timm', 'finercam_rt.export') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(toy.path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
