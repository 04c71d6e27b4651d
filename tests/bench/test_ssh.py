"""`--device ssh:…` against a real OpenSSH server on loopback, with a Python that has only what a device needs."""

import ast
import io
import json
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ssh_server import SshServer
from tiny import tiny_image

from stlm_edge.bench.devices import archive
from stlm_edge.bench.devices.gather import _travelling
from stlm_edge.bench.devices.images import longest, map_of, parts_of
from stlm_edge.bench.devices.side_by_side import measure_side_by_side
from stlm_edge.bench.devices.ssh import _BOOTSTRAP
from stlm_edge.bundle import open_bundle
from stlm_edge.commands.bench import main
from stlm_edge.commands.bench_options import parse_options
from stlm_edge.data.datasets import test_samples as labelled_images
from stlm_edge.errors import JobError
from stlm_edge.export.gate import accuracy_on_samples

QUICK = ["--queries", "20", "--seconds", "0"]


def bench(server: SshServer, python: Path, bundle: Path, out: Path, *more: str, exit_code: int = 0) -> dict:
    given = ["--bundle", str(bundle), "--device", server.device, *QUICK]
    given += ["--ssh-config", str(server.config), "--remote-python", str(python), "--out", str(out), *more]
    if exit_code:
        with pytest.raises(SystemExit) as left:
            main(given)
        assert left.value.code == exit_code
    else:
        main(given)
    return json.loads((out / "bench.json").read_text("utf-8"))


