"""An OpenSSH server on loopback, for this user only, and a Python with only a device's packages."""

from __future__ import annotations

import getpass
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
DEVICE_PACKAGES = ("numpy", "PIL", "onnxruntime")


class SshServer:
    """sshd with its own keys. Its sessions have the cache folder `cache`; `config` is the client's configuration.

    `wrapped_in` are words before its command line.
    """

    def __init__(self, folder: Path, cache: Path | None = None, wrapped_in: Sequence[str] = ()) -> None:
        if SSHD is None or not shutil.which("ssh-keygen"):
            pytest.skip("no OpenSSH server: run apt-get install openssh-server")
        folder.mkdir(parents=True, exist_ok=True)
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # required when root starts sshd
        self._wrapped_in = wrapped_in
        self.cache = cache or folder / "cache"
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._sshd_config = folder / "sshd_config"
        self._sshd_config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host'}\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {folder / 'user.pub'}\nStrictModes no\nMaxStartups 100\n"
            f"SetEnv XDG_CACHE_HOME={self.cache} OMP_NUM_THREADS=1\n"
        )
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {(folder / 'host.pub').read_text()}")
        self.config = folder / "ssh_config"
        self.config.write_text(
            f"Host *\n  IdentityFile {folder / 'user'}\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {folder / 'known_hosts'}\n  StrictHostKeyChecking yes\n"
        )
        self.device = f"ssh:{getpass.getuser()}@127.0.0.1:{self.port}"
        self._log = (folder / "sshd.log").open("ab")
        self.start()

    def start(self) -> None:
        command = [*self._wrapped_in, str(SSHD), "-D", "-e", "-f", str(self._sshd_config)]
        self._process = subprocess.Popen(command, stderr=self._log)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("sshd does not listen")

    def stop(self) -> None:
        """End the server and every connection, as if the cable were pulled; detached processes go on."""
        for pid in [*_descendants(self._process.pid), self._process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()


def _descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [each for child in children for each in (*_descendants(int(child)), int(child))]


def bare_python(folder: Path) -> Path:
    """Make an interpreter with the packages that a device needs, and without this one."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in DEVICE_PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        installed = Path(spec.origin).parent
        (site / package).symlink_to(installed)
        for beside in [*installed.parent.glob(f"{package}.libs"), *installed.parent.glob(f"{package.lower()}-*info")]:
            (site / beside.name).symlink_to(beside)
    for beside in Path(sys.prefix).glob("lib/python*/site-packages/pillow*"):
        (site / beside.name).symlink_to(beside)
    return folder / "bin" / "python"
