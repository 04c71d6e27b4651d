"""What goes wrong with a device behind ssh: each fault is one line in its row, and never a crash or a false figure."""

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
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ssh_server import SshServer, bare_python
from tiny import TINY_SIZE

from stlm_edge.bench.devices import remote, ssh
from stlm_edge.bench.devices import runner as on_the_device
from stlm_edge.bench.devices.archive import runner
from stlm_edge.bench.devices.device import parse_device
from stlm_edge.bench.devices.remote import Job, measure_over_ssh
from stlm_edge.bench.devices.ssh import Lost, Ssh
from stlm_edge.bench.result import Bench
from stlm_edge.bundle import open_bundle
from stlm_edge.data.datasets import test_samples as labelled_images
from stlm_edge.errors import JobError
from stlm_edge.export.gate import accuracy_on_samples

SHORT = ("--queries", "20", "--seconds", "0")
SOME_SECONDS = ("--queries", "100", "--seconds", "5")
LONG = ("--queries", "20", "--seconds", "600")


@pytest.fixture
def device(server: SshServer, python: Path) -> Ssh:
    return Ssh(parse_device(server.device), str(python), server.config)


def job(bundle: Path, arguments: tuple[str, ...] = SHORT, time_limit_s: float = 120.0, keep: bool = False) -> Job:
    return Job((open_bundle(bundle),), arguments, time_limit_s, keep)