def test_a_device_gives_a_complete_row_and_is_left_clean(
    server: SshServer, python: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = bench(server, python, tiny_bundle, tmp_path / "out")
    (row,) = found["rows"]
    assert (row["device"], row["name"], row["bundle"]) == (server.device, "tiny", str(tiny_bundle))
    assert row["passed"]
    assert row["parity"]["verdict_flips"] == 0
    assert row["queries"] == 20
    (device,) = found["devices"]
    assert (device["name"], device["failure"]) == (server.device, None)
    assert set(device["machine"]["packages"]) == {"numpy", "Pillow", "onnxruntime"}
    assert not (server.cache / "stlm-edge").exists()
    assert f"tiny on {server.device}" in capsys.readouterr().out


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled images with masks, of two kinds of defect, in MVTec AD's layout; some are JPEG files."""
    root = tmp_path_factory.mktemp("masked")
    kinds = {"good": range(200, 212), "weak": range(300, 340, 10), "strong": range(309, 349, 10)}
    for kind, seeds in {"train": range(400, 402), **kinds}.items():
        folder = root / "train" / "good" if kind == "train" else root / "test" / kind
        folder.mkdir(parents=True)
        for seed in seeds:
            image = tiny_image(seed, defect=kind in ("weak", "strong"))
            image.save(folder / (f"{seed}.jpg" if kind == "strong" else f"{seed}.png"))
            if kind in ("weak", "strong"):
                y, x = np.mgrid[0 : image.height, 0 : image.width]
                spot = np.hypot(y - 45, x - 30 - seed % 50) < 9
                mask = root / "ground_truth" / kind / f"{seed}_mask.png"
                mask.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(spot).save(mask)
    return root


def test_accuracy_is_that_of_the_devices_own_maps_and_scores(
    server: SshServer, python: Path, tiny_bundle: Path, masked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--device", "local", "--data", str(masked))
    found = bench(server, python, tiny_bundle, tmp_path / "out", *more)
    here, there = found["rows"]
    assert there["device"] == server.device
    bundle = open_bundle(tiny_bundle)
    size, decision_threshold = bundle.manifest.input.size, bundle.manifest.decision_threshold
    evaluated = accuracy_on_samples(bundle.runtime, labelled_images(masked), size, decision_threshold)
    assert 0.6 < evaluated["pixel_auroc"] < 1
    assert here["accuracy"] == evaluated
    assert there["accuracy"] == pytest.approx(evaluated, abs=1e-3)
    assert "tiny, 20 of 20 images" in capsys.readouterr().err
    assert not (server.cache / "stlm-edge").exists()


@pytest.mark.parametrize("size", [16, 300])
def test_a_map_comes_back_from_the_line_however_badly_it_compresses(size: int) -> None:
    values = np.random.default_rng(0).random((size, size), dtype=np.float32)
    parts = list(parts_of(values))
    assert all(len(part) < 1 << 16 for part in parts), "a longer line ends the connection"
    text = "".join(parts)
    assert len(text) <= longest(size)
    assert np.abs(map_of(text, size) - values).max() <= 2**-12


def test_devices_run_side_by_side_and_a_lost_one_is_a_row(
    server: SshServer, python: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = "ssh:nobody@127.0.0.1:1"
    found = bench(
        *(server, python, tiny_bundle, tmp_path / "out", "--device", "local", "--device", nobody), exit_code=1
    )
    assert [row["device"] for row in found["rows"]] == [None, server.device, nobody]
    assert [row["passed"] for row in found["rows"]] == [True, True, False]
    assert "Connection refused" in found["rows"][2]["failure"]
    assert found["rows"][2]["latency_ms"] is None
    answers = {device["name"]: device for device in found["devices"]}
    assert answers[nobody]["machine"] is None
    assert answers[server.device]["machine"]["packages"]["onnxruntime"]
    assert found["machine"]["packages"]["onnxruntime"]
    assert found["headline"].startswith("same verdicts as the trained model on 2 of 3 devices. ")
    assert f"tiny on {nobody} FAILED: " in found["headline"]
    assert f"{nobody}: FAILED: " in capsys.readouterr().err


def test_a_bundle_goes_where_its_runtime_is_and_one_that_is_for_none_of_them_is_a_row(
    server: SshServer, python: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    for_jetson = tmp_path / "for-jetson"
    shutil.copytree(tiny_bundle, for_jetson)
    manifest = for_jetson / "manifest.json"
    text = manifest.read_text().replace('"target": "cpu"', '"target": "jetson"')
    manifest.write_text(text.replace('"runtime": "onnxruntime"', '"runtime": "tensorrt"'))
    more = ("--bundle", str(for_jetson), "--device", "local")
    found = bench(server, python, tiny_bundle, tmp_path / "out", *more, exit_code=1)
    rows = {(row["name"], row["device"]): row for row in found["rows"]}
    assert rows.keys() == {("tiny", None), ("tiny", server.device), ("for-jetson", None)}
    assert rows["tiny", server.device]["passed"]
    assert rows["for-jetson", None]["failure"] == "no device of this command is jetson with tensorrt"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_live_table(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")

    def sound(progress: Callable[[str], None]) -> int:
        progress("latency: round 1 [bold]of 10")
        time.sleep(0.5)
        return 1

    def failing(progress: Callable[[str], None]) -> int:
        raise JobError("the device's disk is full")

    found = measure_side_by_side({"ssh:one": sound, "ssh:two": failing})
    assert found["ssh:one"] == 1
    assert str(found["ssh:two"]) == "the device's disk is full"
    shown = terminal.getvalue()
    assert "latency: round 1 [bold]of 10" in shown
    assert "FAILED: the device's disk is full" in shown


def test_what_travels_to_a_device_is_what_was_asked_here(tiny_bundle: Path, tmp_path: Path) -> None:
    given = ["--bundle", "B", "--out", "O", "--threads", "4", "--quick", "--seconds", "3", "--streams", "2"]
    given += ["--even-if-wrong", "--set-power-mode", "0", "--device", "ssh:pi", "--json"]
    assert _travelling(parse_options(given)) == (
        *("--threads", "4", "--seconds", "3", "--set-power-mode", "0"),
        *("--streams", "2", "--quick", "--even-if-wrong"),
    )


def test_the_runner_is_the_same_bytes_each_time_and_leaves_training_at_home() -> None:
    runner = archive.runner()
    assert runner == archive.runner()
    names = zipfile.ZipFile(io.BytesIO(runner)).namelist()
    assert {"__main__.py", "stlm_edge/__init__.py", "stlm_edge/bench/runner.py", "stlm_edge/bundle.py"} <= set(names)
    assert not any(folder in name for name in names for folder in ("/model/", "/data/", "/converters/", "/teachers/"))
    assert len(runner) < 1 << 20


@pytest.mark.parametrize("program", [archive._MAIN, _BOOTSTRAP])
def test_an_old_python_can_read_what_tells_that_it_is_too_old(program: str) -> None:
    ast.parse(program, feature_version=(3, 7))
    assert 'f"' not in program
