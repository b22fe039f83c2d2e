"""`ops.cam` against a float64 oracle."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from finercam_rt import InputError, _core, ops

# (N, C, h, w): one of everything, odd, a ResNet's, a wide map in one image, a map larger than a tile, one position.
SIZES = [
    (1, 1, 1, 1),
    (2, 1, 5, 3),
    (1, 3, 1, 7),
    (3, 67, 5, 9),
    (1, 2048, 7, 7),
    (5, 130, 14, 14),
    (2, 65, 61, 67),
    (1, 9, 130, 131),
    (2, 300, 1, 1),
    (1, 2100, 3, 2),
]
DTYPES = ["float32", "float16"]
LAYOUTS = ["nchw", "nhwc", "tokens"]


def oracle(activations: np.ndarray, gradients: np.ndarray) -> tuple[np.ndarray, float]:
    """The map of (N, C, h, w) in float64, and the size of the terms it is a sum of."""
    a, g = activations.astype(np.float64), gradients.astype(np.float64)
    raw = np.einsum("nc,nchw->nhw", g.mean(axis=(2, 3)), a)
    terms = np.einsum("nc,nchw->nhw", np.abs(g).mean(axis=(2, 3)), np.abs(a))
    return np.where(raw <= 0, 0.0, raw), float(terms.max())


def features(size: tuple[int, ...], dtype: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Activations with outliers, and gradients whose mean is small beside their spread, as a trained network's are."""
    rng = np.random.default_rng([seed, *size])
    a = rng.standard_normal(size)
    a *= np.where(rng.random(size) < 0.01, 30.0, 1.0)
    g = rng.standard_normal(size) + rng.standard_normal((*size[:2], 1, 1))
    return a.astype(dtype), g.astype(dtype)


def arranged(array: np.ndarray, layout: str, prefix_tokens: int = 0) -> np.ndarray:
    """(N, C, h, w) in another layout, contiguous; the prefix tokens are poison, for they must not be read."""
    if layout == "nchw":
        return array
    nhwc = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    if layout == "nhwc":
        return nhwc
    tokens = nhwc.reshape(nhwc.shape[0], -1, nhwc.shape[3])
    prefix = np.full((tokens.shape[0], prefix_tokens, tokens.shape[2]), np.nan, tokens.dtype)
    return np.concatenate([prefix, tokens], axis=1)


def options(layout: str, size: tuple[int, ...], prefix_tokens: int = 0) -> dict:
    return {"layout": layout} | (
        {"grid": (size[2], size[3]), "prefix_tokens": prefix_tokens} if layout == "tokens" else {}
    )


def check(device, result, activations, gradients):
    expected, terms = oracle(activations, gradients)
    found = device.get(result)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-7 * device.tolerance * terms)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_oracle(device, size, dtype, layout):
    a, g = features(size, dtype)
    prefix_tokens = 2 if layout == "tokens" else 0
    put = [device.put(arranged(x, layout, prefix_tokens)) for x in (a, g)]
    result = ops.cam(*put, **options(layout, size, prefix_tokens))
    check(device, result, a, g)


def test_cases_are_not_vacuous():
    for size in SIZES[3:]:
        expected, _ = oracle(*features(size, "float32"))
        assert 0.05 < (expected > 0).mean() < 0.95 or expected[0].size == 1


def test_large_map_is_as_exact_as_a_small_one():
    a, g = features((1, 64, 512, 512), "float32")
    g += 3.0  # means far from zero, so that the relative error is that of the sums
    expected, _ = oracle(a, g)
    found = ops.cam(a, g)
    assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("view", ["transposed", "sliced", "channels_last", "columns_swapped", "broadcast"])
def test_strides(device, dtype, view):
    a, g = features((4, 24, 10, 12), dtype)

    def viewed(x):
        if view == "transposed":
            return x.swapaxes(2, 3)
        if view == "sliced":
            return x[::2, 3:20:3, 1::2, ::3]
        if view == "channels_last":
            return x.swapaxes(1, 2).swapaxes(2, 3)  # what was h is the channel axis now, in the middle of the memory
        if view == "columns_swapped":
            return x.swapaxes(0, 3)
        return x[:1, :, :, :]

    check(device, ops.cam(viewed(device.put(a)), viewed(device.put(g))), viewed(a), viewed(g))


def test_negative_and_zero_strides():
    a, g = features((2, 6, 5, 4), "float32")
    check_cpu = [a[:, ::-1, ::-1, ::-1], np.broadcast_to(g[:, :, :1, :1], g.shape)]
    expected, terms = oracle(*check_cpu)
    np.testing.assert_allclose(ops.cam(*check_cpu), expected, rtol=0, atol=5e-7 * terms)


def test_inputs_may_differ_in_strides(device):
    a, g = features((2, 40, 6, 7), "float32")
    last = device.put(g.transpose(0, 2, 3, 1)).swapaxes(2, 3).swapaxes(1, 2)
    check(device, ops.cam(device.put(a), last), a, g)