def once_it_runs(said: list[str], act: Callable[[], None]) -> threading.Thread:
    """Act when the device has told of a round of latency."""

    def wait() -> None:
        while not any(" in turn, round " in line for line in said):
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def processes_of(server: SshServer, module: str = "") -> list[int]:
    """Python processes on the device, detached ones among them; it is known by its cache folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if f"XDG_CACHE_HOME={server.cache}\0".encode() in environment and f"{module}".encode() in command:
            found.append(int(entry.name))
    return found


def assert_nothing_runs(server: SshServer) -> None:
    """Soon: what followed a run there sees at its next heartbeat that the line is gone."""
    deadline = time.monotonic() + 20
    while processes := processes_of(server):
        assert time.monotonic() < deadline, processes
        time.sleep(0.1)


def test_a_dropped_connection_is_taken_up_again(server: SshServer, device: Ssh, tiny_bundle: Path) -> None:
    said: list[str] = []

    def drop() -> None:
        server.stop()
        time.sleep(2)
        server.start()

    thread = once_it_runs(said, drop)
    bench = measure_over_ssh(device, job(tiny_bundle, SOME_SECONDS), said.append)
    thread.join(60)
    assert not thread.is_alive()
    assert bench.rows[0].passed
    assert bench.rows[0].latency_ms
    assert any("trying again" in line for line in said)
    assert not (server.cache / "stlm-edge").exists()


def test_a_device_that_vanishes_is_lost_and_its_result_is_picked_up_later(
    server: SshServer, device: Ssh, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PATIENCE_S", 2.0)
    said: list[str] = []
    asked = job(tiny_bundle, SOME_SECONDS)
    thread = once_it_runs(said, server.stop)
    with pytest.raises(JobError, match=r"^lost: .*the same command picks its result up"):
        measure_over_ssh(device, asked, said.append)
    thread.join(60)
    assert not thread.is_alive()
    server.start()
    said.clear()
    assert measure_over_ssh(device, asked, said.append).rows[0].passed
    assert "picking up the run that was begun there" in said
    assert not any("copying" in line for line in said)


def test_a_run_that_hangs_is_ended_at_its_time_limit(server: SshServer, device: Ssh, tiny_bundle: Path) -> None:
    bench = measure_over_ssh(device, job(tiny_bundle, LONG, time_limit_s=5.0), lambda text: None)
    assert bench.rows[0].failure is not None
    assert "not finished within the time limit" in bench.rows[0].failure
    assert_nothing_runs(server)
    assert not (server.cache / "stlm-edge").exists()


def test_a_bench_that_hangs_itself_is_ended_from_outside(server: SshServer, device: Ssh, tiny_bundle: Path) -> None:
    said: list[str] = []

    def hang() -> None:
        (state,) = server.cache.glob("stlm-edge/bench/runs/*/state.json")
        worker = json.loads(state.read_text())["pid"]
        (child,) = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
        os.kill(int(child), signal.SIGSTOP)

    thread = once_it_runs(said, hang)
    with pytest.raises(JobError, match="not finished within 8 s, the time limit; it was ended"):
        measure_over_ssh(device, job(tiny_bundle, LONG, time_limit_s=8.0), said.append)
    thread.join(60)
    assert_nothing_runs(server)


def test_a_power_mode_is_set_back_when_the_bench_is_interrupted(
    server: SshServer, device: Ssh, tiny_bundle: Path, tmp_path: Path
) -> None:
    """What the runbook promises, with stand-ins for nvpmodel and sudo on the device."""
    tools, mode = tmp_path / "tools", tmp_path / "mode"
    tools.mkdir()
    mode.write_text("0")
    scripts = {
        "nvpmodel": f"""case "$1" in -q) echo "NV Power Mode: M"; cat {mode}; echo;;
            -m) sleep 0.5; echo "$2" > {mode};; esac""",
        "sudo": 'shift; exec "$@"',
    }
    for name, text in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPATH={tools}:$PATH exec {device._python} "$@"\n')
    python.chmod(0o755)
    device = Ssh(parse_device(server.device), str(python), server.config)

    def progress(text: str) -> None:
        if " in turn, round " in text:
            assert mode.read_text().strip() == "2"
            raise JobError("interrupted")

    with pytest.raises(JobError, match="interrupted"):
        measure_over_ssh(device, job(tiny_bundle, (*LONG, "--set-power-mode", "2")), progress)
    assert mode.read_text().strip() == "0"
    assert_nothing_runs(server)


def test_a_bench_that_crashes_there_tells_by_which_signal(server: SshServer, device: Ssh, tiny_bundle: Path) -> None:
    said: list[str] = []

    def crash() -> None:
        (state,) = server.cache.glob("stlm-edge/bench/runs/*/state.json")
        worker = json.loads(state.read_text())["pid"]
        (child,) = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
        os.kill(int(child), signal.SIGSEGV)

    thread = once_it_runs(said, crash)
    with pytest.raises(JobError, match=r"^ended by signal 11$"):
        measure_over_ssh(device, job(tiny_bundle, LONG), said.append)
    thread.join(60)
    assert not thread.is_alive()


def test_a_runtime_that_crashes_there_is_a_row_that_tells_the_signal(
    server: SshServer, device: Ssh, tiny_bundle: Path
) -> None:
    said: list[str] = []

    def crash() -> None:
        (row,) = processes_of(server, "stlm_edge.bench.latency")
        os.kill(row, signal.SIGKILL)

    thread = once_it_runs(said, crash)
    bench = measure_over_ssh(device, job(tiny_bundle, LONG), said.append)
    thread.join(60)
    assert not thread.is_alive()
    assert not bench.rows[0].passed
    assert bench.rows[0].failure == "while it was timed, its process was ended by signal 9"
    assert bench.rows[0].latency_ms is None


def test_a_bundle_is_copied_once_and_again_when_it_was_changed_there(
    server: SshServer, device: Ssh, tiny_bundle: Path
) -> None:
    device.install(runner())
    said: list[str] = []
    remote.copy_missing(device, job(tiny_bundle), said.append)
    assert said == ["copying tiny"]
    remote.copy_missing(device, job(tiny_bundle), said.append)
    assert said == ["copying tiny"]
    (model,) = server.cache.rglob("model.onnx")
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    remote.copy_missing(device, job(tiny_bundle), said.append)
    assert said == ["copying tiny", "copying tiny"]
    assert model.read_bytes() == (tiny_bundle / "model.onnx").read_bytes()


def test_test_images_are_copied_once_and_again_when_one_was_changed_there(
    server: SshServer, device: Ssh, tiny_bundle: Path, tiny_images: Path
) -> None:
    device.install(runner())
    said: list[str] = []
    asked = replace(job(tiny_bundle), samples=tuple(labelled_images(tiny_images)))
    for _ in range(2):
        remote.copy_images(device, asked, said.append)
        assert said == ["copying 32 test images"]
    there = sorted(server.cache.glob("stlm-edge/bench/images/*/*"))
    assert [path.read_bytes() for path in there] == [sample.image.read_bytes() for sample in asked.samples]
    there[0].write_bytes(there[0].read_bytes()[:-1] + b"?")
    remote.copy_images(device, asked, said.append)
    assert said == ["copying 32 test images"] * 2
    assert there[0].read_bytes() == asked.samples[0].image.read_bytes()


def test_more_images_than_a_device_takes_are_refused_before_they_are_sent(
    device: Ssh, tiny_bundle: Path, tiny_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "LARGEST_TAR", 1 << 10)
    asked = replace(job(tiny_bundle), samples=tuple(labelled_images(tiny_images)))
    with pytest.raises(JobError, match=r"^--data: .* of images, a device takes at most"):
        remote.copy_images(device, asked, lambda text: None)


def test_a_bundle_changed_after_it_was_opened_is_refused_by_the_device(
    server: SshServer, device: Ssh, tiny_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "tiny")
    asked = job(tmp_path / "tiny")
    model = tmp_path / "tiny" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    with pytest.raises(JobError, match=r"model\.onnx: its content has changed"):
        measure_over_ssh(device, asked, lambda text: None)
    assert not (server.cache / "stlm-edge").exists()


def test_a_bundle_changed_on_the_device_before_it_runs_is_a_failed_row(
    server: SshServer, device: Ssh, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = remote.copy_missing

    def copy_and_change(*arguments: object) -> None:
        copy(*arguments)  # type: ignore[arg-type]
        (model,) = server.cache.rglob("model.onnx")
        model.write_bytes(model.read_bytes()[:-1] + b"?")

    monkeypatch.setattr(remote, "copy_missing", copy_and_change)
    with pytest.raises(JobError, match=r"model\.onnx: its content has changed"):
        measure_over_ssh(device, job(tiny_bundle), lambda text: None)


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize(
    ("kilobytes", "line"),
    [
        (100, "the runner can't be written there: No space left on device"),
        (650, "No space left on device"),
        (1400, "the device's disk is full"),
    ],
)
def test_a_full_disk_is_told_at_every_step(
    tmp_path: Path, python: Path, tiny_bundle: Path, kilobytes: int, line: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size={kilobytes}k tmpfs "$0" && exec "$@"'
    if subprocess.run(["unshare", "-m", "sh", "-c", mount, disk, "true"], check=False).returncode:
        pytest.skip("a small disk can't be mounted here")
    server = SshServer(tmp_path / "server", disk, wrapped_in=["unshare", "-m", "sh", "-c", mount, str(disk)])
    try:
        device = Ssh(parse_device(server.device), str(python), server.config)
        with pytest.raises(JobError, match=line):
            measure_over_ssh(device, job(tiny_bundle), lambda text: None)
    finally:
        server.stop()


def test_a_clock_that_jumps_changes_no_figure(server: SshServer, tiny_bundle: Path, tmp_path: Path) -> None:
    python = bare_python(tmp_path / "python")
    (site,) = (tmp_path / "python").glob("lib/python*/site-packages")
    (site / "sitecustomize.py").write_text(
        "import random, time\nreal = time.time\ntime.time = lambda: real() + random.choice((-86400, 0, 86400))\n"
    )
    row = measure_over_ssh(
        Ssh(parse_device(server.device), str(python), server.config), job(tiny_bundle), lambda text: None
    ).rows[0]
    assert row.latency_ms
    assert row.end_to_end_ms
    assert row.load_ms
    assert row.first_inference_ms
    assert row.seconds is not None
    assert all(0 < value < 60_000 for value in (row.latency_ms.p99, row.end_to_end_ms.p99, row.load_ms))
    assert 0 < row.first_inference_ms < 60_000
    assert 0 <= row.seconds < 60


HOSTILE = """
import json, os, sys
said = os.environ["SSH_ORIGINAL_COMMAND"]
words = ("have", "receive", "have-images", "start", "watch", "fetch", "judge", "clean")
command = next((word for word in words if f"/runner.pyz {word} " in said), "")
answers = {
    "": {"have": True, "path": "/runner.pyz"},
    "have": {"have": True},
    "have-images": {"have": True},
    "start": {"state": {"phase": "running"}, "joined": False},
    "watch": {"state": {"phase": "done"}, "progress": "\x1b]0;owned\x07"},
    "fetch": {"bench": open(sys.argv[1], encoding="utf-8").read()},
}
answers |= json.load(open(sys.argv[2])) if len(sys.argv) > 2 else {}
answer = answers.get(command, {})
print("Welcome to this device")
for line in answer if isinstance(answer, list) else [answer]:
    print("stlm-edge:" + (line if isinstance(line, str) else json.dumps(line)))
