"""Training: the run folder, resuming to the same weights, and refused jobs."""

import dataclasses
import importlib
import json
import os
import resource
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
from stlm_edge.training.recipes import RECIPES, Aggregation
from stlm_edge.training.step import freeze, make_optimisers
from stlm_edge.training.train import train

train_module = importlib.import_module("stlm_edge.training.train")
RECIPE = dataclasses.replace(
    RECIPES["quick"],
    name="all parts",
    size=64,
    initial_weights="random",
    length=8,
    batch=2,
    plain_lr=3e-3,
    denoising_lr=3e-3,
    denoising_target="teacher",
    aggregation=Aggregation(1e-3),
    freeze_batch_norm=False,
    validations=4,
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


def test_run_folder_has_all_that_later_commands_need(run):
    opened = checkpoint.load(run / "checkpoint.safetensors")
    assert opened.decision_threshold.images == 8
    assert opened.decision_threshold.value >= opened.decision_threshold.median_score
    assert opened.provenance["seed"] == 0
    assert "proxy teacher" in opened.provenance["teacher"]
    assert len(list((run / "held_out").iterdir())) == 8
    assert len(list((run / "golden" / "normal").iterdir())) == 8
    assert len(list((run / "golden" / "anomalous").iterdir())) >= 16
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 7
    assert {"loss", "plain", "denoising", "seconds"} <= rows[0].keys()
    assert not (run / "state.pt").exists()


def test_training_reduces_losses(run):
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["plain"] + rows[-1]["denoising"] < 0.9 * (rows[0]["plain"] + rows[0]["denoising"])


def test_held_out_images_are_not_trained_on(images, tmp_path, monkeypatch):
    trained_on = []

    def remembered(images, *more):
        trained_on.extend(path.name for path in images.paths)
        return AnomalousImages(images, *more)

    monkeypatch.setattr(train_module, "AnomalousImages", remembered)
    train(dataclasses.replace(job(images), recipe=dataclasses.replace(RECIPE, length=1)), tmp_path / "run")
    held_out = [path.name.partition("_")[2] for path in (tmp_path / "run" / "held_out").iterdir()]
    assert sorted([*held_out, *trained_on]) == sorted(path.name for path in images.iterdir())


def test_another_seed_gives_other_weights(run, images, tmp_path):
    other = load_file(train(job(images, seed=1), tmp_path / "other"))
    first = load_file(run / "checkpoint.safetensors")
    assert not torch.equal(first["fa.head.4.weight"], other["fa.head.4.weight"])


def interrupt_after(monkeypatch, step):
    """Raise KeyboardInterrupt once the state of a step is saved."""
    save_state = train_module.save_state

    def save(path, model, optimisers, done, seconds, **more):
        save_state(path, model, optimisers, done, seconds, **more)
        if done == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "save_state", save)


