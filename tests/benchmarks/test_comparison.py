"""The case table, the graphs of a case, the verification before timing, another environment, memory."""

from __future__ import annotations

import json
import mmap
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")

import torch
from comparison import catalogue, engines, memory, verification
from comparison.cases import CASES, CLS_VIT, DEVICE_CASES, TOY_CASES, find_cases, images_of, load
from comparison.catalogue import CONTENDERS, NAMES
from comparison.contenders import (
    GRADCAM,
    GROUPS,
    OURS,
    PLAIN,
    TORCH,
    TORCHCAM,
    XAI,
    XAI_BF16,
    Answer,
    Setting,
    goals_of,
)
from comparison.environment import describe
from comparison.verification import EXACT, REDUCED, SANE
from comparison.worker import unfit
from comparison.xai_process import openvino_xai
from gpu import calls, models
from gpu.clock import HostClock
from gpu.contenders import PRECISIONS, contenders_of

from finercam_rt.arrangement import Arrangement
from finercam_rt.errors import BackendError
from finercam_rt.manifest import LayerInfo
from finercam_rt.onnx_metadata import read_manifest

from .conftest import BENCHMARKS


@pytest.fixture(scope="module", params=TOY_CASES, ids=lambda case: case.name)
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, engines.Build]:
    """A toy case and its graphs; the variants of one of them."""
    case = request.param
    graphs = engines.build_of(case, tmp_path_factory.mktemp("graphs"))
    engines.build(case, graphs, catalogue.variants_of(case, NAMES) if case.family == CLS_VIT else ())
    return case, graphs


def test_names_are_unique_and_families_have_goals() -> None:
    table = [*CASES, *TOY_CASES]
    assert len({case.name for case in table}) == len(table)
    assert all(0.9 < case.goal <= 1.1 for case in table)
    assert find_cases(None) == list(CASES)
    with pytest.raises(ValueError, match="toy_cnn"):
        find_cases(["resnet51"])


def test_groups_compare_what_they_measure() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert {name for group in GROUPS for name in group.contenders} == set(NAMES)
    pairs = {pair for group in GROUPS for pair in group.ratios}
    for group in GROUPS:
        assert set(group.anchors) < set(group.contenders)
        assert {name for pair in group.ratios for name in pair} == set(group.contenders)
    for case in CASES:  # a goal that no group measures would never be missed
        assert {(goal.over, goal.under) for goal in goals_of(case)} <= pairs
    assert GROUPS[0].batches(2, [16, 1]) == [1, 16]
    assert GROUPS[2].batches(1, [16, 4, 1]) == [1, 4]
    assert GROUPS[2].batches(3, [1]) == []


