"""Metrics against adeval (an independent implementation) and against plain exact ones written here."""

import copy
import tracemalloc

import adeval
import cv2
import numpy as np
import pytest
from adeval.au_pro import calculate_au_pro
from sklearn.metrics import roc_auc_score

from stlm_edge.errors import JobError
from stlm_edge.evaluation.metrics import LEVELS, DetectionMetrics, PixelMetrics, image_auroc, image_f1

SIZE = 64


def measure(maps, masks):
    metrics = PixelMetrics()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        metrics.update(anomaly_map, mask)
    return metrics.compute()


def exact(maps, masks, limit=0.3):
    """Pixel AUROC and AUPRO with every score its own threshold; tied ones are joined by a straight line."""
    weights = []
    for mask in masks:
        count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        areas = np.bincount(labels.ravel(), minlength=count)
        weights.append(np.where(mask, 1 / areas[labels], 0))
    scores, truth, weights = (np.stack(part).ravel() for part in (maps, masks, weights))
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    scores, truth, weights = scores[order], truth[order], weights[order]
    ends = np.append(np.flatnonzero(np.diff(scores)), scores.size - 1)
    fpr, tpr, pro = (np.append(0, np.cumsum(part)[ends]) for part in (~truth, truth, weights))
    fpr, tpr, pro = fpr / fpr[-1], tpr / tpr[-1], pro / pro[-1]
    inside = fpr < limit
    x, y = np.append(fpr[inside], limit), np.append(pro[inside], np.interp(limit, fpr, pro))
    return area(fpr, tpr), area(x, y) / limit


def area(x, y):
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def adeval_equal_steps(maps, masks, monkeypatch):
    """adeval counts into equal steps of the score: exact where every two different scores are steps apart."""
    if not hasattr(np, "trapz"):
        monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)  # adeval calls it by its name before numpy 2
    maps = [anomaly_map.astype(np.float64) for anomaly_map in maps]
    auroc, _, aupro = adeval.auroc_aupr_aupro(maps, [mask.astype(np.uint8) for mask in masks], nstrips=100_000)
    return auroc, aupro


def discs(count, radius, rng, size=SIZE):
    rows, columns = np.mgrid[:size, :size]
    masks = np.zeros((count, size, size), dtype=bool)
    for mask in masks[1:]:  # the first image stays normal
        for row, column in rng.integers(0, size, (3, 2)):
            mask |= (rows - row) ** 2 + (columns - column) ** 2 <= rng.integers(0, radius + 1) ** 2
    return masks


def random_scores(masks, rng):
    return (rng.random(masks.shape) + rng.random((len(masks), 1, 1)) * masks * 0.6).astype(np.float32)


def checkerboard(rng):
    """Diagonal neighbours: one region each by 8-connectivity, many by 4-connectivity."""
    masks = np.zeros((6, SIZE, SIZE), dtype=bool)
    for step, mask in enumerate(masks[1:], start=1):
        mask[5 : 5 + 8 * step, 5 : 5 + 8 * step] = (np.indices((8 * step, 8 * step)).sum(axis=0) % 2).astype(bool)
        mask[60, 60] = True
    return masks


def test_random_scores_match_adevals_two_methods(monkeypatch):
    rng = np.random.default_rng(1)
    masks = discs(12, 12, rng)
    maps = random_scores(masks, rng)
    areas = measure(maps, masks)
    normal_pixels = int(np.sum(~masks))
    by_rank, _ = calculate_au_pro(list(masks.astype(int)), list(maps), num_thresholds=normal_pixels)
    auroc, by_steps = adeval_equal_steps(maps, masks, monkeypatch)
    assert areas.aupro == pytest.approx(by_rank, abs=1e-3)
    assert areas.aupro == pytest.approx(by_steps, abs=1e-3)
    assert areas.pixel_auroc == pytest.approx(auroc, abs=1e-4)
    assert (areas.pixel_auroc, areas.aupro) == pytest.approx(exact(maps, masks), abs=1e-9)


