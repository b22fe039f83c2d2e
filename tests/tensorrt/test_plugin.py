"""The map drawn by a kernel inside the plan: over stand-ins, and its registration by TensorRT's own bindings."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finercam_rt import Engine, top_classes
from finercam_rt.cli.main import main
from finercam_rt.errors import BackendError
from finercam_rt.manifest import InputSpec
from finercam_rt.onnx_metadata import read_manifest
from finercam_rt.tensorrt import library, plugin
from finercam_rt.tensorrt.build import build_plan
from finercam_rt.tensorrt.builder import BuildOptions
from finercam_rt.tensorrt.library import RTX, TENSORRT, Library
from finercam_rt.tensorrt.plan import read_plan_info
from finercam_rt.tensorrt.script import write_script

from ..fakes.gpu import Gpu
from ..fakes.plugins import FakePlugins
from ..fakes.taps import with_taps
from .conftest import batch, same
from .interfaces import recorded

OPTIONS = BuildOptions(batch=(1, 2, 8), classes=(2, 10, 20), capabilities=("SM90",), map_kernel="plugin")


@pytest.fixture
def plugins(gpu, monkeypatch, tmp_path_factory) -> FakePlugins:
    found = FakePlugins()
    found.install(monkeypatch, tmp_path_factory.mktemp("ptx"))
    return found


@pytest.mark.parametrize("contrasts", [1, 3])
@pytest.mark.parametrize("gradients", [False, True])
def test_the_plan_gives_what_head_graph_gives(gpu, plugins, make_toy, gradients, contrasts):
    toy = make_toy(contrasts=contrasts)
    taps = with_taps(toy, gradients=gradients, carried=True)
    before = taps.read_bytes()
    reference, engine = Engine(toy.path), Engine(gpu.plan(taps, map_kernel="plugin"))
    assert taps.read_bytes() == before
    for step, count in enumerate((2, 1, 2, 19)):
        asked: dict[str, Any] = {"alpha": 0.5} if contrasts == 1 else {"contrasts": top_classes(2, alpha=0.5)}
        same(engine(batch(count, step), **asked), reference(batch(count, step), **asked))


def test_the_plan_is_one_of_head_graph(gpu, plugins, toy):
    taps = with_taps(toy, gradients=True, carried=True)
    info = read_plan_info(gpu.plan(taps, map_kernel="plugin"))
    assert info.manifest == dataclasses.replace(read_manifest(taps), head="graph", taps=None)
    assert info.options["map_kernel"] == "plugin"
    network = gpu.trt._network
    assert [output.name for output in network.outputs] == [
        *(output for output in ("logits", "target_class", "reference_classes")),
        "saliency_map",
    ]
    assert [layer.name for layer in network.layers] == ["finercam::cam"]
    info = read_plan_info(gpu.plan(taps, map_kernel="plugin"))  # a second build finds what the first has registered
    assert info.manifest.head == "graph"
    info = read_plan_info(gpu.plan(taps))
    assert (info.manifest.head, info.options["map_kernel"]) == ("taps", "auto")


@pytest.mark.parametrize(
    ("model", "method", "contrasts"),
    [("tokens", "gradcam", 1), ("nhwc", "layercam", 3), ("convolutions", "xgradcam", 1)],
)
def test_layouts_and_methods(monkeypatch, tmp_path, tmp_path_factory, model, method, contrasts):
    """As ONNX Runtime and `ops.cam` draw them from the same file."""
    torch = pytest.importorskip("torch", reason="the export needs PyTorch")
    from finercam_rt.export import export_model

    from .test_matrix import MODELS

    torch.manual_seed(0)
    kind, layer = MODELS[model]
    path = tmp_path / "engine.onnx"
    spec = InputSpec((56, 56), (0.5,) * 3, (0.5,) * 3)
    export_model(kind().eval(), path, target_layer=layer, input=spec, head="taps", method=method, contrasts=contrasts)
    reference = Engine(path)
    images = np.random.default_rng(1).normal(size=(3, 3, 56, 56)).astype(np.float32)
    asked: dict[str, Any] = {} if contrasts == 1 else {"contrasts": top_classes(contrasts)}
    wanted = reference(images, **asked)
    assert wanted.saliency_map.max() > 0
    gpu = Gpu(monkeypatch)
    FakePlugins().install(monkeypatch, tmp_path_factory.mktemp("ptx"))
    same(Engine(gpu.plan(path, map_kernel="plugin"))(images, **asked), wanted)


def test_where_there_can_be_none(gpu, plugins, toy, make_toy, tmp_path, monkeypatch):
    def refused(path: Path, says: str, library: Library = gpu.library) -> None:
        with pytest.raises(BackendError) as caught:
            build_plan(path, tmp_path / "out.plan", library, OPTIONS)
        text = str(caught.value)
        assert says in text
        assert re.fullmatch(r"[^\n]*--map-kernel[^\n]*\.", text)
        assert not list(tmp_path.glob("out.*"))

    refused(toy.path, "draws its map in the graph")
    taps = with_taps(toy, gradients=True)
    refused(taps, "TensorRT-RTX has no plug-ins", gpu.library._replace(flavour=RTX))
    eigen = with_taps(make_toy(manifest={"method": "gradcam-eigen"}), gradients=False)
    refused(eigen, "there is no kernel for the method gradcam-eigen, only for gradcam, gradcam++")
    monkeypatch.delattr(FakePlugins, "aot_impl")
    refused(taps, "tensorrt 11.4.0.106 has no plug-ins that are compiled beforehand; take TensorRT 10.9 or later")
    monkeypatch.delitem(sys.modules, "fake_tensorrt.plugin")
    refused(taps, "has no plug-ins that are compiled beforehand")
    monkeypatch.setattr(plugin, "PTX", tmp_path / "none")
    refused(taps, "was built without CUDA and has no kernel for a plan; install it where there is an nvcc")
    with pytest.raises(BackendError, match="trtexec does not know the plug-in"):
        write_script(taps, tmp_path / "build.sh", OPTIONS)


def test_a_plug_in_that_the_library_refuses(gpu, plugins, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "_created", lambda *tensors, **attributes: None)
    with pytest.raises(BackendError, match=r"does not take the plug-in; leave --map-kernel out\.$"):
        build_plan(with_taps(toy, gradients=False), tmp_path / "out.plan", gpu.library, OPTIONS)


def test_the_command(gpu, plugins, toy, capsys, monkeypatch):
    monkeypatch.setattr(library, "is_installed", lambda flavour: flavour == TENSORRT)
    taps = with_taps(toy, gradients=False)
    assert main(["build", str(taps), "--map-kernel", "plugin"]) == 0
    assert "the map is drawn by a kernel inside the plan" in capsys.readouterr().out
    assert main(["build", str(toy.path), "--map-kernel", "plugin"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("finercam: ")
    assert error.count("\n") == 1


def test_what_is_asked_of_tensorrt():
    """Of the two libraries that are recorded, as they print the signatures of their functions' first forms."""
    from finercam_rt.tensorrt import api

    from .test_api import _members

    for interface in recorded().values():
        for name, protocol in api.PLUGIN_CLASSES.items():
            for member, parameters in _members(protocol).items():
                assert member in interface[name], f"{name}.{member}"
                if member != "add_plugin":  # which has several forms; the test below calls for the one
                    assert interface[name][member] == parameters, f"{name}.{member}"