"""


@pytest.fixture(scope="module")
def honest(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What stlm-bench writes here."""
    from stlm_edge.commands.bench import main

    out = tmp_path_factory.mktemp("honest")
    main(["--bundle", str(tiny_bundle), *SHORT, "--out", str(out)])
    return json.loads((out / "bench.json").read_text("utf-8"))


@pytest.fixture
def hostile_device(tmp_path: Path, python: Path) -> Iterator[Callable[[str, dict], Ssh]]:
    """A device that answers whatever a test wants: its bench.json, and other answers by command."""
    place = tmp_path / "hostile"
    place.mkdir()
    (place / "answer.py").write_text(HOSTILE)
    forced = f"{python} {place / 'answer.py'} {place / 'bench.json'} {place / 'answers.json'}"
    server = SshServer(tmp_path / "server", more=f"ForceCommand {forced}\n")

    def answering(text: str, answers: dict) -> Ssh:
        (place / "bench.json").write_text(text, "utf-8")
        (place / "answers.json").write_text(json.dumps(answers))
        return Ssh(parse_device(server.device), "python3", server.config)

    yield answering
    server.stop()


@pytest.fixture
def hostile(hostile_device: Callable[[str, dict], Ssh]) -> Callable[..., tuple[Bench, list[str]]]:
    """What the desk makes of a whole conversation with it."""

    def ask(bundle: Path, text: str, answers: dict | None = None) -> tuple[Bench, list[str]]:
        said: list[str] = []
        return measure_over_ssh(hostile_device(text, answers or {}), job(bundle), said.append), said

    return ask