# adeval leaves out the start of its curve, from (0, 0) to the share of pixels with the highest score of all, and it
# wants two different scores: where many pixels share the highest score, only the exact areas are a reference.
NOT_ADEVAL = object()
ADVERSARIAL = {
    # name: masks, scores of masks, and what brings the scores to equal steps for adeval without touching their order
    "heavy ties": (lambda rng: discs(10, 10, rng), lambda m, rng: np.round(4 * random_scores(m, rng)) / 4, None),
    "two scores": (lambda rng: discs(10, 10, rng), lambda m, rng: (random_scores(m, rng) > 0.8) * 0.7, NOT_ADEVAL),
    "one-pixel regions": (lambda rng: rng.random((10, SIZE, SIZE)) > 0.998, random_scores, None),
    "crowded regions": (lambda rng: rng.random((10, SIZE, SIZE)) > 0.6, random_scores, None),
    "diagonal neighbours": (checkerboard, random_scores, None),
    "next to 1000": (
        lambda rng: discs(10, 10, rng),
        lambda m, rng: 1000 + random_scores(m, rng) / 100,
        lambda maps: maps.astype(np.float64) - 1000,
    ),
    "saturated at 1": (
        lambda rng: discs(10, 10, rng),
        lambda m, rng: 1 - 1e-5 * np.clip(1.2 - random_scores(m, rng), 0, 1),
        lambda maps: (maps.astype(np.float64) - 1) * 1e5,
    ),
    "tiny and negative": (lambda rng: discs(10, 10, rng), lambda m, rng: -1e-20 * (2 - random_scores(m, rng)), None),
    "-0 and 0": (
        lambda rng: discs(10, 10, rng),
        lambda m, rng: np.where(random_scores(m, rng) > 0.7, 0.0, -0.0),
        NOT_ADEVAL,
    ),
    "forty orders of magnitude": (
        lambda rng: discs(10, 10, rng),
        lambda m, rng: 10 ** (40 * random_scores(m, rng) - 30),
        lambda maps: np.log10(maps.astype(np.float64)),
    ),
}


@pytest.mark.parametrize("case", ADVERSARIAL)
def test_adversarial_scores_match_adeval_and_exact_areas(case, monkeypatch):
    make_masks, make_maps, evened = ADVERSARIAL[case]
    rng = np.random.default_rng(2)
    masks = make_masks(rng)
    maps = make_maps(masks, rng).astype(np.float32)
    areas = measure(maps, masks)
    assert areas.aupro_error_bound == 0  # fewer than 65,536 different scores: nothing is lost
    assert (areas.pixel_auroc, areas.aupro) == pytest.approx(exact(maps, masks), abs=1e-9)
    if evened is not NOT_ADEVAL:
        auroc, aupro = adeval_equal_steps(evened(maps) if evened else maps, masks, monkeypatch)
        assert areas.aupro == pytest.approx(aupro, abs=1e-3)
        assert areas.pixel_auroc == pytest.approx(auroc, abs=1e-3)


def test_diagonal_neighbours_are_one_region():
    mask = np.zeros((8, 8), dtype=bool)
    mask[2, 2] = mask[3, 3] = mask[4, 2] = True  # one region of three
    mask[7, 7] = True  # a region of one
    anomaly_map = np.zeros((8, 8), dtype=np.float32)
    anomaly_map[7, 7] = 1  # above every normal pixel: half of the regions at every false-positive rate
    anomaly_map[2, 2] = 1  # and a third of the other one
    # from there the tie of all the rest: a straight line from (0, 2/3) to (1, 1)
    assert measure([anomaly_map], [mask]).aupro == pytest.approx(2 / 3 + 0.3 * (1 / 3) / 2)


def test_constant_maps_are_chance():
    masks = discs(4, 8, np.random.default_rng(3))
    areas = measure(np.full(masks.shape, 0.25, dtype=np.float32), masks)
    assert areas == (pytest.approx(0.5), 0, pytest.approx(0.15), 0)


def test_perfect_maps_are_1():
    masks = discs(4, 8, np.random.default_rng(4))
    assert measure(masks.astype(np.float32), masks) == (1, 0, pytest.approx(1), 0)


