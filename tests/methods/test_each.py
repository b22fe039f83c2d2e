"""Several contrasts of the same images: the maps of each alone, from the runs of one."""

from __future__ import annotations

import numpy as np
import pytest

import finercam_rt as fc
from finercam_rt.methods import AblationCam, Asked, EngineSource, MetaCam, MiCam, MiGrad, Rise, ScoreCam

ASKED = [
    Asked(np.full((2, 3), -2)),
    Asked(np.array([[1, 4, -2], [0, -2, -2]]), 0.5),
    Asked(None, 1.0),
    Asked(np.array([[2, 3, 5], [1, 2, 6]]), 2.0),
]
TARGET = np.array([7, 8])


def brightness(images, target, saliency):
    return saliency.mean((1, 2))


MAKERS = {
    "scorecam": (lambda engine, tail: ScoreCam(engine), 2 * 12 + 1),
    "scorecam-paper": (lambda engine, tail: ScoreCam(engine, form="paper"), 2 * 12 + 1),
    "rise": (lambda engine, tail: Rise(engine, masks=20), 2 * 20),
    "ablationcam": (AblationCam, 0),
    "micam": (lambda engine, tail: MiCam(engine), 0),
    "migradcam": (lambda engine, tail: MiGrad(engine), 0),
    "engine": (lambda engine, tail: EngineSource(engine), 0),
    "metacam": (lambda engine, tail: MetaCam([EngineSource(engine)], brightness), 0),
}


@pytest.mark.parametrize("name", MAKERS)
def test_each_is_that_of_its_own_runs(cnn, images, name, monkeypatch):
    engine = cnn.engine()
    tail = fc.Tail(cnn.tail, engine.manifest, threads=1)
    make, runs = MAKERS[name]
    alone = [make(engine, tail).explain(images(2), TARGET, asked.references, asked.alpha) for asked in ASKED]
    predict, ablate, predicted, ablated = fc.Engine.logits, fc.Tail.logits, [], []

    def counted(self, batch):
        predicted.append(len(batch))
        return predict(self, batch)

    def counted_tail(self, activations, carried=()):
        ablated.append(len(activations))
        return ablate(self, activations, carried)

    monkeypatch.setattr(fc.Engine, "logits", counted)
    monkeypatch.setattr(fc.Tail, "logits", counted_tail)
    found = make(engine, tail).explain_each(images(2), TARGET, ASKED)
    assert sum(predicted) == runs
    assert sum(ablated) == (2 * (1 + 12) if name == "ablationcam" else 0)
    for one, wanted in zip(found, alone, strict=True):
        for got, expected in zip(one, wanted, strict=True):
            np.testing.assert_array_equal(got, expected)
    assert found[1].references.tolist() == [[1, 4, -2], [0, -2, -2]]
    if name not in ("micam", "metacam"):
        assert np.abs(found[0].saliency_map - found[3].saliency_map).max() > 1e-6


def test_the_objective_may_be_asked_for(cnn, images):
    engine, references = cnn.engine(), ASKED[3].references
    found = ScoreCam(engine).explain_each(
        images(2), TARGET, [Asked(references, 2.0, objective) for objective in ("mean", "weighted", None)]
    )
    for maps, objective in zip(found, ("mean", "weighted", engine.manifest.objective), strict=True):
        wanted = ScoreCam(engine, objective=objective).explain(images(2), TARGET, references, 2.0)
        np.testing.assert_array_equal(maps.saliency_map, wanted.saliency_map)
    assert np.abs(found[0].saliency_map - found[1].saliency_map).max() > 1e-6
