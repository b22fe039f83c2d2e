"""Maps, pictures and points in the coordinates of the photograph that the crop was taken from."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from finercam_rt import Contrast, Engine, Explanation, InputError
from finercam_rt.geometry import Geometry
from finercam_rt.images import load_photograph
from finercam_rt.manifest import CROP_MODES, InputSpec
from finercam_rt.original import original_of
from finercam_rt.preprocess import Preprocessor

BLACK = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
# (width, height): landscape, portrait, odd, smaller than the crop, a strip, one pixel, large
SIZES = [(301, 199), (199, 301), (77, 75), (23, 17), (300, 12), (1, 1), (1500, 1000)]


def geometry_of(width: int, height: int, spec: InputSpec) -> tuple[np.ndarray, Geometry]:
    """The crop of a photograph whose red tells x and whose green tells y, and where it is said to lie."""
    x, y = (255 * (np.arange(n) + 0.5) / n for n in (width, height))
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.rint(x)[None, :], np.rint(y)[:, None]
    view = np.empty((*spec.size, 3), np.uint8)
    geometry = Preprocessor(spec)(Image.fromarray(ramp), np.empty((3, *spec.size), np.float32), view, "ramp")
    return view, geometry


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("size", [(56, 56), (48, 64), (65, 41)])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_crops_own_pixels_tell_where_they_come_from(interpolation, crop_pct, size, crop_mode):
    """Without any arithmetic of ours: resizing keeps a ramp, so that each pixel holds its place in the photograph."""
    for width, height in [*SIZES[:-2], (640, 427)]:
        spec = InputSpec(size, interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode, **BLACK)
        view, geometry = geometry_of(width, height, spec)
        assert geometry.size == (height, width)
        for axis, edge in ((0, width), (1, height)):
            pixels = size[1 - axis]
            centres = np.stack([np.arange(pixels) + 0.5] * 2, axis=-1)
            said = geometry.to_original(centres)[:, axis]
            row = view[size[0] // 2, :, 0] if axis == 0 else view[:, size[1] // 2, 1]
            step = max(geometry.scale[axis], 1.0)
            inner = (said > 2.5 * step) & (said < edge - 2.5 * step)  # the edges bend the ramp
            if inner.sum() < 5:
                continue
            found = row[inner] / 255 * edge
            error = (found - said[inner]) / geometry.scale[axis]
            level = edge / 255 / geometry.scale[axis]  # what one grey level is, in pixels of the crop
            assert abs(error.mean()) < 0.06 + 0.15 * level, (width, height, axis)
            assert np.abs(error).max() < 0.1 + 1.1 * level, (width, height, axis)


def test_geometry_of_known_cases():
    def box(width: int, height: int, **changes: object) -> tuple[float, ...]:
        return geometry_of(width, height, InputSpec((50, 50), **BLACK, **changes))[1].box

    assert box(400, 200, crop_pct=1.0) == (100, 0, 300, 200)
    assert box(200, 400, crop_pct=0.5) == (50, 150, 150, 250)
    assert box(400, 200, crop_pct=1.0, crop_mode="squash") == (0, 0, 400, 200)
    assert box(400, 200, crop_pct=0.5, crop_mode="squash") == (100, 50, 300, 150)
    assert box(400, 200, crop_pct=1.0, crop_mode="border") == (0, -96, 400, 304)  # 25 rows in 50: 12 above, 13 below


def test_points_and_boxes_go_there_and_back():
    geometry = Geometry((200, 400), (50, 50), (100.0, -10.0, 300.0, 90.0))
    assert geometry.scale == (4, 2)
    assert geometry.visible == (100, 0, 300, 90)
    assert geometry.to_original((0, 0)).tolist() == [100, -10]
    assert geometry.to_original([[0, 0, 50, 50], [1, 2, 3, 4]]).tolist() == [[100, -10, 300, 90], [104, -6, 112, -2]]
    points = np.random.default_rng(0).normal(size=(3, 4, 2)) * 100
    np.testing.assert_allclose(geometry.to_crop(geometry.to_original(points)), points)
    assert geometry.resized((100, 100)).box == (25, -5, 75, 45)
    for wrong in (3, [1, 2, 3], "ab", [[1, 2], [3]]):
        with pytest.raises(InputError, match="x y, or boxes"):
            geometry.to_original(wrong)


def dotted(width: int, height: int, x: float, y: float, radius: float) -> np.ndarray:
    """Black but for a white disc."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    disc = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    return np.where(disc[..., None], np.uint8(255), np.uint8(0)).repeat(3, axis=2)


