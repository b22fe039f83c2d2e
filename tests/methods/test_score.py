"""Score-CAM against pytorch-grad-cam, and against a plain loop over the channels."""

from __future__ import annotations

import numpy as np
import pytest

import finercam_rt as fc
from finercam_rt import ops
from finercam_rt.methods import ScoreCam, subset_error
from finercam_rt.methods.objective import objective_values

torch = pytest.importorskip("torch")


def plain(cnn, image, form, target, references, alpha, objective, channels=None):
    """By torch, one masked image at a time, as the formula has it; the raw map."""
    activations, logits = [], []
    hook = cnn.layer.register_forward_hook(lambda module, given, output: activations.append(output.detach()))
    try:
        with torch.no_grad():
            cnn.model(torch.from_numpy(image[None]))
            a = activations[0]
            for channel in a[0] if channels is None else a[0, channels]:
                resized = torch.nn.functional.interpolate(
                    channel[None, None], image.shape[1:], mode="bilinear", align_corners=form == "library"
                )
                mask = (resized - resized.min()) / (resized.max() - resized.min() + 1e-8)
                logits.append(cnn.model(torch.from_numpy(image[None]) * mask)[0].numpy())
            zeros = cnn.model(torch.zeros(1, *image.shape))[0].numpy()
    finally:
        hook.remove()
    y = np.array(logits, np.float64)
    values = y[:, target]
    if alpha:
        q = np.exp(y[:, references]) / np.exp(y[:, references]).sum(1, keepdims=True)
        others = (q * y[:, references]).sum(1) if objective == "weighted" else y[:, references].mean(1)
        values = values - alpha * others
    weights = np.exp(values) / np.exp(values).sum() if form == "library" else values - zeros[target]
    kept = a[0].numpy() if channels is None else a[0, channels].numpy()
    return np.maximum(np.tensordot(weights, kept, 1), 0)


def assert_same_map(found, expected, tolerance=2e-4):
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("alpha", [0.0, 0.7])
@pytest.mark.parametrize(("form", "objective"), [("library", "weighted"), ("library", "mean"), ("paper", "mean")])
def test_equals_a_loop_over_the_channels(cnn, images, form, objective, alpha):
    batch = images(3)
    target = cnn.engine()(batch).logits.argmax(1)
    references = cnn.engine()(batch).logits.argsort(axis=1)[:, :3]  # far ones: of near ones few weights are positive
    references[1, 1:] = -2
    found = ScoreCam(cnn.engine(), form=form, objective=objective).explain(batch, None, references, alpha)
    np.testing.assert_array_equal(found.target, target)
    assert found.saliency_map.dtype == np.float32
    assert found.saliency_map.max() > 1e-2  # there is something to compare
    for row, image in enumerate(batch):
        used = [c for c in references[row] if c >= 0]
        expected = plain(cnn, image, form, int(target[row]), used, alpha, objective)
        assert_same_map(found.saliency_map[row], expected)


