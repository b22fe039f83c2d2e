"""From raw maps to what pytorch-grad-cam returns, against its own functions, which resize with OpenCV."""

from __future__ import annotations

import numpy as np
import pytest

from finercam_rt.compat.maps import finished

GRIDS = [[(7, 7)], [(1, 1)], [(1, 9)], [(4, 6)], [(14, 14), (7, 7)], [(80, 90), (5, 3), (20, 48)]]


def _raw(grids: list[tuple[int, int]]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    maps = [np.maximum(rng.normal(size=(4, *grid)), 0).astype(np.float32) for grid in grids]
    for values in maps:
        values[1] *= 1e-6  # where what is added to the divisor begins to show
        values[2] = 0
    return maps


@pytest.mark.parametrize("grids", GRIDS, ids=str)
def test_as_the_public_library(grids: list[tuple[int, int]]) -> None:
    image = pytest.importorskip("pytorch_grad_cam.utils.image", reason="grad-cam, the library compared with")
    size = (20, 48)
    scaled = [image.scale_cam_image(maps, size[::-1])[:, None] for maps in _raw(grids)]
    expected = image.scale_cam_image(np.mean(np.maximum(np.concatenate(scaled, axis=1), 0), axis=1))
    got = finished(_raw(grids), size)
    assert got.dtype == np.float32
    assert got.shape == (4, *size)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)


def test_what_is_not_finite_stays_so() -> None:
    maps = _raw([(4, 6)])
    maps[0][3, 2, 2] = np.nan
    got = finished(maps, (8, 12))
    assert np.isnan(got[3]).all()
    assert np.isfinite(got[:3]).all()
