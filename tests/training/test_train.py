"""Training: what a run leaves behind, that it resumes to the same weights, and what it refuses."""

import dataclasses
import importlib
import json
import os
import re
import shutil
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
from small_network import SMALL

from stlm_edge.data.batches import AnomalousImages
from stlm_edge.errors import JobError, UsageError
from stlm_edge.model import STLM, checkpoint
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0
from stlm_edge.teachers.sam import Sam
from stlm_edge.training import initial_weights
from stlm_edge.training.job import Job, split
from stlm_edge.training.recipes import RECIPES
from stlm_edge.training.step import freeze, make_optimisers
from stlm_edge.training.train import train

train_module = importlib.import_module("stlm_edge.training.train")
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
def images(tmp_path_factory):
    """Normal images: stripes of a random phase, with noise."""
    folder = tmp_path_factory.mktemp("normal")
    rng = np.random.default_rng(0)
    for number in range(20):
        wave = 128 + 60 * np.sin(np.arange(80) / 4 + rng.uniform(0, 6))
        pixels = wave[None, :, None] + rng.normal(0, 8, (72, 80, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def job(images, **changes):
    return Job(images, RECIPE, 64, save_every=2, network=SMALL, **changes)


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    train(job(images), out)
    return out


def test_a_run_leaves_all_that_later_stations_need(run):
    opened = checkpoint.load(run / "checkpoint.safetensors")
    assert opened.decision_threshold.images == 8
    assert opened.decision_threshold.value >= opened.decision_threshold.median_score
    assert opened.provenance["seed"] == 0
    assert "stand-in" in opened.provenance["teacher"]
    assert len(list((run / "held_out").iterdir())) == 8
    assert len(list((run / "golden" / "normal").iterdir())) == 8
    assert len(list((run / "golden" / "anomalous").iterdir())) >= 16
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 7
    assert {"loss", "plain", "denoising", "seconds"} <= rows[0].keys()
    assert not (run / "state.pt").exists()


def test_training_learns(run):
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["plain"] + rows[-1]["denoising"] < 0.9 * (rows[0]["plain"] + rows[0]["denoising"])


def test_held_out_images_are_not_trained_on(images, tmp_path, monkeypatch):
    seen = []

    def remembered(images, *more):
        seen.extend(path.name for path in images.paths)
        return AnomalousImages(images, *more)

    monkeypatch.setattr(train_module, "AnomalousImages", remembered)
    train(dataclasses.replace(job(images), recipe=dataclasses.replace(RECIPE, steps=1)), tmp_path / "run")
    held_out = [path.name.partition("_")[2] for path in (tmp_path / "run" / "held_out").iterdir()]
    assert sorted([*held_out, *seen]) == sorted(path.name for path in images.iterdir())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(run, images, tmp_path):
    same = load_file(train(job(images), tmp_path / "same"))
    other = load_file(train(job(images, seed=1), tmp_path / "other"))
    first = load_file(run / "checkpoint.safetensors")
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["fa.head.4.weight"], other["fa.head.4.weight"])


def child(images, out, *arguments):
    """The training of `job` in a process of its own."""
    script = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/..']; from pathlib import Path\n"
        "from test_train import job, train\n"
        "from stlm_edge.errors import exit_with_one_line\n"
        "with exit_with_one_line('interrupted; --resume goes on'):\n"
        "    train(job(Path(sys.argv[2])), Path(sys.argv[3]), '--resume' in sys.argv)"
    )
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(images), str(out), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | threads,
    )


