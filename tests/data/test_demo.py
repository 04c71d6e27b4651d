"""The demo data: layout, reproducibility, and difficulty for trivial detectors."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stlm_edge.data import datasets, demo, relief
from stlm_edge.errors import UsageError
from stlm_edge.images import load, read_mask


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return demo.write_demo(tmp_path_factory.mktemp("demo") / "data")


@pytest.fixture(scope="module")
def images(root):
    """Return training images and test images, N×96×96×3 float32, and the labels of the test images."""
    tested = datasets.test_samples(root)
    train, test = (
        np.stack([load(sample.image, 96) for sample in samples]).astype(np.float32)
        for samples in (datasets.training_samples(root), tested)
    )
    return train, test, np.array([sample.anomalous for sample in tested])


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of (defective, normal) pairs in the right order; ties count half."""
    difference = scores[labels][:, None] - scores[~labels][None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def poolings(maps: np.ndarray) -> dict[str, np.ndarray]:
    """Convert N×H×W maps to image scores in several ways."""
    flat = np.sort(maps.reshape(len(maps), -1), axis=1)
    ways = {f"top {share:.1%}": flat[:, -int(flat.shape[1] * share) :].mean(1) for share in (1e-3, 0.01, 0.05)}
    return ways | {"mean": flat.mean(1), "max": flat[:, -1], "top over median": ways["top 1.0%"] / np.median(flat, 1)}


def smoothed(maps: np.ndarray, window: int) -> np.ndarray:
    """Return the means of N×H×W maps over all windows of window×window."""
    total = np.pad(maps.astype(np.float64), ((0, 0), (1, 0), (1, 0))).cumsum(1).cumsum(2)
    rows = total[:, window:] - total[:, :-window]
    return (rows[:, :, window:] - rows[:, :, :-window]) / window**2


def test_demo_has_all_defects_with_masks(root):
    training, tested = datasets.training_samples(root), datasets.test_samples(root)
    assert len(training) >= 160
    assert len(tested) >= 80
    assert {sample.defect for sample in tested} == {"good", "broken", "dent", "fibre", "scratch", "stain"}
    for sample in tested:
        if sample.anomalous:
            mask = read_mask(sample.mask, 256, Image.open(sample.image).size)
            assert 0.0005 < mask.mean() < 0.05, sample.image
    assert not list(root.parent.glob(".*")), "nothing unfinished is left behind"


def test_images_are_determined_by_the_seed():
    for surface in demo.SURFACES:
        for defect in (None, *demo.DEFECTS):
            first, again, other = (demo.draw(surface, defect, np.random.default_rng(seed)) for seed in (3, 3, 4))
            assert np.array_equal(first[0], again[0])
            assert np.array_equal(first[1], again[1])
            assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("surface", demo.SURFACES)
@pytest.mark.parametrize("defect", demo.DEFECTS)
def test_defect_changes_the_surface_within_its_mask(surface, defect):
    plain, defective = (
        demo.SURFACES[surface](np.random.default_rng(5)),
        demo.SURFACES[surface](np.random.default_rng(5)),
    )
    mask = demo.DEFECTS[defect](defective, np.random.default_rng(6))
    lit = [relief.photograph(each, np.random.default_rng(7)).astype(int) for each in (plain, defective)]
    change = np.abs(lit[1] - lit[0]).mean(axis=2)
    assert change[mask].mean() > 8
    assert change[~mask].mean() < 0.5


@pytest.mark.parametrize("normalised", [False, True])
def test_distance_to_training_images_does_not_detect_defects(images, normalised):
    train, test, labels = images
    if normalised:
        train, test = (
            (each - each.mean((1, 2, 3), keepdims=True)) / each.std((1, 2, 3), keepdims=True) for each in (train, test)
        )
    distance = np.abs(test - train.mean(0)).mean(3)
    in_deviations = (np.abs(test - train.mean(0)) / (train.std(0) + 1e-3)).mean(3)
    nearest = np.array([np.sqrt(((train - one) ** 2).mean((1, 2, 3)).min()) for one in test])
    aurocs = {"nearest training image": auroc(nearest, labels)}
    for name, maps in (("absolute", distance), ("in deviations", in_deviations)):
        for window in (1, 5):
            for pooling, scores in poolings(smoothed(maps, window)).items():
                aurocs[f"{name}, window {window}, {pooling}"] = auroc(scores, labels)
    assert {way: value for way, value in aurocs.items() if value >= 0.75} == {}


@pytest.mark.parametrize("window", [3, 7, 15])
def test_local_contrast_does_not_detect_defects(images, window):
    _, test, labels = images
    aurocs = {}
    for name, grey in (("brightness", test.mean(3)), ("colour", test[..., 0] - test[..., 2])):
        contrast = np.sqrt(np.clip(smoothed(grey**2, window) - smoothed(grey, window) ** 2, 0, None)) + 1e-3
        aurocs |= {f"{name}, {pooling}": auroc(scores, labels) for pooling, scores in poolings(contrast).items()}
    assert {way: value for way, value in aurocs.items() if value >= 0.75} == {}


def test_defects_share_no_code_with_the_pseudo_anomalies():
    for module in (demo, relief):
        tree = ast.parse(Path(module.__file__).read_text())
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        ours = {name for name in imported if name and name.startswith("stlm_edge")}
        assert ours <= {"stlm_edge.data.relief", "stlm_edge.errors"}


def test_command_writes_once_and_refuses_another_seed(tmp_path, monkeypatch):
    written = tmp_path / "new" / "demo"
    for name in ("TRAINING", "GOOD", "DEFECTIVE"):
        monkeypatch.setattr(demo, name, 3)
    demo.write_demo(written, seed=1)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in written.rglob("*"))
    command = [sys.executable, "-m", "stlm_edge.data.demo", "--out", str(written)]
    again = subprocess.run([*command, "--seed", "1"], capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (0, f"{written}\n"), "the same data is not written twice"
    assert sorted((path.name, path.stat().st_mtime_ns) for path in written.rglob("*")) == before
    other = subprocess.run([*command, "--seed", "2"], capture_output=True, text=True)
    assert other.returncode == 2
    assert other.stderr.count("\n") == 1
    assert "not the demo data of seed 2; remove it or give another --out" in other.stderr


def test_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(UsageError, match="not the demo data of seed 0"):
        demo.write_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_interrupted_command_leaves_no_files(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "photograph", interrupt)
    with pytest.raises(KeyboardInterrupt):
        demo.write_demo(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []
