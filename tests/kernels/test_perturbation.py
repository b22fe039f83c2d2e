"""`ops.rank`, `ops.remove` and `ops.mask` against NumPy, float64 oracles and torch."""

from __future__ import annotations

import numpy as np
import pytest

from finercam_rt import InputError, _core, ops

SIZES = [(1, 1), (1, 9), (13, 1), (5, 7), (32, 33), (67, 70), (224, 224)]


def stable_ranks(maps: np.ndarray) -> np.ndarray:
    """Of the largest value first; equal values in the order of their index."""
    flat = maps.reshape(len(maps), -1)
    order = np.argsort(-flat, axis=1, kind="stable")
    ranks = np.empty_like(order, dtype=np.int32)
    np.put_along_axis(ranks, order, np.arange(flat.shape[1], dtype=np.int32)[None], axis=1)
    return ranks.reshape(maps.shape)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def maps_with_ties(batch: int, size: tuple[int, int]) -> np.ndarray:
    """Of each kind: all different, few values, ReLU with zeros of both signs, constant, of all magnitudes."""
    noise = random(batch, *size)
    magnitudes = np.ldexp(noise, np.random.default_rng(1).integers(-140, 120, noise.shape)).astype(np.float32)
    kinds = [noise, np.round(noise), np.maximum(noise, 0) * np.sign(noise), 0 * noise + 2, magnitudes]
    return np.concatenate(kinds)


@pytest.mark.parametrize("size", SIZES)
def test_ranks_are_those_of_a_stable_sort(device, size):
    maps = maps_with_ties(2, size)
    found = device.get(ops.rank(device.put(maps)))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, stable_ranks(maps))


def test_ranks_of_any_strides():
    maps = random(4, 20, 30)
    for view in (maps.swapaxes(1, 2), maps[::-2, 3:, ::3], maps[:, ::-1, ::-1], np.broadcast_to(maps[:1], (3, 20, 30))):
        np.testing.assert_array_equal(ops.rank(view), stable_ranks(np.ascontiguousarray(view)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_is_refused(device, value):
    maps = random(5, 16, 17)
    maps[3, 15, 16] = maps[4, 0, 0] = value
    with pytest.raises(InputError, match="saliency map 3 has a value that is not finite"):
        ops.rank(device.put(maps))


@pytest.mark.parametrize("fill", ["number", "channels", "images"])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (67, 70)])
@pytest.mark.parametrize("each", [False, True])
def test_removed_pixels_are_those_of_the_lowest_ranks(device, size, fill, each):
    images, ranks = random(3, 2, *size), stable_ranks(random(3, *size))
    pixels = size[0] * size[1]
    counts = np.array([0, pixels // 3, pixels])
    if each:
        counts = np.stack([counts, counts[::-1], np.full(3, 1)])
    fills = {"number": 0.5, "channels": np.array([1.0, -2.0]), "images": random(3, 2, *size, seed=1)}
    value = device.put(fills[fill]) if fill == "images" else fills[fill]
    found = device.get(ops.remove(device.put(images), device.put(ranks), counts, value))
    full = np.broadcast_to(np.float32(fills[fill] if fill != "channels" else fills[fill][:, None, None]), images.shape)
    limits = np.broadcast_to(counts, (3, 3))
    expected = np.where(ranks[:, None, None] < limits[:, :, None, None, None], full[:, None], images[:, None])
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32


def test_insertion_is_removal_of_the_others(device):
    images, ranks = random(2, 3, 9, 8), stable_ranks(random(2, 9, 8))
    blurred = random(2, 3, 9, 8, seed=5)
    put = [device.put(array) for array in (images, blurred, ranks)]
    removed = device.get(ops.remove(put[0], put[2], [20], put[1]))[:, 0]
    inserted = device.get(ops.remove(put[1], put[2], [20], put[0]))[:, 0]
    np.testing.assert_array_equal(removed + inserted, images + blurred)


def test_removal_of_any_strides():
    images, ranks, fill = random(4, 3, 20, 30), stable_ranks(random(4, 20, 30)), random(3)
    views = {
        "turned": (images.swapaxes(2, 3), ranks.swapaxes(1, 2), 0.0),
        "sliced": (images[::2, ::-1, 2:, ::3], ranks[::2, 2:, ::3], fill),
        "channels last": (images.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2), ranks, 1.0),
        "broadcast": (images, ranks, np.broadcast_to(fill[:, None, None], images.shape)),
    }
    for name, (image, rank, value) in views.items():
        copied = [np.ascontiguousarray(v) if isinstance(v, np.ndarray) else v for v in (image, rank, value)]
        found, expected = (ops.remove(*given[:2], [7, 100], given[2]) for given in ((image, rank, value), copied))
        np.testing.assert_array_equal(found, expected, err_msg=name)


def weights(source: int, target: int, align_corners: bool) -> np.ndarray:
    """(target, source): row t holds the bilinear weights of output cell t."""
    matrix = np.zeros((target, source))
    for t in range(target):
        if align_corners:
            position = t * (source - 1) / (target - 1) if target > 1 else 0.0
        else:
            position = min(max((t + 0.5) * source / target - 0.5, 0.0), source - 1.0)
        low = min(int(position + 1e-12), source - 1)
        matrix[t, low] += 1 - (position - low)
        matrix[t, min(low + 1, source - 1)] += position - low
    return matrix


def masked(images: np.ndarray, maps: np.ndarray, align_corners: bool) -> np.ndarray:
    rows, columns = (weights(s, t, align_corners) for s, t in zip(maps.shape[2:], images.shape[2:], strict=True))
    resized = np.einsum("yh,nkhw,xw->nkyx", rows, maps.astype(np.float64), columns)
    low, high = (f(resized, axis=(2, 3), keepdims=True) for f in (np.min, np.max))
    return images[:, None] * ((resized - low) / (high - low + 1e-8))[:, :, None]


# (h, w) -> (H, W): up, down, the same, to one pixel, from one row, odd, larger than the shared memory of a block.
RESIZES = [
    ((7, 7), (64, 64)),
    ((7, 9), (50, 33)),
    ((14, 14), (14, 14)),
    ((20, 31), (7, 5)),
    ((1, 8), (9, 17)),
    ((8, 1), (17, 9)),
    ((70, 67), (101, 97)),
    ((3, 2), (65, 2)),
]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("source", "target"), RESIZES)
def test_masked_images_equal_oracle(device, source, target, align_corners):
    images, maps = random(2, 3, *target), random(2, 5, *source)
    found = device.get(ops.mask(device.put(images), device.put(maps), align_corners=align_corners))
    np.testing.assert_allclose(found, masked(images, maps, align_corners), rtol=0, atol=5e-6)


@pytest.mark.parametrize("align_corners", [False, True])
def test_masked_images_equal_torch(align_corners):
    torch = pytest.importorskip("torch")
    images, maps = random(2, 3, 40, 56), random(2, 5, 7, 9)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(maps), (40, 56), mode="bilinear", align_corners=align_corners
    ).flatten(2)
    low, high = (getattr(resized, f)(dim=2, keepdim=True).values for f in ("min", "max"))
    masks = ((resized - low) / (high - low + 1e-8)).reshape(2, 5, 1, 40, 56)
    found = ops.mask(torch.from_numpy(images), torch.from_numpy(maps), align_corners=align_corners)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found, torch.from_numpy(images)[:, None] * masks, rtol=0, atol=5e-6)


def test_constant_and_damaged_maps(device):
    maps = random(1, 5, 4, 4)
    maps[0, 1] = 3.25
    maps[0, 2, 3, 3], maps[0, 3, 0, 1] = np.nan, np.inf
    maps[0, 4] *= 1e-9  # a range below the 1e-8 of the divisor
    images = np.ones((1, 1, 8, 9), np.float32)
    found = device.get(ops.mask(device.put(images), device.put(maps)))[0, :, 0]
    assert found[0].max() > 0.9
    assert not found[1].any()
    assert np.isnan(found[2:4]).all()
    assert 0 < found[4].max() < 0.9


def test_masks_of_any_strides():
    images, maps = random(4, 3, 20, 30), random(4, 6, 5, 7)
    for image, cells in (
        (images.swapaxes(2, 3), maps.swapaxes(2, 3)),
        (images[::2, ::-1, ::-1, ::3], maps[::2, 1::2, ::-1, 1::2]),
        (images, maps.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)),
    ):
        copies = [np.ascontiguousarray(array) for array in (image, cells)]
        np.testing.assert_array_equal(ops.mask(image, cells), ops.mask(*copies))


def test_threads_change_no_bit():
    images, maps, saliency = random(3, 3, 90, 80), random(3, 11, 7, 7), random(3, 90, 80)
    ranks = ops.rank(saliency, threads=1)
    for threads in (2, 7):
        np.testing.assert_array_equal(ops.rank(saliency, threads=threads), ranks)
        for call, given in ((ops.mask, (images, maps)), (ops.remove, (images, ranks, [9, 5000]))):
            np.testing.assert_array_equal(call(*given, threads=threads), call(*given, threads=1))


