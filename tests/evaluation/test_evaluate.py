"""The whole of an evaluation on toy engines whose logits and maps are known."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finercam_rt import ClassEmbeddings, ops
from finercam_rt.errors import InputError
from finercam_rt.evaluation import Results, evaluate
from finercam_rt.evaluation.batch import nearest_class
from finercam_rt.evaluation.measuring import Measurer
from finercam_rt.evaluation.metrics import MetricOptions
from finercam_rt.evaluation.partial import PARTIAL
from finercam_rt.evaluation.sources import resized
from finercam_rt.images import load_image
from finercam_rt.methods.objective import softmax
from finercam_rt.preprocess import Preprocessor

pytest.importorskip("matplotlib", reason="the report is drawn with it")
pytest.importorskip("jinja2", reason="the report is made with it")

CLASSES = ("magpie", "house finch", "indigo bunting", "kite")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve photographs of four classes, more than one batch of five."""
    rng = np.random.default_rng(5)
    for k in range(12):
        path = tmp_path / "birds" / CLASSES[k % 4] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
        coarse.resize((60 + k, 40 + k), Image.Resampling.BICUBIC).save(path)
    return tmp_path / "birds"


def _inputs(data: Path, spec: Any) -> np.ndarray:
    return _inputs_of(sorted(data.rglob("*.png")), spec)


def _inputs_of(files: list[Path], spec: Any) -> np.ndarray:
    inputs = np.empty((len(files), 3, *spec.size), np.float32)
    for row, file in enumerate(files):
        Preprocessor(spec)(load_image(file), inputs[row], np.empty((*spec.size, 3), np.uint8), "x")
    return inputs


def test_figures_are_those_of_the_definition(make_toy: Callable[..., Any], data: Path) -> None:
    """RD@20 of each map in closed form, recomputed here from the toy's formulas."""
    from finercam_rt.onnx_metadata import read_manifest

    toy = make_toy()
    results = evaluate(toy.path, data, seeds=["plain", "one:0.7", "weighted3:1"], metrics=["rd@20"], batch_size=5)
    assert [row.name for row in results.rows] == ["gradcam plain", "gradcam one:0.7", "gradcam weighted3:1"]
    inputs = _inputs(data, read_manifest(toy.path).input)
    logits = toy.logits(inputs)
    target = logits.argmax(axis=1)
    nearest = nearest_class(logits, target)
    checked = 0
    for m, row in enumerate(results.rows):
        for i, image in enumerate(inputs):
            references = toy.nearest(logits[i], target[i])[: row.seed.references]
            raw = toy.raw_map(image, int(target[i]), references, row.seed.alpha).astype(np.float32)
            if results.status[i, m] != 0:
                assert np.isnan(results.values[i, m, 0])
                continue
            pixels = resized(raw[None], image.shape[1:])[0].ravel()
            removed = np.argsort(-pixels, kind="stable")[: round(0.2 * pixels.size)]
            masked = image.reshape(3, -1).copy()
            masked[:, removed] = 0
            after = softmax(toy.logits(masked.reshape(1, *image.shape)))[0]
            before = softmax(logits[i : i + 1])[0]
            wanted = (before - after)[target[i]] - (before - after)[nearest[i]]
            assert results.values[i, m, 0] == pytest.approx(wanted, abs=2e-5)
            checked += 1
    assert checked >= 30
    assert np.array_equal(results.predicted[:, 0], target)
    assert results.summary[1]["rd@20"].mean == pytest.approx(np.nanmean(results.values[:, 1, 0]))
    assert results.difference[1]["rd@20"].mean == pytest.approx(
        np.nanmean(results.values[:, 1, 0] - results.values[:, 0, 0])
    )


def test_engines_of_several_contrasts_and_of_a_fixed_batch_give_the_same(
    make_toy: Callable[..., Any], data: Path
) -> None:
    asked: dict[str, Any] = {"seeds": ["plain", "one:1", "weighted2:0.5", "weighted3:1"], "metrics": ["cd@10"]}
    one = evaluate(make_toy("one.onnx").path, data, **asked)
    for name, options in (("several.onnx", {"contrasts": 3}), ("fixed.onnx", {"batch": 5})):
        other = evaluate(make_toy(name, **options).path, data, **asked)
        assert np.array_equal(one.status, other.status)
        np.testing.assert_allclose(other.values, one.values, atol=1e-5)


