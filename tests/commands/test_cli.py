"""The commands as a user meets them: help with an example, one line for a mistake, the right exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
COMMANDS = ["stlm-train", "stlm-eval", "stlm-export", "stlm-predict", "stlm-calibrate", "stlm-bench"]


def run(*arguments):
    command = [str(BIN / arguments[0]), *map(str, arguments[1:])]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def assert_one_line(done, code, *words):
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_a_complete_example(command):
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"{command} --" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("stlm-train", "--data", "nowhere", "--out", "run"), ["nowhere: no such folder"]),
        (("stlm-train", "--data", "nowhere"), ["--out"]),
        (("stlm-train", "--data", ".", "--out", "run", "--recipe", "best"), ["best", "quick", "paper"]),
        (("stlm-train", "--data", ".", "--out", "run", "--size", "100"), ["size 100", "multiple of 32"]),
        (("stlm-train", "--data", ".", "--out", "run", "--teacher", "vit_x"), ["vit_x", "efficientnet-lite0"]),
        (("stlm-train", "--data", ".", "--out", "run", "--false-alarm-rate", "2"), ["2", "between 0 and 0.5"]),
        (("stlm-train", "--data", ".", "--out", "run", "--format", "voc"), ["voc", "visa", "mvtec"]),
        (("stlm-eval", "--data", ".", "--out", "e"), ["--checkpoint", "--bundle"]),
        (("stlm-eval", "--bundle", "b", "--data", ".", "--out", "e", "--category", "all"), ["all", "--checkpoint"]),
        (("stlm-eval", "--checkpoint", "none.safetensors", "--data", ".", "--out", "e"), ["none.safetensors"]),
        (("stlm-export", "--target", "toaster"), ["toaster", "cpu", "jetson"]),
        (("stlm-export", "--target", "cpu", "--precision", "fp64"), ["fp64", "int8", "fp32"]),
        (("stlm-export", "--target", "jetson", "--precision", "int4"), ["target jetson", "int4", "fp16, int8, fp32"]),
        (("stlm-export", "--target", "cpu"), ["stlm-train"]),
        (("stlm-predict", "--bundle", "nowhere", "x.png"), ["nowhere"]),
        (("stlm-bench", "--bundle", "nowhere", "--out", "b"), ["nowhere"]),
        (("stlm-calibrate", "--bundle", "nowhere", "--data", "."), ["nowhere"]),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert_one_line(run(*arguments), 2, *words)
    assert not list(tmp_path.iterdir())


def test_a_category_without_training_images(tmp_path):
    (tmp_path / "bottle" / "test" / "good").mkdir(parents=True)
    done = run("stlm-train", "--data", tmp_path, "--category", "bottle", "--out", tmp_path / "run")
    assert_one_line(done, 2, "no train/good")


def test_evaluation_prints_json_alone(tiny_bundle, tiny_images, tmp_path):
    done = run("stlm-eval", "--bundle", tiny_bundle, "--data", tiny_images, "--out", tmp_path / "e", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures == json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert {"image_auroc", "pixel_auroc", "aupro", "threshold", "false_alarms", "missed", "by_defect"} <= figures.keys()
    assert figures["by_defect"]["spot"]["anomalous"] == 8