def test_names_and_texts_of_a_device_are_neither_followed_nor_obeyed(
    hostile: Callable[..., tuple[Bench, list[str]]], honest: dict, tiny_bundle: Path
) -> None:
    from stlm_edge.bench.devices.gather import gather, named
    from stlm_edge.bench.measure import Subject, unmeasured

    (row,) = honest["rows"]
    row |= {"name": "../../etc/passwd", "bundle": "/etc", "failure": "\x1b[2Jgone\nheadline", "device": "local"}
    bench, said = hostile(tiny_bundle, json.dumps(honest))
    assert all(line.isprintable() for line in said)
    subject = Subject(unmeasured(open_bundle(tiny_bundle), 1, 1), open_bundle(tiny_bundle))
    found = {"ssh:there": (named(bench.rows, [subject]), bench.machine)}
    rows, _ = gather(found, {"ssh:there": [subject]})
    assert (rows[0].name, rows[0].bundle, rows[0].device) == ("tiny", str(tiny_bundle), "ssh:there")
    assert rows[0].failure == "[2Jgone headline"


def test_a_bench_json_that_is_none_is_refused_in_one_line(honest: dict) -> None:
    whole = json.dumps(honest)
    for text, line in [
        (whole[:-20], "not valid JSON"),
        (whole.replace('"done": true', '"done": false'), "done: found false, expected true"),
        (whole.replace('"format_version": 1', '"format_version": 1e999'), "too large a number"),
        (json.dumps(honest | {"extra\x1b[31m": 1}), "unknown key"),
        (json.dumps({key: value for key, value in honest.items() if key != "rows"}), "rows: missing"),
        (json.dumps(honest | {"rows": []}), "0 items, expected 1 to 1000"),
        ("[" * 100_000, "nested too deeply"),
        ("NaN", "not valid JSON"),
        ("\ud800", "not valid JSON"),
        (None, "its bench.json: missing"),
    ]:
        with pytest.raises(JobError, match=line) as refused:
            remote.read_bench(text)
        assert str(refused.value).isprintable()