def test_single_class_has_no_areas():
    maps = np.random.default_rng(5).random((3, SIZE, SIZE), dtype=np.float32)
    nothing = (None, None, None, None)
    assert measure(maps, np.zeros(maps.shape, dtype=bool)) == nothing
    assert measure(maps, np.ones(maps.shape, dtype=bool)) == nothing
    assert PixelMetrics().compute() == nothing


def smooth_scores(masks, rng, scale=1.0):
    noise = rng.random(masks.shape, dtype=np.float32)
    bumps = np.stack([cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 6) for mask in masks])
    return (scale * (0.2 * noise + bumps * rng.random((len(masks), 1, 1)))).astype(np.float32)


@pytest.mark.parametrize(
    "squeeze",
    [
        pytest.param(lambda maps: maps, id="as they are"),
        pytest.param(lambda maps: 1 / (1 + np.exp(-12 * maps)), id="saturating at 1"),
        pytest.param(lambda maps: np.exp(-8 + 16 * maps), id="a long tail"),
        pytest.param(lambda maps: np.where(maps < 0.15, 0, maps), id="mostly one score"),
        pytest.param(lambda maps: maps - 1e30 * (maps < 1e-6), id="a few far outliers"),
    ],
)
@pytest.mark.parametrize("defects", ["last", "mixed"])
def test_more_scores_than_levels_stay_within_the_error_bound(squeeze, defects):
    rng = np.random.default_rng(6)
    masks = np.concatenate([np.zeros((8, 256, 256), dtype=bool), discs(17, 30, rng, 256)[1:]])
    maps = squeeze(smooth_scores(masks, rng)).astype(np.float32)
    order = np.arange(len(maps)) if defects == "last" else rng.permutation(len(maps))
    areas = measure(maps[order], masks[order])
    auroc, aupro = exact(maps, masks)
    assert np.unique(maps).size > 4 * LEVELS
    assert 0 < areas.aupro_error_bound < 2e-4
    assert 0 < areas.pixel_auroc_error_bound < 1e-4
    assert abs(areas.aupro - aupro) <= areas.aupro_error_bound
    assert abs(areas.pixel_auroc - auroc) <= areas.pixel_auroc_error_bound


def test_growing_error_bound_is_reported():
    """Scores that arrive in descending crowds where one level stood: the order inside is lost, and said to be."""
    rng = np.random.default_rng(7)
    metrics = PixelMetrics()
    first = rng.random((20, 256, 256), dtype=np.float32)
    for anomaly_map in first:
        metrics.update(anomaly_map, np.zeros((256, 256), dtype=bool))
    metrics.compute()
    level = np.flatnonzero(metrics._levels[1] > metrics._levels[0])[0]
    low, high = metrics._levels[:2, level]
    mask = discs(2, 60, rng, 256)[1]
    crowd = np.float32(low) + np.float32(high - low) * rng.random((256, 256), dtype=np.float32)
    metrics.update(np.where(mask, np.float32(high), crowd), mask)
    areas = metrics.compute()
    maps, masks = np.append(first, [np.where(mask, np.float32(high), crowd)], axis=0), np.zeros((21, 256, 256), bool)
    masks[-1] = mask
    auroc, _ = exact(maps, masks)
    assert areas.pixel_auroc_error_bound > 1e-3
    assert abs(areas.pixel_auroc - auroc) <= areas.pixel_auroc_error_bound


def test_pixel_auroc_is_that_of_scikit_learn():
    rng = np.random.default_rng(8)
    masks = discs(8, 12, rng)
    maps = smooth_scores(masks, rng)
    assert measure(maps, masks).pixel_auroc == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-5)


def test_memory_does_not_grow_with_the_number_of_maps():
    rng = np.random.default_rng(9)
    mask = discs(2, 40, rng, 512)[1]
    metrics = PixelMetrics()
    tracemalloc.start()
    peaks = []
    for _ in range(3):
        for _ in range(12):
            metrics.update(rng.random((512, 512), dtype=np.float32) + 0.3 * mask, mask)
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert peaks[-1] < 1.1 * peaks[0]
    assert peaks[-1] < 250e6
    assert metrics._levels.shape[1] <= LEVELS


