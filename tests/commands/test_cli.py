"""The commands as a user meets them: help with an example, one line for a mistake, the right exit code."""

import json
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import stlm_edge
from stlm_edge.commands import evaluate, export, train
from stlm_edge.commands import stlm as umbrella

BIN = Path(sys.executable).parent
COMMANDS = [name for name in umbrella.COMMANDS if name != "completion"]


def run_in_process(capsys, *arguments):
    """Run `stlm ARGUMENTS`; returns its exit code, output and errors."""
    code = 0
    try:
        umbrella.main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_a_complete_example(command, capsys):
    code, out, _ = run_in_process(capsys, command, "--help")
    assert code == 0
    assert f"stlm-{command} --" in " ".join(out.split())


@pytest.mark.parametrize("command", [[], *([name] for name in umbrella.COMMANDS)])
def test_each_command_prints_the_version(command, capsys):
    assert run_in_process(capsys, *command, "--version") == (0, f"stlm-edge {stlm_edge.__version__}\n", "")


def test_each_command_is_a_console_script():
    scripts = {script.name: script.value for script in entry_points(group="console_scripts") if "stlm" in script.name}
    expected = {f"stlm-{name}": umbrella.COMMANDS[name] for name in COMMANDS}
    assert scripts == expected | dict.fromkeys(("stlm", "stlm-edge"), "stlm_edge.commands.stlm:main")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_umbrella_help_lists_every_command(arguments, capsys):
    code, out, _ = run_in_process(capsys, *arguments)
    assert code == 0
    assert [name for name in umbrella.COMMANDS if name not in out] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trian", "--data", "."), ["trian", "train", "export"]),
        (("train", "--data", "nowhere", "--out", "run"), ["nowhere: no such folder"]),
        (("train", "--data", "nowhere"), ["--out"]),
        (("train", "--data", ".", "--out", "run", "--recipe", "best"), ["best", "quick", "paper"]),
        (("train", "--data", ".", "--out", "run", "--size", "100"), ["size 100", "multiple of 32"]),
        (("train", "--data", ".", "--out", "run", "--size", "large"), ["--size", "int", "large"]),
        (("train", "--data", ".", "--out", "run", "--devices", "0"), ["--devices", "0", "1"]),
        (("train", "--data", ".", "--out", "run", "--longer", "nan"), ["--longer", "nan", "1000"]),
        (("train", "--data", ".", "--out", "run", "--teacher", "vit_x"), ["vit_x", "efficientnet-lite0"]),
        (("train", "--data", ".", "--out", "run", "--false-alarm-rate", "2"), ["false-alarm rate", "2", "0.5"]),
        (("train", "--data", ".", "--out", "run", "--format", "voc"), ["voc", "visa", "mvtec"]),
        (("eval", "--data", ".", "--out", "e"), ["--checkpoint", "--bundle"]),
        (("eval", "--bundle", "b", "--data", ".", "--out", "e", "--category", "all"), ["all", "--checkpoint"]),
        (("eval", "--checkpoint", "none.safetensors", "--data", "images", "--out", "e"), ["none.safetensors"]),
        (("export", "--target", "toaster"), ["toaster", "cpu", "jetson"]),
        (("export", "--target", "cpu", "--precision", "fp64"), ["fp64", "int8", "fp32"]),
        (("export", "--target", "jetson", "--precision", "int4"), ["target jetson", "int4", "fp16, int8, fp32"]),
        (("export", "--target", "cpu"), ["stlm-train"]),
        (("predict", "--bundle", "nowhere", "x.png"), ["nowhere"]),
        (("predict", "--bundle", "nowhere"), ["--watch"]),
        (("bench", "--bundle", "nowhere", "--out", "b"), ["nowhere"]),
        (("calibrate", "--bundle", "nowhere", "--data", "."), ["nowhere"]),
        (("build-engine", "--bundle", "nowhere"), ["nowhere"]),
    ],
)
def test_mistake_gets_one_line_and_leaves_nothing(tmp_path, tiny_images, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    given = [tiny_images if argument == "images" else argument for argument in arguments]
    code, out, err = run_in_process(capsys, *given)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert [word for word in words if word not in err] == []
    assert not list(tmp_path.iterdir())


def test_category_without_training_images(tmp_path, capsys):
    (tmp_path / "bottle" / "test" / "good").mkdir(parents=True)
    given = ("train", "--data", tmp_path, "--category", "bottle", "--out", tmp_path / "run")
    code, _, err = run_in_process(capsys, *given)
    assert code == 2
    assert "no train/good" in err


def test_evaluation_prints_json_alone(tiny_bundle, tiny_images, tmp_path, capsys):
    given = ("eval", "--bundle", tiny_bundle, "--data", tiny_images, "--out", tmp_path / "e", "--json")
    code, out, err = run_in_process(capsys, *given)
    assert code == 0, err
    metrics = json.loads(out)
    assert metrics == json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert {"image_auroc", "pixel_auroc", "aupro", "threshold", "false_alarms", "missed", "by_defect"} <= metrics.keys()
    assert metrics["by_defect"]["spot"]["anomalous"] == 8


@pytest.mark.parametrize(
    ("main", "function", "given", "advice"),
    [
        (train.main, "stlm_edge.training.train.train", ["--data", ".", "--out", "run"], "--resume"),
        (
            evaluate.main,
            "stlm_edge.commands.evaluate.evaluate_one",
            ["--bundle", "b", "--data", ".", "--out", "e"],
            "no",
        ),
        (export.main, "stlm_edge.export.pipeline.export_all", ["--target", "cpu"], "no bundle"),
    ],
)
def test_ctrl_c_is_exit_code_130(monkeypatch, capsys, main, function, given, advice):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(function, interrupt)
    with pytest.raises(SystemExit) as end:
        main(given)
    assert end.value.code == 130
    assert capsys.readouterr().err.startswith("error: interrupted; ")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_a_running_command_without_leftovers(tiny_bundle, tmp_path, sent, code):
    command = [BIN / "stlm", "bench", "--bundle", tiny_bundle, "--seconds", "60", "--out", tmp_path / "bench"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline()  # progress: it runs
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    assert err.splitlines()[-1].startswith("error: interrupted")
    assert "Traceback" not in err
    assert not (tmp_path / "bench").exists()


def test_umbrella_predicts_where_no_package_for_training_is_installed(tiny_bundle, tiny_images):
    code = """
import sys
sys.modules.update(dict.fromkeys(("torch", "torchvision", "rich", "scipy", "jinja2", "matplotlib", "onnx"), None))
from stlm_edge.commands.stlm import main
main(sys.argv[1:])
"""
    image = tiny_images / "spot" / "305.png"

    def run(*arguments):
        return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)

    done = run("predict", "--bundle", tiny_bundle, image, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["anomalous"] is True
    assert "--recipe" in run("train", "--help").stdout
    refused = run("train", "--data", ".", "--out", "run")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert 'pip install "stlm-edge[train]"' in refused.stderr
