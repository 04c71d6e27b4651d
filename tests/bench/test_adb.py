"""`--device adb`, with a script in the app's place: no phone has run this."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from adb_phone import SERIAL, Phone
from local_device import LocalPhone

from stlm_edge.bench.devices import adb as adb_module
from stlm_edge.bench.devices import ssh
from stlm_edge.bench.devices.adb import Adb, measure_by_app
from stlm_edge.bench.devices.device import Job, ignored_options, parse_device
from stlm_edge.bench.devices.ssh import Lost
from stlm_edge.bench.measure import Plan
from stlm_edge.bundle import open_bundle
from stlm_edge.commands.bench import parser
from stlm_edge.errors import JobError

AnyPhone = Phone | LocalPhone


@pytest.fixture(scope="module")
def adbd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phone]:
    """A real adb server, and a real adbd."""
    phone = Phone(tmp_path_factory.mktemp("phone"))
    yield phone
    phone.stop()


def prepare(phone: AnyPhone, files: Path, monkeypatch: pytest.MonkeyPatch) -> AnyPhone:
    """Let the tests' adb reach this phone, and the app have its files in a folder of the test."""
    phone.files = files
    files.mkdir(parents=True, exist_ok=True)
    phone.tool("pidof", "echo 4711")
    if isinstance(phone, LocalPhone):
        monkeypatch.setenv("PATH", str(phone.path), prepend=":")
    else:
        monkeypatch.setenv("ADB_SERVER_SOCKET", phone.socket)
    monkeypatch.setattr(adb_module, "FILES", str(files))
    monkeypatch.setattr(adb_module, "POLL_S", 0.2)
    return phone


@pytest.fixture
def real_phone(adbd: Phone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AnyPhone:
    return prepare(adbd, tmp_path / "files", monkeypatch)


@pytest.fixture(params=["local", pytest.param("adbd", marks=pytest.mark.slow)])
def phone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AnyPhone:
    """A phone without the app's files; the slow tests repeat each test with a real adbd."""
    if request.param == "adbd":
        return request.getfixturevalue("real_phone")
    return prepare(LocalPhone(tmp_path / "phone", SERIAL), tmp_path / "files", monkeypatch)


@pytest.fixture
def adb() -> Adb:
    return Adb(parse_device(f"adb:{SERIAL}"))


def job(bundle: Path, time_limit_s: float = 300.0, keep: bool = False) -> Job:
    return Job((open_bundle(bundle),), Plan(40, 0.0, time_limit_s=time_limit_s), keep=keep)


def ignore(text: str) -> None:
    """Ignore progress."""


def app(phone: AnyPhone, answers: str) -> None:
    """Install an `am` that logs its arguments, and lets `answers` run after it has returned, as an app does."""
    phone.tool(
        "am",
        f"""echo "$@" >> {phone.files}/am.log
        [ "$1" = start ] || exit 0
        echo "Starting: Intent {{ cmp=org.stlm_edge.demo/.SelfCheckActivity }}"
        cd {phone.files}
        ({answers}) >/dev/null 2>&1 </dev/null &""",
    )


def test_app_is_started_as_documented_and_its_bench_json_becomes_the_row(
    real_phone: AnyPhone, adb: Adb, tiny_bundle: Path
) -> None:
    python = f"PYTHONPATH={Path(__file__).parents[2]} OMP_NUM_THREADS=1 {sys.executable}"
    bench = "-m stlm_edge.bench --bundle bundles/$7 --queries ${10} --seconds 0 --out out"
    partly = "head -c 99 out/bench.json > bench.json; sleep 0.1; mv out/bench.json bench.json"
    app(real_phone, f"{python} {bench}; {partly}")
    progress: list[str] = []
    (row,) = measure_by_app(adb, job(tiny_bundle, time_limit_s=60.0), progress.append).rows
    assert row.passed
    assert row.parity is not None
    assert row.parity.verdict_flips == 0
    assert row.queries == 40
    assert progress == ["connecting", "copying tiny", "self-check: tiny", *["measuring"] * (len(progress) - 3)]
    start, stop = (real_phone.files / "am.log").read_text().splitlines()
    name = start.split()[6]
    assert start == (
        f"start -S -n org.stlm_edge.demo/.SelfCheckActivity --es bundle {name} --ei queries 40 --es delegate cpu"
    )
    assert stop == "force-stop org.stlm_edge.demo"
    assert not (real_phone.files / "bench.json").exists()
    assert not (real_phone.files / "bundles" / name).exists()


def test_bundle_is_copied_once_and_again_when_it_changed_there(phone: AnyPhone, adb: Adb, tiny_bundle: Path) -> None:
    app(phone, "echo '{}' > bench.json")
    progress: list[str] = []
    for copies in (1, 1, 2):
        with pytest.raises(JobError):
            measure_by_app(adb, job(tiny_bundle, keep=True), progress.append)
        assert progress.count("copying tiny") == copies
        (there,) = (phone.files / "bundles").iterdir()
        assert open_bundle(there).manifest == open_bundle(tiny_bundle).manifest
        if progress.count("self-check: tiny") == 2:
            (there / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ("echo '{\"format_version\": 1' > bench.json", "not valid JSON"),
        ('echo \'{"format_version": 1, "done": true}\' > bench.json', "headline: missing"),
        ("head -c 3000000 /dev/zero > bench.json", "more than 1 MB, the limit"),
        ("mkdir bench.json", "no complete bench.json within the time limit; keep the phone unlocked"),
        ("true", "no complete bench.json within the time limit"),
        ("ln -s /etc/hostname bench.json", "not valid JSON"),
    ],
)
def test_invalid_bench_json_is_refused(
    phone: AnyPhone, adb: Adb, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, answers: str, words: str
) -> None:
    monkeypatch.setattr(ssh, "ANSWER_LIMIT", 1 << 20)
    app(phone, answers)
    limit_s = 2.0 if "time limit" in words else 120.0
    with pytest.raises(JobError, match=words) as refused:
        measure_by_app(adb, job(tiny_bundle, time_limit_s=limit_s), ignore)
    assert str(refused.value).isprintable()


def test_app_that_crashes_is_noticed_before_the_time_limit(phone: AnyPhone, adb: Adb, tiny_bundle: Path) -> None:
    app(phone, f"touch {phone.files}/alive; sleep 1; rm {phone.files}/alive")
    phone.tool("pidof", f'[ "$1" = org.stlm_edge.demo ] && [ -e {phone.files}/alive ] && echo 4711')
    with pytest.raises(JobError, match=r"the demo app ended before .* adb logcat -b crash"):
        measure_by_app(adb, job(tiny_bundle, time_limit_s=600.0), ignore)


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk needs root")
def test_full_disk_on_the_phone_is_reported(
    real_phone: AnyPhone, adb: Adb, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk], check=False).returncode:
        pytest.skip("cannot mount a small disk")
    try:
        monkeypatch.setattr(adb_module, "FILES", str(disk))
        with pytest.raises(JobError, match="No space left on device"):
            measure_by_app(adb, job(tiny_bundle), ignore)
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


def test_missing_app_is_reported(phone: AnyPhone, adb: Adb, tiny_bundle: Path) -> None:
    phone.tool("am", '[ "$1" = start ] && echo "Error type 3" && echo "Error: Activity class does not exist."; exit 0')
    with pytest.raises(JobError, match=r"install it on the phone \(Error: Activity class does not exist\.\)"):
        measure_by_app(adb, job(tiny_bundle), ignore)


def test_unknown_serial_is_lost_at_once(real_phone: AnyPhone, tiny_bundle: Path) -> None:
    with pytest.raises(Lost, match="'NOBODY' not found"):
        measure_by_app(Adb(parse_device("adb:NOBODY")), job(tiny_bundle), ignore)


def test_missing_adb_is_reported(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, adb: Adb) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Exception, match="adb: command not found on this host; install"):
        measure_by_app(adb, job(tiny_bundle), ignore)


@pytest.mark.parametrize("kind", ["local", pytest.param("adbd", marks=pytest.mark.slow)])
def test_phone_that_vanishes_is_lost(
    kind: str, adb: Adb, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = LocalPhone(tmp_path / "phone", SERIAL) if kind == "local" else Phone(tmp_path / "phone")
    try:
        phone = prepare(made, tmp_path / "files", monkeypatch)
        monkeypatch.setattr(ssh, "RETRY_LIMIT_S", 2.5)
        app(phone, "true")
        lines: list[str] = []

        def progress(text: str) -> None:
            lines.append(text)
            if lines.count("measuring") == 2:
                phone.vanish()

        with pytest.raises(Lost, match=r"not found|offline|closed"):
            measure_by_app(adb, job(tiny_bundle), progress)
        assert any("trying again" in line for line in lines)
    finally:
        made.stop()


def test_options_that_a_phone_ignores_are_named() -> None:
    options = parser().parse_args(["--bundle", "B", "--seconds", "5", "--threads", "2", "--out", "O"])
    devices = [parse_device(name) for name in ("local", f"adb:{SERIAL}", "web")]
    assert ignored_options(devices, options) == [f"adb:{SERIAL}: ignores --seconds, --threads"]