def test_token_slices_are_read_in_place():
    tokens = features((3, 16, 9, 10), "float32")[0].reshape(3, 16, 90).transpose(0, 2, 1)
    a = tokens[:, 1:82]
    expected = oracle(*[a.transpose(0, 2, 1).reshape(3, 16, 9, 9)] * 2)
    found = ops.cam(tokens[:, :82], tokens[:, :82], layout="tokens", prefix_tokens=1)
    np.testing.assert_allclose(found, expected[0], rtol=0, atol=5e-7 * expected[1])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["activations", "gradients"])
def test_what_is_not_finite_shows(device, layout, dtype, bad, where):
    a, g = features((2, 20, 6, 6), dtype)
    (a if where == "activations" else g)[1, 13, 2, 3] = bad
    result = ops.cam(*(device.put(arranged(x, layout)) for x in (a, g)), **options(layout, a.shape))
    found = device.get(result)
    assert np.isfinite(found[0]).all()
    with np.errstate(invalid="ignore"):
        expected, _ = oracle(a, g)
    np.testing.assert_array_equal(np.isnan(found[1]), np.isnan(expected[1]))
    np.testing.assert_array_equal(np.isposinf(found[1]), np.isposinf(expected[1]))
    assert not np.isfinite(found[1]).all() or bad == -np.inf or expected[1, 2, 3] == 0


def test_all_negative_evidence_is_zero(device):
    a = np.ones((1, 4, 3, 3), np.float32)
    found = device.get(ops.cam(device.put(a), device.put(-a)))
    assert not found.any()
    assert not np.signbit(found).any()


@pytest.mark.parametrize("exponent", range(-24, 16))
def test_every_half_is_converted_exactly(exponent):
    """All halves of one exponent, subnormals too: with one channel and unit gradients the map is the activations."""
    bits = np.arange(0x7C00, dtype=np.uint16)
    values = bits.view(np.float16)
    magnitudes = values.astype(np.float64)
    chosen = values[(magnitudes >= 2.0**exponent) & (magnitudes < 2.0 ** (exponent + 1))]
    a = chosen.reshape(1, 1, 1, -1)
    np.testing.assert_array_equal(ops.cam(a, np.ones_like(a))[0, 0], chosen.astype(np.float32))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 515, 33, 35), (7, 130, 14, 14), (1, 2048, 7, 7)])
def test_threads_change_no_bit(size, dtype, layout):
    a, g = (arranged(x, layout) for x in features(size, dtype))
    one, two, five = (ops.cam(a, g, threads=threads, **options(layout, size)) for threads in (1, 2, 5))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, five)


def test_many_python_threads_at_once():
    inputs = [features((2, 200, 14, 14), "float32", seed) for seed in range(8)]
    expected = [ops.cam(a, g, threads=1) for a, g in inputs]
    wrong = []

    def work(index):
        for _ in range(50):
            if not np.array_equal(ops.cam(*inputs[index], threads=1 + index % 3), expected[index]):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_out_is_written_in_place(device):
    a, g = features((3, 50, 9, 8), "float32")
    out = device.put(np.full((3, 9, 8), -1, np.float32))
    result = ops.cam(device.put(a), device.put(g), out=out)
    assert result is out
    check(device, out, a, g)


def test_dlpack_in_and_torch_out():
    torch = pytest.importorskip("torch")
    a, g = features((2, 30, 5, 5), "float32")
    result = ops.cam(torch.from_numpy(a), torch.from_numpy(g))
    assert isinstance(result, torch.Tensor)
    np.testing.assert_array_equal(result.numpy(), ops.cam(a, g))
    bf16 = [torch.from_numpy(x).to(torch.bfloat16) for x in (a, g)]
    expected, terms = oracle(*(x.float().numpy() for x in bf16))
    np.testing.assert_allclose(ops.cam(*bf16).numpy(), expected, rtol=0, atol=5e-7 * terms)

    class Foreign:
        """An array of a framework that nobody has heard of."""

        def __init__(self, tensor):
            self.tensor = tensor

        def __dlpack__(self, **kwargs):
            return self.tensor.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return self.tensor.__dlpack_device__()

    foreign = ops.cam(Foreign(torch.from_numpy(a)), Foreign(torch.from_numpy(g)))
    assert isinstance(foreign, np.ndarray)
    np.testing.assert_array_equal(foreign, ops.cam(a, g))