def stop_in_the_middle(images, out, with_signal):
    process = child(images, out)
    while not (out / "state.pt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(with_signal)
    _, errors = process.communicate(timeout=60)
    assert not (out / "checkpoint.safetensors").exists()
    return process.returncode, errors


def test_a_killed_run_resumes_to_the_same_weights(run, images, tmp_path):
    stop_in_the_middle(images, tmp_path / "killed", signal.SIGKILL)
    resumed = child(images, tmp_path / "killed", "--resume")
    assert resumed.wait(timeout=120) == 0, resumed.stderr.read()
    first, second = load_file(run / "checkpoint.safetensors"), load_file(tmp_path / "killed" / "checkpoint.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_ctrl_c_says_how_to_go_on(images, tmp_path):
    code, errors = stop_in_the_middle(images, tmp_path / "run", signal.SIGINT)
    assert code == 130
    assert errors.splitlines()[-1] == "error: interrupted; --resume goes on"
    assert "Traceback" not in errors
    assert not list((tmp_path / "run").glob("*.part"))


def test_a_run_that_stands_there_is_not_overwritten(run, images):
    with pytest.raises(UsageError, match="a run stands there already; go on with it by --resume"):
        train(job(images), run)


def test_resuming_with_other_settings_names_them(run, images):
    with pytest.raises(UsageError, match="started with another seed; resume with the same settings"):
        train(job(images, seed=5), run, resume=True)


def test_resuming_with_another_length_names_it(run, images):
    longer = dataclasses.replace(job(images), recipe=RECIPE.longer(2))
    with pytest.raises(UsageError, match=r"started with another recipe\.steps; resume with the same settings"):
        train(longer, run, resume=True)


def test_a_folder_that_is_no_run_is_left_alone(images, tmp_path):
    (tmp_path / "holiday.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and is not a training run"):
        train(job(images), tmp_path)


@pytest.mark.parametrize("size", [100, 0, 8192])
def test_an_impossible_size(images, tmp_path, size):
    with pytest.raises(UsageError, match=f"size {size}: expected a multiple of 32"):
        train(dataclasses.replace(job(images), size=size), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("count", [1, 15])
def test_too_few_images(tmp_path, count):
    for number in range(count):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{number}.png")
    with pytest.raises(UsageError, match=f"{count} normal images; at least 16 are needed"):
        train(job(tmp_path), tmp_path / "run")


def test_images_of_mixed_sizes_and_modes(images, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    modes = ("RGB", "L", "RGBA", "P", "I;16")
    for number, path in enumerate(sorted(images.iterdir())):
        image, mode = Image.open(path).resize((40 + 7 * number, 90 - number)), modes[number % len(modes)]
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        else:
            image = image.convert(mode)
        image.save(folder / path.name)
    opened = checkpoint.load(train(job(folder), tmp_path / "run"))
    assert 0 < opened.decision_threshold.value < 1
    assert opened.provenance["training_images"] == 12


def test_an_unreadable_image_stops_before_training(images, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in images.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "3.png").write_bytes(b"not an image")
    with pytest.raises(UsageError, match=r"3\.png"):
        train(job(folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def a_start(folder):
    """A start's file of the small network, random weights in it."""
    torch.manual_seed(7)
    initial_weights.save(folder / "initial_weights.safetensors", STLM(SMALL), EfficientNetLite0(), {})
    return folder / "initial_weights.safetensors"


def test_what_a_recipe_freezes_stays():
    model = STLM(SMALL)
    recipe = RECIPES["quick"]
    freeze(model, recipe)
    trained = {id(p) for o in make_optimisers(model, recipe) for group in o.param_groups for p in group["params"]}
    assert not any(id(parameter) in trained for parameter in model.plain.parameters())
    assert all(id(parameter) in trained for parameter in model.denoising.parameters())
    assert not any(id(parameter) in trained for parameter in model.fa.parameters())


def test_quick_changes_the_denoising_stream_alone(images, tmp_path):
    recipe = dataclasses.replace(RECIPES["quick"], steps=3, batch=2)
    mine, before = a_start(tmp_path), STLM(SMALL)
    initial_weights.load(mine, before, EfficientNetLite0())
    trained = load_file(train(dataclasses.replace(job(images, init=str(mine)), recipe=recipe), tmp_path / "run"))
    for name, tensor in before.state_dict().items():
        if name.startswith(("plain.", "mask_decoder.", "prompt_encoder.")):
            assert torch.equal(trained[name], tensor), name
    assert not torch.equal(trained["denoising.neck.0.weight"], trained["plain.neck.0.weight"])


def test_the_paper_recipe_is_the_published_one():
    recipe = RECIPES["paper"]
    assert (recipe.size, recipe.batch, recipe.epochs) == (1024, 2, 200)
    adam, sgd = make_optimisers(STLM(SMALL), recipe)
    assert {(group["lr"], group["betas"]) for group in adam.param_groups} == {(5e-4, (0.5, 0.999))}
    assert [(group["lr"], group["momentum"], group["weight_decay"]) for group in sgd.param_groups] == [
        (0.1, 0.9, 1e-4),
        (0.01, 0.9, 1e-4),
    ]
    assert not recipe.cosine_schedule


def test_a_finished_run_is_resumed_without_its_data(run, images):
    began = (run / "checkpoint.safetensors").stat().st_mtime_ns
    away = images.rename(images.with_name("away"))
    try:
        assert train(job(images), run, resume=True) == run / "checkpoint.safetensors"
    finally:
        away.rename(images)
    assert (run / "checkpoint.safetensors").stat().st_mtime_ns == began


def test_a_finished_run_is_not_resumed_for_another_false_alarm_rate(run, images):
    with pytest.raises(UsageError, match=r"is for a false-alarm rate of 0\.01, asked for is 0\.05; resume"):
        train(job(images, false_alarm_rate=0.05), run, resume=True)


def test_validation_is_logged_and_kept_for_tensorboard(run):
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    validated = [row for row in rows if "validation_image_auroc" in row]
    assert len(validated) == 8
    assert all(0 <= row["validation_pixel_auroc"] <= 1 for row in validated)
    assert list((run / "tensorboard").iterdir())


def test_patience_ends_a_training_that_no_longer_improves(images, tmp_path):
    stuck = dataclasses.replace(
        RECIPE, steps=40, validations=20, denoising_lr=1e-12, plain_lr=1e-12, decoder_lr=1e-12, fa_lr=0.0
    )
    stuck = dataclasses.replace(job(images), recipe=stuck, patience=3)
    opened = checkpoint.load(train(stuck, tmp_path / "run"))
    assert opened.provenance["steps"] < 40


def test_patience_has_quick_validated_more_than_once(images, tmp_path):
    recipe = dataclasses.replace(RECIPES["quick"], steps=40, batch=2, denoising_lr=1e-12)
    patient = dataclasses.replace(job(images, init=str(a_start(tmp_path)), patience=3), recipe=recipe)
    assert checkpoint.load(train(patient, tmp_path / "run")).provenance["steps"] < 40


@pytest.mark.parametrize("recipe", ["quick", "standard"])
@pytest.mark.parametrize(
    ("init", "line"),
    [
        ("random", "--init random: --recipe {} keeps the plain stream as it begins; leave out --init"),
        ("vit_t", "--init vit_t: --recipe {} keeps .* efficientnet-lite0 would teach nothing; give --teacher vit_t"),
    ],
)
def test_a_beginning_that_would_teach_nothing(images, tmp_path, recipe, init, line):
    with pytest.raises(UsageError, match=line.format(recipe)):
        train(dataclasses.replace(job(images, init=init), recipe=RECIPES[recipe]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class CountingSam(Sam):
    """A small SAM with made-up weights that counts the images it is asked about."""

    asked = 0

    def __init__(self, *_):
        torch.manual_seed(3)
        super().__init__("vit_t", STLM(SMALL).plain, digest="0" * 64, native_size=64, config=SMALL)

    def forward(self, image):
        CountingSam.asked += len(image)
        return super().forward(image)


@pytest.fixture
def counting_sam(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(train_module, "open_teacher", CountingSam)
    return CountingSam


def asked_by(sam, images, out, **changes):
    """How many images SAM is asked about by two epochs of `paper`, pseudo-anomalies included."""
    recipe = dataclasses.replace(RECIPES["paper"], epochs=2, validations=1)
    before = sam.asked
    train(dataclasses.replace(job(images, teacher="vit_t", **changes), recipe=recipe), out)
    return sam.asked - before


def test_sams_answers_to_clean_images_are_kept_for_the_next_run(counting_sam, images, tmp_path):
    first = asked_by(counting_sam, images, tmp_path / "first")
    second = asked_by(counting_sam, images, tmp_path / "second")
    assert first - second == 12  # each of the clean images once, in the first run only
    assert len(list((tmp_path / "cache").rglob("*.maps"))) == 12


def test_of_a_category_that_is_turned_no_answer_is_kept(counting_sam, images, tmp_path):
    shutil.copytree(images, tmp_path / "data" / "bottle")
    turned = asked_by(counting_sam, tmp_path / "data" / "bottle", tmp_path / "turned")
    assert turned >= 24  # each clean image in both epochs
    assert not list((tmp_path / "cache").rglob("*.maps"))


def test_standard_with_sam_learns_from_sam(counting_sam, images, tmp_path):
    recipe = dataclasses.replace(RECIPES["standard"], steps=4, batch=2)
    asked = dataclasses.replace(job(images, teacher="vit_t", init=str(a_start(tmp_path))), recipe=recipe)
    began = load_file(a_start(tmp_path))
    trained = load_file(train(asked, tmp_path / "run"))
    assert counting_sam.asked
    assert not torch.equal(trained["plain.neck.0.weight"].half(), began["plain.neck.0.weight"])
    assert json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]["denoising_target"] == "teacher"


def test_a_full_disk_ends_the_training_with_one_line(images, tmp_path):
    script = (
        "import resource, sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/..']; from pathlib import Path\n"
        "from test_train import job, train\nfrom stlm_edge.errors import exit_with_one_line\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20))\n"
        "with exit_with_one_line():\n"
        "    train(job(Path(sys.argv[2])), Path(sys.argv[3]))"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(images), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(r"error: .*state\.pt: cannot be written \(.*\); free some, and go on by --resume", done.stderr)
    assert not list((tmp_path / "run").glob("*.part"))


@pytest.mark.parametrize(("fraction", "held_out"), [(0.15, 8), (0.5, 10), (0.9, 12)])
def test_val_fraction_decides_what_is_held_out(images, tmp_path, fraction, held_out):
    chosen, trained_on = split(job(images, val_fraction=fraction))
    assert (len(chosen), len(trained_on)) == (held_out, 20 - held_out)
    assert not set(chosen) & set(trained_on)


def test_an_impossible_val_fraction(images, tmp_path):
    with pytest.raises(UsageError, match=r"--val-fraction 1\.5: expected a share between 0 and 1"):
        train(job(images, val_fraction=1.5), tmp_path / "run")


def test_a_worker_that_dies_ends_the_training_with_one_line(images, tmp_path, monkeypatch):
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(AnomalousImages, "__getitem__", die)
    with pytest.raises(JobError, match="a process that makes the images died"):
        train(job(images, workers=1), tmp_path / "run")


def test_init_takes_a_start_of_ones_own(images, tmp_path):
    mine = a_start(tmp_path)
    recipe = dataclasses.replace(RECIPES["quick"], steps=2, batch=2)
    trained = load_file(train(dataclasses.replace(job(images, init=str(mine)), recipe=recipe), tmp_path / "run"))
    assert torch.equal(trained["plain.neck.0.weight"].half(), load_file(mine)["plain.neck.0.weight"])


def test_textures_without_images(images, tmp_path):
    (tmp_path / "textures").mkdir()
    with pytest.raises(UsageError, match="textures"):
        train(job(images, textures=tmp_path / "textures"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_long_training_says_so(images, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(train_module, "LONG", 0)
    short = dataclasses.replace(RECIPES["paper"], epochs=None, steps=4)
    train(dataclasses.replace(job(images), recipe=short), tmp_path / "run")
    warning = " ".join(capfd.readouterr().err.split())
    assert "warning: this will take about 0 hours on this CPU; --recipe quick takes minutes" in warning