def test_a_case_loads_the_same_weights_every_time() -> None:
    first, second = (load(TOY_CASES[0]).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_smaller_batch_is_the_beginning_of_a_larger_one() -> None:
    assert np.array_equal(images_of(4, (8, 8)), images_of(16, (8, 8))[:4])


def test_graphs_are_found_again_only_for_the_same_case(tmp_path: Path) -> None:
    names = {engines.build_of(case, tmp_path).folder.name for case in (*CASES, *TOY_CASES)}
    assert len(names) == len(CASES) + len(TOY_CASES)
    assert engines.build_of(CASES[0], tmp_path) == engines.build_of(CASES[0], tmp_path)


def test_a_build_is_recorded(toy: tuple[Any, engines.Build]) -> None:
    case, graphs = toy
    record = graphs.record
    assert record["engine_bytes"] == graphs.graph("engine").stat().st_size
    assert record["forward_bytes"] == graphs.graph("forward").stat().st_size
    assert record["export_peak_mib"] >= record["loaded_peak_mib"] > record["weights_mib"] > 0
    assert graphs.left_out == {}
    assert {path.stem for path in graphs.folder.glob("*.onnx")} == {
        *("engine", "forward"),
        *(catalogue.variants_of(case, NAMES) if case.family == CLS_VIT else ()),
    }
    assert graphs.missing(["engine", "other"]) == ["other"]
    with pytest.raises(FileNotFoundError, match="not asked for"):
        graphs.graph("other")
    assert [path for path in graphs.folder.parent.iterdir() if path.name.startswith(".")] == []


def test_a_variant_that_cannot_be_made_is_left_out_with_the_reason(toy: tuple[Any, engines.Build]) -> None:
    case, graphs = toy
    copy = engines.Build(graphs.folder.with_name("copy"))
    shutil.copytree(graphs.folder, copy.folder)
    for path in (*copy.folder.glob("*.txt"), copy.path("int8_forward")):
        path.unlink(missing_ok=True)
    copy.path("int8").write_bytes(b"")
    engines.build(case, copy, ["int8_forward"])
    assert list(copy.left_out) == ["int8_forward"]
    assert copy.missing(["int8_forward"]) == []
    with pytest.raises(FileNotFoundError, match=r"there is no int8_forward graph: \w*Error"):
        copy.graph("int8_forward")


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: contender.name)
def test_contenders_are_right_and_wrong_answers_are_refused(toy: tuple[Any, engines.Build], contender: Any) -> None:
    case, graphs = toy
    manifest = read_manifest(graphs.graph("engine"))
    model = load(case).model
    setting = Setting(case, graphs, model, manifest.layers[0], threads=1)
    reason = unfit(contender, setting)
    if reason is not None:
        pytest.skip(reason)
    try:
        bind = contender.make(setting)
    except FileNotFoundError as error:  # a variant that was left out, or an environment that is not here
        pytest.skip(str(error))
    except BackendError as error:
        if "does not compute in bf16" not in str(error):
            raise
        pytest.skip(str(error))
    batch = images_of(3, manifest.input.size)
    expected = graphs.oracle()
    answer = bind(batch).call()
    measured = verification.check(answer, expected, contender.map_of, contender.tolerance)
    if contender.tolerance == EXACT:
        errors = [measured[key] for key in ("logits_relative_max", "normalised_map_relative_l2") if key in measured]
        assert errors
        assert max(errors) < 1e-3

    wrong = []
    if answer.logits is not None:
        wrong.append(Answer(-torch.as_tensor(answer.logits), answer.saliency_map))
    if contender.map_of is not None:
        saliency_map = torch.as_tensor(np.asarray(answer.saliency_map))
        wrong.append(Answer(answer.logits, saliency_map * torch.nan))
        if contender.tolerance == EXACT:
            wrong.append(Answer(answer.logits, saliency_map.flip(-2)))
    for other in wrong:
        with pytest.raises(ValueError, match="differ"):
            verification.check(other, expected, contender.map_of, contender.tolerance)


