"""Devices behind ssh for the tests of the bench: a real server on loopback, and a faster one without any."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from local_device import LocalSsh, runner_with_quick_bench
from ssh_server import SshServer, bare_python

from stlm_edge.bench.devices import remote


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python with what a device needs, and nothing else."""
    return bare_python(tmp_path_factory.mktemp("device") / "python")


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[SshServer]:
    """A real OpenSSH server."""
    server = SshServer(tmp_path / "sshd")
    yield server
    server.stop()


@pytest.fixture(params=["local", pytest.param("sshd", marks=pytest.mark.slow)])
def server(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SshServer | LocalSsh]:
    """A device behind ssh; the slow tests repeat each test with a real server."""
    if request.param == "sshd":
        yield request.getfixturevalue("sshd")
        return
    local = LocalSsh(tmp_path / "local")
    monkeypatch.setenv("PATH", str(local.tools), prepend=":")
    yield local
    local.stop()


@pytest.fixture(scope="session")
def honest(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bench.json as stlm-bench writes it on this machine."""
    from stlm_edge.commands.bench import main

    out = tmp_path_factory.mktemp("honest")
    main(["--bundle", str(tiny_bundle), "--queries", "20", "--seconds", "0", "--out", str(out)])
    return out / "bench.json"


@pytest.fixture
def quick_bench(server: SshServer | LocalSsh, honest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the bench on the device only take its time, unless the server is real."""
    if isinstance(server, LocalSsh):
        runner = runner_with_quick_bench(honest)
        monkeypatch.setattr(remote, "runner", lambda: runner)


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out a bench's profile and the content of its report, which take longer than the tiny bundle itself."""
    from stlm_edge.report import report

    monkeypatch.setattr("stlm_edge.bench.measure.profile_of", lambda *_: None)
    monkeypatch.setattr(report, "write_report", lambda path, *_: path.write_text(""))
