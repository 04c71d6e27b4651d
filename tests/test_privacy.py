"""No command contacts a host or writes outside its outputs, the runtimes' telemetry included.

Each command runs in an empty home folder, without the variables that make packages silent under CI, and with a
preloaded library that records every name resolved and every connection made.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import tiny_image

Run = Callable[..., None]


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not sys.platform.startswith("linux") or not shutil.which("cc"):
        pytest.skip("needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("guard") / "guard.so"
    source = Path(__file__).with_name("network_guard.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture
def run(guard: Path, tmp_path: Path) -> Run:
    """Run a Python module with arguments, and require that it stays at home."""

    def run(*arguments: object, **variables: str) -> None:
        home, log = tmp_path / "home", tmp_path / "network.log"
        home.mkdir(exist_ok=True)
        silencing = ("CI", "GITHUB_ACTIONS", "ORT_DISABLE_TELEMETRY", "PYTEST_CURRENT_TEST", "XDG_CACHE_HOME")
        environment = {name: value for name, value in os.environ.items() if name not in silencing}
        environment |= {"HOME": str(home), "LD_PRELOAD": str(guard), "NETWORK_LOG": str(log), **variables}
        done = subprocess.run(
            [sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert not log.exists(), log.read_text()
        assert not [path for path in home.rglob("*") if path.is_file()]

    return run


def test_guard_records_a_resolved_name_and_a_file_at_home(run: Run) -> None:
    with pytest.raises(AssertionError, match="getaddrinfo localhost"):
        run("-c", "import socket; socket.getaddrinfo('localhost', 80)")
    with pytest.raises(AssertionError):
        run("-c", "import pathlib; (pathlib.Path.home() / 'id').write_text('x')")


def test_prediction_and_calibration_stay_at_home(
    run: Run, tiny_bundle: Path, tiny_images: Path, tmp_path: Path
) -> None:
    tiny_image(301, defect=True).save(tmp_path / "part.png")
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    run("-m", "stlm_edge.commands.predict", "--bundle", tmp_path / "bundle", tmp_path / "part.png")
    run("-m", "stlm_edge.commands.calibrate", "--bundle", tmp_path / "bundle", "--data", tiny_images / "good")


def test_bench_stays_at_home(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    run("-m", "stlm_edge.bench", "--bundle", tiny_bundle, "--queries", 1, "--seconds", 0, "--out", tmp_path / "bench")


@pytest.mark.slow
def test_training_and_export_stay_at_home(run: Run, tiny_images: Path, small_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train = ["--data", tiny_images / "good", "--size", 64, "--longer", 0.003, "--out", out]
    run("-m", "stlm_edge.commands.train", *train)
    export = ["--target", "cpu", "--checkpoint", small_checkpoint, "--precision", "fp32"]
    run("-m", "stlm_edge.commands.export", *export, "--out", tmp_path / "bundle")


@pytest.mark.slow
@pytest.mark.parametrize(
    "target",
    [("cpu", "--via", "openvino"), ("android",), ("ios",), ("jetson",)],
    ids=lambda words: words[-1],
)
def test_every_converter_stays_at_home(
    run: Run, target: tuple[str, ...], small_checkpoint: Path, tmp_path: Path
) -> None:
    export = ["--checkpoint", small_checkpoint, "--out", tmp_path / "bundle", "--allow-parity-loss"]
    run("-m", "stlm_edge.commands.export", "--target", *target, *export)
