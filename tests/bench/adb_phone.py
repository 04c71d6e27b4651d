"""A phone simulated by Debian's adbd, with an adb server, in their own network, reached by a socket file."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ADBD = Path(__file__).parents[2] / "build" / "adbd"
SERIAL = "127.0.0.1:5555"  # inside that network, where nobody else can reach it


class Phone:
    """`files` is the app's folder, `tools` comes first on the shell's PATH, `socket` is the adb server's."""

    def __init__(self, folder: Path) -> None:
        adb = shutil.which("adb")
        if not (ADBD / "adbd").exists() or adb is None or not shutil.which("ip"):
            pytest.skip("no adbd: run make build/adbd and apt-get install adb iproute2")
        own_network = ["unshare", "-n"] if os.getuid() == 0 else ["unshare", "-rn"]
        if subprocess.run([*own_network, "true"], check=False, capture_output=True).returncode:
            pytest.skip("cannot make a network namespace, without which adbd would listen on every interface")
        self.files, self.tools = folder / "files", folder / "tools"
        for made in (self.files, self.tools):
            made.mkdir(parents=True, exist_ok=True)
        self.socket = f"localfilesystem:{folder / 'adb'}"
        script = (
            'ip link set lo up; LD_LIBRARY_PATH="$1" PATH="$2:$PATH" "$1/adbd" >&2 & echo $!; '
            'exec "$3" -L "$4" nodaemon server >&2'
        )
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*own_network, "sh", "-c", script, "phone", ADBD, self.tools, adb, self.socket],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout
        self._adbd = int(self._process.stdout.readline())
        for _ in range(200):  # a client that finds no server would start one outside this network
            if (folder / "adb").exists():
                break
            time.sleep(0.05)
        environment = os.environ | {"ADB_SERVER_SOCKET": self.socket}
        for _ in range(50):
            done = subprocess.run([adb, "connect", SERIAL], env=environment, capture_output=True, text=True, timeout=20)
            if "connected to" in done.stdout:
                return
            time.sleep(0.1)
        self.stop()
        raise AssertionError(f"adb does not connect: {done.stdout}{done.stderr}")

    def tool(self, name: str, text: str) -> None:
        """Put a program on the phone's PATH."""
        (self.tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.tools / name).chmod(0o755)

    def vanish(self) -> None:
        os.kill(self._adbd, 9)

    def stop(self) -> None:
        os.killpg(self._process.pid, 9)
        self._process.wait()
