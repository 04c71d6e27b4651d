"""`--device ssh:…` with a Python that has only what a device needs."""

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
from local_device import LocalSsh
from PIL import Image
from ssh_server import SshServer
from tiny import tiny_image

from stlm_edge.bench.devices import archive
from stlm_edge.bench.devices.device import Job, parse_device
from stlm_edge.bench.devices.remote import _arguments, capabilities_of
from stlm_edge.bench.devices.runner import map_of, packed
from stlm_edge.bench.devices.side_by_side import measure_side_by_side
from stlm_edge.bench.devices.ssh import Ssh
from stlm_edge.bench.measure import Plan
from stlm_edge.bundle import open_bundle
from stlm_edge.commands.bench import main
from stlm_edge.data.datasets import test_samples as labelled_images
from stlm_edge.errors import JobError
from stlm_edge.export.gate import accuracy_on_samples

QUICK = ["--queries", "20", "--seconds", "0"]
Server = SshServer | LocalSsh


def bench(server: Server, python: Path, bundle: Path, out: Path, *more: str, exit_code: int = 0) -> dict:
    given = ["--bundle", str(bundle), "--device", server.device, *QUICK]
    given += ["--ssh-config", str(server.config), "--remote-python", str(python), "--out", str(out), *more]
    if exit_code:
        with pytest.raises(SystemExit) as left:
            main(given)
        assert left.value.code == exit_code
    else:
        main(given)
    return json.loads((out / "bench.json").read_text("utf-8"))


def test_device_gives_complete_row_and_is_left_clean(
    sshd: SshServer, python: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = bench(sshd, python, tiny_bundle, tmp_path / "out")
    (row,) = found["rows"]
    assert (row["device"], row["name"], row["bundle"]) == (sshd.device, "tiny", str(tiny_bundle))
    assert row["passed"]
    assert row["parity"]["verdict_flips"] == 0
    assert row["queries"] == 20
    (device,) = found["devices"]
    assert (device["name"], device["failure"]) == (sshd.device, None)
    assert set(device["machine"]["packages"]) == {"numpy", "Pillow", "onnxruntime"}
    assert not (sshd.cache / "stlm-edge").exists()
    assert f"tiny on {sshd.device}" in capsys.readouterr().out


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


@pytest.mark.usefixtures("quick_bench")
def test_accuracy_is_of_the_devices_own_maps_and_scores(
    server: Server,
    quick_bench: None,
    python: Path,
    tiny_bundle: Path,
    masked: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
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
    assert "of 20 images" in capsys.readouterr().err
    assert not (server.cache / "stlm-edge").exists()


def test_packed_map_is_restored() -> None:
    values = np.random.default_rng(0).random((300, 300), dtype=np.float32)
    assert np.abs(map_of(packed(values), 300) - values).max() <= 2**-12


@pytest.mark.usefixtures("quick_bench")
def test_devices_run_side_by_side_and_a_lost_one_is_a_failed_row(
    server: Server,
    quick_bench: None,
    python: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
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


@pytest.mark.slow
def test_bundle_goes_where_its_runtime_is_and_fails_where_there_is_none(
    server: Server, python: Path, tiny_bundle: Path, tmp_path: Path
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


def test_terminal_gets_a_live_table(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_device_reports_its_runtimes(server: Server, python: Path) -> None:
    device = Ssh(parse_device(server.device), str(python), server.config)
    machine = capabilities_of(device, lambda text: None)
    assert machine.runtimes == {"onnxruntime"}
    assert not machine.jetson


def test_options_reach_the_bench_on_the_device() -> None:
    job = Job((), Plan(128, 3.0, streams=(2, 4), even_if_wrong=True), threads=4, power_mode=0)
    assert _arguments(job) == [
        *("--threads", "4", "--queries", "128", "--seconds", "3", "--streams", "2", "--streams", "4"),
        *("--even-if-wrong", "--set-power-mode", "0"),
    ]


def test_runner_is_reproducible_and_has_only_what_a_device_needs() -> None:
    runner = archive.runner()
    assert runner == archive.runner()
    names = set(zipfile.ZipFile(io.BytesIO(runner)).namelist())
    assert {"__main__.py", "stlm_edge/__init__.py", "stlm_edge/bench/devices/runner.py"} <= names
    assert {"stlm_edge/bundle/reader.py", "stlm_edge/commands/bench.py"} <= names
    rooms = ("model", "data", "converters", "teachers", "training", "export", "report", "evaluation")
    assert not [name for name in names if name.startswith(tuple(f"stlm_edge/{room}/" for room in rooms))]
    assert not {"stlm_edge/commands/train.py", "stlm_edge/commands/export.py"} & names
    assert len(runner) < 1 << 20


@pytest.mark.parametrize("program", [archive._MAIN, archive.BOOTSTRAP])
def test_old_python_can_parse_the_check_of_its_version(program: str) -> None:
    ast.parse(program, feature_version=(3, 7))
    assert 'f"' not in program