REAL = '''
import json, sys
from pathlib import Path
folder, repository, ptx = map(Path, sys.argv[1:])
sys.path.insert(0, str(repository))
from tests.tensorrt.interfaces import _import_without_libraries
trt = _import_without_libraries(folder)
sys.modules["tensorrt"] = trt
import tensorrt_bindings.plugin as trtp
from finercam_rt.tensorrt import plugin
from finercam_rt.tensorrt.library import Library


class Number:
    """In place of what TensorRT's own libraries would make."""

    def __init__(self, value):
        self.value = value

    def is_constant(self):
        return isinstance(self.value, int)

    def get_constant_value(self):
        return self.value


class Numbers:
    constant = Number

    def operation(self, operation, a, b):
        raise AssertionError("no size is computed")


class Dims(list):
    def __init__(self, length):
        super().__init__([None] * length)


class Scalars(dict):
    pass


def given(shape):
    """A tensor as a build describes it."""
    tensor = trt.DynamicPluginTensorDesc()
    for name, count in (("min", 1), ("opt", 4), ("max", 16)):
        setattr(tensor, name, trt.Dims([count if size == "N" else size for size in shape]))
    tensor.desc.dims = trt.Dims([-1 if size == "N" else size for size in shape])
    tensor.desc.type, tensor.desc.format = trt.float32, trt.TensorFormat.LINEAR
    return tensor


plugin.PTX = ptx
library = Library("tensorrt", trt.__version__, trt)
definition = plugin._registered(library)
assert plugin._registered(library) is definition
assert "func: collections.abc.Callable, aot: bool" in trt.INetworkDefinition.add_plugin.__doc__
trt.IDimensionExpr, trt.DimsExprs = Number, Dims
trtp._tensor.SymExprImpl = lambda expression: expression._expr
found = []
for case in json.loads(sys.stdin.read()):
    attributes = case["attributes"]
    made = trtp._plugin_class._TemplateAOTPlugin("cam", "finercam", 1)
    made.init(definition.register_func, attributes, definition.aot_impl_attr_names, definition.aot_impl_func,
              definition.autotune_attr_names, definition.autotune_func)
    shapes = case["activations"], case["second"]
    types = made.get_output_data_types([trt.float32] * 2, [len(shape) for shape in shapes])
    assert types == [trt.float32], types
    inputs = [[Number(size) for size in shape] for shape in shapes]
    (output,) = made.get_output_shapes(inputs, [], Numbers())
    described = [given(shape) for shape in (*shapes, [size.value for size in output])]
    combinations = made.get_supported_format_combinations(described, 2)
    assert [c.type for c in combinations] == [trt.float32] * 3
    assert [c.format for c in combinations] == [trt.TensorFormat.LINEAR] * 3
    made.configure_plugin(described[:2], described[2:])
    assert made.get_valid_tactics() == []
    made.set_tactic(0)
    launch, scalars = Scalars(), Scalars()
    made.get_launch_params(inputs, described, 2, launch, scalars, Numbers())
    descriptions = [tensor.desc for tensor in described]
    name, code = made.get_kernel(descriptions[:2], descriptions[2:])
    blocks = (launch.grid_x, launch.grid_y, launch.grid_z, launch.block_x, launch.block_y, launch.block_z)
    found.append({
        "shape": [size.value for size in output],
        "launch": [size.value for size in (*blocks, launch.shared_mem)],
        "scalars": [scalars[i].value for i in range(scalars.nbSymExprs)],
        "kernel": name,
        "code": code.decode(),
    })
print(json.dumps(found))
'''


