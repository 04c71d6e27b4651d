"""Training: what a run leaves behind, that it resumes to the same weights, and what it refuses."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from stlm_edge import checkpoint, start
from stlm_edge.data.batches import AnomalousPictures
from stlm_edge.errors import JobError, UsageError
from stlm_edge.job import Job, split
from stlm_edge.model import STLM, ModelConfig
from stlm_edge.recipes import RECIPES
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0
from stlm_edge.train import train
from stlm_edge.two_streams import freeze, make_optimisers

train_module = importlib.import_module("stlm_edge.train")
RECIPE = dataclasses.replace(
    RECIPES["quick"],
    name="all parts",
    size=64,
    start="random",
    steps=8,
    batch=2,
    plain_lr=1e-4,
    decoder_lr=1e-4,
    denoising_lr=3e-4,
    denoising_target="teacher",
    fa_lr=1e-3,
    freeze_batch_norm=False,
    validations=10,
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Normal pictures: stripes of a random phase, with noise."""
    folder = tmp_path_factory.mktemp("normal")
    rng = np.random.default_rng(0)
    for number in range(20):
        wave = 128 + 60 * np.sin(np.arange(80) / 4 + rng.uniform(0, 6))
        pixels = wave[None, :, None] + rng.normal(0, 8, (72, 80, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def job(pictures, **changes):
    return Job(pictures, RECIPE, 64, save_every=2, depths=(1, 1, 1, 1), **changes)


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    train(job(pictures), out)
    return out


def test_a_run_leaves_all_that_later_stations_need(run):
    opened = checkpoint.load(run / "checkpoint.safetensors")
    assert opened.calibration.pictures == 8
    assert opened.calibration.threshold >= opened.calibration.median_score
    assert opened.provenance["seed"] == 0
    assert "stand-in" in opened.provenance["teacher"]
    assert len(list((run / "calibration").iterdir())) == 8
    assert len(list((run / "golden" / "normal").iterdir())) == 8
    assert len(list((run / "golden" / "anomalous").iterdir())) >= 16
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 7
    assert {"loss", "plain", "denoising", "seconds"} <= rows[0].keys()
    assert not (run / "state.pt").exists()


def test_training_learns(run):
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["plain"] + rows[-1]["denoising"] < 0.9 * (rows[0]["plain"] + rows[0]["denoising"])


def test_held_out_pictures_are_not_trained_on(run, pictures, tmp_path):
    config = json.loads((run / "config.json").read_text())
    assert config["training_pictures"] + config["held_out_pictures"] == 20


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(run, pictures, tmp_path):
    same = load_file(train(job(pictures), tmp_path / "same"))
    other = load_file(train(job(pictures, seed=1), tmp_path / "other"))
    first = load_file(run / "checkpoint.safetensors")
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["fa.head.4.weight"], other["fa.head.4.weight"])


def child(pictures, out, *arguments):
    """The training of `job` in a process of its own."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from test_train import job, train\n"
        "from stlm_edge.errors import exit_with_one_line\n"
        "with exit_with_one_line('interrupted; --resume goes on'):\n"
        "    train(job(Path(sys.argv[2])), Path(sys.argv[3]), '--resume' in sys.argv)"
    )
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(pictures), str(out), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | threads,
    )


def stop_in_the_middle(pictures, out, with_signal):
    process = child(pictures, out)
    while not (out / "state.pt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(with_signal)
    _, errors = process.communicate(timeout=60)
    assert not (out / "checkpoint.safetensors").exists()
    return process.returncode, errors


def test_a_killed_run_resumes_to_the_same_weights(run, pictures, tmp_path):
    stop_in_the_middle(pictures, tmp_path / "killed", signal.SIGKILL)
    resumed = child(pictures, tmp_path / "killed", "--resume")
    assert resumed.wait(timeout=120) == 0, resumed.stderr.read()
    first, second = load_file(run / "checkpoint.safetensors"), load_file(tmp_path / "killed" / "checkpoint.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_ctrl_c_says_how_to_go_on(pictures, tmp_path):
    code, errors = stop_in_the_middle(pictures, tmp_path / "run", signal.SIGINT)
    assert code == 1
    assert errors.splitlines()[-1] == "error: interrupted; --resume goes on"
    assert "Traceback" not in errors
    assert not list((tmp_path / "run").glob("*.part"))


def test_a_run_that_stands_there_is_not_overwritten(run, pictures):
    with pytest.raises(UsageError, match="a run stands there already; go on with it by --resume"):
        train(job(pictures), run)


def test_resuming_with_other_settings_names_them(run, pictures):
    with pytest.raises(UsageError, match="started with another seed; resume with the same settings"):
        train(job(pictures, seed=5), run, resume=True)


def test_resuming_with_another_length_names_it(run, pictures):
    longer = dataclasses.replace(job(pictures), recipe=RECIPE.longer(2))
    with pytest.raises(UsageError, match=r"started with another recipe\.steps; resume with the same settings"):
        train(longer, run, resume=True)


def test_a_folder_that_is_no_run_is_left_alone(pictures, tmp_path):
    (tmp_path / "holiday.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and is not a training run"):
        train(job(pictures), tmp_path)


@pytest.mark.parametrize("size", [100, 0, 8192])
def test_an_impossible_size(pictures, tmp_path, size):
    with pytest.raises(UsageError, match=f"size {size}: expected a multiple of 32"):
        train(dataclasses.replace(job(pictures), size=size), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_few_pictures(tmp_path):
    for number in range(3):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{number}.png")
    with pytest.raises(UsageError, match="3 normal pictures; at least 16 are needed"):
        train(job(tmp_path), tmp_path / "run")


def test_an_unreadable_picture_stops_before_training(pictures, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in pictures.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "3.png").write_bytes(b"not a picture")
    with pytest.raises(UsageError, match=r"3\.png"):
        train(job(folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_recipe_freezes_stays():
    model = STLM(ModelConfig(64, (1, 1, 1, 1)))
    recipe = RECIPES["quick"]
    freeze(model, recipe)
    trained = {id(p) for o in make_optimisers(model, recipe) for group in o.param_groups for p in group["params"]}
    assert not any(id(parameter) in trained for parameter in model.plain.parameters())
    assert all(id(parameter) in trained for parameter in model.denoising.parameters())
    assert not any(id(parameter) in trained for parameter in model.fa.parameters())


def test_quick_changes_the_denoising_stream_alone(pictures, tmp_path):
    recipe = dataclasses.replace(RECIPES["quick"], start="random", steps=3, batch=2)
    trained = load_file(train(dataclasses.replace(job(pictures), recipe=recipe), tmp_path / "run"))
    torch.manual_seed(0)
    before = STLM(ModelConfig(64, (1, 1, 1, 1))).state_dict()
    for name, tensor in before.items():
        if name.startswith(("plain.", "mask_decoder.", "prompt_encoder.")):
            assert torch.equal(trained[name], tensor), name
    assert not torch.equal(trained["denoising.neck.0.weight"], trained["plain.neck.0.weight"])


def test_the_paper_recipe_is_the_published_one():
    recipe = RECIPES["paper"]
    assert (recipe.size, recipe.batch, recipe.epochs) == (1024, 2, 200)
    adam, sgd = make_optimisers(STLM(ModelConfig(64, (1, 1, 1, 1))), recipe)
    assert {(group["lr"], group["betas"]) for group in adam.param_groups} == {(5e-4, (0.5, 0.999))}
    assert [(group["lr"], group["momentum"], group["weight_decay"]) for group in sgd.param_groups] == [
        (0.1, 0.9, 1e-4),
        (0.01, 0.9, 1e-4),
    ]
    assert not recipe.cosine_schedule


def test_a_finished_run_is_resumed_without_its_data(run, tmp_path):
    gone = dataclasses.replace(job(Path(json.loads((run / "config.json").read_text())["data"])))
    began = (run / "checkpoint.safetensors").stat().st_mtime_ns
    assert train(gone, run, resume=True) == run / "checkpoint.safetensors"
    assert (run / "checkpoint.safetensors").stat().st_mtime_ns == began


def test_validation_is_logged_and_kept_for_tensorboard(run):
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    validated = [row for row in rows if "validation_image_auroc" in row]
    assert len(validated) == 8
    assert all(0 <= row["validation_pixel_auroc"] <= 1 for row in validated)
    assert list((run / "tensorboard").iterdir())


def test_patience_ends_a_training_that_no_longer_improves(pictures, tmp_path):
    stuck = dataclasses.replace(
        RECIPE, steps=40, validations=20, denoising_lr=1e-12, plain_lr=1e-12, decoder_lr=1e-12, fa_lr=0.0
    )
    stuck = dataclasses.replace(job(pictures), recipe=stuck, patience=3)
    opened = checkpoint.load(train(stuck, tmp_path / "run"))
    assert opened.provenance["steps"] < 40


@pytest.mark.parametrize(("fraction", "held_out"), [(0.15, 8), (0.5, 10), (0.9, 12)])
def test_val_fraction_decides_what_is_held_out(pictures, tmp_path, fraction, held_out):
    chosen, trained_on = split(job(pictures, val_fraction=fraction))
    assert (len(chosen), len(trained_on)) == (held_out, 20 - held_out)
    assert not set(chosen) & set(trained_on)


def test_an_impossible_val_fraction(pictures, tmp_path):
    with pytest.raises(UsageError, match=r"--val-fraction 1\.5: expected a share between 0 and 1"):
        train(job(pictures, val_fraction=1.5), tmp_path / "run")


def test_a_worker_that_dies_ends_the_training_with_one_line(pictures, tmp_path, monkeypatch):
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(AnomalousPictures, "__getitem__", die)
    with pytest.raises(JobError, match="a process that makes the pictures died"):
        train(job(pictures, workers=1), tmp_path / "run")


def test_init_takes_a_start_of_ones_own(pictures, tmp_path):
    torch.manual_seed(7)
    mine = STLM(ModelConfig(64, (1, 1, 1, 1)))
    start.save(tmp_path / "start.safetensors", mine, EfficientNetLite0(), {})
    recipe = dataclasses.replace(RECIPES["quick"], steps=2, batch=2)
    mine_too = dataclasses.replace(job(pictures, init=str(tmp_path / "start.safetensors")), recipe=recipe)
    trained = load_file(train(mine_too, tmp_path / "run"))
    torch.testing.assert_close(trained["plain.neck.0.weight"], mine.plain.neck[0].weight, atol=1e-3, rtol=1e-3)


def test_textures_without_pictures(pictures, tmp_path):
    (tmp_path / "textures").mkdir()
    with pytest.raises(UsageError, match="textures"):
        train(job(pictures, textures=tmp_path / "textures"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_long_training_says_so(pictures, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(train_module, "LONG", 0)
    short = dataclasses.replace(RECIPES["paper"], epochs=None, steps=4)
    train(dataclasses.replace(job(pictures), recipe=short), tmp_path / "run")
    warning = " ".join(capfd.readouterr().err.split())
    assert "warning: this will take about 0 hours on this CPU; --recipe quick takes minutes" in warning
