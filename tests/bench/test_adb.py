"""`--device adb` against a real adb server and a real adbd. The app's part is played by a script behind a stand-in
`am`, LiteRT's binary by another: no phone has run this."""

import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from adb_phone import SERIAL, Phone

from stlm_edge.bench.devices import benchmark_model, remote, self_check
from stlm_edge.bench.devices.adb import Adb
from stlm_edge.bench.devices.benchmark_model import NOT_PROVEN, Told, parse_result, time_by_benchmark_model
from stlm_edge.bench.devices.device import parse_device
from stlm_edge.bench.devices.self_check import PhoneJob, measure_by_app
from stlm_edge.bench.devices.ssh import Lost
from stlm_edge.bench.measure import unmeasured
from stlm_edge.bundle import open_bundle
from stlm_edge.commands.bench import main
from stlm_edge.errors import JobError
from stlm_edge.formats import protobuf


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phone]:
    phone = Phone(tmp_path_factory.mktemp("phone"))
    yield phone
    phone.stop()


@pytest.fixture
def phone(server: Phone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Phone:
    """The phone with no app's files, in a folder of this test."""
    server.files = tmp_path / "files"
    server.files.mkdir()
    server.tool("pidof", "echo 4711")
    monkeypatch.setenv("ADB_SERVER_SOCKET", server.socket)
    monkeypatch.setattr(self_check, "FILES", str(server.files))
    monkeypatch.setattr(self_check, "ANSWER", str(server.files / "bench.json"))
    monkeypatch.setattr(self_check, "POLL_S", 0.5)
    monkeypatch.setattr(benchmark_model, "FOLDER", str(tmp_path / "litert"))
    return server


@pytest.fixture
def exported_for_phone(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle with a manifest that says it is a phone's: enough where its artifact is never opened."""
    shutil.copytree(tiny_bundle, tmp_path / "android")
    manifest = tmp_path / "android" / "manifest.json"
    text = manifest.read_text().replace('"target": "cpu"', '"target": "android"')
    manifest.write_text(text.replace('"runtime": "onnxruntime"', '"runtime": "litert"'))
    return tmp_path / "android"


@pytest.fixture
def adb(phone: Phone) -> Adb:
    return Adb(parse_device(f"adb:{SERIAL}"))


def job(bundle: Path, time_limit_s: float = 300.0, keep: bool = False) -> PhoneJob:
    return PhoneJob((open_bundle(bundle),), 40, "cpu", time_limit_s, keep)


def app(phone: Phone, answers: str) -> None:
    """An `am` that writes its arguments down and lets `answers` run after it has returned, as an app does."""
    phone.tool(
        "am",
        f"""echo "$@" >> {phone.files}/am.log
        [ "$1" = start ] || exit 0
        echo "Starting: Intent {{ cmp=org.stlm_edge.demo/.SelfCheckActivity }}"
        cd {phone.files}
        ({answers}) >/dev/null 2>&1 </dev/null &""",
    )


def test_the_app_is_started_by_the_contract_and_its_answer_becomes_the_row(
    phone: Phone, adb: Adb, tiny_bundle: Path
) -> None:
    python = f"PYTHONPATH={Path(__file__).parents[2]} OMP_NUM_THREADS=1 {sys.executable}"
    bench = "-m stlm_edge.bench --bundle bundles/$7 --queries ${10} --seconds 0 --out out"
    app(phone, f"{python} {bench}; head -c 99 out/bench.json > bench.json; sleep 0.2; mv out/bench.json bench.json")
    said: list[str] = []
    found = measure_by_app(adb, job(tiny_bundle), said.append)
    (row,) = found.rows
    assert row.passed
    assert row.parity is not None
    assert row.parity.verdict_flips == 0
    assert row.queries == 40
    assert said == ["connecting", "copying tiny", "self-check: tiny", *["measuring"] * (len(said) - 3)]
    start, stop = (phone.files / "am.log").read_text().splitlines()
    name = start.split()[6]
    assert start == (
        f"start -S -n org.stlm_edge.demo/.SelfCheckActivity --es bundle {name} --ei queries 40 --es delegate cpu"
    )
    assert stop == "force-stop org.stlm_edge.demo"
    assert not (phone.files / "bench.json").exists()
    assert not (phone.files / "bundles" / name).exists()


def test_an_unchanged_bundle_is_copied_once(phone: Phone, adb: Adb, tiny_bundle: Path) -> None:
    app(phone, "echo '{}' > bench.json")
    copied = []
    for _ in range(2):
        with pytest.raises(JobError):
            measure_by_app(adb, job(tiny_bundle, keep=True), copied.append)
    assert copied.count("copying tiny") == 1
    (there,) = (phone.files / "bundles").iterdir()
    assert open_bundle(there).manifest == open_bundle(tiny_bundle).manifest


@pytest.mark.parametrize(
    ("answers", "line"),
    [
        ("echo '{\"format_version\": 1' > bench.json", "not valid JSON"),
        ('echo \'{"format_version": 1, "done": true}\' > bench.json', "headline: missing"),
        ("head -c 3000000 /dev/zero > bench.json", "more than 1 MB, the limit"),
        ("mkdir bench.json", "no whole bench.json before the time limit; keep the phone unlocked"),
        ("true", "no whole bench.json before the time limit"),
        ("ln -s /etc/hostname bench.json", "not valid JSON"),
    ],
)
def test_an_answer_that_is_none_is_refused(
    phone: Phone, adb: Adb, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, answers: str, line: str
) -> None:
    monkeypatch.setattr("stlm_edge.bench.devices.ssh.ANSWER_LIMIT", 1 << 20)
    app(phone, answers)
    limit_s = 5.0 if "time limit" in line else 120.0
    with pytest.raises(JobError, match=line) as refused:
        measure_by_app(adb, job(tiny_bundle, time_limit_s=limit_s), lambda text: None)
    assert str(refused.value).isprintable()


def test_an_app_that_crashes_is_noticed_long_before_the_time_limit(phone: Phone, adb: Adb, tiny_bundle: Path) -> None:
    app(phone, f"touch {phone.files}/alive; sleep 2; rm {phone.files}/alive")
    phone.tool("pidof", f'[ "$1" = org.stlm_edge.demo ] && [ -e {phone.files}/alive ] && echo 4711')
    began = time.monotonic()
    with pytest.raises(JobError, match=r"the demo app ended before its bench\.json was whole: it crashed"):
        measure_by_app(adb, job(tiny_bundle, time_limit_s=600.0), lambda text: None)
    assert time.monotonic() - began < 300


def test_a_changed_bundle_is_copied_again_and_that_is_said(phone: Phone, adb: Adb, tiny_bundle: Path) -> None:
    app(phone, "echo '{}' > bench.json")
    said: list[str] = []
    for _ in range(2):
        with pytest.raises(JobError):
            measure_by_app(adb, job(tiny_bundle, keep=True), said.append)
        (there,) = (phone.files / "bundles").iterdir()
        (there / "manifest.json").write_text("{}")
    assert said.count("copying tiny") == 2


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_on_the_phone_is_told(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "phone" / "files"
    disk.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk], check=False).returncode:
        pytest.skip("a small disk can't be mounted here")
    try:
        phone = Phone(tmp_path / "phone")
        try:
            monkeypatch.setenv("ADB_SERVER_SOCKET", phone.socket)
            monkeypatch.setattr(self_check, "FILES", str(disk))
            monkeypatch.setattr(self_check, "ANSWER", str(disk / "bench.json"))
            with pytest.raises(JobError, match="No space left on device"):
                measure_by_app(Adb(parse_device(f"adb:{SERIAL}")), job(tiny_bundle), lambda text: None)
        finally:
            phone.stop()
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


def test_an_app_that_is_missing_is_told(phone: Phone, adb: Adb, tiny_bundle: Path) -> None:
    phone.tool("am", '[ "$1" = start ] && echo "Error type 3" && echo "Error: Activity class does not exist."; exit 0')
    with pytest.raises(JobError, match=r"install it on the phone \(Error: Activity class does not exist\.\)"):
        measure_by_app(adb, job(tiny_bundle), lambda text: None)


def test_a_serial_that_is_not_there_is_lost_at_once(phone: Phone, tiny_bundle: Path) -> None:
    with pytest.raises(Lost, match="'NOBODY' not found"):
        measure_by_app(Adb(parse_device("adb:NOBODY")), job(tiny_bundle), lambda text: None)


def test_a_phone_that_vanishes_is_lost(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phone = Phone(tmp_path / "phone")
    try:
        monkeypatch.setenv("ADB_SERVER_SOCKET", phone.socket)
        monkeypatch.setattr(self_check, "FILES", str(phone.files))
        monkeypatch.setattr(self_check, "ANSWER", str(phone.files / "bench.json"))
        monkeypatch.setattr(self_check, "POLL_S", 0.2)
        phone.tool("pidof", "echo 4711")
        monkeypatch.setattr(remote, "PATIENCE_S", 2.5)
        app(phone, "true")
        said: list[str] = []

        def progress(text: str) -> None:
            said.append(text)
            if said.count("measuring") == 2:
                phone.vanish()

        with pytest.raises(Lost, match=r"not found|offline|closed"):
            measure_by_app(Adb(parse_device(f"adb:{SERIAL}")), job(tiny_bundle), progress)
        assert any("trying again" in line for line in said)
    finally:
        phone.stop()


def answer(**floats: float) -> bytes:
    """benchmark_model's answer, with 50 runs after 3."""
    numbers = {"avg": 1, "median": 5, "p5": 6, "p95": 7, "init": 8, "first": 9}
    latency = b"".join(bytes([numbers[name] << 3 | 5]) + struct.pack("<f", value) for name, value in floats.items())
    memory = bytes([3 << 3 | 5]) + struct.pack("<f", 100.0)
    misc = bytes([2 << 3, 50, 3 << 3, 3])
    parts = ((1, b"name"), (2, latency), (3, memory), (4, misc))
    return b"".join(protobuf.encode_field(number, content) for number, content in parts)


def test_benchmark_model_s_answer_is_read() -> None:
    assert parse_result(answer(avg=13.0, median=12.5, p95=16.0, init=40.0, first=20.0)) == Told(
        median_ms=12.5, init_ms=40.0, first_inference_ms=20.0, peak_mib=100.0, runs=50, warmup_runs=3
    )


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", "it tells no median"),
        (answer(avg=13.0), "it tells no median"),
        (answer(median=float("nan")), "field 5 is nan"),
        (answer(median=-1.0), "field 5 is -1"),
        (answer(median=12.5)[:-4], "reaches beyond byte"),
        (b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "too long"),
        (b"PK\x03\x04", "no field begins"),
    ],
)
def test_an_answer_of_benchmark_model_that_is_none_is_refused(data: bytes, line: str) -> None:
    with pytest.raises(JobError, match=f"benchmark_model's answer can't be read: .*{line}"):
        parse_result(data)


