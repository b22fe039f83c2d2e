"""Real fine-grained classifiers on real photographs, all the way through the commands, against plain PyTorch."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from finercam_rt.cli.main import main

from .conftest import Exported

pytestmark = pytest.mark.assets

HALF = 128 / 255


def _labels(assets: Path) -> dict[str, dict[str, str]]:
    """Rows of labels.csv by the photograph's path within birds47."""
    with (assets / "birds47" / "labels.csv").open(newline="", encoding="utf-8") as stream:
        return {row["path"]: row for row in csv.DictReader(stream)}


def _records(out: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """The command's records by the photograph's path within `folder`."""
    document = json.loads((out / "explanations.json").read_text(encoding="utf-8"))
    return {Path(record["image"]).relative_to(folder).as_posix(): record for record in document["images"]}


def _plain_pytorch(model: Any, files: list[Path], mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Logits (N,K) of 224x224 photographs, which need neither a resize nor a crop."""
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]).astype(np.float32) / 255
    assert pixels.shape[1:] == (224, 224, 3)
    images = torch.from_numpy((pixels - np.float32(mean)) / np.float32(std)).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        return torch.cat([model(part) for part in images.split(16)]).numpy()


def test_mobilenet_predicts_birds_at_its_published_accuracy(birds: Exported, assets: Path, tmp_path: Path) -> None:
    """85.2 % top-1 of 965 classes is published; these 235 photographs are the hard ones: look-alike species."""
    folder, out = assets / "birds47", tmp_path / "out"
    assert main(["explain", str(birds.path), str(folder), "-o", str(out)]) == 0
    labels, records = _labels(assets), _records(out, folder)
    assert len(records) == 235
    assert set(records) == set(labels)

    order = list(labels)
    logits = _plain_pytorch(birds.model, [folder / path for path in order], (HALF,) * 3, (HALF,) * 3)
    predicted = [records[path]["predicted"]["index"] for path in order]
    assert predicted == logits.argmax(1).tolist()
    correct = np.array([int(labels[path]["inat_birds965_index"]) for path in order]) == predicted
    published = np.array([labels[path]["mobilenet_correct"] == "1" for path in order])
    assert np.array_equal(correct, published)
    assert correct.sum() == 201  # 85.5 %

    for path, row in zip(order, logits, strict=True):
        record = records[path]
        assert record["error"] is None
        assert record["status"] == "ok"
        target, *_ = nearest = np.argsort(np.abs(row - row.max()), kind="stable")[:4].tolist()
        assert [record["target"]["index"], *(r["index"] for r in record["references"])] == nearest
        assert record["target"]["logit"] == pytest.approx(float(row[target]), abs=1e-3)
        assert labels[path]["scientific_name"] in record["target"]["name"] or not published[order.index(path)]
        for file in record["files"].values():
            assert (out / file).stat().st_size > 0
    maps = np.stack([np.load(out / records[path]["files"]["saliency_map"]) for path in order])
    assert maps.shape == (235, 7, 7)
    assert maps.dtype == np.float32
    assert np.isfinite(maps).all()
    assert (maps.max((1, 2)) > 0).all()


def test_dinov2_predicts_the_held_out_birds(assets: Path, tmp_path: Path) -> None:
    """39 of the 47 photographs that its head was not tuned on, as its README says; the checkpoint is in float16."""
    stored = assets / "vit_small_patch14_dinov2_birds47_ft_224_fp16.pth"
    engine, out, folder = tmp_path / "dinov2.onnx", tmp_path / "out", assets / "birds47"
    arguments = ["timm:vit_small_patch14_dinov2", "--checkpoint", stored, "--input-size", "224"]
    arguments += ["--crop-pct", "1", "--objective", "mean", "-o", engine]
    assert main(["export", *map(str, arguments)]) == 0

    labels = _labels(assets)
    held_out = [path for path in labels if path.endswith("/5.jpg")]
    assert len(held_out) == 47
    files = [folder / path for path in held_out]
    assert main(["explain", str(engine), *map(str, files), "-o", str(out), "--references", "none"]) == 0
    records = _records(out, folder)
    predicted = [records[path]["predicted"]["index"] for path in held_out]

    model = timm.create_model("vit_small_patch14_dinov2", num_classes=47, img_size=224)
    weights = torch.load(stored, map_location="cpu", weights_only=True)
    model.load_state_dict({key: value.float() for key, value in weights.items()})
    logits = _plain_pytorch(model.eval(), files, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert predicted == logits.argmax(1).tolist()
    assert sum(int(labels[path]["label"]) == index for path, index in zip(held_out, predicted, strict=True)) == 39


def test_evaluate_measures_the_relative_drop_of_plain_pytorch(birds: Exported, assets: Path) -> None:
    """RD@5 and RD@10 of Grad-CAM with three seeds: here by autograd, one photograph at a time."""
    from finercam_rt.evaluation import evaluate

    folder, seeds = assets / "birds47", {"plain": (0, 0.0), "one:1": (1, 1.0), "weighted3:1": (3, 1.0)}
    results = evaluate(
        birds.path,
        folder / "labels.csv",
        seeds=list(seeds),
        metrics=["rd@5", "rd@10"],
        label_column="inat_birds965_index",
        limit=8,
    )
    assert results.values.shape == (8, 3, 2)
    for name, values in zip(results.names, results.values, strict=True):
        pixels = np.asarray(Image.open(folder / name).convert("RGB")).astype(np.float32) / 255
        image = torch.from_numpy((pixels - np.float32(HALF)) / np.float32(HALF)).permute(2, 0, 1)[None]
        for (count, alpha), found in zip(seeds.values(), values, strict=True):
            np.testing.assert_allclose(found, _relative_drops(birds.model, image, count, alpha), atol=2e-3)
    assert results.values[:, 1].mean() > 0.02


def _relative_drops(model: Any, image: Any, count: int, alpha: float) -> list[float]:
    """RD@5 and RD@10 of Grad-CAM with so many references, counted by their softmax."""
    taken: list[Any] = []
    hook = model.bn2.register_forward_hook(lambda module, given, output: taken.append(output))
    logits = model(image)[0]
    hook.remove()
    target, *others = (logits - logits.max()).abs().argsort(stable=True).tolist()
    objective = logits[target]
    if count:
        chosen = logits[others[:count]]
        objective = objective - alpha * (chosen.softmax(0) * chosen).sum()
    (gradients,) = torch.autograd.grad(objective, taken)
    with torch.no_grad():
        raw = (gradients.mean((2, 3), keepdim=True) * taken[0]).sum(1, keepdim=True).relu()
        order = torch.nn.functional.interpolate(raw, image.shape[2:], mode="bilinear").flatten()
        order = order.argsort(descending=True, stable=True)
        copies = torch.cat([image, image]).flatten(2)
        for copy, share in zip(copies, (0.05, 0.10), strict=True):
            copy[:, order[: round(share * len(order))]] = 0
        after = model(copies.reshape(2, *image.shape[1:])).double().softmax(1)
        drop = logits.double().softmax(0) - after
    return (drop[:, target] - drop[:, others[0]]).tolist()
