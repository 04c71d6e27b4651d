"""The built wheel installs few packages into an empty environment and runs a bundle there."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from tiny import tiny_image

ROOT = Path(__file__).parent.parent
UNREACHABLE = re.compile(r"error sending request|failed to fetch|dns error|timed out|tunnel|connect", re.IGNORECASE)


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    outside = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=outside, capture_output=True, text=True, timeout=280
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `env/`, an environment with the wheel and its requirements, and `part.png`."""
    place = tmp_path_factory.mktemp("wheel")
    for name in ("stlm_edge", "converters"):
        shutil.copytree(ROOT / name, place / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place / "source")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", place, place / "source"]
    built = run(*command, cwd=place)
    assert built.returncode == 0, built.stderr
    venv.create(place / "env", symlinks=True)
    python = place / "env" / "bin" / "python"
    (wheel,) = place.glob("*.whl")
    installed = run(sys.executable, "-m", "uv", "pip", "install", "--python", python, wheel, cwd=place)
    if installed.returncode and UNREACHABLE.search(installed.stderr):
        pytest.skip(f"the package registry cannot be reached: {installed.stderr.strip().splitlines()[-1]}")
    assert installed.returncode == 0, installed.stderr
    tiny_image(305, defect=True).save(place / "part.png")
    return place


def in_env(place: Path, *command: object) -> subprocess.CompletedProcess[str]:
    return run(place / "env" / "bin" / str(command[0]), *command[1:], cwd=place)


def test_wheel_requires_only_numpy_pillow_and_onnxruntime(place: Path) -> None:
    code = """
import importlib.metadata as metadata, json, re
normal = lambda name: re.sub("[-_.]+", "-", name).lower()
requires = {}
for distribution in metadata.distributions():
    wanted = [text for text in distribution.requires or [] if "extra ==" not in text]
    requires[normal(distribution.metadata["Name"])] = [normal(re.match("[A-Za-z0-9._-]+", text)[0]) for text in wanted]
print(json.dumps(requires))
"""
    requires = json.loads(in_env(place, "python", "-c", code).stdout)
    assert sorted(requires["stlm-edge"]) == ["numpy", "onnxruntime", "pillow"]
    own = {"stlm-edge", "numpy", "pillow", "onnxruntime"}
    assert set(requires) <= own | {*requires["numpy"], *requires["pillow"], *requires["onnxruntime"], "mpmath"}
    assert not set(requires) & {"torch", "torchvision", "typer", "rich", "pydantic", "scipy", "onnx", "matplotlib"}


def test_wheel_installs_one_folder(place: Path) -> None:
    (wheel,) = place.glob("*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in files if ".dist-info/" not in name} == {"stlm_edge"}
    expected = ("py.typed", "schemas/manifest-1.schema.json", "converters/__init__.py")
    assert files >= {f"stlm_edge/{name}" for name in expected}
    (site,) = (place / "env" / "lib").glob("python*/site-packages")
    assert not {"converters", "benchmarks", "tests"} & {path.name for path in site.iterdir()}


def test_wheel_predicts_from_python_and_command_line(place: Path, tiny_bundle: Path) -> None:
    code = "import sys, stlm_edge; print(stlm_edge.open(sys.argv[1]).predict('part.png').score, stlm_edge.__file__)"
    done = in_env(place, "python", "-c", code, tiny_bundle)
    score, origin = done.stdout.split()
    assert Path(origin).is_relative_to(place)
    command = in_env(place, "stlm-predict", "--bundle", tiny_bundle, "part.png", "--out", "heatmaps", "--json")
    assert (command.returncode, command.stderr) == (0, "")
    line = json.loads(command.stdout)
    assert line["score"] == pytest.approx(float(score), abs=1e-6)
    assert line["anomalous"] is True
    assert (place / line["heatmap"]).is_file()


def test_wheel_calibrates_a_bundle(place: Path, tiny_bundle: Path, tiny_images: Path) -> None:
    shutil.copytree(tiny_bundle, place / "site")
    done = in_env(place, "stlm-calibrate", "--bundle", "site", "--data", tiny_images / "good", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["decision_threshold"]["images"] == 24


def test_wheel_benchmarks_a_bundle(place: Path, tiny_bundle: Path) -> None:
    command = ["stlm-bench", "--bundle", tiny_bundle, "--queries", 5, "--seconds", 0, "--out", "bench"]
    done = in_env(place, *command)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((place / "bench" / "bench.json").read_text())["rows"]
    assert row["parity"]["verdict_flips"] == 0


@pytest.mark.parametrize(
    "command",
    [
        ["stlm-train", "--data", ".", "--out", "run"],
        ["stlm-eval", "--bundle", "b", "--data", ".", "--out", "e"],
        ["stlm-export", "--target", "cpu"],
    ],
)
def test_command_that_needs_more_packages_names_the_extra(place: Path, command: list[str]) -> None:
    done = in_env(place, *command)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert re.search(r'pip install "stlm-edge\[(train|export)\]"', done.stderr)
    assert in_env(place, command[0], "--help").returncode == 0


def test_umbrella_command_predicts(place: Path, tiny_bundle: Path) -> None:
    done = in_env(place, "stlm", "predict", "--bundle", tiny_bundle, "part.png", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["anomalous"] is True


def test_checkpoint_without_torch_names_the_extra(place: Path) -> None:
    done = in_env(place, "stlm-predict", "--checkpoint", "some.safetensors", "part.png")
    assert done.returncode == 2
    assert done.stderr == 'error: --checkpoint needs torch: pip install "stlm-edge[train]"\n'