def test_results_in_a_notebook(make_toy: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    """Printed, as plain values, and as lines for a data frame: the same figures as in the files."""
    out = tmp_path / "out"
    results = evaluate(make_toy().path, data, seeds=["plain", "one:1"], metrics=["rd@20", "deletion"], out=out)
    assert json.loads((out / "results.json").read_text()) == results.to_dict()
    with (out / "results.csv").open(newline="") as stream:
        for written, line in zip(csv.DictReader(stream), results.table(), strict=True):
            assert written.keys() == line.keys()
            assert written["metric"] == line["metric"]
            assert float(written["difference_low"]) == pytest.approx(line["difference_low"])
    assert np.array_equal(results.figures("deletion"), results.values[:, :, 1])
    lines = str(results).splitlines()
    assert repr(results) == str(results)
    assert lines[0].split() == ["rd@20", "deletion", "no", "map", "ms/image"]
    for m, row in enumerate(results.rows):
        shown = lines[1 + m].removeprefix(row.name).split()
        for text, column in zip(shown, results.columns, strict=False):
            assert text.rstrip("*") == f"{results.summary[m][column].mean:.4f}"
            assert text.endswith("*") == (m in results.best(column))
    assert lines[-1] == results.advice
    (best,) = results.best("deletion")
    assert best == int(results.difference[1]["deletion"].mean < 0)  # lower is better


def test_progress_goes_from_map_to_map(make_toy: Callable[..., Any], data: Path) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(
        make_toy().path, data, seeds=["plain", "one:1"], metrics=["cd@10"], batch_size=5,
        on_progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert {total for _, total in seen} == {24}
    assert [done for done, _ in seen] == [0, 5, 10, 10, 15, 20, 20, 22, 24, 24]


def test_the_label_is_explained_where_asked_for(make_toy: Callable[..., Any], data: Path) -> None:
    toy = make_toy()
    predicted = evaluate(toy.path, data, metrics=["cd@10"])
    labelled = evaluate(toy.path, data, metrics=["cd@10"], target="label")
    assert np.array_equal(labelled.target[:, 0], labelled.labels)
    assert np.array_equal(labelled.predicted, predicted.predicted)
    wrong = labelled.target[:, 0] != predicted.target[:, 0]
    assert wrong.any()
    assert not np.allclose(labelled.values[wrong], predicted.values[wrong], equal_nan=True)


def test_what_cannot_be_measured_is_counted_and_never_averaged(make_toy: Callable[..., Any], data: Path) -> None:
    toy = make_toy()
    whole = evaluate(toy.path, data, metrics=["rd@10"])
    (data / "kite" / "broken.png").write_text("no image")
    (data / "dodo").mkdir()
    Image.new("RGB", (50, 40), (200, 30, 30)).save(data / "dodo" / "0.png")
    Image.new("RGB", (50, 40), (200, 30, 30)).save(data / "magpie" / "flat.png")  # every cell sees the same
    results = evaluate(toy.path, data, metrics=["rd@10"], batch_size=5)
    assert results.left_out_counts() == {"unknown class": 1, "unreadable": 1}
    assert {item.name for item in results.left_out} == {"dodo/0.png", "kite/broken.png"}
    assert not any("/tmp" in item.reason or str(data) in item.reason for item in results.left_out)
    flat = results.names.index("magpie/flat.png")
    assert np.isnan(results.values[flat]).all()
    assert results.read[flat]
    bad = {name: count for name, count in results.statuses(0).items() if name != "ok"}
    assert sum(bad.values()) == 1 + sum(v for k, v in whole.statuses(0).items() if k != "ok")
    assert results.summary[0]["rd@10"].mean == pytest.approx(whole.summary[0]["rd@10"].mean, abs=1e-6)
    assert results.summary[0]["rd@10"].images == whole.summary[0]["rd@10"].images


def test_images_with_logits_that_are_not_finite(make_toy: Callable[..., Any], data: Path) -> None:
    """A classifier that gives infinity for bright images: their maps are not measured."""
    import onnx

    toy = make_toy()
    model = onnx.load(toy.path)
    for tensor in model.graph.initializer:
        if tensor.name == "weight":
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[0] = np.inf
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "weight"))
    onnx.save(model, toy.path)
    results = evaluate(toy.path, data, metrics=["rd@10"])
    assert results.statuses(0) == {"non_finite": 12}
    assert np.isnan(results.values).all()
    assert results.recommendation is None


