"""The benchmarks of training: their goals and records, on made-up rows and on runs as small as can be."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stlm_edge.data.textures import procedural
from stlm_edge.model import STLM, ModelConfig
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0
from stlm_edge.training import initial_weights
from stlm_edge.training.recipes import RECIPES

FOLDER = Path(__file__).parents[2] / "benchmarks"


def script(name):
    """A benchmark's module; with its folder in sight, as when it is started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        patch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))  # training.py sets it
        specification = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        return module


def row(data, method, image_auroc, pixel_auroc, aupro):
    figures = {"image_auroc": image_auroc, "pixel_auroc": pixel_auroc, "aupro": aupro}
    return {"data": data, "method": method, "seconds": 1, **figures}


def test_seed_below_a_goal_is_named_and_patchcore_has_none():
    rows = [
        row("magnetic_tile", "PatchCore", 0.1, 0.1, 0.1),
        row("magnetic_tile", "STLM quick, seed 0", 0.85, 0.64, 0.60),
        row("magnetic_tile", "STLM quick, seed 1", 0.849, 0.64, 0.59),
        row("elsewhere", "STLM quick, seed 0", 0.1, 0.1, 0.1),
    ]
    assert script("accuracy").short_of_goals(rows) == [
        "magnetic_tile, STLM quick, seed 1: image_auroc 84.9 is under 85.0",
        "magnetic_tile, STLM quick, seed 1: aupro 59.0 is under 60.0",
    ]


def test_standard_must_be_ahead_of_its_own_patchcore():
    rows = [
        row("one", "PatchCore", 0.9, 0.8, 0.7),
        row("one", "STLM", 0.1, 0.81, 0.7),
        row("two", "PatchCore", 0.9, 0.5, None),
        row("two", "STLM", 0.1, 0.6, None),
    ]
    assert script("accuracy").behind_patchcore(rows) == ["one, STLM: aupro 70.0, PatchCore's is 70.0"]


@pytest.mark.parametrize("name", ["accuracy", "ablation"])
def test_recorded_command_has_no_paths(name):
    options = argparse.Namespace(
        data=[Path("/somewhere/tile")], seed=None, recipe="quick", longer=0.5, size=224, only=None
    )
    command = script(name).command(options)
    assert command.startswith(f"python benchmarks/{name}.py --data tile ")
    assert "--longer 0.5" in command
    assert "somewhere" not in command


def test_every_variant_of_the_ablation_changes_the_recipe():
    fields = RECIPES["quick"].__dataclass_fields__
    for name, changes in script("ablation").VARIANTS.items():
        assert changes, name
        assert changes.keys() <= fields.keys(), name
        assert all(getattr(RECIPES["quick"], field) != value for field, value in changes.items()), name


def runs_of(training, times, **ours):
    """Return results of `timed` for each variant from its seconds, with other values for OURS."""
    losses = {"plain": 1.0, "l1": 0.5}
    runs = {name: [{"seconds": s, "losses": losses, "peak_bytes": 2e9}] for name, s in times.items()}
    runs[training.OURS][0].update(ours)
    assert runs.keys() == training.VARIANTS.keys()
    return runs


def test_savings_of_a_training_step_add_up():
    training = script("training")
    seconds = dict(zip(training.VARIANTS, (12.0, 10.0, 9.0, 8.0, 8.0, 7.0, 6.0, 8.0), strict=True))
    found = training.summary(runs_of(training, seconds), {"perlin": 150.0})
    shares = [row["share_of_the_published_time_saved"] for row in found["rows"]]
    assert sum(shares[:-1]) == pytest.approx(0.5)
    assert shares[-1] == pytest.approx(1 / 3)  # on turned images, all in all
    assert found["goals"][0] == {"name": "speed", "found": 2.0, "bound": 1.5, "met": True}
    assert all(goal["met"] for goal in found["goals"])


@pytest.mark.parametrize(
    ("missed", "change"),
    [
        ("speed", {"seconds": 9.0}),
        ("loss_difference", {"losses": {"plain": 1.00002, "l1": 0.5}}),
        ("memory", {"peak_bytes": 2.1e9}),
    ],
)
def test_broken_bound_is_reported(missed, change):
    training = script("training")
    seconds = dict(zip(training.VARIANTS, (12.0, 10.0, 9.0, 8.0, 8.0, 7.0, 6.0, 8.0), strict=True))
    found = training.summary(runs_of(training, seconds, **change), {"perlin": 150.0})
    assert [goal["name"] for goal in found["goals"] if not goal["met"]] == [missed]


@pytest.mark.parametrize("variant", ["matrix products by oneDNN", "the same with rotated images"])
def test_training_step_has_the_published_losses(variant):
    training = script("training")
    published, ours = (training.timed(name, 64) for name in (training.PUBLISHED, variant))
    assert ours["losses"] == pytest.approx(published["losses"], abs=1e-5)
    assert ours["seconds"] > 0


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def distil(images, out, steps, *more):
    command = [sys.executable, str(FOLDER / "initial_weights.py"), "--images", str(images), "--out", str(out)]
    command += ["--size", "64", "--batch", "2", "--threads", "1", "--steps", str(steps), *more]
    return subprocess.run(command, capture_output=True, text=True)


def test_training_views_vary():
    images = [np.random.default_rng(n).integers(0, 255, (80, 80, 3), np.uint8) for n in range(4)]
    seen = script("initial_weights").views(images, procedural, np.random.default_rng(0), 12, 64)
    assert seen.shape == (12, 64, 64, 3)
    assert len({view.tobytes() for view in seen}) == 12


@pytest.mark.slow
def test_initial_weights_are_written_and_a_run_continues_with_the_same_options_only(images, tmp_path):
    shipped = tmp_path / "initial_weights.safetensors"
    first = distil(images, tmp_path / "run", 2, "--ship", str(shipped))
    assert first.returncode == 0, first.stderr
    teacher = EfficientNetLite0()
    card = initial_weights.load(shipped, STLM(ModelConfig(64)), teacher)
    assert card["steps"] == 2
    assert [point["step"] for point in card["curve"]] == [2]
    assert not torch.equal(teacher.std_1, torch.ones_like(teacher.std_1))
    again = distil(images, tmp_path / "run", 2, "--ship", str(shipped))
    assert again.returncode == 0, again.stderr
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 1
    assert json.loads((tmp_path / "run" / "config.json").read_text())["images"] == 12
    other = distil(images, tmp_path / "run", 4)
    assert other.returncode == 2
    assert "started with another steps; resume with the same settings" in other.stderr


def test_memory_bank_of_the_teachers_maps_detects_a_square(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("train/good", "test/good", "test/square", "ground_truth/square"):
        (tmp_path / folder).mkdir(parents=True)
    for number in range(8):
        pixels = rng.normal(120, 6, (64, 64, 3)).clip(0, 255).astype(np.uint8)
        for folder in ("train/good", "test/good"):
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
        mask = np.zeros((64, 64), np.uint8)
        mask[16:40, 20:44] = 255
        Image.fromarray(mask).save(tmp_path / "ground_truth/square" / f"{number}_mask.png")
        pixels[mask > 0] = (250, 20, 20)
        Image.fromarray(pixels).save(tmp_path / "test/square" / f"{number}.png")
    ablation = script("ablation")
    rows = ablation.memory_banks(tmp_path, ablation.Test(ablation.test_samples(tmp_path), 64))
    assert [found["change"] for found in rows] == [f"PatchCore of the teacher's map k={k}" for k in (1, 2)]
    assert all(found["image_auroc"] == 1 for found in rows)
    assert all(found["pixel_auroc"] > 0.7 for found in rows)
