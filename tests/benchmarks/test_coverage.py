"""The sweep: which members, which weights, what is right, what a case comes to, and one toy from start to end."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")

import torch
from sweep import check, families, oracle, outcome, process, records, rtx, tables
from sweep.cases import BASE, VARIANTS, SweepCase, draw_families, earlier_layer, find_variant, own_sizes
from sweep.families import Member, choose
from sweep.oracle import Contrast, Oracle, choice_error, degenerate, placement
from sweep.weights import randomise
from torch import nn

from finercam_rt.errors import EngineError
from finercam_rt.manifest import LayerInfo

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TABLE = {
    "timm/a": [Member("timm/a", "timm:a1", 100), Member("timm/a", "timm:a2", 200)],
    "timm/b": [Member("timm/b", "timm:b1", 900)],
    "torchvision/a": [Member("torchvision/a", "torchvision:a", 50)],
}


@pytest.fixture(scope="module")
def script() -> Any:
    """coverage.py by its path: a package of that name may be installed."""
    spec = importlib.util.spec_from_file_location("coverage_script", BENCHMARKS / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# which models


def test_the_smallest_members_are_chosen() -> None:
    found, left_out = choose(TABLE, 1, 500, None)
    assert [member.specification for member in found] == ["timm:a1", "torchvision:a"]
    assert list(left_out) == ["timm/b"]
    found, left_out = choose(TABLE, 2, 1000, ["a"])
    assert [member.specification for member in found] == ["timm:a1", "timm:a2", "torchvision:a"]
    assert left_out == {}
    assert [m.specification for m in choose(TABLE, 2, 1000, ["torchvision/a"])[0]] == ["torchvision:a"]
    (single,) = choose(TABLE, 1, 1000, ["timm:test_vit"])[0]
    assert (single.family, single.parameters) == ("timm/vision_transformer", 371240)
    for members, only in ((0, None), (families.KEPT + 1, None), (1, ["c"]), (1, ["timm:resnet51"])):
        with pytest.raises(ValueError, match=r"give 1|there is no"):
            choose(TABLE, members, 1000, only)


def test_families_that_are_no_classifiers_are_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.NOT_COVERED, "timm/a", "it has no map")
    found, left_out = choose(TABLE, 1, 1000, None)
    assert [member.family for member in found] == ["timm/b", "torchvision/a"]
    assert left_out == {"timm/a": "it has no map"}


def test_the_picks_are_those_of_the_libraries() -> None:
    content = json.loads(families.PICKS.read_text())
    if any(families.metadata.version(name) != version for name, version in content["versions"].items()):
        pytest.skip("picks.json is of other versions of timm and torchvision")
    members = dict(families.architectures())
    assert content["families"].keys() == members.keys()
    assert len(members) > 100
    for family, rows in content["families"].items():
        assert rows == sorted(rows, key=lambda row: (row[1], row[0])), family
        assert {name for name, _ in rows} <= set(members[family])
        assert not any(name.startswith(families.TOYS) for name, _ in rows)
    assert families._count("timm:resnet10t") == dict(content["families"]["timm/resnet"])["timm:resnet10t"]


def test_variants_are_asked_of_drawn_families() -> None:
    names = [f"timm/{letter}" for letter in "abcdefghij"]
    drawn = draw_families(names, 4, seed=1)
    assert len(drawn) == 4
    assert drawn == draw_families(names[::-1], 4, seed=1)[::-1]
    assert drawn != draw_families(names, 4, seed=2)
    assert draw_families(names, 99, seed=1) == names
    assert find_variant("wide").candidates((224, 224))[0] == (224, 336)
    assert find_variant("odd").candidates((224, 192)) == [(299, 215)]
    assert [variant.name for variant in VARIANTS if not variant.keeps_size] == ["larger", "wide", "odd"]
    assert own_sizes((384, 288)) == [(384, 288)]
    assert own_sizes((1024, 1024)) == [(256, 256), (252, 252), (1024, 1024)]


@pytest.mark.parametrize(
    ("layer", "names", "earlier"),
    [
        ("blocks.11.norm1", [f"blocks.{i}.norm1" for i in range(12)], "blocks.5.norm1"),
        ("layer4", ["layer1", "layer2", "layer3", "layer4"], "layer3"),
        ("stages.3", ["stages.0", "stages.2", "stages.3"], "stages.2"),
        ("stages.0", ["stages.0"], "stages.0"),
        ("conv_head", ["blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.0.1"], "blocks.1"),
        ("norm", ["norm", "trunk"], None),
    ],
)
def test_an_earlier_layer(layer: str, names: list[str], earlier: str | None) -> None:
    assert earlier_layer(layer, names) == earlier


# weights


class Residual(nn.Module):
    """Every trap of freshly made models: a silent layer scale, a zero last norm, a weak linear layer, zero biases."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.last_norm = nn.BatchNorm2d(6)
        self.gamma = nn.Parameter(1e-6 * torch.ones(6, 1, 1))
        self.head = nn.Linear(6, 5)
        nn.init.zeros_(self.last_norm.weight)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        nn.init.zeros_(self.conv.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(images)).relu()
        x = x + self.gamma * self.last_norm(x)
        return self.head(x.mean((2, 3)))


def test_random_weights_have_no_silent_branch() -> None:
    torch.manual_seed(0)
    model, images = Residual().eval(), 3 + torch.randn(4, 3, 16, 16)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    randomise(model, images, seed=1)
    first = {key: value.clone() for key, value in model.state_dict().items()}
    assert not any(module.training for module in model.modules())
    assert 0.2 <= model.gamma.min() < model.gamma.max() <= 0.6
    assert 0.2 <= model.last_norm.weight.min() < model.last_norm.weight.max() <= 0.6
    assert 0.8 <= model.norm.weight.min() < model.norm.weight.max() <= 1.2
    assert model.conv.bias.std() > 0.01
    assert float(model.head.weight.detach().std()) * 6**0.5 == pytest.approx(0.8)
    assert torch.equal(first["conv.weight"], fresh["conv.weight"])
    with torch.no_grad():
        normalised = model.norm(model.conv(images)).flatten(2).transpose(0, 1).flatten(1)
    # the statistics are those of the images, but for the noise
    assert (normalised.mean(1) - model.norm.bias).abs().max() < 0.6
    assert (model.norm.running_mean.abs() > 0.01).all()
    model.load_state_dict(fresh)
    randomise(model, images, seed=1)
    assert all(torch.equal(first[key], value) for key, value in model.state_dict().items())


# what is right


class Patches(nn.Module):
    """The model of the tests' hand-made engine."""

    def __init__(self, toy: Any) -> None:
        super().__init__()
        classes, channels = toy.weight.shape
        patch = toy.kernel.shape[-1]
        self.conv = nn.Conv2d(3, channels, patch, patch, bias=False)
        self.head = nn.Linear(channels, classes)
        self.conv.weight.data = torch.from_numpy(toy.kernel.copy())
        self.head.weight.data = torch.from_numpy(toy.weight.copy())
        self.head.bias.data = torch.from_numpy(toy.bias.copy())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(images).mean((2, 3)))


CONV = LayerInfo("conv", "nchw", (4, 6))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 48, generator=torch.Generator().manual_seed(4))


def test_the_oracle_is_the_closed_form(toy: Any, images: torch.Tensor) -> None:
    judge = Oracle(Patches(toy).eval(), CONV, images)
    contrast = judge.nearest(3)
    found = judge.expected(contrast)
    for row, image in enumerate(images.numpy()):
        target, references = int(contrast.target[row]), contrast.references[row].tolist()
        assert target == int(toy.logits(image[None])[0].argmax())
        assert references == toy.nearest(toy.logits(image[None])[0], target)
        expected = toy.raw_map(image, target, references, 1.0)
        assert np.linalg.norm(found.saliency_map[row] - expected) < 1e-5 * found.scale[row]
    one = Contrast(*(part[:1] for part in contrast))
    assert np.allclose(judge.expected(one).saliency_map, found.saliency_map[:1])
    assert choice_error(judge.logits, contrast) == 0
    other = contrast._replace(references=np.roll(contrast.references, 1, axis=1))
    assert choice_error(judge.logits, other) == 0  # in whatever order
    assert choice_error(judge.logits, contrast._replace(target=contrast.references[:, 0])) == np.inf
    assert choice_error(judge.logits, contrast._replace(references=contrast.references[:, [0, 0, 1]])) == np.inf
    farthest = np.argsort(judge.logits, axis=1)[:, :3]
    assert choice_error(judge.logits, contrast._replace(references=farthest)) > 1e-3
    exact = judge.in_float64()
    assert exact is not None
    assert 0 < oracle.map_error(exact.expected(contrast).saliency_map, found) < 1e-5