A = np.ones((2, 4, 3, 3), np.float32)
TOKENS = np.ones((2, 11, 4), np.float32)
READ_ONLY = np.zeros((2, 3, 3), np.float32)
READ_ONLY.setflags(write=False)
UNALIGNED = np.zeros(A.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(A.shape)
PACKED = np.zeros(A.shape, np.dtype([("value", "f4"), ("flag", "u1")]))["value"]
BAD = {
    "rank": (A[0], A[0], {}, "(4, 3, 3); give (N,C,h,w)"),
    "empty": (A[:0], A[:0], {}, "sizes of at least 1"),
    "shapes": (A, A[:, :2], {}, "gradients have shape (2, 2, 3, 3)"),
    "float64": (A.astype(float), A.astype(float), {}, "are float64; convert them"),
    "int": (A.astype("i4"), A.astype("i4"), {}, "are int32; convert them"),
    "dtypes": (A, A.astype("f2"), {}, "gradients are float16 and the activations float32"),
    "list": ([1.0], A, {}, "(list) cannot be read as an array"),
    "none": (None, A, {}, "(NoneType) cannot be read as an array"),
    "big endian": (A.astype(">f4"), A.astype(">f4"), {}, "cannot be read as an array"),
    "unaligned": (UNALIGNED, A, {}, "aligned"),
    "packed": (PACKED, A, {}, ""),
    "method": (A, A, {"method": "magic"}, "use one of 'gradcam'"),
    "layout": (A, A, {"layout": "nlc"}, "use one of 'nchw', 'nhwc', 'tokens'"),
    "prefix": (A, A, {"prefix_tokens": 1}, "are for the layout 'tokens'"),
    "grid": (A, A, {"grid": (3, 3)}, "are for the layout 'tokens'"),
    "no square": (TOKENS, TOKENS, {"layout": "tokens"}, "11 patch tokens are no square; give grid=(h, w)"),
    "wrong grid": (TOKENS, TOKENS, {"layout": "tokens", "grid": (3, 4)}, "grid is 3 x 4, but there are 11"),
    "bad grid": (TOKENS, TOKENS, {"layout": "tokens", "grid": (3.5, 4)}, "two integers"),
    "all prefix": (TOKENS, TOKENS, {"layout": "tokens", "prefix_tokens": 11}, "at least one must be left"),
    "negative prefix": (TOKENS, TOKENS, {"layout": "tokens", "prefix_tokens": -5}, "prefix_tokens is -5"),
    "threads": (A, A, {"threads": 0}, "threads is 0"),
    "out shape": (A, A, {"out": np.zeros((2, 3, 4), "f4")}, "it must be (2, 3, 3) float32 on cpu"),
    "out dtype": (A, A, {"out": np.zeros((2, 3, 3))}, "out is (2, 3, 3) float64"),
    "out strides": (A, A, {"out": np.zeros((2, 3, 6), "f4")[:, :, ::2]}, "C-contiguous"),
    "out read-only": (A, A, {"out": READ_ONLY}, "writable"),
    "out list": (A, A, {"out": [0]}, "cannot be read as an array"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_sentence(case):
    activations, gradients, extra, words = BAD[case]
    with pytest.raises(InputError) as caught:
        ops.cam(activations, gradients, **extra)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert message.endswith(".")


def test_tensors_with_gradient_tracking_give_a_plain_result():
    torch = pytest.importorskip("torch")
    a, g = (torch.from_numpy(x).requires_grad_() for x in features((1, 8, 3, 3), "float32"))
    found = ops.cam(a, g)
    assert not found.requires_grad
    np.testing.assert_array_equal(found.numpy(), ops.cam(a.detach().numpy(), g.detach().numpy()))


@pytest.mark.gpu
def test_arrays_of_two_devices_are_refused(gpu):
    a = np.ones((1, 2, 3, 3), np.float32)
    with pytest.raises(InputError, match="gradients lie on cpu and the activations on cuda:0"):
        ops.cam(gpu.put(a), a)


def test_the_kernels_check_by_themselves():
    """The C++ errors name the operation, what was expected and found, and the line, but no folder of a machine."""
    out = np.zeros((2, 3, 3), np.float32)
    given = {"method": _core.Method.GRADCAM, "layout": _core.Layout.NCHW, "prefix_tokens": 0, "stream": 0}
    with pytest.raises(
        ValueError,
        match=r"^\[cam\] expected gradients of \(2, 4, 3, 3\), got \(2, 3, 3, 3\) \(csrc/kernels/cam\.cpp:\d+\)$",
    ):
        _core.cam(A, A[:, :3], out, threads=1, **given)
    with pytest.raises(ValueError, match=r"\[cam\] expected threads of at least 1, got 0"):
        _core.cam(A, A, out, threads=0, **given)
    with pytest.raises(ValueError, match=r"\[cam\] expected a map of 2 x 3, got 3 x 3"):
        _core.cam(A, A, out[:, :2].copy(), threads=1, **given)
    for bad in (out.astype(float), np.zeros((2, 3, 6), np.float32)[..., ::2]):
        with pytest.raises(TypeError):
            _core.cam(A, A, bad, threads=1, **given)  # would be converted, and the result lost
