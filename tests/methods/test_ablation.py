"""Ablation-CAM against a plain loop over the channels in PyTorch.

pytorch-grad-cam's own is no reference: within a batch of channels it lowers the ablated value again and again in place.
"""

from __future__ import annotations

import numpy as np
import pytest

import finercam_rt as fc
from finercam_rt import ops
from finercam_rt.methods import AblationCam, ScoreCam

torch = pytest.importorskip("torch")


def source_of(exported, **options):
    engine = exported.engine()
    return AblationCam(engine, fc.Tail(exported.tail, engine.manifest, threads=1), **options)


def loop(exported, image, target, references, alpha):
    """The map by one forward of the whole model for each channel, which a hook sets to 0."""
    state = {"without": None}

    def ablate(module, given, output):
        state["activations"] = output.detach().clone()
        axis = 1 if output.ndim == 4 else 2
        if state["without"] is None:
            return None
        keep = torch.ones(output.shape[axis])
        keep[state["without"]] = 0
        return output * keep.reshape([-1 if a == axis else 1 for a in range(output.ndim)])

    def value():
        y = exported.model(torch.from_numpy(image[None]))[0].double().numpy()
        q = np.exp(y[references]) / np.exp(y[references]).sum()
        return y[target] - alpha * (q * y[references]).sum()

    hook = exported.layer.register_forward_hook(ablate)
    try:
        with torch.no_grad():
            whole = value()
            a = state["activations"][0].numpy()
            channels = len(a) if a.ndim == 3 else a.shape[1]
            weights = []
            for state["without"] in range(channels):
                weights.append((whole - value()) / abs(whole))
    finally:
        hook.remove()
    if a.ndim == 2:
        a = a[1:].T.reshape(channels, 3, 4)
    return np.maximum(np.tensordot(weights, a, 1), 0)


@pytest.mark.parametrize("alpha", [0.0, 0.8])
@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_equals_a_loop_over_the_channels(kind, alpha, images, request):
    exported, batch = request.getfixturevalue(kind), images(3)
    found = source_of(exported).explain(batch, alpha=alpha)
    assert (ops.status(found.saliency_map) == ops.Status.OK).all()
    for row, image in enumerate(batch):
        expected = loop(exported, image, int(found.target[row]), found.references[row], alpha)
        assert np.linalg.norm(found.saliency_map[row] - expected) <= 2e-4 * np.linalg.norm(expected)


def test_memory_changes_nothing_but_rounding(cnn, images):
    whole = source_of(cnn).explain(images(2)).saliency_map
    for memory in (1, 5 * 12 * 6 * 8 * 4):
        found = source_of(cnn, memory=memory).explain(images(2)).saliency_map
        np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-5 * whole.max())


def test_progress_and_channels(cnn, images):
    steps = []
    found = source_of(cnn, channels=5, memory=1, on_progress=lambda *step: steps.append(step)).explain(images(2))
    assert steps[-1] == (10, 10)
    whole = source_of(cnn).explain(images(2)).saliency_map
    assert np.abs(found.saliency_map - whole).max() > 1e-3 * whole.max()


def test_mistakes_get_one_sentence(cnn, toy):
    with pytest.raises(fc.InputError, match=r"export the engine with --head taps --tail FILE, and give that file"):
        AblationCam(cnn.engine(), None)
    with pytest.raises(fc.InputError, match=r"export it with --head taps\.$"):
        ScoreCam(fc.Engine(toy.path)).explain(np.zeros((1, 3, *toy.size), np.float32))