def test_benchmark_model_times_and_proves_nothing(phone: Phone, adb: Adb, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "answer.pb").write_bytes(answer(median=12.5, init=40.0, first=20.0))
    binary = tmp_path / "benchmark_model"
    binary.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/given\n'
        f"cmp {tmp_path}/litert/model.tflite {tiny_bundle}/model.onnx || exit 1\n"
        f"cp {tmp_path}/answer.pb {tmp_path}/litert/result.pb\n"
    )
    rows = [unmeasured(open_bundle(tiny_bundle), 2, 1)]
    (row,) = time_by_benchmark_model(adb, binary, job(tiny_bundle), rows, lambda text: None)
    assert (row.passed, row.failure, row.timed_even_if_wrong) == (False, NOT_PROVEN, True)
    assert row.latency_ms is not None
    assert (row.latency_ms.p50, row.latency_ms.p90, row.queries, row.warmup) == (12.5, None, 50, 3)
    assert (row.load_ms, row.first_inference_ms, row.peak_memory_mb) == (40.0, 20.0, 104.9)
    folder = tmp_path / "litert"
    assert (tmp_path / "given").read_text().split() == [
        f"--graph={folder}/model.tflite",
        "--num_threads=2",
        "--num_runs=40",
        f"--result_file_path={folder}/result.pb",
    ]
    assert not folder.exists()