def test_an_engine_that_is_right_and_one_that_is_wrong(
    make_toy: Callable[..., Any], images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_toy()
    judge = Oracle(Patches(toy).eval(), CONV, images)
    found = check.check(toy.path, "onnxruntime", judge)
    assert found["status"] == outcome.RIGHT
    assert 0 < found["map_error"] < 1e-5
    assert 0 < found["logit_error"] < 1e-5

    other = Patches(toy).eval()
    with torch.no_grad():
        other.head.weight[0] *= 1.01
    found = check.check(toy.path, "onnxruntime", Oracle(other, CONV, images))
    assert found["status"] == outcome.WRONG

    class Flipped(check.Engine):
        """Its logits are right, and its maps are upside down."""

        def __call__(self, *args: Any, **options: Any) -> Any:
            outputs = super().__call__(*args, **options)
            return outputs._replace(saliency_map=outputs.saliency_map[:, ::-1])

    with monkeypatch.context() as patch:
        patch.setattr(check, "Engine", Flipped)
        found = check.check(toy.path, "onnxruntime", judge)
    assert found["status"] == outcome.WRONG
    assert found["map_error"] > 0.1
    assert found["rounding"]["engine"]["saliency_map"] > 0.1
    assert found["rounding"]["pytorch"]["saliency_map"] < 1e-5

    class Silent(check.Engine):
        def __call__(self, *args: Any, **options: Any) -> Any:
            outputs = super().__call__(*args, **options)
            return outputs._replace(saliency_map=np.full_like(outputs.saliency_map, np.nan))

    with monkeypatch.context() as patch:
        patch.setattr(check, "Engine", Silent)
        found = check.check(toy.path, "onnxruntime", judge)
    assert (found["status"], found["map_error"]) == (outcome.WRONG, None)

    def refuse(*args: Any, **options: Any) -> None:
        raise EngineError(f"{toy.path}: it cannot be loaded.")

    monkeypatch.setattr(check, "Engine", refuse)
    found = check.check(toy.path, "onnxruntime", judge)
    assert found == {"status": outcome.REFUSED, "reason": "toy.onnx: it cannot be loaded."}


def test_engines_of_several_contrasts_are_held_too(make_toy: Callable[..., Any], images: torch.Tensor) -> None:
    toy = make_toy(contrasts=3)
    found = check.check(toy.path, "onnxruntime", Oracle(Patches(toy).eval(), CONV, images))
    assert found["status"] == outcome.RIGHT
    assert 0 < found["map_error"] < 1e-5


def test_what_proves_nothing_is_named(toy: Any, images: torch.Tensor) -> None:
    model = Patches(toy).eval()
    assert degenerate(Oracle(model, CONV, images), 3) is None
    assert "same for every image" in str(degenerate(Oracle(model, CONV, images[:1].expand(3, -1, -1, -1)), 3))
    with torch.no_grad():
        model.head.weight.fill_(torch.nan)
    assert "not finite" in str(degenerate(Oracle(model, CONV, images), 3))


def test_a_grid_that_does_not_lie_on_the_image_is_seen(toy: Any, images: torch.Tensor) -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.turned, self.tokens = Patches(toy), nn.Identity(), nn.Identity()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = self.inner.conv(images)
            self.turned(x.transpose(2, 3).reshape(len(x), -1, 4, 6))
            self.tokens(x.flatten(2).transpose(1, 2))
            return x

    model = Turned().eval()
    readings = (LayerInfo("inner.conv", "nchw", (4, 6)), LayerInfo("tokens", "tokens", (4, 6)))
    wrong = (LayerInfo("turned", "nchw", (4, 6)), LayerInfo("tokens", "tokens", (6, 4)))
    assert all(placement(model, layer, images, 1) > 0.9 for layer in readings)
    assert all(placement(model, layer, images, 1) < records.LEAST_PLACEMENT for layer in wrong)


# what a case comes to


def _record(family: str = "timm/a", variant: str = BASE, **stages: Any) -> dict[str, Any]:
    found = {
        "model": {"size": [224, 224], "parameters": 1_500_000},
        "export": {
            "layers": [{"name": "blocks.1", "layout": "tokens", "grid": [14, 14], "prefix_tokens": 1}],
            "passes": [
                "batch norm: folded 0 of 3",
                "select sinking: 1 of 9",
                "select sinking: 1 of 9",
                "seed: sparse, x",
            ],
        },
        "oracle": {"degenerate": None, "placement": 0.99},
        "onnxruntime": {"status": "right", "map_error": 1.2e-6, "logit_error": 3e-7, "rounding": None},
        "cost": {"ratio": 0.956},
        "tensorrt-rtx": {"status": "builds", "seconds": 3.4, "bytes": 5},
    }
    for name, value in stages.items():
        found[name.replace("_", "-")] = value
    keys = ("cpu", "logical_cpus", "commit", "sources_changed")
    return {
        "identity": f"{family} timm:x {variant}",
        "key": "0",
        "family": family,
        "specification": "timm:x",
        "variant": variant,
        "runtimes": ["onnxruntime"],
        "environment": {**dict.fromkeys(keys), "versions": {"python": "3"}},
        "stages": {name: value for name, value in found.items() if value is not None},
        "ended": {},
    }


CASES = [
    ({}, {}, "right"),
    ({"openvino": {"status": "refused", "reason": "no Gather"}}, {}, "partly"),
    ({"tensorrt_rtx": {"status": "refused", "operation": "Einsum", "reason": "r"}}, {}, "partly"),
    ({"tensorrt_rtx": {"status": "not installed", "reason": "r"}}, {}, "right"),
    ({"export": {"refused": "no layer was found."}, "oracle": None, "onnxruntime": None}, {}, "refused"),
    ({"oracle": {"degenerate": "the maps are constant", "placement": 0.9}}, {}, "untested"),
    ({"export": None, "oracle": None, "onnxruntime": None}, {"export": "exit code 1: KeyError"}, "crashed"),
    ({}, {"openvino": "exit code -11: no message"}, "crashed"),
    ({"model": {"not_accepted": "it has no head"}}, {}, "crashed"),
    ({"onnxruntime": {"status": "wrong", "reason": "it differs", "map_error": None}}, {}, "wrong"),
    ({"openvino": {"status": "wrong", "reason": "it differs", "map_error": 0.3}}, {"tensorrt-rtx": "killed"}, "wrong"),
    ({"oracle": {"degenerate": None, "placement": 0.5}}, {}, "wrong"),
]


@pytest.mark.parametrize(("stages", "ended", "verdict"), CASES)
def test_the_verdict_of_a_case(stages: dict[str, Any], ended: dict[str, str], verdict: str) -> None:
    record = {**_record(**stages), "ended": ended}
    assert records.verdict(record) == verdict
    assert bool(records.reason(record)) == (verdict != "right")


def test_a_variant_that_the_model_itself_refuses_does_not_count() -> None:
    refused = {"model": {"not_accepted": "299x247: AssertionError"}, "export": None}
    assert records.verdict(_record(variant="odd", **refused)) == records.NOT_ACCEPTED
    counts = records.summary([_record(), _record(variant="odd", **refused), _record(variant="wide")])
    assert counts["variants"] == {**dict.fromkeys(records.VERDICTS, 0), "right": 1, "not accepted": 1}
    assert counts["families"]["right"] == sum(counts["families"].values()) == 1


def test_the_summary_and_the_goal() -> None:
    right = [_record(f"timm/{number}") for number in range(19)]
    refused = _record("timm/refused", export={"refused": "why."}, oracle=None, onnxruntime=None)
    wrong = _record("timm/0", openvino={"status": "wrong", "reason": "it differs"})
    found = records.summary([*right, refused])
    assert (found["share_right"], found["goal"]) == (0.95, True)
    assert found["runtimes"] == {"onnxruntime": {"right": 19}, "tensorrt-rtx": {"builds": 20}}
    assert records.summary([*right, refused, refused | {"family": "timm/too"}])["goal"] is False
    found = records.summary([*right, wrong])  # a second member of a family that was right
    assert (found["families"]["wrong"], found["families"]["right"], found["goal"]) == (1, 18, False)
    partly = records.summary([*right, _record("timm/p", openvino={"status": "refused", "reason": "why."})])
    assert (partly["share_right"], partly["share_right_onnxruntime"], partly["goal"]) == (0.95, 1.0, True)
    assert records.summary([])["goal"] is False


def test_the_file_and_its_tables(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    refused = _record("timm/r", export={"refused": "no layer was found."}, oracle=None, onnxruntime=None, cost=None)
    wide = _record(variant="wide", onnxruntime={"status": "wrong", "reason": "it differs", "map_error": 0.2})
    document = {"schema": 1, "kind": "coverage", "command": "c", "left_out": {"timm/l": "too large"}}
    records.write({**document, "records": [_record(), refused, wide]}, path)
    read = records.read(path)
    assert [record["verdict"] for record in read["records"]] == ["right", "refused", "wrong"]
    text = tables.markdown(read)
    row = "| timm/a | x | 1.5 | 224x224 | blocks.1 | tokens +1 | 14x14 | 0.99 | sink, sparse | 0.96 | 1e-06 | 3e-07 |"
    assert row in text
    assert "**2 families: 1 right, 0 partly, 1 refused" in text
    assert "| timm/r (x) | refused | no layer was found. |" in text
    assert "| timm/a (x, wide) | wrong | onnxruntime: it differs |" in text
    assert "| timm/l | too large |" in text
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.json"]
    for change in ({"schema": 2}, {"kind": "x"}, {"records": [{"identity": "x"}]}):
        path.write_text(json.dumps({**document, "records": [], **change}))
        with pytest.raises(ValueError, match=r"c\.json"):
            records.read(path)


# processes


@pytest.mark.parametrize(
    ("code", "ends"),
    [
        ("print('a'); print('b')", None),
        ("print('a'); print('b', flush=True); raise KeyError('missing')", "exit code 1: KeyError: 'missing'"),
        ("print('a'); print('b', flush=True); import os; os.abort()", "exit code -6"),
        ("print('a'); print('b', flush=True); import time; time.sleep(60)", "it took more than 2 s"),
        ("print('a'); print('b', flush=True); x = bytearray(b'1' * (300 << 20)); input()", "MiB of memory"),
    ],
)
def test_a_process_may_end_in_any_way(
    code: str, ends: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "child.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    lines: list[str] = []
    limits = {"seconds": 2.0, "most_mib": 200.0, "stop": threading.Event()}
    reason = process.supervise("child", [], lambda line: lines.append(line.strip()), **limits)
    assert (reason is None) == (ends is None)
    assert ends is None or ends in str(reason)
    assert lines == ["a", "b"]


def test_a_sweep_that_is_stopped_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "child.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    stop = threading.Event()
    stop.set()
    assert process.supervise("child", [], print, seconds=60, most_mib=999, stop=stop) == "the sweep was stopped"


def test_without_the_builder_the_column_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_libs", None)
    assert rtx.build("x.onnx")["status"] == rtx.MISSING


def test_the_builder_builds_or_names_the_operation(toy: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    onnx = pytest.importorskip("onnx")
    found = rtx.build(str(toy.path))
    assert found["status"] == rtx.RIGHT
    assert found["bytes"] > 1000
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4])
    node = onnx.helper.make_node("Unique", ["x"], ["y"])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None])
    graph = onnx.helper.make_graph([node], "g", [value], [other])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "u.onnx")
    found = rtx.build(str(tmp_path / "u.onnx"))
    assert (found["status"], found["operation"]) == (rtx.REFUSED, "Unique")