def test_interrupted_run_resumes_to_the_same_weights(run, images, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            train(job(images), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    first, second = load_file(run / "checkpoint.safetensors"), load_file(train(job(images), tmp_path / "run", True))
    assert all(torch.equal(first[name], second[name]) for name in first)
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def child(images, out, *arguments):
    """Start the training of `job` in a process of its own."""
    script = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/..']; from pathlib import Path\n"
        "from test_train import job, train\n"
        "from stlm_edge.errors import exit_with_one_line\n"
        "with exit_with_one_line('interrupted; continue with --resume'):\n"
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


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_weights(run, images, tmp_path):
    stop_in_the_middle(images, tmp_path / "killed", signal.SIGKILL)
    resumed = child(images, tmp_path / "killed", "--resume")
    assert resumed.wait(timeout=120) == 0, resumed.stderr.read()
    first, second = load_file(run / "checkpoint.safetensors"), load_file(tmp_path / "killed" / "checkpoint.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_ctrl_c_prints_how_to_continue(images, tmp_path):
    code, errors = stop_in_the_middle(images, tmp_path / "run", signal.SIGINT)
    assert code == 130
    assert errors.splitlines()[-1] == "error: interrupted; continue with --resume"
    assert "Traceback" not in errors
    assert not list((tmp_path / "run").glob("*.part"))


def test_existing_run_is_not_overwritten(run, images):
    with pytest.raises(UsageError, match=r"exists already.*--resume"):
        train(job(images), run)


def test_resuming_with_other_settings_is_refused(run, images):
    with pytest.raises(UsageError, match="another seed"):
        train(job(images, seed=5), run, resume=True)


def test_resuming_with_another_length_is_refused(run, images):
    longer = dataclasses.replace(job(images), recipe=RECIPE.longer(2))
    with pytest.raises(UsageError, match=r"another recipe\.length"):
        train(longer, run, resume=True)


def test_other_folder_is_left_alone(images, tmp_path):
    (tmp_path / "holiday.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and is not a training run"):
        train(job(images), tmp_path)


@pytest.mark.parametrize("size", [100, 0, 8192])
def test_impossible_size_is_refused(images, tmp_path, size):
    with pytest.raises(UsageError, match=f"size {size}: expected a multiple of 32"):
        train(dataclasses.replace(job(images), size=size), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("count", [1, 15])
def test_too_few_images_are_refused(tmp_path, count):
    for number in range(count):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{number}.png")
    with pytest.raises(UsageError, match=f"{count} normal images; at least 16 are needed"):
        train(job(tmp_path), tmp_path / "run")


def test_images_of_mixed_sizes_and_modes_train(images, tmp_path):
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


def test_unreadable_image_stops_before_training(images, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in images.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "3.png").write_bytes(b"not an image")
    with pytest.raises(UsageError, match=r"3\.png"):
        train(job(folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def own_weights(tmp_path_factory):
    """A file of initial weights of the small network, random ones."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("weights") / "initial_weights.safetensors"
    initial_weights.save(path, STLM(SMALL), EfficientNetLite0(SMALL.decoder_dim), {})
    return path


def test_frozen_parts_have_no_optimiser():
    model = STLM(SMALL)
    recipe = RECIPES["quick"]
    freeze(model, recipe)
    trained = {id(p) for o in make_optimisers(model, recipe) for group in o.param_groups for p in group["params"]}
    assert not any(id(parameter) in trained for parameter in model.plain.parameters())
    assert all(id(parameter) in trained for parameter in model.denoising.parameters())
    assert not any(id(parameter) in trained for parameter in model.fa.parameters())


@pytest.mark.parametrize(
    "changes",
    [{"plain_lr": 1e-4}, {"optimiser": "adam+sgd"}],
    ids=["target is trained", "adam+sgd with a frozen plain stream"],
)
def test_impossible_recipes_are_refused(changes):
    with pytest.raises(ValueError, match="set "):
        dataclasses.replace(RECIPES["quick"], **changes)


def test_quick_trains_the_denoising_stream_alone_from_a_file(own_weights, images, tmp_path):
    recipe = dataclasses.replace(RECIPES["quick"], length=3, batch=2)
    before = STLM(SMALL)
    initial_weights.load(own_weights, before, EfficientNetLite0(SMALL.decoder_dim))
    trained = load_file(train(dataclasses.replace(job(images, init=str(own_weights)), recipe=recipe), tmp_path / "run"))
    for name, tensor in before.state_dict().items():
        if name.startswith(("plain.", "mask_decoder.", "prompt_encoder.")):
            assert torch.equal(trained[name], tensor), name
    assert not torch.equal(trained["denoising.neck.0.weight"], trained["plain.neck.0.weight"])


def test_paper_recipe_is_the_published_one():
    recipe = RECIPES["paper"]
    assert (recipe.size, recipe.batch, recipe.length, recipe.unit) == (1024, 2, 200, "epochs")
    adam, sgd = make_optimisers(STLM(SMALL), recipe)
    assert {(group["lr"], group["betas"]) for group in adam.param_groups} == {(5e-4, (0.5, 0.999))}
    assert [(group["lr"], group["momentum"], group["weight_decay"]) for group in sgd.param_groups] == [
        (0.1, 0.9, 1e-4),
        (0.01, 0.9, 1e-4),
    ]


def test_finished_run_is_resumed_without_its_data(run, images):
    began = (run / "checkpoint.safetensors").stat().st_mtime_ns
    away = images.rename(images.with_name("away"))
    try:
        assert train(job(images), run, resume=True) == run / "checkpoint.safetensors"
    finally:
        away.rename(images)
    assert (run / "checkpoint.safetensors").stat().st_mtime_ns == began


def test_finished_run_is_not_resumed_for_another_false_alarm_rate(run, images):
    with pytest.raises(UsageError, match=r"--false-alarm-rate 0\.01, found 0\.05"):
        train(job(images, false_alarm_rate=0.05), run, resume=True)


def test_validation_is_logged_for_tensorboard(run):
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    validated = [row for row in rows if "validation_image_auroc" in row]
    assert len(validated) == 4
    assert all(0 <= row["validation_pixel_auroc"] <= 1 for row in validated)
    assert list((run / "tensorboard").iterdir())


def test_patience_ends_a_training_without_improvement(images, tmp_path):
    stuck = dataclasses.replace(RECIPE, length=40, validations=20, denoising_lr=1e-12, plain_lr=1e-12, aggregation=None)
    stuck = dataclasses.replace(job(images), recipe=stuck, patience=3)
    opened = checkpoint.load(train(stuck, tmp_path / "run"))
    assert opened.provenance["steps"] < 40


def test_patience_validates_quick_more_than_once(own_weights, images, tmp_path):
    recipe = dataclasses.replace(RECIPES["quick"], length=40, batch=2, denoising_lr=1e-12)
    patient = dataclasses.replace(job(images, init=str(own_weights), patience=3), recipe=recipe)
    assert checkpoint.load(train(patient, tmp_path / "run")).provenance["steps"] < 40


@pytest.mark.parametrize("recipe", ["quick", "standard"])
@pytest.mark.parametrize(
    ("init", "line"),
    [
        ("random", "--init random: --recipe {} does not train the plain stream; leave out --init"),
        ("vit_t", "--init vit_t: --recipe {} does not train the plain stream; choose --teacher vit_t"),
    ],
)
def test_initial_weights_unlike_the_teacher_are_refused(images, tmp_path, recipe, init, line):
    with pytest.raises(UsageError, match=line.format(recipe)):
        train(dataclasses.replace(job(images, init=init), recipe=RECIPES[recipe]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class CountingSam(Sam):
    """A small SAM with random weights that counts its images."""

    images = 0

    def __init__(self, *_):
        torch.manual_seed(3)
        super().__init__("vit_t", STLM(SMALL).plain, digest="0" * 64, native_size=64, config=SMALL)

    def forward(self, image):
        CountingSam.images += len(image)
        return super().forward(image)


@pytest.fixture
def counting_sam(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(train_module, "open_teacher", CountingSam)
    return CountingSam


def images_seen_by(sam, images, out, **changes):
    """Train two epochs of `paper`; return the number of images that SAM sees, pseudo-anomalous ones included."""
    recipe = dataclasses.replace(RECIPES["paper"], length=2, validations=1)
    before = sam.images
    train(dataclasses.replace(job(images, teacher="vit_t", **changes), recipe=recipe), out)
    return sam.images - before


def test_sams_maps_of_clean_images_are_cached_for_the_next_run(counting_sam, images, tmp_path):
    first = images_seen_by(counting_sam, images, tmp_path / "first")
    second = images_seen_by(counting_sam, images, tmp_path / "second")
    assert first - second == 12  # each of the clean images once, in the first run only
    assert len(list((tmp_path / "cache").rglob("*.maps"))) == 12


def test_maps_of_rotated_images_are_not_cached(counting_sam, images, tmp_path):
    shutil.copytree(images, tmp_path / "data" / "bottle")
    seen = images_seen_by(counting_sam, tmp_path / "data" / "bottle", tmp_path / "rotated")
    assert seen >= 24  # each clean image in both epochs
    assert not list((tmp_path / "cache").rglob("*.maps"))


def test_standard_with_sam_trains_the_plain_stream(counting_sam, own_weights, images, tmp_path):
    recipe = dataclasses.replace(RECIPES["standard"], length=4, batch=2)
    settings = dataclasses.replace(job(images, teacher="vit_t", init=str(own_weights)), recipe=recipe)
    trained = load_file(train(settings, tmp_path / "run"))
    assert counting_sam.images
    assert not torch.equal(trained["plain.neck.0.weight"].half(), load_file(own_weights)["plain.neck.0.weight"])
    assert json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]["denoising_target"] == "teacher"


def test_full_disk_ends_the_training(images, tmp_path):
    """A limit on the size of files stands for the full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(JobError, match=r"state\.pt: cannot be written .*--resume"):
            train(job(images), tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "run").glob("*.part"))


@pytest.mark.parametrize(("fraction", "held_out"), [(0.15, 8), (0.5, 10), (0.9, 12)])
def test_val_fraction_of_images_is_held_out(images, tmp_path, fraction, held_out):
    chosen, trained_on = split(job(images, val_fraction=fraction))
    assert (len(chosen), len(trained_on)) == (held_out, 20 - held_out)
    assert not set(chosen) & set(trained_on)


def test_impossible_val_fraction_is_refused(images, tmp_path):
    with pytest.raises(UsageError, match=r"--val-fraction 1\.5: expected a share between 0 and 1"):
        train(job(images, val_fraction=1.5), tmp_path / "run")


def test_dead_worker_ends_the_training(images, tmp_path, monkeypatch):
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(AnomalousImages, "__getitem__", die)
    with pytest.raises(JobError, match=r"worker died.*--resume"):
        train(job(images, workers=1), tmp_path / "run")


def test_folder_without_textures_is_refused(images, tmp_path):
    (tmp_path / "textures").mkdir()
    with pytest.raises(UsageError, match="textures"):
        train(job(images, textures=tmp_path / "textures"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_long_training_prints_a_warning(images, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(train_module, "LONG", 0)
    short = dataclasses.replace(RECIPES["paper"], length=4, unit="steps")
    train(dataclasses.replace(job(images), recipe=short), tmp_path / "run")
    warning = " ".join(capfd.readouterr().err.split())
    assert "warning: the training will take about 0 hours on this CPU; --recipe quick takes minutes" in warning