def brightest(engine: Engine, source: object) -> Explanation:
    """The explanation of the class that the dot speaks for most."""
    whole = engine.explain(source, contrasts=[Contrast(k, []) for k in range(7)])
    return whole.contrast(int(whole.saliency_map[0].max(axis=(1, 2)).argmax()))


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize(("width", "height"), [(301, 199), (199, 301), (40, 26), (1200, 800), (64, 64)])
def test_a_dot_is_found_where_it_was_painted(make_toy, crop_mode, width, height):
    """Grids of 4 x 6 cells: each dot is found in its cell, and on the average of many exactly where it was."""
    spec = InputSpec((32, 48), crop_pct=0.9, crop_mode=crop_mode, **BLACK)
    geometry = geometry_of(width, height, spec)[1]
    left, top, right, bottom = geometry.visible
    offsets = []
    with Engine(make_toy(contrasts=7, manifest={"input": spec}).path) as engine:
        for k in range(40):
            # evenly spread (Kronecker), and off the edges, where the nearest cell's centre is on one side only
            across, down = 0.1 + 0.8 * (0.7549 * k % 1), 0.1 + 0.8 * (0.5698 * k % 1)
            x, y = left + (right - left) * across, top + (bottom - top) * down
            one = brightest(engine, dotted(width, height, x, y, 1.5 * max(geometry.scale)))
            values = one.saliency_at(0, "original")
            assert values.shape == (height, width)
            cell = np.array([(geometry.box[2] - geometry.box[0]) / 6, (geometry.box[3] - geometry.box[1]) / 4])
            peak = np.array(one.peak(0, "original"))
            offsets.append((peak - (x, y)) / cell)
            row, column = np.unravel_index(np.nanargmax(values), values.shape)
            assert (np.abs((column + 0.5, row + 0.5) - peak) <= cell / 2 + 1).all(), "the picture agrees with peak()"
            crop = np.array(one.peak(0)) / 8 - 0.5
            assert np.abs(crop - crop.round()).max() < 1e-9, "in the crop a peak is a cell's centre"
    assert np.abs(offsets).max() < 0.75
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_original_means_upright(make_toy, tmp_path, orientation):
    """Stored turned, as phones do: pictures, maps and points are those of the photograph as it is looked at."""
    upright = Image.fromarray(dotted(180, 120, 131.0, 49.0, 7.0))
    stored_by = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = upright if stored_by is None else upright.transpose(Image.Transpose(stored_by))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    stored.save(path, exif=exif)
    spec = InputSpec((32, 48), crop_pct=1.0, crop_mode="squash", **BLACK)
    one = brightest(Engine(make_toy(contrasts=7, manifest={"input": spec}).path), path)
    assert one.saliency_at(0, "original").shape == (120, 180)
    assert one.peak(0, "original") == (135.0, 45.0), "the centre of the dot's cell of 30 x 30 pixels"
    assert one.record(0)["original"] == {"size": [120, 180], "box": [0, 0, 180, 120], "orientation": orientation}
    shown = one.overlay(0, opacity=0.0, coordinates="original")
    assert np.array_equal(np.asarray(shown), np.asarray(upright))


def test_values_equal_an_oracle(make_toy):
    """Bilinear between cells' centres, in float64, for a crop that reaches beyond the photograph on two sides."""
    spec = InputSpec((32, 48), crop_pct=1.0, crop_mode="border", **BLACK)
    photograph = np.random.default_rng(3).integers(0, 256, (90, 61, 3), dtype=np.uint8)
    explanation = Engine(make_toy(manifest={"input": spec}).path).explain(photograph, references=[])
    assert explanation.status == ("ok",)
    left, top, right, bottom = explanation.geometry(0).box
    assert left < 0
    assert right > 61
    raw = explanation.saliency_map[0].astype(np.float64)
    x = ((np.arange(61) + 0.5) - left) / (right - left) * 6 - 0.5
    y = ((np.arange(90) + 0.5) - top) / (bottom - top) * 4 - 0.5
    across = np.stack([np.interp(x, np.arange(6), row) for row in raw])
    expected = np.stack([np.interp(y, np.arange(4), column) for column in across.T], axis=1)
    found = explanation.saliency_at(0, "original")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * raw.max())
    half = explanation.saliency_at(0, "original", size=(45, 30))
    assert half.shape == (45, 30)
    assert abs(half.mean() - found.mean()) < 0.02 * raw.max()
    np.testing.assert_allclose(explanation.saliency_at(0, size=(4, 6)), raw, rtol=1e-6)