def normalised(maps):
    maps = np.maximum(maps, 0)
    low, high = (f(maps, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    return (maps - low) / (high - low)


@pytest.mark.parametrize("finer", [False, True])
def test_equals_pytorch_grad_cam(cnn, images, finer, monkeypatch):
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    batch = images(2)
    engine = cnn.engine()
    found = ScoreCam(engine).explain(batch, alpha=1.0 if finer else 0.0)
    if finer:
        theirs = grad_cam.FinerCAM(cnn.model, [cnn.layer], base_method=grad_cam.ScoreCAM)
        expected = theirs(torch.from_numpy(batch), None, None, alpha=1.0, comparison_categories=[1, 2, 3])
    else:
        theirs = grad_cam.ScoreCAM(cnn.model, [cnn.layer])
        expected = theirs(torch.from_numpy(batch), [ClassifierOutputTarget(int(c)) for c in found.target])
    np.testing.assert_array_equal(found.target, engine(batch).logits.argmax(1))
    size = batch.shape[2:]
    # theirs are normalised once more after the resize
    np.testing.assert_allclose(normalised(ops.render(found.saliency_map, size).image), expected, atol=2e-4)


def test_finer_differs_from_plain(cnn, images):
    source = ScoreCam(cnn.engine())
    plain_map, finer = (source.explain(images(1), alpha=alpha).saliency_map for alpha in (0.0, 1.0))
    assert np.abs(normalised(plain_map) - normalised(finer)).max() > 1e-3


def test_batch_size_changes_nothing_but_rounding(cnn, images):
    one_image = 3 * 48 * 64 * 4
    whole = ScoreCam(cnn.engine()).explain(images(3), alpha=0.6).saliency_map
    for memory in (1, 5 * one_image, 100 * one_image):
        found = ScoreCam(cnn.engine(), memory=memory).explain(images(3), alpha=0.6).saliency_map
        np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-7)


def test_channels_are_those_that_vary_most(cnn, images):
    image = images(1)[0]
    a = cnn.engine()(image[None]).activations[0]
    most = np.sort(np.argsort(-a.reshape(len(a), -1).var(axis=1))[:4])
    found = ScoreCam(cnn.engine(), channels=4).explain(image[None], np.array([2]))
    assert_same_map(found.saliency_map[0], plain(cnn, image, "library", 2, [], 0.0, "weighted", most))


def test_the_cost_of_a_subset_is_reported(cnn, images):
    whole = ScoreCam(cnn.engine())
    same = subset_error(ScoreCam(cnn.engine(), channels=1000), whole, images(2))
    np.testing.assert_allclose(same, (2, 1, 1, 1), atol=1e-6)
    few = subset_error(ScoreCam(cnn.engine(), channels=2), whole, images(2))
    assert few.images == 2
    assert few.cosine < 0.999
    assert 0 <= few.top_overlap <= 1


def test_channels_that_mask_everything_share_one_run(cnn, images, monkeypatch):
    """Two channels are made constant: each masks to zeros, and the classifier sees zeros once an image."""
    source = ScoreCam(cnn.engine())
    explained, logits, runs = source._classifier.explained, source._classifier.logits, []

    def constant(*args, **options):
        found = explained(*args, **options)
        found.activations[:, [2, 7]] = 0.75
        return found

    def counted(copies):
        runs.append(len(copies))
        return logits(copies)

    monkeypatch.setattr(source._classifier, "explained", constant)
    monkeypatch.setattr(source._classifier, "logits", counted)
    image = images(1)
    found = source.explain(image, np.array([3]))
    assert sum(runs) == 1 + 10
    a = cnn.engine()(image).activations[0]
    a[[2, 7]] = 0.75
    y = np.concatenate([logits(copy) for copy in ops.mask(image, a[None], align_corners=True)[0][:, None]])[:, 3]
    weights = np.exp(y) / np.exp(y).sum()
    assert_same_map(found.saliency_map[0], np.maximum(np.tensordot(weights, a, 1), 0))


def test_tokens(vit, images):
    found = ScoreCam(vit.engine()).explain(images(2))
    assert found.saliency_map.shape == (2, 3, 4)
    assert (ops.status(found.saliency_map) == ops.Status.OK).all()


def test_an_engine_of_several_contrasts_and_one_of_fixed_size_give_the_same(cnn, several, images):
    batch = images(3)
    references = np.array([[1, 4, -2], [0, 1, 2], [-1, -1, -1]])
    wanted = ScoreCam(cnn.engine()).explain(batch, np.array([3, 5, 6]), references, 0.5)
    found = ScoreCam(several.engine()).explain(batch, np.array([3, 5, 6]), references, 0.5)
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    automatic = [ScoreCam(source.engine()).explain(batch, alpha=1.0) for source in (cnn, several)]
    np.testing.assert_array_equal(automatic[0].references, automatic[1].references)
    np.testing.assert_allclose(automatic[0].saliency_map, automatic[1].saliency_map, rtol=1e-4, atol=1e-6)


def test_an_image_that_is_not_finite_gives_a_map_that_says_so(cnn, images):
    batch = images(2)
    batch[1, 0, 5, 5] = np.nan
    found = ScoreCam(cnn.engine()).explain(batch)
    assert ops.status(found.saliency_map).tolist() == [ops.Status.OK, ops.Status.NON_FINITE]


def test_progress_ends_at_its_total(cnn, images):
    steps = []
    ScoreCam(cnn.engine(), on_progress=lambda *step: steps.append(step)).explain(images(2))
    assert steps[-1] == (24, 24)
    assert steps == sorted(steps)


def test_mistakes_get_one_sentence(cnn, toy, images):
    with pytest.raises(fc.InputError, match=r"export it with --head taps\.$"):
        ScoreCam(fc.Engine(toy.path)).explain(np.zeros((1, 3, *toy.size), np.float32))
    with pytest.raises(fc.InputError, match="there is no form 'authors' of Score-CAM; use one of library, paper"):
        ScoreCam(cnn.engine(), form="authors")
    with pytest.raises(fc.InputError, match="memory is 0 bytes"):
        ScoreCam(cnn.engine(), memory=0)
    with pytest.raises(fc.InputError, match="the channels are 0; give at least 1"):
        ScoreCam(cnn.engine(), channels=0).explain(images(1))


def test_objective_is_what_the_seeds_are_the_derivative_of(cnn, images):
    """A step of every logit changes T by the seed's entry: v_c = 1, v_i = -alpha q_i (1 + y_i - sum q y)."""
    y = np.random.default_rng(0).standard_normal((1, 6))
    references, alpha, step = np.array([1, 4, -2]), 0.6, 1e-6
    q = np.exp(y[0, [1, 4]]) / np.exp(y[0, [1, 4]]).sum()
    mean = (q * y[0, [1, 4]]).sum()
    seeds = {"weighted": -alpha * q * (1 + y[0, [1, 4]] - mean), "mean": np.full(2, -alpha / 2)}
    for objective, expected in seeds.items():
        moved = np.repeat(y, 6, axis=0) + step * np.eye(6)
        change = objective_values(moved, 3, references, alpha, objective) - objective_values(
            y, 3, references, alpha, objective
        )
        wanted = np.zeros(6)
        wanted[3], wanted[[1, 4]] = 1, expected
        np.testing.assert_allclose(change / step, wanted, atol=1e-5)
    p = np.exp(y[0]) / np.exp(y[0]).sum()
    np.testing.assert_allclose(
        objective_values(y, 3, references, alpha, "softmax"), p[3] - alpha * (p[1] + p[4]) / 2, rtol=1e-12
    )
