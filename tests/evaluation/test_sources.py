"""The maps of an engine's rows: those that share a run are those of runs of their own, and methods by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from finercam_rt.engine import Engine
from finercam_rt.errors import EngineError, InputError
from finercam_rt.evaluation import evaluate
from finercam_rt.evaluation.perturbation import PERTURBATION, PerturbationOptions, perturbation_source
from finercam_rt.evaluation.rows import Row, plan_rows
from finercam_rt.evaluation.sources import EngineRows, resized
from finercam_rt.tail import Tail

torch: Any = pytest.importorskip("torch", reason="the export needs PyTorch")
pytest.importorskip("scipy", reason="MetaCAM's ROAD needs it")
SIZE = (32, 32)
SEEDS = ("plain", "one:1", "weighted3:0.5")


class Files(NamedTuple):
    """An engine with all taps, its tail, and one of two contrasts."""

    engine: Path
    tail: Path
    several: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    from finercam_rt.export import export_model
    from finercam_rt.manifest import InputSpec

    torch.manual_seed(3)
    model = torch.nn.Sequential()
    model.features = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 4, 4), torch.nn.ReLU(), torch.nn.Conv2d(8, 10, 3, padding=1)
    )
    model.mix = torch.nn.Sequential(torch.nn.Tanh(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model.head = torch.nn.Linear(10, 7)
    folder = tmp_path_factory.mktemp("taps")
    paths = Files(folder / "engine.onnx", folder / "tail.onnx", folder / "several.onnx")
    options: dict[str, Any] = {"target_layer": "features", "head": "taps", "gradients": True}
    options["input"] = InputSpec(SIZE, (0.5,) * 3, (0.25,) * 3, crop_pct=1.0)
    export_model(model.eval(), paths.engine, tail=paths.tail, **options)
    export_model(model, paths.several, contrasts=2, **options)
    return paths


@pytest.fixture
def engine(files: Files) -> Iterator[Engine]:
    with Engine(files.engine, threads=1) as engine:
        yield engine


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((5, 3, *SIZE)).astype(np.float32)


def _maps(engine: Engine, rows: list[Row], images: np.ndarray, tail: Tail | None = None) -> dict[str, np.ndarray]:
    logits = engine(images).logits
    served = EngineRows(engine, rows, tail, PerturbationOptions(masks=40))
    return {maps.row.name: maps.saliency_map for maps in served.maps(images, logits.argmax(axis=1), logits)}


def test_rows_that_share_a_run_are_those_of_runs_of_their_own(files: Files, engine: Engine, images: np.ndarray) -> None:
    rows = plan_rows(["e"], [engine.manifest], None, SEEDS)
    assert len(rows) == 3 * 12 + 2  # fem and eigencam are the same for every seed
    found = _maps(engine, rows, images)
    assert found.keys() == {row.name for row in rows}
    for row in rows:
        references = np.full((5, 3), -2, np.int64)
        references[:, : row.seed.references] = -1
        alone = engine.with_method(row.method)(images, references=references, alpha=row.seed.alpha)
        np.testing.assert_allclose(found[row.name], alone.saliency_map, rtol=1e-5, atol=1e-7)
    assert not np.allclose(found["gradcam plain"], found["gradcam one:1"])
    with Engine(files.several, threads=1) as several:
        together = _maps(several, plan_rows(["e"], [several.manifest], ["gradcam", "layercam"], SEEDS), images)
    for name, maps in together.items():
        np.testing.assert_allclose(maps, found[name], rtol=1e-4, atol=1e-6)


def test_methods_by_name(files: Files, engine: Engine, images: np.ndarray) -> None:
    tail = Tail(files.tail, engine, threads=1)
    rows = plan_rows(["e"], [engine.manifest], PERTURBATION, SEEDS, tails=(0,))
    assert [row.name for row in rows if row.method == "micam"] == ["micam plain"]
    found = _maps(engine, rows, images, tail)
    assert len(found) == 3 * (len(PERTURBATION) - 1) + 1
    for row in rows:
        source = perturbation_source(row.method, engine, tail, PerturbationOptions(masks=40))
        assert source.name == row.method
        references = np.full((5, 3), -2, np.int64)
        references[:, : row.seed.references] = -1
        wanted = source.explain(images, None, references, row.seed.alpha).saliency_map
        np.testing.assert_allclose(found[row.name], wanted, rtol=1e-4, atol=1e-6, err_msg=row.name)
        if row.seed.name != "plain" and row.method not in ("scorecam", "metacam"):
            assert not np.allclose(found[row.name], found[f"{row.method} plain"]), row.name


def test_seeds_share_the_runs_on_perturbed_images(
    engine: Engine, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict, seen = Engine.logits, []

    def counted(self: Engine, batch: np.ndarray) -> np.ndarray:
        seen.append(len(batch))
        return predict(self, batch)

    runs = {}
    for seeds in (SEEDS[:1], SEEDS):
        for method in ("scorecam", "rise"):
            seen.clear()
            with monkeypatch.context() as patch:
                patch.setattr(Engine, "logits", counted)
                maps = _maps(engine, plan_rows(["e"], [engine.manifest], [method], seeds), images)
            assert len(maps) == len(seeds)
            runs[method, len(seeds)] = sum(seen)
    assert runs == {("scorecam", n): 51 for n in (1, 3)} | {("rise", n): 200 for n in (1, 3)}


def test_metrics_that_ask_every_method_about_the_same_images_share_their_runs(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    for k in range(8):
        pixels = np.random.default_rng(k).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        (tmp_path / str(k % 4)).mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((32, 32)).save(tmp_path / str(k % 4) / f"{k}.png")
    explain, asked = EngineRows.explain, []

    def counted(self: EngineRows, rows: list[Row], images: np.ndarray, target: Any) -> Any:
        asked.append(len(rows))
        return explain(self, rows, images, target)

    monkeypatch.setattr(EngineRows, "explain", counted)
    options: dict[str, Any] = {"metrics": ["grid_pointing_game"], "target": "label", "seeds": SEEDS, "channels": 4}
    options["labels"] = {str(k): str(k) for k in range(4)}
    together = evaluate(files.engine, tmp_path, methods=["gradcam", "layercam", "scorecam"], **options)
    assert asked == [6, 3]  # those that the engine draws, and one method's seeds
    assert np.isfinite(together.values).sum() > 40
    alone = [evaluate(files.engine, tmp_path, methods=[m], **options) for m in ("gradcam", "layercam", "scorecam")]
    np.testing.assert_allclose(together.values, np.concatenate([one.values for one in alone], axis=1), rtol=1e-5)


def test_an_evaluation_by_them(files: Files, tmp_path: Path) -> None:
    from PIL import Image

    for k in range(3):
        pixels = np.random.default_rng(k).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(tmp_path / f"{k}.png")
    asked: dict[str, Any] = {
        "methods": ["gradcam", "scorecam", "ablationcam"],
        "metrics": ["rd@10", "adcc"],
        "channels": 4,
    }
    results = evaluate(files.engine, tmp_path, tails=[files.tail], **asked)
    assert [row.name for row in results.rows[2:]] == [
        "scorecam plain",
        "scorecam weighted3:1",
        "ablationcam plain",
        "ablationcam weighted3:1",
    ]
    assert np.isfinite(results.values[results.status == 0]).all()
    with pytest.raises(InputError, match="give that file with --tail"):
        evaluate(files.engine, tmp_path, **asked)
    with pytest.raises(EngineError, match="no tail file"):
        evaluate(files.engine, tmp_path, tails=[files.engine], **asked)


def test_raw_maps_are_resized_bilinearly() -> None:
    maps = np.random.default_rng(0).normal(1, 1, (2, 4, 5)).astype(np.float32)
    maps = np.concatenate([maps, np.full((1, 4, 5), 3, np.float32)])
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(np.maximum(maps, 0))[:, None], (24, 31), mode="bilinear", align_corners=False
    )[:, 0].numpy()
    wanted[2] = 0  # a constant map says nothing
    np.testing.assert_allclose(resized(maps, (24, 31)), wanted, atol=1e-6)