def test_copy_is_independent():
    rng = np.random.default_rng(10)
    masks = discs(6, 10, rng)
    maps = random_scores(masks, rng)
    good = PixelMetrics()
    good.update(maps[0], masks[0])
    for kind in (slice(1, 3), slice(3, 6)):
        metrics = copy.deepcopy(good)
        for anomaly_map, mask in zip(maps[kind], masks[kind], strict=True):
            metrics.update(anomaly_map, mask)
        both = [maps[0], *maps[kind]], [masks[0], *masks[kind]]
        assert metrics.compute() == measure(*both)
    assert good.compute().aupro is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_map_that_is_not_finite_is_a_job_error(value):
    anomaly_map = np.zeros((4, 4), dtype=np.float32)
    anomaly_map[1, 2] = value
    with pytest.raises(JobError, match="1 of 16 values of an anomaly map are not finite"):
        PixelMetrics().update(anomaly_map, np.zeros((4, 4), dtype=bool))


def test_map_and_mask_of_two_shapes_are_a_job_error():
    with pytest.raises(JobError, match=r"anomaly map of shape \(4, 4\) with a mask of shape \(4, 5\)"):
        PixelMetrics().update(np.zeros((4, 4)), np.zeros((4, 5), dtype=bool))


@pytest.mark.parametrize("offset", [0, 1000, -1000])
def test_image_auroc_counts_the_pairs_in_order_at_any_scale(offset):
    rng = np.random.default_rng(11)
    anomalous = rng.random(60) > 0.5
    scores = np.round(rng.normal(size=60) + anomalous, 1) + offset
    pairs = scores[anomalous][:, None] - scores[~anomalous][None]
    expected = np.mean((pairs > 0) + 0.5 * (pairs == 0))
    assert image_auroc(scores, anomalous) == pytest.approx(expected, abs=1e-6)


def test_image_auroc_needs_both_classes_and_finite_scores():
    assert image_auroc([0.1, 0.2], [True, True]) is None
    assert image_auroc([0.1, 0.2], [False, False]) is None
    assert image_auroc([], []) is None
    with pytest.raises(JobError, match="1 of 2 scores are not finite"):
        image_auroc([0.1, np.nan], [True, False])


def test_image_f1():
    assert image_f1([True, True, False, False], [True, False, True, False]) == 0.5
    assert image_f1([True, False], [True, False]) == 1
    assert image_f1([False, False], [True, False]) == 0
    assert image_f1([True, False], [False, False]) is None


def test_metrics_of_images_and_pixels_are_accumulated():
    metrics, mask = DetectionMetrics(), np.zeros((8, 8), bool)
    mask[2:4, 2:4] = True
    metrics.update(np.where(mask, 0.9, 0.1).astype(np.float32), 0.9, True, mask)
    metrics.update(np.full((8, 8), 0.2, np.float32), 0.2, False, np.zeros((8, 8), bool))
    assert (metrics.scores, metrics.anomalous) == ([0.9, 0.2], [True, False])
    values = metrics.compute()
    assert (values["image_auroc"], values["pixel_auroc"], values["aupro"]) == pytest.approx((1, 1, 1))


def test_pixel_metrics_are_missing_where_an_anomalous_image_has_no_mask():
    metrics = DetectionMetrics()
    metrics.update(np.full((8, 8), 0.9, np.float32), 0.9, True, None)
    metrics.update(np.full((8, 8), 0.2, np.float32), 0.2, False, np.zeros((8, 8), bool))
    values = metrics.compute()
    assert values["image_auroc"] == 1
    assert values["pixel_auroc"] is values["aupro"] is None


def test_score_that_is_not_finite_is_a_job_error():
    with pytest.raises(JobError, match="score nan is not finite"):
        DetectionMetrics().update(np.zeros((8, 8), np.float32), float("nan"), False, np.zeros((8, 8), bool))
