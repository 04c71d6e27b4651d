"""Evaluation of synthetic images whose metrics are calculated by hand."""

import json
import shutil
import weakref

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from stlm_edge.data.datasets import test_samples as samples_of
from stlm_edge.errors import JobError, UsageError
from stlm_edge.evaluation.contact_sheet import CELL
from stlm_edge.evaluation.evaluate import SHEETS, evaluate, summary
from stlm_edge.threshold import DecisionThreshold

SIZE = 32
THRESHOLD = DecisionThreshold(100 / 255, 20 / 255, 0.0, 200 / 255, 0.01, 50, "maximum plus margin", 0.05, "training")
GOOD = {"000": 20, "001": 20, "002": 150}  # the brightest pixels; 20 is the background
DEFECTS = {"scratch": {"000": 200, "001": 120}, "dot": {"000": 200, "001": 60}}


class RedChannel:
    """A detector by its definition: the map is the image's red channel, the score its highest value."""

    name = "red channel"
    size = SIZE

    def run(self, image):
        anomaly_map = image[..., 0].astype(np.float32) / 255
        return anomaly_map, float(anomaly_map.max())


def write_image(path, brightest, marked, size=SIZE):
    pixels = np.full((size, size, 3), 20, dtype=np.uint8)
    pixels[marked] = brightest
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def data(tmp_path):
    """7 images in MVTec AD layout; of the normal ones, one has a bright spot of 4 pixels."""
    root = tmp_path / "data"
    for name, brightest in GOOD.items():
        spot = np.zeros((SIZE, SIZE), dtype=bool)
        spot[3:5, 3:5] = True
        write_image(root / "test" / "good" / f"{name}.png", brightest, spot)
    for defect, images in DEFECTS.items():
        mask = np.zeros((SIZE, SIZE), dtype=bool)
        mask[(slice(10, 12), slice(5, 15)) if defect == "scratch" else (20, 20)] = True  # 20 pixels, or one
        for name, brightest in images.items():
            write_image(root / "test" / defect / f"{name}.png", brightest, mask)
            truth = root / "ground_truth" / defect / f"{name}_mask.png"
            truth.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).convert("L").save(truth)
    return root


def run(data, out, runtime=None, size=SIZE):
    return evaluate(runtime or RedChannel(), samples_of(data), size, THRESHOLD, out, "the red channel")


def test_metrics_are_those_calculated_by_hand(data):
    metrics = run(data, None)

    def expected(image_auroc, image_f1, missed, anomalous, anomalous_pixels):
        # Half of the regions score above the 4 bright normal pixels, the others below them and above all the rest.
        fpr = 4 / ((3 + anomalous) * SIZE**2 - anomalous_pixels)
        return {
            "image_auroc": pytest.approx(image_auroc, abs=1e-6),
            "pixel_auroc": pytest.approx(1 - fpr / 2),
            "pixel_auroc_error_bound": 0,
            "aupro": pytest.approx(1 - fpr / 2 / 0.3),
            "aupro_error_bound": 0,
            "image_f1": pytest.approx(image_f1),
            "threshold": 100 / 255,
            "false_alarms": 1,
            "missed": missed,
            "normal": 3,
            "anomalous": anomalous,
        }

    assert metrics["by_defect"] == {
        "scratch": expected(5 / 6, 4 / 5, 0, 2, 40),
        "dot": expected(5 / 6, 2 / 4, 1, 2, 2),
    }
    overall = expected(10 / 12, 6 / 8, 1, 4, 42)
    assert {key: metrics[key] for key in overall} == overall
    assert (metrics["source"], metrics["size"], metrics["images"]) == ("the red channel", SIZE, 7)
    assert metrics["scores"][2] == {
        "image": "good/002.png",
        "defect": "good",
        "anomalous": False,
        "score": pytest.approx(150 / 255),
        "verdict": "anomalous",
    }
    assert len(metrics["scores"]) == 7


def test_metrics_file_has_the_returned_metrics(data, tmp_path, capsys):
    out = tmp_path / "evaluations" / "first"
    metrics = run(data, out)
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", *SHEETS]
    assert capsys.readouterr().out == ""


def test_contact_sheets_begin_with_the_worst_images(data, tmp_path):
    run(data, tmp_path / "out")

    def verdicts(name):
        """Return the colour of each row's score bar: red for a wrong verdict, green for a right one."""
        sheet = np.asarray(Image.open(tmp_path / "out" / name), dtype=int)
        bars = sheet[64 + 168 :: CELL + 12, 12 + 3 * (CELL + 12) + 8]
        return ["wrong" if red > green else "right" for red, green, _ in bars]

    assert verdicts("worst_misses.jpg") == ["wrong", "right", "right", "right"]
    assert verdicts("worst_false_alarms.jpg") == ["wrong", "right", "right"]
    assert sorted(verdicts("sample.jpg")) == ["right"] * 5 + ["wrong"] * 2


