"""Faults of a device behind ssh: each is one line in its row, and never a crash or a wrong measurement."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from local_device import LocalSsh
from ssh_server import SshServer, bare_python
from tiny import TINY_SIZE

from stlm_edge.bench.devices import archive, remote, ssh
from stlm_edge.bench.devices import runner as on_the_device
from stlm_edge.bench.devices.device import Job, gather, parse_device, with_names_of
from stlm_edge.bench.devices.remote import measure_over_ssh
from stlm_edge.bench.devices.ssh import Lost, Ssh
from stlm_edge.bench.measure import Plan, Subject, unmeasured
from stlm_edge.bench.result import Bench
from stlm_edge.bundle import open_bundle
from stlm_edge.data.datasets import test_samples as labelled_images
from stlm_edge.errors import JobError
from stlm_edge.export.gate import accuracy_on_samples

SHORT, SOME_SECONDS, LONG = Plan(20, 0.0), Plan(100, 4.0), Plan(20, 600.0)
Server = SshServer | LocalSsh


@pytest.fixture
def device(server: Server, python: Path, quick_bench: None) -> Ssh:
    return Ssh(parse_device(server.device), str(python), server.config)


@pytest.fixture
def real_device(sshd: SshServer, python: Path) -> Ssh:
    return Ssh(parse_device(sshd.device), str(python), sshd.config)


def job(bundle: Path, plan: Plan = SHORT, time_limit_s: float = 120.0, images: Path | None = None) -> Job:
    samples = tuple(labelled_images(images)) if images else ()
    return Job((open_bundle(bundle),), replace(plan, time_limit_s=time_limit_s), samples=samples)


def ignore(text: str) -> None:
    """Ignore progress."""


def once_it_measures(progress: list[str], act: Callable[[], None]) -> threading.Thread:
    """Act when the device has reported a round of latency."""

    def wait() -> None:
        while not any(" in turn, round " in line for line in progress):
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def signal_bench(server: Server, number: int) -> None:
    """Send a signal to the bench itself, not to the worker that watches over it."""
    (pid,) = server.cache.glob("stlm-edge/bench/runs/*/pid")
    worker = pid.read_text()
    (child,) = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    os.kill(int(child), number)


def processes_of(server: Server, word: str = "") -> list[int]:
    """Return Python processes of the device, detached ones among them: those with its cache folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if f"XDG_CACHE_HOME={server.cache}\0".encode() in environment and word.encode() in command:
            found.append(int(entry.name))
    return found


def assert_clean(server: Server) -> None:
    """Assert that no file and no process is left; what followed a run ends at its next heartbeat."""
    assert not (server.cache / "stlm-edge").exists()
    deadline = time.monotonic() + 20
    while processes := processes_of(server):
        assert time.monotonic() < deadline, processes
        time.sleep(0.1)


def test_dropped_connection_is_resumed(server: Server, device: Ssh, tiny_bundle: Path) -> None:
    progress: list[str] = []

    def drop() -> None:
        server.stop()
        time.sleep(1)
        server.start()

    thread = once_it_measures(progress, drop)
    bench = measure_over_ssh(device, job(tiny_bundle, SOME_SECONDS), progress.append)
    thread.join(60)
    assert bench.rows[0].passed
    assert bench.rows[0].latency_ms
    assert any("trying again" in line for line in progress)
    assert_clean(server)


def test_result_of_a_lost_device_is_fetched_by_the_same_command(
    server: Server, device: Ssh, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "RETRY_LIMIT_S", 2.0)
    progress: list[str] = []
    asked = job(tiny_bundle, SOME_SECONDS)
    thread = once_it_measures(progress, server.stop)
    with pytest.raises(Lost, match="run the same command again"):
        measure_over_ssh(device, asked, progress.append)
    thread.join(60)
    server.start()
    progress.clear()
    assert measure_over_ssh(device, asked, progress.append).rows[0].passed
    assert "joining the run that was started there" in progress
    assert not any("copying" in line for line in progress)


