"""A data set of three categories: a run for each, resuming, and one table of all."""

import json
import shutil
from dataclasses import replace

import pytest
from PIL import Image
from rich.console import Console
from small_network import SMALL
from tiny import tiny_image

from stlm_edge.commands.evaluate import evaluate_all
from stlm_edge.commands.train import train_all
from stlm_edge.errors import UsageError
from stlm_edge.evaluation.evaluate import COLUMNS, summary
from stlm_edge.training.recipes import RECIPES
from stlm_edge.training.train import Job

NAMES = ["bolt", "cap", "nut"]
SHORT = replace(
    RECIPES["quick"], length=2, batch=2, initial_weights="random", denoising_target="teacher", plain_lr=1e-4
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three categories in MVTec AD layout; the last one has no masks."""
    root = tmp_path_factory.mktemp("data")
    for number, name in enumerate(NAMES):
        for folder, seeds in (("train/good", range(16)), ("test/good", range(20, 23)), ("test/spot", range(30, 33))):
            (root / name / folder).mkdir(parents=True)
            for seed in seeds:
                image = tiny_image(100 * number + seed, folder == "test/spot", 64, 64)
                image.save(root / name / folder / f"{seed}.png")
        if name != "nut":
            (root / name / "ground_truth/spot").mkdir(parents=True)
            for seed in range(30, 33):
                mask = Image.new("L", (64, 64))
                mask.paste(255, (20, 20, 40, 40))
                mask.save(root / name / "ground_truth/spot" / f"{seed}_mask.png")
    return root


@pytest.fixture(scope="module")
def job(data):
    return Job(data=data, recipe=SHORT, size=64, network=SMALL)


@pytest.fixture(scope="module")
def runs(job, data, tmp_path_factory):
    """Runs of a training that failed at a damaged image of its second category, and was resumed."""
    out = tmp_path_factory.mktemp("runs") / "all"
    damaged = data / "cap/train/good/7.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:100])
    with pytest.raises(UsageError, match=r"cap/train/good/7.png: truncated or damaged"):
        train_all(job, out)
    damaged.write_bytes(whole)
    first = out / "bolt/checkpoint.safetensors"
    written = first.stat().st_mtime_ns
    assert train_all(job, out, resume=True) == {name: out / name / "checkpoint.safetensors" for name in NAMES}
    assert first.stat().st_mtime_ns == written
    return out


def test_resuming_continues_at_the_unfinished_category(runs):
    assert sorted(path.name for path in runs.iterdir()) == NAMES
    configs = [json.loads((runs / name / "config.json").read_text()) for name in NAMES]
    assert [config["category"] for config in configs] == NAMES


def test_categories_are_evaluated_with_their_own_models_and_averaged(runs, data, tmp_path, capsys):
    metrics = evaluate_all(runs, data, None, tmp_path / "out")
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == metrics
    assert list(metrics["categories"]) == NAMES
    for name, of_category in metrics["categories"].items():
        own = json.loads((tmp_path / "out" / name / "metrics.json").read_text())
        assert own.pop("scores")
        assert own == of_category
        assert of_category["source"] == str(runs / name / "checkpoint.safetensors")
    aurocs = [of_category["image_auroc"] for of_category in metrics["categories"].values()]
    assert metrics["mean"]["image_auroc"] == pytest.approx(sum(aurocs) / 3)
    assert metrics["mean"]["aupro"] is metrics["mean"]["pixel_auroc"] is None  # nut has no masks: no mean of the others
    assert capsys.readouterr().out == ""

    console = Console(width=140)
    with console.capture() as captured:
        console.print(summary(metrics))
    lines = [line for line in captured.get().splitlines() if line.startswith("│")]
    rows = {cells[0]: cells[1:] for cells in ([c.strip() for c in line.split("│")[1:-1]] for line in lines)}
    assert list(rows) == [*NAMES, "mean"]
    assert rows["nut"][:3] == [f"{aurocs[2]:.4f}", "n/a", "n/a"]
    assert rows["mean"][0] == f"{sum(aurocs) / 3:.4f}"
    assert rows["bolt"][len(COLUMNS) :] == [
        f"{metrics['categories']['bolt']['false_alarms']} of 3",
        f"{metrics['categories']['bolt']['missed']} of 3",
    ]


def test_missing_input_is_reported_before_the_first_category(runs, data, tmp_path):
    partly = tmp_path / "runs"
    shutil.copytree(runs / "cap", partly / "cap")
    with pytest.raises(UsageError, match=r"no checkpoint.safetensors for bolt, nut"):
        evaluate_all(partly, data, None, tmp_path / "out")
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    (broken / "nut/test/spot/30.png").rename(broken / "nut/test/spot/30.txt")
    (broken / "cap/ground_truth/spot/31_mask.png").unlink()
    with pytest.raises(UsageError, match=r"spot/31.png: no mask"):
        evaluate_all(runs, broken, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unusable_data_or_output_is_refused_before_training(job, data, runs, tmp_path):
    with pytest.raises(UsageError, match=r"bolt: exists.*--resume"):
        train_all(job, runs)
    with pytest.raises(UsageError, match=r"is a run itself.*--out"):
        train_all(job, runs / "bolt")
    (tmp_path / "bolt/train").mkdir(parents=True)
    with pytest.raises(UsageError, match="no train/good"):
        train_all(replace(job, data=tmp_path), tmp_path / "out")
    with pytest.raises(UsageError, match=r"bolt.*categories.*--category all"):
        train_all(replace(job, data=data / "bolt"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