def test_values_of_maps_without_a_zero(toy):
    """Drawing takes the least value off; values keep it, and a constant map is constant."""
    import dataclasses

    explanation = Engine(toy.path).explain(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    raised = dataclasses.replace(explanation, saliency_map=explanation.saliency_map + np.float32(3))
    np.testing.assert_allclose(raised.saliency_at(0, size=(4, 6)), raised.saliency_map[0], rtol=1e-6)
    constant = np.full_like(explanation.saliency_map, 0.7)
    flat = dataclasses.replace(explanation, saliency_map=constant, status=("constant",))
    found = flat.saliency_at(0, "original")
    assert np.isnan(found).any()
    assert set(found[np.isfinite(found)].tolist()) == {float(np.float32(0.7))}


def test_outside_of_the_crop(toy):
    """NaN in arrays, transparent in heat maps, dark in overlays."""
    photograph = np.random.default_rng(8).integers(100, 256, (100, 400, 3), dtype=np.uint8)
    explanation = Engine(toy.path).explain(photograph, references=[])
    left, _, right, _ = explanation.geometry(0).box
    centres = np.arange(400) + 0.5
    seen = (centres >= left) & (centres < right)
    assert 50 < seen.sum() < 350
    top, bottom = explanation.geometry(0).box[1::2]
    rows = slice(int(top) + 1, int(bottom))
    assert np.array_equal(np.isfinite(explanation.saliency_at(0, "original")[rows]).all(axis=0), seen)
    assert np.array_equal(np.asarray(explanation.heatmap(0, coordinates="original"))[50, :, 3] == 255, seen)
    overlay = np.asarray(explanation.overlay(0, opacity=0.5, coordinates="original"))
    assert overlay.shape == photograph.shape
    np.testing.assert_array_equal(overlay[:, ~seen], (photograph[:, ~seen].astype(int) + 1) // 2)
    small = explanation.overlay(0, coordinates="original", size=(50, 200))
    assert small.size == (200, 50)


def test_a_map_that_explains_nothing_leaves_the_photograph(make_toy):
    toy = make_toy(manifest={"input": InputSpec((32, 48), **BLACK)})
    photograph = np.zeros((60, 200, 3), np.uint8)
    photograph[:, :20] = 200  # outside of the crop
    explanation = Engine(toy.path).explain(photograph)
    assert explanation.status == ("no_positive_evidence",)
    assert np.array_equal(np.asarray(explanation.overlay(0, coordinates="original")), photograph)
    assert np.nanmax(explanation.saliency_at(0, "original")) == 0
    with pytest.raises(InputError, match="no peak: its status is no_positive_evidence"):
        explanation.peak(0)


def test_logits_that_are_not_finite_draw_nothing(toy):
    """The map itself may be finite and draw something all the same."""
    import dataclasses

    explanation = Engine(toy.path).explain(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    broken = dataclasses.replace(explanation, status=("non_finite",))
    assert np.isnan(broken.saliency_at(0)).all()
    assert not np.asarray(broken.heatmap(0)).any()
    assert np.array_equal(np.asarray(broken.overlay(0)), broken.images[0])


def test_a_source_that_changed_is_noticed(toy, tmp_path):
    """A wrong photograph under the map would be worse than none."""
    rng = np.random.default_rng(2)
    array = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(array).save(path)
    engine = Engine(toy.path)
    explanation = engine.explain([array, path, path.read_bytes(), path.open("rb")], references=[])
    pictures = [np.asarray(explanation.overlay(i, coordinates="original")) for i in range(4)]
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures)
    array[...] = rng.integers(0, 256, array.shape, dtype=np.uint8)
    with pytest.raises(InputError, match="image 0 has changed since it was explained"):
        explanation.overlay(0, coordinates="original")
    Image.fromarray(array[:, :79]).save(path)
    with pytest.raises(InputError, match=r"photo\.png has changed"):
        explanation.overlay(1, coordinates="original")
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        explanation.overlay(1, coordinates="original")
    assert explanation.heatmap(1, coordinates="original").size == (80, 60), "which needs no photograph"
    assert explanation.overlay(1).size == (48, 32), "of the crop, which is kept"
    assert np.array_equal(np.asarray(explanation.overlay(3, coordinates="original")), pictures[3])


@pytest.mark.parametrize("step", [(40, 0), (3, 0), (1, 0), (0, 17), (0, 9), (200, 100)])
def test_a_small_object_that_moved_is_noticed(toy, step):
    """20 x 12 pixels of a camera's picture, as a ball on a field: fewer than what a thumbnail would show."""
    rows, columns = np.s_[533:545], np.s_[948:968]
    array = np.full((1080, 1920, 3), 90, np.uint8)
    array[rows, columns] = 250
    explanation = Engine(toy.path).explain(array, references=[])
    assert explanation.overlay(0, coordinates="original").size == (1920, 1080)
    array[rows, columns] = 90
    array[rows.start + step[1] : rows.stop + step[1], columns.start + step[0] : columns.stop + step[0]] = 250
    with pytest.raises(InputError, match="has changed since it was explained"):
        explanation.overlay(0, coordinates="original")


def test_the_originals_are_referred_to_not_copied(toy):
    array = np.zeros((500, 400, 3), np.uint8)
    image = Image.fromarray(array)
    kept = Engine(toy.path).explain([array, image]).originals
    assert kept[0].source is array
    assert kept[1].source is image


def test_the_same_scale_for_every_frame(toy):
    """Half the evidence is half the height of the colour scale, which each map's own range would hide."""
    import dataclasses

    frame = np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    one = Engine(toy.path).explain([frame, frame], references=[])
    raw = one.saliency_map * np.array([1, 0.5], np.float32)[:, None, None]
    two = dataclasses.replace(one, saliency_map=raw)
    top = float(raw.max())
    full, half = (np.asarray(two.heatmap(i, "gray", value_range=(0, top)))[..., 0].astype(int) for i in (0, 1))
    assert np.abs(full - 2 * half).max() <= 2
    assert full.max() > 200
    own = [np.asarray(two.heatmap(i, "gray")) for i in (0, 1)]
    assert np.abs(own[0].astype(int) - own[1]).max() <= 1


def test_refused(toy):
    import dataclasses

    explanation = Engine(toy.path).explain(np.zeros((60, 80, 3), np.uint8) + 9, references=[])
    for call in (explanation.overlay, explanation.heatmap, explanation.saliency_at, explanation.peak):
        with pytest.raises(InputError, match="coordinates are 'image'; use 'crop' or 'original'"):
            call(0, coordinates="image")
        with pytest.raises(InputError, match="no image 1"):
            call(1, coordinates="original")
    unknown = dataclasses.replace(explanation, originals=None)
    with pytest.raises(InputError, match="knows no originals; use the crop's coordinates"):
        unknown.overlay(0, coordinates="original")
    with pytest.raises(InputError, match="knows no originals"):
        unknown.geometry(0)
    assert "original" not in unknown.record(0)
    assert json.dumps(explanation.record(0))


def test_several_contrasts_share_the_original(make_toy):
    photograph = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    whole = Engine(make_toy(contrasts=3).path).explain([photograph] * 2, batch_size=1)
    assert len(whole.originals) == 2
    assert whole.contrast(2).overlay(1, coordinates="original").size == (90, 40)
    assert whole.record(1)["original"]["size"] == [40, 90]


def test_original_of_keeps_the_orientation():
    exif = Image.Exif()
    exif[0x0112] = 77
    image = Image.new("RGB", (3, 2))
    image.info["exif"] = exif.tobytes()
    original = original_of(load_photograph(image), 0, Geometry((2, 3), (1, 1), (0.0, 0.0, 3.0, 2.0)))
    assert original.orientation == 1, "77 is none"


def test_a_panorama_that_is_wider_than_a_picture_can_be(make_toy):
    toy = make_toy(manifest={"input": InputSpec((32, 48), crop_mode="squash", **BLACK)})
    explanation = Engine(toy.path).explain(np.full((40, 33_000, 3), 9, np.uint8), references=[])
    with pytest.raises(InputError, match="image 0 has 33000x40 pixels, and a picture at most 32767 a side; give a sma"):
        explanation.overlay(0, coordinates="original")
    assert explanation.overlay(0, coordinates="original", size=(10, 8000)).size == (8000, 10)