def test_some_images_with_logits_that_are_not_finite(make_toy: Callable[..., Any], data: Path) -> None:
    """Class 0 overflows where its evidence is strong: those images are counted, and the means are of the others."""
    import onnx

    toy = make_toy()
    model = onnx.load(toy.path)
    for tensor in model.graph.initializer:
        if tensor.name == "weight":
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[0] = (3e38, *[0] * (values.shape[1] - 1))
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "weight"))
    onnx.save(model, toy.path)
    for picture in data.rglob("*.png"):
        if int(picture.stem) % 2:
            Image.fromarray(255 - np.asarray(Image.open(picture)) // 2).save(picture)
    results = evaluate(toy.path, data, metrics=["rd@10"])
    bad = results.status[:, 0] == ops.Status.NON_FINITE
    assert 0 < bad.sum() < 12
    assert results.statuses(0)["non_finite"] == bad.sum()
    assert np.isnan(results.values[bad]).all()
    assert (results.target[bad] == -1).all()
    assert results.summary[0]["rd@10"].images == np.isfinite(results.values[~bad, 0, 0]).sum()


def _files(folder: Path) -> tuple[dict[str, Any], bytes]:
    document = json.loads((folder / "results.json").read_text())
    del document["run"]
    return document, (folder / "results.csv").read_bytes()


def test_an_interrupted_evaluation_goes_on_to_the_same_results(
    make_toy: Callable[..., Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_toy()
    asked: dict[str, Any] = {"metrics": ["rd@10", "deletion"], "batch_size": 5}
    evaluate(toy.path, data, out=tmp_path / "at once", **asked)

    measured: list[int] = []
    original = Measurer.measure

    def killed(self: Measurer, start: int, stop: int) -> dict[str, Any]:
        measured.append(start)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return original(self, start, stop)

    out = tmp_path / "in two goes"
    monkeypatch.setattr(Measurer, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(toy.path, data, out=out, **asked)
    assert measured == [0, 5]
    assert [path.name for path in out.iterdir()] == [PARTIAL]
    with (out / PARTIAL).open("ab") as stream:
        stream.write(b'{"images": [[null, [[3')  # as a kill in the middle of a line leaves it
    evaluate(toy.path, data, out=out, **asked)
    assert measured == [0, 5, 5, 10]
    assert _files(out) == _files(tmp_path / "at once")
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "results.csv", "results.json"]


def _kill_in_the_second_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once; what is measured after it ends."""
    calls = itertools.count()
    original = Measurer.measure

    def killed(self: Measurer, start: int, stop: int) -> dict[str, Any]:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return original(self, start, stop)

    monkeypatch.setattr(Measurer, "measure", killed)


def test_another_question_is_refused_or_begun_anew(
    make_toy: Callable[..., Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, out = make_toy(), tmp_path / "out"
    _kill_in_the_second_batch(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        evaluate(toy.path, data, out=out, metrics=["rd@10"], batch_size=5)
    with pytest.raises(InputError, match="unfinished evaluation with other metrics;"):
        evaluate(toy.path, data, out=out, metrics=["rd@20"], batch_size=5)
    with pytest.raises(InputError, match="other rows and seed;"):
        evaluate(toy.path, data, out=out, metrics=["rd@10"], batch_size=5, seeds=["plain"], seed=1)
    (data / "kite" / "new.png").write_bytes((data / "kite" / "3.png").read_bytes())
    with pytest.raises(InputError, match="other data;"):
        evaluate(toy.path, data, out=out, metrics=["rd@10"], batch_size=5)
    assert evaluate(toy.path, data, out=out, metrics=["rd@20"], batch_size=5, fresh=True).columns == ("rd@20",)


def test_other_prompts_are_another_question(
    make_toy: Callable[..., Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the photographs with some prompts and half with others would be no evaluation of either."""
    toy, out = make_toy("zero.onnx", zero_shot=True), tmp_path / "out"
    ours = ClassEmbeddings(toy.weight[:4], CLASSES, text_sha256="1" * 64, model="toy")
    theirs = ClassEmbeddings(toy.weight[3:7], CLASSES, text_sha256="1" * 64, model="toy")
    _kill_in_the_second_batch(monkeypatch)
    asked: dict[str, Any] = {"out": out, "metrics": ["rd@10"], "batch_size": 5, "target": "predicted"}
    with pytest.raises(KeyboardInterrupt):
        evaluate(toy.path, data, class_embeddings=ours, **asked)
    with pytest.raises(InputError, match="unfinished evaluation with other class embeddings;"):
        evaluate(toy.path, data, class_embeddings=theirs, **asked)
    assert evaluate(toy.path, data, class_embeddings=ours, **asked).columns == ("rd@10",)


def test_the_same_seed_gives_the_same_results(make_toy: Callable[..., Any], data: Path) -> None:
    toy = make_toy()

    def run(seed: int) -> Results:
        return evaluate(toy.path, data, metrics=["rd@10", "noise_robustness"], limit=8, seed=seed)

    first, second, other = run(0), run(0), run(1)
    assert first.names == second.names
    np.testing.assert_array_equal(first.values, second.values)
    assert str(first.summary) == str(second.summary)  # as text, in which NaN is NaN
    assert first.names != other.names


def test_several_engines_side_by_side(
    make_toy: Callable[..., Any], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighted, mean = make_toy("w.onnx"), make_toy("m.onnx", objective="mean", size=(24, 24))
    results = evaluate([weighted.path, mean.path], data, seeds=["plain", "weighted3:1", "mean3:0.6"], metrics=["cd@10"])
    assert [row.name for row in results.rows] == [
        "w gradcam plain",
        "w gradcam weighted3:1",
        "m gradcam plain",  # another input, so not the same map
        "m gradcam mean3:0.6",
    ]
    assert results.confidence.shape == (12, 2)
    alone = evaluate(mean.path, data, seeds=["plain", "mean3:0.6"], metrics=["cd@10"])
    np.testing.assert_array_equal(results.values[:, 2:], alone.values)
    other = make_toy("o.onnx", manifest={"classes": tuple("abcdefg")})
    monkeypatch.setattr("finercam_rt.engine.open_backend", lambda *_, **__: pytest.fail("an engine was loaded"))
    with pytest.raises(InputError, match="differ in their classes"):
        evaluate([weighted.path, other.path], data)


@pytest.mark.parametrize("metric", ["deletion", "insertion"])
def test_no_more_steps_than_pixels(make_toy: Callable[..., Any], data: Path, metric: str) -> None:
    """Of the smallest input; else a number with a nought too many would take memory and time without end."""
    paths = [make_toy("w.onnx").path, make_toy("m.onnx", size=(8, 16)).path]
    with pytest.raises(InputError, match=r"steps is 129, and an input has 8 x 16 pixels; give at most 128, one a pix"):
        evaluate(paths, data, metrics=["rd@5", metric], options=MetricOptions(steps=129))
    found = evaluate(paths[1], data, metrics=[metric], seeds=["plain"], options=MetricOptions(steps=128), limit=2)
    assert found.values.shape[0] == 2
    assert evaluate(paths[1], data, metrics=["rd@5"], options=MetricOptions(steps=10**9), limit=2)


def test_boxes_bring_their_metrics(make_toy: Callable[..., Any], data: Path) -> None:
    toy, table = make_toy(), data / "t.csv"
    files = sorted(data.rglob("*.png"))
    lines = [f"{file.relative_to(data)},{file.parent.name},0,0,{Image.open(file).width // 2},80" for file in files[:6]]
    lines += [f"{file.relative_to(data)},{file.parent.name},,,," for file in files[6:]]
    table.write_text("\n".join(["path,label,x0,y0,x1,y1", *lines]))
    results = evaluate(toy.path, table)
    assert results.columns == ("rd@5", "rd@10", "energy", "pointing_game")
    energy = results.values[:, 0, 2]
    assert np.isfinite(energy[:6]).sum() == (results.status[:6, 0] == 0).sum() > 0
    assert np.isnan(energy[6:]).all()
    assert ((energy[np.isfinite(energy)] >= 0) & (energy[np.isfinite(energy)] <= 1)).all()


def test_references_that_the_data_name(make_toy: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    """A seed takes the nearest of them, never another; the map is the toy's formula, its figure the closed form."""
    from finercam_rt.onnx_metadata import read_manifest

    toy = make_toy()
    files = sorted(data.rglob("*.png"))
    indices = dict(zip(CLASSES, (0, 1, 2, 6), strict=True))
    named = [[], ["house finch", "kite"], ["magpie", "indigo bunting", "kite"], ["indigo bunting"]]
    lines = []
    for place, file in enumerate(files):
        names = [str(indices[name]) if place % 2 else name for name in named[place % 4]]
        lines.append(f"{file},{file.parent.name},{'; '.join(names)}")
    table = tmp_path / "named.csv"
    table.write_text("\n".join(["path,label,references", *lines]))
    seeds = ["plain", "one:1", "weighted3:1"]
    results = evaluate(toy.path, table, seeds=seeds, metrics=["complexity"], target="label", batch_size=5)
    kept = [(place, file) for place, file in enumerate(files) if named[place % 4] != [file.parent.name]]
    assert len(results.names) == len(kept) < len(files)
    assert results.left_out_counts() == {"no reference": len(files) - len(kept)}
    assert results.produced["data"]["references_named"] == sum(bool(named[place % 4]) for place, _ in kept)
    spec = read_manifest(toy.path).input
    checked = 0
    for i, (place, file) in enumerate(kept):
        image = _inputs_of([file], spec)
        logits, label = toy.logits(image)[0], indices[file.parent.name]
        order = np.argsort(np.abs(logits - logits[label]), kind="stable")
        among = [indices[name] for name in named[place % 4]] or range(len(logits))
        others = [int(k) for k in order if k in among and k != label]
        for m, row in enumerate(results.rows):
            raw = toy.raw_map(image[0], label, others[: row.seed.references], row.seed.alpha).astype(np.float32)
            if results.status[i, m] == 0:
                pixels = resized(raw[None], spec.size)
                wanted = ((pixels - pixels.min()) / (pixels.max() - pixels.min())).mean()
                assert results.values[i, m, 0] == pytest.approx(wanted, abs=1e-5)
                checked += 1
    assert checked >= 20
    for asked, says in (
        ({}, "give --target label"),
        ({"target": "label", "metrics": ["adcc"]}, "adcc explain other images"),
    ):
        with pytest.raises(InputError, match=says):
            evaluate(toy.path, table, **asked)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"target": "truth"}, "use one of predicted, label"),
        ({"rank_by": "rd@7"}, "'rd@7' is not measured"),
        ({"metrics": ["rd5"]}, "no metric 'rd5'"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"target": "label", "unlabelled": True}, "leave one of them out"),
    ],
)
def test_mistakes(make_toy: Callable[..., Any], data: Path, asked: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        evaluate(make_toy().path, data, **asked)
    assert str(error.value).endswith(".")
    assert str(error.value).count("\n") == 0


def test_a_data_set_of_nothing_readable(make_toy: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "d" / "kite").mkdir(parents=True)
    (tmp_path / "d" / "kite" / "a.png").write_text("no image")
    with pytest.raises(InputError, match="none of the 1 images can be read"):
        evaluate(make_toy().path, tmp_path / "d", out=tmp_path / "out")