def test_answers_that_are_none_are_refused_in_one_line(
    hostile: Callable[..., tuple[Bench, list[str]]], honest: dict, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "ANSWER_LIMIT", 1 << 20)
    monkeypatch.setattr(remote, "PATIENCE_S", 0.0)
    whole = json.dumps(honest)
    for text, answers, line in [
        (json.dumps(honest | {"rows": honest["rows"] * 2}), {}, "2 rows, expected 1"),
        ("x" * (2 << 20), {}, "more than 1 MB, the limit"),
        (whole, {"": {"have": False, "error": "\x1b[31mno"}}, r"can't be written there: \[31mno"),
        (whole, {"have": "{"}, "its answer: not valid JSON"),
        (whole, {"start": "[]"}, r"its answer: found \[\], expected an object"),
        (whole, {"watch": {"state": {"phase": "failed", "failure": "\x07melted"}}}, "^melted$"),
        (whole, {"watch": {"state": {"phase": "running"}}}, "lost: the connection ended before the bench did"),
    ]:
        with pytest.raises(JobError, match=line) as refused:
            hostile(tiny_bundle, text, answers)
        assert str(refused.value).isprintable()


def packed(values: np.ndarray) -> str:
    return b64encode(zlib.compress(values.astype("<f2").tobytes())).decode()


def test_maps_that_are_none_are_a_failed_row_of_one_line(
    hostile_device: Callable[[str, dict], Ssh], honest: dict, tiny_bundle: Path, tiny_images: Path
) -> None:
    text, size = json.dumps(honest), TINY_SIZE
    asked = replace(job(tiny_bundle), samples=tuple(labelled_images(tiny_images)))
    (sound,) = remote.read_bench(text).rows
    even = packed(np.zeros((size, size)))

    def first(part: object, score: object = 0.5) -> list:
        return [{"image": 0, "part": part}, {"image": 0, "score": score}]

    for answers, line in [
        ([], "the device ended after 0 of 32 images"),
        (first(even), "the device ended after 1 of 32 images"),
        (first("?"), "a map that can't be unpacked"),
        (first(b64encode(b"no zlib").decode()), "a map that can't be unpacked"),
        (first(7), "a map that isn't 64×64"),
        (first(packed(np.zeros((size, size - 1)))), "a map that isn't 64×64"),
        (first(packed(np.zeros(1 << 20))), "a map that isn't 64×64"),
        ([{"image": 0, "part": "A" * 10_000}] * 5, "a map that isn't 64×64"),
        (first(packed(np.full((size, size), np.nan))), "a map that isn't finite"),
        (first(even, "high"), "the score high, expected a number"),
        (first(even, True), "the score True, expected a number"),
        ([*first(even)[:1], '{"image": 0, "score": NaN}'], "its answer: not valid JSON"),
        ([{"image": "\x1b[2J1", "score": 0.5}], "the device answered [2J1, expected image 0"),
        ([{"error": "\x07no runtime\nleft"}], "no runtime left"),
    ]:
        device = hostile_device(text, {"judge": answers})
        device._runner = "/runner.pyz"
        row = remote.with_accuracy(device, ("run", "images"), sound, asked.bundles[0], asked, lambda text: None)
        assert row.failure is not None
        assert row.failure.startswith("accuracy: ")
        assert line in row.failure
        assert row.failure.isprintable()
        assert (row.passed, row.accuracy) == (False, None)
        assert row.latency_ms == sound.latency_ms, "what was measured stays"


