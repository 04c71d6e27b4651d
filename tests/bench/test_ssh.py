"""`--device ssh:…` against a real OpenSSH server on loopback, with a Python that has only what a device needs."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from ssh_server import SshServer, bare_python

from stlm_edge.bench.__main__ import main

QUICK = ["--queries", "20", "--seconds", "0"]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare_python(tmp_path_factory.mktemp("device") / "python")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    server = SshServer(tmp_path / "server")
    yield server
    server.stop()


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
