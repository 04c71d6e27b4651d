"""Pseudo-anomalies match their masks, are reproducible, and fast enough for training on a CPU."""

import time

import numpy as np
import pytest
from PIL import Image

from stlm_edge.data import textures
from stlm_edge.data.perlin import perlin_mask, perlin_noise
from stlm_edge.data.pseudo_anomalies import KINDS, make_pseudo_anomaly
from stlm_edge.errors import UsageError

IMAGES = [np.random.default_rng(n).integers(0, 256, size=(96, 96, 3), dtype=np.uint8) for n in range(3)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "banded").mkdir()
    for number, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / "banded" / f"{number}.png")
    return tmp_path


@pytest.fixture(params=["procedural", "patches", "folder", "any"])
def source(request, folder):
    sources = {
        "procedural": textures.procedural,
        "patches": textures.patches_of(IMAGES),
        "folder": textures.folder_of(folder),
    }
    return sources.get(request.param) or textures.any_of(*sources.values())


@pytest.mark.parametrize("size", [32, 224, 256])
def test_mask_is_never_empty_or_full(size):
    rng = np.random.default_rng(0)
    covered = [perlin_mask(size, rng).mean() for _ in range(200)]
    assert min(covered) > 0
    assert max(covered) < 0.5


def test_noise_is_continuous_and_varies_in_scale():
    rng = np.random.default_rng(0)
    fields = [perlin_noise(128, rng) for _ in range(40)]
    assert all(np.abs(np.diff(field, axis=axis)).max() < 1.2 for field in fields for axis in (0, 1))
    roughness = [np.abs(np.diff(field)).mean() for field in fields]
    assert max(roughness) > 8 * min(roughness)
    assert 0.15 < np.std(fields) < 0.5


@pytest.mark.parametrize("size", [32, 224, 450, 1024])
def test_enlarged_noise_approximates_exact_noise(size):
    for seed in range(12):
        enlarged = perlin_noise(size, np.random.default_rng(seed))
        exact = perlin_noise(size, np.random.default_rng(seed), exact=True)
        assert np.abs(enlarged - exact).max() < 0.03
        assert ((enlarged > 0.5) != (exact > 0.5)).mean() < 0.005


def test_only_masked_pixels_change(source):
    image = IMAGES[0].copy()
    changed, mask = make_pseudo_anomaly(image, np.random.default_rng(1), source)
    assert (changed.dtype, mask.dtype, changed.shape, mask.shape) == (np.uint8, bool, (96, 96, 3), (96, 96))
    assert np.array_equal(image, IMAGES[0]), "the input is unchanged"
    assert np.array_equal(changed[~mask], image[~mask])
    assert (changed[mask] != image[mask]).any()


def test_perlin_blend_keeps_at_most_four_fifths_of_the_image():
    black, white = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(200):
        changed, mask = make_pseudo_anomaly(black, rng, lambda rng, size: white)
        kept.append(1 - changed[mask].mean() / 255)
    assert 0 <= min(kept) < 0.05
    assert 0.75 < max(kept) <= 0.801
    assert abs(np.mean(kept) - 0.4) < 0.05


def test_pseudo_anomalies_are_reproducible(source):
    first, second, other = (make_pseudo_anomaly(IMAGES[1], np.random.default_rng([7, n]), source) for n in (0, 0, 1))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    assert not np.array_equal(first[0], other[0])


def test_textures_vary(source):
    rng = np.random.default_rng(0)
    drawn = {source(rng, 48).tobytes() for _ in range(12)}
    assert len(drawn) == 12


def test_textures_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        textures.folder_of(tmp_path / "gone")
    with pytest.raises(UsageError, match="no images in it"):
        textures.folder_of(tmp_path)


@pytest.mark.parametrize("inside", ["", "dtd/dtd/images", "dtd/images", "images"])
def test_torchvision_root_of_textures_is_accepted(tmp_path, inside):
    (tmp_path / inside / "banded").mkdir(parents=True)
    Image.new("RGB", (96, 96), (10, 200, 30)).save(tmp_path / inside / "banded" / "even.png")
    drawn = textures.folder_of(tmp_path)(np.random.default_rng(0), 32)
    assert np.unique(drawn.reshape(-1, 3), axis=0).tolist() == [[10, 200, 30]]


def test_unreadable_texture_is_refused_early(tmp_path):
    Image.new("RGB", (96, 96)).save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(UsageError, match=r"broken\.png: not a readable image"):
        textures.folder_of(tmp_path)


SURFACE = np.asarray(Image.fromarray(IMAGES[0][:24, :24]).resize((96, 96), Image.Resampling.BICUBIC))
OTHER_KINDS = sorted(KINDS.keys() - {"perlin"})


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_every_kind_visibly_changes_exactly_its_mask(kind):
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(60):
        changed, mask = KINDS[kind](SURFACE, rng, textures.procedural)
        if mask.mean() < 3e-4:
            continue
        assert (changed.dtype, mask.dtype, changed.shape, mask.shape) == (np.uint8, bool, (96, 96, 3), (96, 96))
        assert np.array_equal(changed[~mask], SURFACE[~mask])
        change = np.abs(changed.astype(int) - SURFACE).max(axis=2)
        around = np.pad(change, 2, mode="edge")
        around = sum(around[y : y + 96, x : x + 96] for y in range(5) for x in range(5)) / 25
        # An edge pixel's neighbourhood may have lost its share outside the mask.
        assert np.maximum(change, around)[mask].min() >= 2
        areas.append(mask.mean())
    assert len(areas) > 40
    assert max(areas) < 0.5
    assert len(set(areas)) > 30


@pytest.mark.parametrize("size", [32, 448])
@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_a_uniform_image(kind, level, size):
    even, rng = np.full((size, size, 3), level, np.uint8), np.random.default_rng(0)
    for _ in range(5):
        changed, mask = make_pseudo_anomaly(even, rng, textures.procedural, (kind,))
        assert mask.any()
        assert (changed != even).any()


def test_only_requested_kinds_are_drawn():
    kinds, drawn = ("scratch", "stain"), []
    for seed in range(40):
        changed, _ = make_pseudo_anomaly(SURFACE, np.random.default_rng(seed), textures.procedural, kinds)
        for name in kinds:
            rng = np.random.default_rng(seed)
            rng.integers(len(kinds))
            drawn += [name] * np.array_equal(changed, KINDS[name](SURFACE, rng, textures.procedural)[0])
    assert len(drawn) == 40
    assert min(drawn.count(name) for name in kinds) >= 10


def test_every_kind_takes_less_than_10_ms_at_448():
    image = np.asarray(Image.fromarray(SURFACE).resize((448, 448)))
    source = textures.any_of(textures.procedural, textures.patches_of([image]))
    for kind in KINDS:
        rng = np.random.default_rng(0)
        trials = (
            _seconds(lambda rng=rng, kind=kind: make_pseudo_anomaly(image, rng, source, (kind,)), 12) for _ in range(30)
        )
        assert any(seconds < 1 / 100 for seconds in trials), kind  # a busy machine slows some of them


def _seconds(work, times):
    start = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start) / times