def test_judging_goes_on_after_a_dropped_connection(
    server: SshServer, device: Ssh, tiny_bundle: Path, tiny_images: Path
) -> None:
    asked = replace(job(tiny_bundle), samples=tuple(labelled_images(tiny_images)))
    said: list[str] = []

    def progress(text: str) -> None:
        said.append(text)
        if text.endswith(", 13 of 32 images"):
            server.stop()
            server.start()

    (row,) = measure_over_ssh(device, asked, progress).rows
    assert any("trying again" in line for line in said)
    (bundle,) = asked.bundles
    here = accuracy_on_samples(bundle.runtime, list(asked.samples), TINY_SIZE, bundle.manifest.decision_threshold)
    assert row.accuracy is not None
    assert row.accuracy.image_auroc == here["image_auroc"]
    assert not (server.cache / "stlm-edge").exists()


def test_judging_that_is_interrupted_ends_there_and_leaves_the_device_clean(
    server: SshServer, device: Ssh, tiny_bundle: Path, tiny_images: Path
) -> None:
    asked = replace(job(tiny_bundle), samples=tuple(labelled_images(tiny_images)))

    def progress(text: str) -> None:
        if text.endswith(", 4 of 32 images"):
            assert processes_of(server, "judge")
            raise JobError("interrupted")

    (row,) = measure_over_ssh(device, asked, progress).rows
    assert row.failure == "accuracy: interrupted"
    assert not (server.cache / "stlm-edge").exists()
    assert_nothing_runs(server)


def test_a_bench_that_ends_while_its_state_is_asked_for_is_no_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(phase: str) -> None:
        on_the_device._write(tmp_path, {"phase": phase, "pid": 1, "failure": None})

    def ends_here(folder: Path) -> bool:
        write("done")
        return False

    write("running")
    with monkeypatch.context() as patched:
        patched.setattr(on_the_device, "_alive", ends_here)
        assert on_the_device._state(tmp_path)["phase"] == "done"
    write("running")
    assert on_the_device._state(tmp_path)["failure"] == "the device restarted, or the bench was killed there"


def test_an_unreachable_device_fails_at_once_and_says_why(server: SshServer, device: Ssh, tiny_bundle: Path) -> None:
    missing = Ssh(parse_device(server.device), "no/such/python", server.config)
    with pytest.raises(JobError, match=r"no/such/python on the device: .*(not found|No such file)"):
        measure_over_ssh(missing, job(tiny_bundle), lambda text: None)
    server.config.write_text(server.config.read_text().replace("known_hosts", "nobody_knows"))
    with pytest.raises(Lost, match="Host key verification failed"):
        measure_over_ssh(device, job(tiny_bundle), lambda text: None)
    server.stop()
    with pytest.raises(Lost, match="Connection refused"):
        measure_over_ssh(device, job(tiny_bundle), lambda text: None)


def test_two_benches_on_one_device_are_refused(server: SshServer, device: Ssh, tiny_bundle: Path) -> None:
    refused: list[str] = []
    said: list[str] = []

    def second() -> None:
        try:
            measure_over_ssh(
                Ssh(parse_device(server.device), device._python, server.config), job(tiny_bundle), refused.append
            )
        except JobError as error:
            refused.append(str(error))

    thread = once_it_runs(said, second)
    bench = measure_over_ssh(device, job(tiny_bundle, ("--queries", "40000", "--seconds", "0")), said.append)
    thread.join(60)
    assert not thread.is_alive()
    assert "another bench runs on this device" in refused[-1]
    assert bench.rows[0].passed


def test_an_interrupted_desk_ends_the_bench_there_and_leaves_the_device_clean(
    server: SshServer, python: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    words = ["--bundle", tiny_bundle, "--device", server.device, *LONG, "--out", tmp_path / "out"]
    desk = subprocess.Popen(
        [sys.executable, "-m", "stlm_edge.bench", *words, "--ssh-config", server.config, "--remote-python", python],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert desk.stderr
    for line in desk.stderr:
        if " in turn, round " in line:
            break
    desk.send_signal(signal.SIGINT)
    _, said = desk.communicate(timeout=60)
    assert desk.returncode == 1
    assert said.splitlines()[-1] == "error: interrupted; nothing was written"
    assert not (server.cache / "stlm-edge").exists()
    assert not (tmp_path / "out").exists()
    assert_nothing_runs(server)