# the command line


@pytest.mark.slow
def test_a_toy_from_start_to_end_and_resumed(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "toy.json"
    options = ("--only", "timm:test_resnet", "--runtimes", "onnxruntime", "--seconds", 0.2, "--output", output)
    arguments = [str(option) for option in options]
    command = [sys.executable, BENCHMARKS / "coverage.py", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("timm/resnet timm:test_resnet base, ")
    (record,) = records.read(output)["records"]
    assert record["verdict"] == "right"
    stages = record["stages"]
    assert stages["export"]["layers"] == [{"name": "layer4", "layout": "nchw", "grid": [5, 5], "prefix_tokens": 0}]
    assert 0 < stages["onnxruntime"]["map_error"] < 1e-4
    assert 0.8 < stages["cost"]["ratio"] < 2
    assert stages["oracle"]["placement"] > 0.95
    assert (
        "| timm/resnet | test_resnet | 0.5 | 160x160 | layer4 | nchw | 5x5 |" in output.with_suffix(".md").read_text()
    )

    assert script.main(arguments) == 0
    assert "0 cases" in capsys.readouterr().out.splitlines()[-1]
    assert records.read(output)["records"] == [record]


def test_what_is_done_is_left_out(script: Any) -> None:
    args = argparse.Namespace(keep_right=False, runtimes=["onnxruntime"])
    record = _record()
    assert not script._done(None, "0", args)
    assert script._done(record, "0", args)
    assert not script._done(record, "1", args)
    assert script._done(record, "1", argparse.Namespace(keep_right=True, runtimes=["onnxruntime"]))
    assert not script._done(record, "0", argparse.Namespace(keep_right=False, runtimes=["openvino"]))
    case = SweepCase(Member("timm/a", "timm:x", 1), "early")
    assert script._base_layer(case, {record["identity"]: record}) == "blocks.1"
    assert script._base_layer(case, {}) is None


def test_every_case_is_kept_as_soon_as_it_ends(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "c.json"
    monkeypatch.setattr(script, "families", lambda on_family: TABLE)
    monkeypatch.setattr(script, "digest_of", lambda *arguments: "0")
    swept: list[str] = []
    most = [2]

    def sweep(case: SweepCase, digest: str, layer: str | None, *rest: object) -> dict[str, Any]:
        if len(swept) == most[0]:
            raise KeyboardInterrupt
        swept.append(f"{case.member.specification} {case.variant} {layer}")
        record = _record(case.member.family, case.variant)
        return {**record, "identity": case.identity, "key": digest, "runtimes": list(records.RUNTIMES), "seconds": 1.0}

    monkeypatch.setattr(script, "_sweep", sweep)
    arguments = ["--output", str(output), "--variant", "base", "early", "--variant-families", "1", "--jobs", "1"]
    with pytest.raises(KeyboardInterrupt):
        script.main(arguments)
    assert swept == ["torchvision:a base None", "timm:a1 base None"]
    assert [record["family"] for record in records.read(output)["records"]] == ["timm/a", "torchvision/a"]
    most[0] = 99
    assert script.main(arguments) == 0
    # what was left: the third family, and the variant of the one that was drawn, which asks for the base case's layer
    assert swept[2] == "timm:b1 base None"
    assert swept[3].endswith(" early blocks.1")
    assert len(swept) == 4
    assert "**3 families: 3 right" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"c.json", "c.md"}


def test_mistakes_are_one_sentence(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.json").write_text("{}")
    for arguments in (
        ("--only", "resnet51"),
        ("--members", "0"),
        ("--jobs", "0"),
        ("--output", str(tmp_path / "x.txt")),
        ("--output", str(tmp_path / "bad.json")),
    ):
        assert script.main(list(arguments)) == 2
        written = capsys.readouterr()
        assert written.out == ""
        assert written.err.startswith("coverage.py: ")
        assert written.err.count("\n") == 1