def test_models_are_compared_as_on_a_gpu(toy: tuple[Any, engines.Build], monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's way of measuring, on the CPU."""
    pytest.importorskip("torchcam")
    case, graphs = toy
    monkeypatch.setattr(models, "build_of", lambda _: graphs)
    names = (OURS, PLAIN, "finercam-rt plan", TORCHCAM)
    job = models.ModelJob(case.name, "fp32", names, (1, 2), 0.01)
    found = list(models.measure(job, HostClock()))
    assert [record["batch"] for record in found] == [1, 2]
    for record in found:
        assert set(record["latency_ms"]) == set(record["queued_ms"]) == {OURS, PLAIN, TORCHCAM}
        assert record["queued_ratios"][f"{TORCHCAM} / {OURS}"]["ratio"] > 0
        assert f"{OURS} / {PLAIN}" in record["latency_ratios"]
        assert record["verification"][OURS]["normalised_map_relative_l2"] < 1e-3
        assert "tensorrt" in record["left_out"]["finercam-rt plan"]
        assert record["images_per_s"][OURS] > 0
    monkeypatch.setattr(calls, "build_of", lambda _: graphs)
    cost = calls.measure(HostClock())
    assert cost["python_us"] == cost["call_us"]["median"] - cost["runtime_us"]["median"]

    def broken(*_: object, **__: object) -> None:
        raise ValueError("its map differs")

    monkeypatch.setattr(models, "check", broken)
    with pytest.raises(ValueError, match=f"{OURS}: batch 1: ValueError: its map differs"):
        list(models.measure(job, HostClock()))


def test_the_gpus_graphs_are_made_by_somebody() -> None:
    assert set(PRECISIONS) == {"fp32", "fp16"}
    for precision in PRECISIONS:
        assert {OURS, PLAIN, TORCH, TORCHCAM, GRADCAM, f"{TORCH} compiled"} <= set(contenders_of(precision))
    assert {engines.FP16, engines.FP16_FORWARD} < set(engines.VARIANTS)
    assert all(find_cases([case.name]) == [case] for case in DEVICE_CASES)


def test_windows_are_put_in_order() -> None:
    """Shifted ones, folded into the batch, by the arrangement of a layer's output."""
    maps = torch.arange(2 * 3 * 8 * 12.0).reshape(2, 3, 8, 12)
    windows = maps.roll((-2, -3), (2, 3)).reshape(2, 3, 2, 4, 2, 6).permute(0, 2, 4, 3, 5, 1).reshape(8, 24, 3)
    split, merged = (-1, 2, 2, 4, 6, 3), (-1, 8, 12, 3)
    how = Arrangement("windows", (-1, 24, 3), split, (0, 1, 3, 2, 4, 5), merged, (2, 3, 0))
    assert torch.equal(verification.channels_first(windows, LayerInfo("x", "nhwc", (8, 12), 0, how)), maps)


@pytest.mark.parametrize(
    "several", [lambda x: x, lambda x: (x, None), lambda x: {"loss": None, "last_hidden_state": x}]
)
def test_a_layer_may_give_its_features_among_others(several: Any) -> None:
    class Block(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return several(2 * x)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * verification.features_of(self.block(x)).relu_().sum((2, 3))

    images = torch.rand(2, 3, 4, 4) - 0.5
    leaf, logits = verification.run_with_leaf(Model(), "block", images)
    assert torch.equal(leaf, 2 * images)
    (gradient,) = torch.autograd.grad(logits.sum(), leaf)
    assert torch.equal(gradient, 3.0 * (images > 0))


def test_the_oracle_is_the_formula(toy: tuple[Any, engines.Build]) -> None:
    """Against the gradient of each activation taken by finite differences, in float64."""
    case, graphs = toy
    layer, oracle = read_manifest(graphs.graph("engine")).layers[0], graphs.oracle()
    model = load(case).model.double()
    images = torch.from_numpy(images_of(1, read_manifest(graphs.graph("engine")).input.size)).double()
    offset: list[torch.Tensor] = [torch.zeros(())]
    seen: list[torch.Tensor] = []

    def hook(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        seen[:] = [output]
        return output + offset[0]

    handle = model.get_submodule(layer.name).register_forward_hook(hook)

    def objective() -> torch.Tensor:
        scores = model(images)
        references = scores[:, order[1:4]]
        return scores[:, order[0]] - (references.softmax(1) * references).sum(1)

    with torch.no_grad():
        order = model(images)[0].argsort(descending=True)
        activations = seen[0]
        # the pooled gradient is what the objective does when a channel is raised everywhere (but in prefix tokens)
        channels = activations.shape[1 if layer.layout == "nchw" else -1]
        steps = torch.zeros(channels, *activations.shape[1:], dtype=torch.float64)
        for channel in range(channels):
            if layer.layout == "nchw":
                steps[channel, channel] = 1e-5
            else:
                steps[channel, layer.prefix_tokens :, channel] = 1e-5
        images, values = images.expand(channels, -1, -1, -1), []
        for sign in (1, -1):
            offset[0] = sign * steps
            values.append(objective())
        weights = (values[0] - values[1]) / 2e-5
    handle.remove()
    features = verification.channels_first(activations, layer)[0]
    expected = torch.relu((weights[:, None, None] * features).sum(0)) / features[0].numel()
    assert np.allclose(oracle["weighted"][0], expected.numpy(), rtol=1e-3, atol=1e-4 * float(expected.max()))
    assert np.array_equal(oracle["five"][:, 0], oracle["weighted"])
    assert not np.allclose(oracle["mean"], oracle["weighted"], rtol=1e-3)


def test_reduced_precision_is_held_to_a_cosine_and_other_methods_to_sanity() -> None:
    rng = np.random.default_rng(0)
    maps, logits = rng.random((3, 5, 5)), rng.standard_normal((3, 8))
    expected = {"logits": logits, "weighted": maps}
    near = Answer(logits * 1.1, maps + 0.1 * rng.random((3, 5, 5)))
    assert verification.check(near, expected, "weighted", REDUCED)["map_cosine_median"] > 0.95
    for wrong in (Answer(logits, -maps), Answer(logits * 2, maps)):
        with pytest.raises(ValueError, match="differ"):
            verification.check(wrong, expected, "weighted", REDUCED)
    assert verification.check(Answer(logits, -maps), expected, "other", SANE)["same_class"] == 1
    with pytest.raises(ValueError, match="constant"):
        verification.check(Answer(logits, np.ones((3, 5, 5))), expected, "other", SANE)


SERVER = """\
import json, sys, numpy as np
assert "comparison" not in sys.modules
print(json.dumps({"arguments": sys.argv[2:]}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "bind" in request:
        images = np.load(request["bind"])["images"]
        answer = {} if len(images) < 3 else {"error": "one or two images"}
    elif "save" in request:
        maps = np.stack([np.full((2, 2), label) for label in range(3)])
        np.savez(request["save"], logits=np.eye(3)[[1] * len(images)], saliency_map=np.stack([maps] * len(images)))
        answer = {}
    else:
        answer = {"cpu": 2.0, "wall": 3.0}
    print(json.dumps(answer), flush=True)
"""


def test_another_environment_answers_over_pipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: tuple[Any, engines.Build]
) -> None:
    case, graphs = toy
    (tmp_path / "server.py").write_text(SERVER)
    monkeypatch.setattr("comparison.xai_process.SERVER", tmp_path / "server.py")
    setting = Setting(case, graphs, None, read_manifest(graphs.graph("engine")).layers[0], 1)
    with pytest.raises(FileNotFoundError, match="--help"):
        openvino_xai("f32")(setting)
    here = replace(setting, openvino_xai=Path(sys.executable), scratch=tmp_path)
    bind = openvino_xai("f32")(here)
    bound = bind(np.zeros((2, 3, 4, 4), np.float32))
    assert bound.call().saliency_map.tolist() == [[[1, 1], [1, 1]]] * 2  # the predicted class's
    assert bound.clock is not None
    assert bound.clock() == (2.0, 3.0)
    with pytest.raises(RuntimeError, match="one or two images"):
        bind(np.zeros((3, 3, 4, 4), np.float32))


def test_the_openvino_xai_server_says_what_went_wrong(tmp_path: Path) -> None:
    """In this environment, which lacks the package: an answer, not a traceback."""
    command = [sys.executable, "-I", BENCHMARKS / "comparison" / "xai_server.py", "none.onnx", "RECIPROCAM", "1", "f32"]
    ran = subprocess.run(command, capture_output=True, text=True, input="", check=False)
    assert "error" in json.loads(ran.stdout)
    assert ran.returncode == 0


def test_openvino_xai_is_asked_for_one_image_alone() -> None:
    assert {catalogue.find_contender(name).batches for name in (XAI, XAI_BF16)} == {(1,)}


def test_a_peak_is_of_what_is_used_and_not_of_what_was() -> None:
    # pages of the system's own, which closing gives back: whether free() does so depends on what ran before in here
    def take(mib: int) -> mmap.mmap:
        block = mmap.mmap(-1, mib << 20)
        block[::4096] = b"1" * (mib << 8)
        return block

    block = take(64)
    memory.reset_high_water()
    before = memory.high_water_mib()
    block.close()
    memory.reset_high_water()
    assert memory.high_water_mib() < before - 60
    take(32).close()
    assert memory.high_water_mib() > memory.resident_mib() + 25
    # small blocks below the top of the heap are freed to glibc, and given back by the reset alone
    pieces = [bytes(2000) for _ in range(20_000)]
    top = bytes(2000)
    held = memory.resident_mib()
    del pieces
    memory.reset_high_water()
    assert memory.high_water_mib() < held - 20
    assert len(top) == 2000


def test_a_machine_without_git_has_the_commit_that_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("FINERCAM_COMMIT", "abc")
    found = describe(("torch",))
    assert (found["commit"], found["sources_changed"]) == ("abc", None)
    assert found["versions"]["torch"]