def test_tensorrts_own_validators_take_it(tmp_path):
    """The bindings of 11.4, whose Python registers a plug-in and reads its kernel, launch and integers."""
    spec = importlib.util.find_spec("tensorrt_bindings")
    if spec is None or spec.origin is None:
        pytest.skip("tensorrt-cu13-bindings is not installed")
    names = ("kernel", "layout", "height", "width", "prefix_tokens", "channels", "contrasts")
    tokens = ("channel_weights", "tokens", 14, 14, 1, 768, 1)
    planes = ("gradcam++", "nchw", 7, 7, 0, 2048, 5)
    cases = [
        {"attributes": dict(zip(names, tokens, strict=True)), "activations": ["N", 197, 768], "second": ["N", 768]},
        {
            "attributes": dict(zip(names, planes, strict=True)),
            "activations": ["N", 2048, 7, 7],
            "second": ["N", 5, 2048, 7, 7],
        },
    ]
    for method in ("channel_weights", "gradcam++"):
        (tmp_path / f"{method}.ptx").write_text(f"// {method}")
    folder = Path(spec.origin).parents[1]
    command = [sys.executable, "-c", REAL, folder, Path(__file__).parents[2], tmp_path]
    run = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found[0] == {
        "shape": ["N", 14, 14],
        "launch": [1, "N", 13, 256, 1, 1, 0],
        "scalars": [768, 196, 1, 1, 16],
        "kernel": "finercam_cam",
        "code": "// channel_weights",
    }
    assert found[1] == {
        "shape": ["N", 5, 7, 7],
        "launch": [5, "N", 1, 256, 1, 1, 0],
        "scalars": [2048, 49, 0, 0, 49],
        "kernel": "finercam_cam",
        "code": "// gradcam++",
    }
