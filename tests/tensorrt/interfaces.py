"""The Python interfaces of TensorRT: read from bindings that are installed, or as they were recorded.

`python tests/tensorrt/interfaces.py BINDINGS STUBS > tests/tensorrt/interfaces.json` records those that cannot be
installed beside one another: BINDINGS is a folder with the package tensorrt-cu13-bindings, which needs no GPU and none
of TensorRT's own libraries (libraries of nothing are compiled in their place), STUBS one with the package
tensorrt-stubs.
"""

from __future__ import annotations

import ast
import ctypes
import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

Interface = dict[str, dict[str, list[str] | None]]
"""Class to member to the names of a method's parameters, but for those with a default; None of what is no method."""

RECORDED = Path(__file__).with_suffix(".json")
CLASSES = (
    "Builder",
    "BuilderFlag",
    "EngineInspector",
    "ExecutionContextAllocationStrategy",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "ITensor",
    "ITimingCache",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "ProfilingVerbosity",
    "Runtime",
    "TensorIOMode",
)
_FACTORIES = {
    "libnvinfer.so.11": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "libnvinfer_plugin.so.11": ("initLibNvInferPlugins",),
    "libnvonnxparser.so.11": (
        "createNvOnnxParser_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "getNvOnnxParserVersion",
    ),
}


def recorded() -> dict[str, Interface]:
    """By library and version."""
    found: dict[str, Interface] = json.loads(RECORDED.read_text())
    return found


def of_module(module: ModuleType, classes: tuple[str, ...] = CLASSES) -> Interface:
    """Of bindings that are imported, by the signatures that they print."""
    return {name: _members(getattr(module, name)) for name in classes}


def of_stubs(text: str, classes: tuple[str, ...] = CLASSES) -> Interface:
    """Of the .pyi file of tensorrt-stubs, which is no valid Python as a whole: mypy cannot read it either."""
    found: Interface = {}
    for part in re.split(r"^(?=class )", text, flags=re.MULTILINE):
        name = re.match(r"class (\w+)", part)
        if name is None or name[1] not in classes:
            continue
        (node,) = ast.parse(part.replace("channel_axis: int)", "channel_axis: int = 0)")).body[:1]
        assert isinstance(node, ast.ClassDef)
        members: dict[str, list[str] | None] = {}
        for item in node.body:
            if isinstance(item, ast.FunctionDef):
                marks = " ".join(ast.unparse(mark) for mark in item.decorator_list)
                members[item.name] = None if "property" in marks or ".setter" in marks else _arguments(item.args)
            elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                members[item.target.id] = None
        found[node.name] = _public(members)
    return found


def _members(owner: Any) -> dict[str, list[str] | None]:
    members = {name: _parameters(getattr(owner, name)) for name in dir(owner)}
    return _public(members)


def _public(members: dict[str, list[str] | None]) -> dict[str, list[str] | None]:
    return {name: members[name] for name in sorted(members) if not name.startswith("_")}


def _parameters(member: Any) -> list[str] | None:
    """pybind11 prints "name(self: C, a: int, b: str = None) -> int" as the first line, or each overload's."""
    text = getattr(member, "__doc__", None) or ""
    match = re.match(r"(?:\w+\(\*args, \*\*kwargs\)\nOverloaded function\.\s+1\. )?\w+(\(.*\)) -> ", text)
    if match is None or not callable(member):
        return None
    depth, parts = 0, [""]
    for letter in match[1][1:-1]:
        depth += {"[": 1, "(": 1, "<": 1, "]": -1, ")": -1, ">": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.split(":")[0].strip() for part in parts if "=" not in part][1:]


def _arguments(arguments: ast.arguments) -> list[str]:
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    return names[1 : len(names) - len(arguments.defaults)]


def _import_without_libraries(folder: Path) -> ModuleType:
    """The package tensorrt_bindings, with libraries in place of TensorRT's whose functions give nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        for library, functions in _FACTORIES.items():
            source = "".join(f"void* {name}(void) {{ return 0; }}\n" for name in functions)
            file = Path(scratch) / library
            command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(file), "-x", "c", "-"]
            subprocess.run(command, input=source.encode(), check=True)
            ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(folder))
    return importlib.import_module("tensorrt_bindings")


if __name__ == "__main__":
    bindings, stubs = map(Path, sys.argv[1:])
    module = _import_without_libraries(bindings)
    (version,) = (path.stem.split("-")[1] for path in stubs.glob("tensorrt_stubs-*.dist-info"))
    stub = (stubs / "tensorrt_bindings" / "tensorrt.pyi").read_text()
    found = {f"tensorrt {module.__version__}": of_module(module), f"tensorrt-stubs {version}": of_stubs(stub)}
    lines = {
        name: ",\n".join(f'  "{c}": {json.dumps(m, sort_keys=True)}' for c, m in i.items()) for name, i in found.items()
    }
    print("{\n" + ",\n".join(f' "{name}": {{\n{text}\n }}' for name, text in lines.items()) + "\n}")