def test_contact_sheet_shows_image_mask_and_heatmap(data, tmp_path):
    run(data, tmp_path / "out")
    sheet = np.asarray(Image.open(tmp_path / "out" / "worst_misses.jpg"), dtype=int)
    last = 64 + 3 * (CELL + 12)  # the row of an image that scores 200: a scratch or a dot
    image, mask, heatmap = (sheet[last : last + CELL, 12 + i * (CELL + 12) :][:, :CELL] for i in range(3))
    assert np.abs(image[:20] - 20).max() < 12
    assert image.max() > 150
    outline = (mask[..., 1] > 200) & (mask[..., 0] < 120)
    assert 50 < outline.sum() < 5000
    assert not ((image[..., 1] > 200) & (image[..., 0] < 120)).any()
    coloured = np.ptp(heatmap, axis=2) > 60
    assert coloured.any()
    assert not coloured[:20].any()


def test_pixel_metrics_without_masks_are_null(data, tmp_path):
    shutil.rmtree(data / "ground_truth")
    metrics = run(data, tmp_path / "out")
    for figures in (metrics, *metrics["by_defect"].values()):
        for key in ("pixel_auroc", "pixel_auroc_error_bound", "aupro", "aupro_error_bound"):
            assert figures[key] is None
    assert metrics["image_auroc"] == pytest.approx(10 / 12, abs=1e-6)
    assert metrics["missed"] == 1


def test_single_class_has_no_auroc(data, tmp_path):
    samples = samples_of(data)
    out = tmp_path / "out"
    run(data, out)
    normal = evaluate(RedChannel(), samples[:3], SIZE, THRESHOLD, out, "normal ones")
    assert (normal["image_auroc"], normal["aupro"], normal["image_f1"]) == (None, None, None)
    assert (normal["false_alarms"], normal["missed"], normal["by_defect"]) == (1, 0, {})
    assert not (out / "worst_misses.jpg").exists()  # no sheet of an earlier evaluation stays
    anomalous = evaluate(RedChannel(), samples[3:], SIZE, THRESHOLD, None, "anomalous ones")
    assert anomalous["image_auroc"] is None
    assert anomalous["aupro"] == pytest.approx(1)
    assert anomalous["image_f1"] == pytest.approx(6 / 7)


def test_order_of_samples_makes_no_difference(data):
    forward, backward = (
        evaluate(RedChannel(), order, SIZE, THRESHOLD, None, "") for order in (samples_of(data), samples_of(data)[::-1])
    )
    assert forward["scores"] == backward.pop("scores")[::-1]
    del forward["scores"]
    assert forward == backward


def test_maps_are_not_kept(tmp_path):
    for number in range(12):
        write_image(tmp_path / "good" / f"{number:02}.png", 20, (number, number))
        write_image(tmp_path / "hole" / f"{number:02}.png", 200, (number, number))
    maps, alive = [], []

    class Watched(RedChannel):
        def run(self, image):
            alive.append(sum(reference() is not None for reference in maps))
            anomaly_map, score = super().run(image)
            maps.append(weakref.ref(anomaly_map))
            return anomaly_map, score

    run(tmp_path, None, Watched())
    assert len(maps) == 24
    assert max(alive) <= 1


class Broken(RedChannel):
    def __init__(self, anomaly_map, score=0.5):
        self.answer = np.asarray(anomaly_map, dtype=np.float32), score

    def run(self, image):
        return self.answer


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        (Broken(np.full((SIZE, SIZE), np.nan)), "1024 of 1024 values of an anomaly map are not finite"),
        (Broken(np.zeros((SIZE, SIZE)), np.nan), "the score nan is not finite"),
        (Broken(np.zeros((8, 8))), r"the model gave a map of shape \(8, 8\); expected 32×32"),
    ],
)
def test_damaged_model_is_a_job_error_and_writes_nothing(data, tmp_path, runtime, message):
    with pytest.raises(JobError, match=message):
        run(data, tmp_path / "out", runtime)
    assert not (tmp_path / "out").exists()


def test_mask_of_another_size_is_refused_and_nothing_written(data, tmp_path):
    Image.new("L", (31, 32)).save(data / "ground_truth" / "dot" / "001_mask.png")
    with pytest.raises(UsageError, match="the mask is 31×32 but its image is 32×32"):
        run(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_samples_and_a_file_as_output_are_refused(data, tmp_path):
    with pytest.raises(UsageError, match="no images to evaluate"):
        evaluate(RedChannel(), [], SIZE, THRESHOLD, None, "")
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="out: a file; expected a folder"):
        run(data, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_summary_has_all_metrics(data):
    shutil.rmtree(data / "ground_truth")
    console = Console(width=120)
    with console.capture() as captured:
        console.print(summary(run(data, None)))
    text = captured.get()
    assert "the red channel" in text
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    rows = {defect: figures for defect, *figures in cells}
    assert rows["all"] == ["0.8333", "n/a", "n/a", "0.7500", "1 of 3", "1 of 4"]
    assert rows["dot"] == ["0.8333", "n/a", "n/a", "0.5000", "1 of 3", "1 of 2"]