def test_the_command_line_shows_what_benchmark_model_told(
    phone: Phone, exported_for_phone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "answer.pb").write_bytes(answer(median=12.5))
    binary = tmp_path / "benchmark_model"
    binary.write_text(f"#!/bin/sh\ncp {tmp_path}/answer.pb {tmp_path}/litert/result.pb\n")
    arguments = ["--bundle", str(exported_for_phone), "--device", f"adb:{SERIAL}", "--seconds", "5"]
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--via", "benchmark_model", str(binary), "--out", str(tmp_path / "out")])
    assert left.value.code == 1, "nothing was proven"
    printed, said = capsys.readouterr()
    assert "50 queries after 3 for warm-up, 1 thread(s)" in printed
    assert "steady" not in printed
    assert f"adb:{SERIAL}: --seconds can't be followed there" in said


def test_a_gpu_that_does_not_take_the_whole_graph_is_a_failure(
    phone: Phone, adb: Adb, tiny_bundle: Path, tmp_path: Path
) -> None:
    binary = tmp_path / "benchmark_model"
    refusal = "ERROR: the graph is not fully delegated"
    binary.write_text(f'#!/bin/sh\ncase "$*" in *--require_full_delegation=true*) echo "{refusal}"; exit 1;; esac\n')
    rows = [unmeasured(open_bundle(tiny_bundle), 1, 1)]
    gpu = PhoneJob((open_bundle(tiny_bundle),), 40, "gpu", 60.0, False)
    with pytest.raises(JobError, match="the graph is not fully delegated"):
        time_by_benchmark_model(adb, binary, gpu, rows, lambda text: None)
    assert not (tmp_path / "litert").exists()