@pytest.mark.slow
def test_run_ends_at_its_time_limit(sshd: SshServer, real_device: Ssh, tiny_bundle: Path) -> None:
    bench = measure_over_ssh(real_device, job(tiny_bundle, LONG, time_limit_s=5.0), ignore)
    assert bench.rows[0].failure is not None
    assert "time limit" in bench.rows[0].failure
    assert_clean(sshd)


def test_bench_that_hangs_is_terminated(server: Server, device: Ssh, tiny_bundle: Path) -> None:
    limit_s = 2.0 if isinstance(server, LocalSsh) else 8.0
    progress: list[str] = []
    thread = once_it_measures(progress, lambda: signal_bench(server, signal.SIGSTOP))
    with pytest.raises(JobError, match=rf"time limit of {limit_s:g} s; terminated"):
        measure_over_ssh(device, job(tiny_bundle, LONG, time_limit_s=limit_s), progress.append)
    thread.join(60)
    assert_clean(server)


@pytest.mark.slow
def test_power_mode_is_restored_when_the_bench_is_interrupted(
    sshd: SshServer, python: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    tools, mode = tmp_path / "tools", tmp_path / "mode"
    tools.mkdir()
    mode.write_text("0")
    programs = {
        "nvpmodel": f"""case "$1" in -q) echo "NV Power Mode: M"; cat {mode}; echo;;
            -m) sleep 0.5; echo "$2" > {mode};; esac""",
        "sudo": 'shift; exec "$@"',
    }
    for name, text in programs.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    with_tools = tmp_path / "python"
    with_tools.write_text(f'#!/bin/sh\nPATH={tools}:$PATH exec {python} "$@"\n')
    with_tools.chmod(0o755)
    device = Ssh(parse_device(sshd.device), str(with_tools), sshd.config)

    def progress(text: str) -> None:
        if " in turn, round " in text:
            assert mode.read_text().strip() == "2"
            raise JobError("interrupted")

    with pytest.raises(JobError, match="interrupted"):
        measure_over_ssh(device, replace(job(tiny_bundle, LONG), power_mode=2), progress)
    assert mode.read_text().strip() == "0"
    assert_clean(sshd)


def test_bench_that_crashes_names_the_signal(server: Server, device: Ssh, tiny_bundle: Path) -> None:
    progress: list[str] = []
    thread = once_it_measures(progress, lambda: signal_bench(server, signal.SIGSEGV))
    with pytest.raises(JobError, match=r"^terminated by signal 11"):
        measure_over_ssh(device, job(tiny_bundle, LONG), progress.append)
    thread.join(60)
    assert_clean(server)


@pytest.mark.slow
def test_runtime_that_crashes_is_a_failed_row_with_the_signal(
    sshd: SshServer, real_device: Ssh, tiny_bundle: Path
) -> None:
    progress: list[str] = []

    def crash() -> None:
        (row,) = processes_of(sshd, "stlm_edge.bench.latency")
        os.kill(row, signal.SIGKILL)

    thread = once_it_measures(progress, crash)
    bench = measure_over_ssh(real_device, job(tiny_bundle, LONG), progress.append)
    thread.join(60)
    assert not bench.rows[0].passed
    assert bench.rows[0].failure is not None
    assert "signal 9" in bench.rows[0].failure
    assert bench.rows[0].latency_ms is None


def test_files_are_copied_once_and_again_when_one_changed_there(server: Server, device: Ssh, tiny_bundle: Path) -> None:
    device.install(remote.runner())
    files = remote._files_of(open_bundle(tiny_bundle))
    progress: list[str] = []
    for _ in range(2):
        remote.copy_missing(device, "tiny", files, progress.append)
        assert progress == ["copying tiny"]
    (model,) = server.cache.rglob("model.onnx")
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    remote.copy_missing(device, "tiny", files, progress.append)
    assert progress == ["copying tiny"] * 2
    assert model.read_bytes() == (tiny_bundle / "model.onnx").read_bytes()


def test_folder_that_is_too_large_is_refused_before_it_is_sent(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "LARGEST_FOLDER", 1 << 10)
    nowhere = Ssh(parse_device("ssh:nobody@127.0.0.1:1"))
    with pytest.raises(JobError, match=r"^images: .* at most"):
        remote.copy_missing(nowhere, "images", remote._files_of(open_bundle(tiny_bundle)), ignore)


def test_files_that_change_while_they_are_copied_are_refused(server: Server, device: Ssh, tiny_bundle: Path) -> None:
    device.install(remote.runner())
    files = remote._files_of(open_bundle(tiny_bundle))
    with pytest.raises(JobError, match="checksum mismatch"):
        remote._send(device, "0" * 64, files)
    assert not list(server.cache.glob("stlm-edge/bench/folders/*"))


def test_bundle_changed_after_it_was_opened_is_refused_by_the_device(
    server: Server, device: Ssh, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "runner", archive.runner)
    shutil.copytree(tiny_bundle, tmp_path / "tiny")
    asked = job(tmp_path / "tiny")
    model = tmp_path / "tiny" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    with pytest.raises(JobError, match=r"model\.onnx"):
        measure_over_ssh(device, asked, ignore)
    assert_clean(server)


def test_bundle_changed_on_the_device_before_it_runs_is_refused_there(
    server: Server, device: Ssh, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "runner", archive.runner)
    copy = remote.copy_missing

    def copy_and_change(*arguments: object) -> str:
        digest = copy(*arguments)  # type: ignore[arg-type]
        (model,) = server.cache.rglob("model.onnx")
        model.write_bytes(model.read_bytes()[:-1] + b"?")
        return digest

    monkeypatch.setattr(remote, "copy_missing", copy_and_change)
    with pytest.raises(JobError, match=r"model\.onnx"):
        measure_over_ssh(device, job(tiny_bundle), ignore)


def test_full_disk_is_reported_before_a_run_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(on_the_device, "_FULL", 1 << 62)
    with pytest.raises(JobError, match="disk is full"):
        on_the_device._start("run", "{}")


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize(
    ("spare", "words"),
    [
        (0.5, "runner cannot be written on the device: No space left on device"),
        (1.5, "No space left on device"),
        (2.5, "the device's disk is full"),
    ],
)
def test_full_disk_is_reported_at_every_step(
    tmp_path: Path, python: Path, tiny_bundle: Path, spare: float, words: str
) -> None:
    """A disk that holds part of the runner, then part of the bundle, then both but no result."""
    runner, files = len(archive.runner()), remote._files_of(open_bundle(tiny_bundle))
    bundle = sum(-(path.stat().st_size // -4096) * 4096 for path in files.values())
    size = int([0.5 * runner, runner + 0.5 * bundle, runner + bundle + (1 << 18)][int(spare)])
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size={size >> 10}k tmpfs "$0" && exec "$@"'
    if subprocess.run(["unshare", "-m", "sh", "-c", mount, disk, "true"], check=False).returncode:
        pytest.skip("cannot mount a small disk")
    server = SshServer(tmp_path / "server", disk, wrapped_in=["unshare", "-m", "sh", "-c", mount, str(disk)])
    try:
        device = Ssh(parse_device(server.device), str(python), server.config)
        with pytest.raises(JobError, match=words):
            measure_over_ssh(device, job(tiny_bundle), ignore)
    finally:
        server.stop()


@pytest.mark.slow
def test_clock_that_jumps_does_not_change_latency(sshd: SshServer, tiny_bundle: Path, tmp_path: Path) -> None:
    python = bare_python(tmp_path / "python")
    (site,) = (tmp_path / "python").glob("lib/python*/site-packages")
    (site / "sitecustomize.py").write_text(
        "import random, time\nreal = time.time\ntime.time = lambda: real() + random.choice((-86400, 0, 86400))\n"
    )
    device = Ssh(parse_device(sshd.device), str(python), sshd.config)
    row = measure_over_ssh(device, job(tiny_bundle), ignore).rows[0]
    assert row.latency_ms
    assert row.end_to_end_ms
    assert row.load_ms
    assert row.first_inference_ms
    assert row.seconds is not None
    assert all(0 < value < 60_000 for value in (row.latency_ms.p99, row.end_to_end_ms.p99, row.load_ms))
    assert 0 < row.first_inference_ms < 60_000
    assert 0 <= row.seconds < 60


HOSTILE = """#!{python}
import json, sys
words = ("have", "receive", "start", "watch", "judge", "clean")
command = next((word for word in words if f"/runner.pyz {{word}} " in sys.argv[-1]), "")
answers = {{
    "": {{"have": True, "path": "/runner.pyz"}},
    "have": {{"have": True}},
    "start": {{"joined": False}},
    "watch": {{"phase": "done", "progress": "\\x1b]0;owned\\x07", "bench": open({bench!r}, encoding="utf-8").read()}},
}} | json.load(open({answers!r}))
answer = answers.get(command, {{}})
print("Welcome to this device")
for line in answer if isinstance(answer, list) else [answer]:
    print("stlm-edge:" + (line if isinstance(line, str) else json.dumps(line)))
"""


@pytest.fixture
def hostile_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict], Ssh]:
    """Return a function that makes a device with this bench.json and, by command, these other answers."""
    local = LocalSsh(tmp_path / "hostile")
    bench, answers = tmp_path / "bench.json", tmp_path / "answers.json"
    (local.tools / "ssh").write_text(HOSTILE.format(python=sys.executable, bench=str(bench), answers=str(answers)))
    monkeypatch.setenv("PATH", str(local.tools), prepend=":")

    def answering(text: str, by_command: dict) -> Ssh:
        bench.write_text(text, "utf-8")
        answers.write_text(json.dumps(by_command))
        return Ssh(parse_device(local.device))

    return answering


@pytest.fixture
def hostile(hostile_device: Callable[[str, dict], Ssh]) -> Callable[..., tuple[Bench, list[str]]]:
    """Return a function that measures on such a device, and returns its bench and the progress that was shown."""

    def measure(bundle: Path, text: str, answers: dict | None = None) -> tuple[Bench, list[str]]:
        progress: list[str] = []
        return measure_over_ssh(hostile_device(text, answers or {}), job(bundle), progress.append), progress

    return measure


def test_names_and_texts_of_a_device_are_harmless(
    hostile: Callable[..., tuple[Bench, list[str]]], honest: Path, tiny_bundle: Path
) -> None:
    value = json.loads(honest.read_text())
    (row,) = value["rows"]
    row |= {"name": "../../etc/passwd", "bundle": "/etc", "failure": "\x1b[2Jgone\nheadline", "device": "local"}
    bench, progress = hostile(tiny_bundle, json.dumps(value))
    assert all(line.isprintable() for line in progress)
    subject = Subject(unmeasured(open_bundle(tiny_bundle), 1, 1), open_bundle(tiny_bundle))
    results = {"ssh:there": (with_names_of([subject], bench.rows), bench.machine)}
    rows, _ = gather(results, {"ssh:there": [subject]})
    assert (rows[0].name, rows[0].bundle, rows[0].device) == ("tiny", str(tiny_bundle), "ssh:there")
    assert rows[0].failure == "[2Jgone headline"


def test_invalid_bench_json_is_refused_in_one_line(honest: Path) -> None:
    text = honest.read_text()
    value = json.loads(text)
    for invalid, words in [
        (text[:-20], "not valid JSON"),
        (text.replace('"done": true', '"done": false'), "done: found false, expected true"),
        (text.replace('"format_version": 1', '"format_version": 1e999'), "too large a number"),
        (json.dumps(value | {"extra\x1b[31m": 1}), "unknown key"),
        (json.dumps({key: value for key, value in value.items() if key != "rows"}), "rows: missing"),
        (json.dumps(value | {"rows": []}), "0 items, expected 1 to 1000"),
        ("[" * 100_000, "nested too deeply"),
        ("NaN", "not valid JSON"),
        ("\ud800", "not valid JSON"),
        (None, "missing"),
    ]:
        with pytest.raises(JobError, match=words) as refused:
            remote.read_bench(invalid, rows=1)
        assert str(refused.value).isprintable()


def test_invalid_answers_are_refused_in_one_line(
    hostile: Callable[..., tuple[Bench, list[str]]], honest: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "ANSWER_LIMIT", 1 << 20)
    monkeypatch.setattr(ssh, "RETRY_LIMIT_S", 0.0)
    text = honest.read_text()
    value = json.loads(text)
    for bench, answers, words in [
        (json.dumps(value | {"rows": value["rows"] * 2}), {}, "2 rows, expected 1"),
        ("x" * (2 << 20), {}, "more than 1 MB, the limit"),
        (text, {"have": "x" * (2 << 20)}, "more than 1 MB, the limit"),
        (text, {"": {"have": False, "error": "\x1b[31mno"}}, r"cannot be written on the device: \[31mno"),
        (text, {"have": "{"}, "not valid JSON"),
        (text, {"start": "[]"}, r"found \[\], expected an object"),
        (text, {"watch": {"phase": "failed", "failure": "\x07melted"}}, "^melted$"),
        (text, {"watch": {"phase": "running"}}, "the connection ended before the bench did"),
    ]:
        with pytest.raises(JobError, match=words) as refused:
            hostile(tiny_bundle, bench, answers)
        assert str(refused.value).isprintable()


def packed(values: np.ndarray) -> str:
    return b64encode(zlib.compress(values.astype("<f2").tobytes())).decode()


def test_invalid_maps_are_a_failed_row_of_one_line(
    hostile_device: Callable[[str, dict], Ssh], honest: Path, tiny_bundle: Path, tiny_images: Path
) -> None:
    text, size = honest.read_text(), TINY_SIZE
    asked = job(tiny_bundle, images=tiny_images)
    (sound,) = remote.read_bench(text, rows=1).rows
    even = packed(np.zeros((size, size)))

    def first(map_text: object, score: object = 0.5) -> list:
        return [{"image": 0, "map": map_text, "score": score}]

    for answers, words in [
        ([], "ended after 0 of 32 images"),
        (first(even), "ended after 1 of 32 images"),
        (first("?"), "cannot be unpacked"),
        (first(b64encode(b"no zlib").decode()), "cannot be unpacked"),
        (first(7), "cannot be unpacked"),
        (first(packed(np.zeros((size, size - 1)))), "not 64×64"),
        (first(packed(np.zeros(1 << 20))), "not 64×64"),
        (first(packed(np.full((size, size), np.nan))), "not finite"),
        (first(even, "high"), "score high, expected a number"),
        (first(even, True), "score True, expected a number"),
        (['{"image": 0, "score": NaN}'], "not valid JSON"),
        ([{"image": "\x1b[2J1", "score": 0.5}], "[2J1, expected image 0"),
        ([{"error": "\x07no runtime\nleft"}], "no runtime left"),
    ]:
        device = hostile_device(text, {"judge": answers})
        device._runner = "/runner.pyz"
        row = remote.with_accuracy(device, ("run", "bundle", "images", "1"), sound, asked.bundles[0], asked, ignore)
        assert row.failure is not None
        assert row.failure.startswith("accuracy: ")
        assert words in row.failure
        assert row.failure.isprintable()
        assert (row.passed, row.accuracy) == (False, None)
        assert row.latency_ms == sound.latency_ms, "measurements are kept"


def test_judging_is_resumed_after_a_dropped_connection(
    server: Server, device: Ssh, tiny_bundle: Path, tiny_images: Path
) -> None:
    asked = job(tiny_bundle, images=tiny_images)
    lines: list[str] = []

    def progress(text: str) -> None:
        lines.append(text)
        if text.endswith(", 13 of 32 images"):
            server.stop()
            server.start()

    (row,) = measure_over_ssh(device, asked, progress).rows
    assert row.accuracy is not None
    (bundle,) = asked.bundles
    here = accuracy_on_samples(bundle.runtime, list(asked.samples), TINY_SIZE, bundle.manifest.decision_threshold)
    assert row.accuracy.image_auroc == here["image_auroc"]
    assert_clean(server)


def test_interrupted_judging_leaves_the_device_clean(
    server: Server, device: Ssh, tiny_bundle: Path, tiny_images: Path
) -> None:
    """The device may have judged all images by then: its answers wait in the connection."""

    def progress(text: str) -> None:
        if text.endswith(", 4 of 32 images"):
            raise JobError("interrupted")

    (row,) = measure_over_ssh(device, job(tiny_bundle, images=tiny_images), progress).rows
    assert row.failure == "accuracy: interrupted"
    assert_clean(server)


def test_state_of_a_run_depends_on_its_lock_and_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_the_device._state(tmp_path / "none") == {"phase": "failed", "failure": "no such run on the device"}
    (tmp_path / "pid").write_text("1")
    (tmp_path / "lock").touch()
    assert "restarted" in on_the_device._state(tmp_path)["failure"]
    with (tmp_path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert on_the_device._state(tmp_path)["phase"] == "running"

    def ends_here(folder: Path) -> bool:
        (folder / "bench.json").write_text("{}")
        return False

    monkeypatch.setattr(on_the_device, "_alive", ends_here)
    assert on_the_device._state(tmp_path) == {"phase": "done", "bench": "{}"}


def test_device_that_is_not_reached_fails_at_once_with_the_reason(
    sshd: SshServer, real_device: Ssh, tiny_bundle: Path
) -> None:
    missing = Ssh(parse_device(sshd.device), "no/such/python", sshd.config)
    with pytest.raises(JobError, match=r"no/such/python on the device: .*(not found|No such file)"):
        measure_over_ssh(missing, job(tiny_bundle), ignore)
    sshd.config.write_text(sshd.config.read_text().replace("known_hosts", "nobody_knows"))
    with pytest.raises(Lost, match="Host key verification failed"):
        measure_over_ssh(real_device, job(tiny_bundle), ignore)
    sshd.stop()
    with pytest.raises(Lost, match="Connection refused"):
        measure_over_ssh(real_device, job(tiny_bundle), ignore)


def test_second_bench_on_a_device_is_refused(server: Server, device: Ssh, tiny_bundle: Path) -> None:
    refused: list[str] = []
    progress: list[str] = []

    def second() -> None:
        try:
            other = Ssh(parse_device(server.device), device._python, server.config)
            measure_over_ssh(other, job(tiny_bundle), refused.append)
        except JobError as error:
            refused.append(str(error))

    thread = once_it_measures(progress, second)
    bench = measure_over_ssh(device, job(tiny_bundle, SOME_SECONDS), progress.append)
    thread.join(60)
    assert "another bench runs on this device" in refused[-1]
    assert bench.rows[0].passed


def test_interrupted_host_ends_the_bench_and_leaves_the_device_clean(
    server: Server, python: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    words = ["--bundle", tiny_bundle, "--device", server.device, "--queries", "20", "--seconds", "600"]
    words += ["--out", tmp_path / "out", "--ssh-config", server.config, "--remote-python", python]
    host = subprocess.Popen([sys.executable, "-m", "stlm_edge.bench", *words], stderr=subprocess.PIPE, text=True)
    assert host.stderr
    for line in host.stderr:
        if " in turn, round " in line:
            break
    host.send_signal(signal.SIGINT)
    _, errors = host.communicate(timeout=60)
    assert host.returncode == 130
    assert "interrupted; nothing was written" in errors.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    assert_clean(server)
