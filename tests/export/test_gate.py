"""The gate's limits of accuracy."""

from pathlib import Path

import numpy as np
import pytest

from stlm_edge.export.gate import HELD_OUT, accuracy_on_pseudo_anomalies, lost_accuracy, pseudo_anomalies_on


class Oracle:
    """A runtime that knows the masks; `blind` to every second anomaly."""

    name, size = "oracle", 64

    def __init__(self, images: list[tuple[np.ndarray, np.ndarray]], blind: bool = False):
        self.masks = {image.tobytes(): mask for image, mask in images}
        self.blind = [mask.any() and number % 4 == 1 for number, (_, mask) in enumerate(images)] if blind else []
        self.order = [image.tobytes() for image, _ in images]

    def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        mask = self.masks[image.tobytes()].astype(np.float32)
        if self.blind and self.blind[self.order.index(image.tobytes())]:
            mask = 1 - mask
            return mask, 0.0
        return mask, float(mask.max())


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 0.1), ("fp16", 0.1), ("int8", 0.2), ("palette6", 0.2)])
def test_limits_of_lost_accuracy(precision: str, allowed: float) -> None:
    trained = {"image_auroc": 0.95, "pixel_auroc": 0.97, "aupro": None}
    within, beyond = 0.97 - 0.0099 * allowed, 0.97 - 0.0101 * allowed
    assert lost_accuracy({"trained": trained, "packed": trained}, precision, 10_000) == []
    assert lost_accuracy({"trained": trained, "packed": {**trained, "pixel_auroc": within}}, precision, 10_000) == []
    assert lost_accuracy({"trained": trained, "packed": {**trained, "image_auroc": 0.99}}, precision, 10_000) == []
    assert lost_accuracy({"trained": trained, "packed": {**trained, "pixel_auroc": beyond}}, precision, 10_000) == [
        f"pixel_auroc falls by {1.01 * allowed:.2f} points, at most {allowed:g} are allowed"
    ]


def test_missed_anomalies_lower_accuracy_on_pseudo_anomalies(tiny_images: Path) -> None:
    paths = sorted((tiny_images / "good").iterdir())
    images = pseudo_anomalies_on(paths, 64)
    assert len(images) == 2 * min(HELD_OUT, len(paths))
    for one, other in zip(images, pseudo_anomalies_on(paths, 64), strict=True):
        assert (one[0] == other[0]).all()
        assert (one[1] == other[1]).all()
    seeing = accuracy_on_pseudo_anomalies(Oracle(images), images)
    assert seeing == {"image_auroc": 1.0, "pixel_auroc": 1.0, "aupro": pytest.approx(1.0, abs=1e-3)}
    half_blind = accuracy_on_pseudo_anomalies(Oracle(images, blind=True), images)
    assert len(lost_accuracy({"trained": seeing, "packed": half_blind}, "int8", len(images) ** 2 // 4)) == 3


def test_one_pair_may_change_its_order() -> None:
    trained = {"image_auroc": 0.9, "pixel_auroc": None, "aupro": None}
    one_pair, two_pairs = {**trained, "image_auroc": 0.9 - 1 / 144}, {**trained, "image_auroc": 0.9 - 2 / 144}
    assert lost_accuracy({"trained": trained, "packed": one_pair}, "int8", 12 * 12) == []
    assert lost_accuracy({"trained": trained, "packed": two_pairs}, "int8", 12 * 12) == [
        "image_auroc falls by 1.39 points, at most 0.694 are allowed"
    ]