def test_out_is_written_in_place(device):
    images, maps, saliency = (device.put(random(*shape)) for shape in ((2, 3, 12, 10), (2, 4, 3, 3), (2, 12, 10)))
    ranks = ops.rank(saliency)
    calls = [
        (lambda **out: ops.rank(saliency, **out), np.zeros((2, 12, 10), np.int32)),
        (lambda **out: ops.remove(images, ranks, [5], **out), np.zeros((2, 1, 3, 12, 10), np.float32)),
        (lambda **out: ops.mask(images, maps, **out), np.zeros((2, 4, 3, 12, 10), np.float32)),
    ]
    for call, empty in calls:
        out = device.put(empty)
        assert call(out=out) is out
        np.testing.assert_array_equal(device.get(out), device.get(call()))


IMAGES, RANKS, MAPS = (
    np.zeros((2, 3, 8, 9), np.float32),
    np.zeros((2, 8, 9), np.int32),
    np.zeros((2, 4, 3, 3), np.float32),
)
BAD = {
    "rank axes": (ops.rank, (IMAGES,), {}, "give (N,H,W)"),
    "rank dtype": (ops.rank, (RANKS,), {}, "convert them to 'float32'"),
    "rank out": (ops.rank, (IMAGES[:, 0],), {"out": IMAGES[:, 0].copy()}, "it must be (2, 8, 9) int32"),
    "rank threads": (ops.rank, (IMAGES[:, 0],), {"threads": 0}, "threads is 0"),
    "ranks dtype": (ops.remove, (IMAGES, RANKS.astype("i8"), [1]), {}, "the ranks are int64; convert them to 'int32'"),
    "ranks shape": (ops.remove, (IMAGES, RANKS[:, :7], [1]), {}, "for these images give (2, 8, 9)"),
    "counts fraction": (ops.remove, (IMAGES, RANKS, [0.5]), {}, "give integers, (S,) or (N,S)"),
    "counts number": (ops.remove, (IMAGES, RANKS, 3), {}, "give integers, (S,) or (N,S)"),
    "counts none": (ops.remove, (IMAGES, RANKS, []), {}, "give integers, (S,) or (N,S)"),
    "counts batch": (ops.remove, (IMAGES, RANKS, [[1], [2], [3]]), {}, "the counts are those of 3 images"),
    "counts large": (ops.remove, (IMAGES, RANKS, [73]), {}, "give 0 to 72"),
    "counts negative": (ops.remove, (IMAGES, RANKS, [-1]), {}, "give 0 to 72"),
    "fill channels": (ops.remove, (IMAGES, RANKS, [1], [1, 2]), {}, "neither a number nor 3 numbers nor images"),
    "fill text": (ops.remove, (IMAGES, RANKS, [1], "blur"), {}, "neither a number nor 3 numbers nor images"),
    "fill shape": (ops.remove, (IMAGES, RANKS, [1], IMAGES[:1]), {}, "for these images give (2, 3, 8, 9)"),
    "fill dtype": (ops.remove, (IMAGES, RANKS, [1], IMAGES.astype("f8")), {}, "convert them to 'float32'"),
    "remove out": (ops.remove, (IMAGES, RANKS, [1]), {"out": IMAGES}, "it must be (2, 1, 3, 8, 9) float32"),
    "images dtype": (ops.mask, (IMAGES.astype("f2"), MAPS), {}, "the images are float16"),
    "maps batch": (ops.mask, (IMAGES, MAPS[:1]), {}, "maps of 1 images for 2"),
    "maps axes": (ops.mask, (IMAGES, MAPS[0]), {}, "give (N,K,h,w)"),
    "maps wide": (ops.mask, (IMAGES, np.zeros((2, 1, 1, 32768), "f4")), {}, "a side is at most 32767"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_get_one_sentence(case):
    call, given, options, sentence = BAD[case]
    with pytest.raises(InputError) as error:
        call(*given, **options)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_the_module_itself_checks_shapes():
    with pytest.raises(ValueError, match=r"\[remove\] expected counts of 2 images, got 1"):
        _core.remove_values(
            IMAGES, RANKS, np.zeros((1, 1), np.int32), np.zeros(3, np.float32), np.zeros((2, 1, 3, 8, 9), np.float32),
            threads=1, stream=0,
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"\[mask\] expected copies of \(2, 4, 3, 8, 9\)"):
        _core.mask(IMAGES, MAPS, np.zeros((2, 4, 3, 9, 8), np.float32), align_corners=False, threads=1, stream=0)
