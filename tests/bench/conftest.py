"""A device behind ssh on this machine, for the tests of the bench."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ssh_server import SshServer, bare_python


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The device's Python, with what a device needs and no more."""
    return bare_python(tmp_path_factory.mktemp("device") / "python")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    server = SshServer(tmp_path / "server")
    yield server
    server.stop()
