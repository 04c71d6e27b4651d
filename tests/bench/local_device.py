"""Devices without a server: an `ssh` and an `adb` that run their commands in a folder of this machine."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import zipfile
from pathlib import Path

from stlm_edge.bench.devices import archive

_SSH = """#!/bin/sh
for command; do :; done
case "$*" in
*" -- ssh://local "*) [ -e {folder}/down ] && reachable=no || reachable=yes ;;
esac
[ "$reachable" != yes ] && echo "ssh: connect to host: Connection refused" >&2 && exit 255
export XDG_CACHE_HOME={folder}/cache OMP_NUM_THREADS=1
exec 3<&0
sh -c "exec $command" <&3 &
echo $! >> {folder}/pids
wait $!
code=$?
[ $code = 137 ] && exit 255
exit $code
"""
_ADB = """#!/bin/sh
[ "$1" = -s ] && serial=$2 && shift 2
if [ -e {folder}/down ] || [ "$serial" != {serial} ]; then
    echo "error: device '$serial' not found"
    exit 1
fi
PATH={folder}/tools:$PATH
case "$1" in
get-state) echo device ;;
shell) exec sh -c "$3" ;;
exec-out) exec sh -c "$2" ;;
push) exec cp "$2" "$3" ;;
esac
"""
# The bench of a device: it takes half of --seconds, and leaves the bench.json that the test gives it.
_BENCH = """
import shutil, sys, time
options = dict(zip(sys.argv, sys.argv[1:]))
ends = time.monotonic() + float(options["--seconds"]) / 2
turn = 0
while time.monotonic() < ends:
    turn += 1
    print("tiny in turn, round", turn, file=sys.stderr, flush=True)
    time.sleep(0.1)
shutil.copy({bench!r}, options["--out"])
"""


class LocalSsh:
    """Stands for SshServer: same attributes, but each command is a process of this machine."""

    device = "ssh:local"

    def __init__(self, folder: Path) -> None:
        self._folder, self.cache = folder, folder / "cache"
        self.tools = folder / "bin"
        self.tools.mkdir(parents=True)
        self.config = folder / "config"
        self.config.touch()
        _write_program(self.tools / "ssh", _SSH.format(folder=folder))

    def stop(self) -> None:
        """Refuse connections and break those that are open; what was detached goes on."""
        (self._folder / "down").touch()
        with contextlib.suppress(FileNotFoundError):
            for pid in (self._folder / "pids").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)

    def start(self) -> None:
        (self._folder / "pids").unlink(missing_ok=True)
        (self._folder / "down").unlink()


class LocalPhone:
    """Stands for Phone: same attributes, but adb's commands are processes of this machine."""

    def __init__(self, folder: Path, serial: str) -> None:
        self._folder = folder
        self.files, self.tools, self.path = folder / "files", folder / "tools", folder / "bin"
        for made in (self.files, self.tools, self.path):
            made.mkdir(parents=True)
        _write_program(self.path / "adb", _ADB.format(folder=folder, serial=serial))

    def tool(self, name: str, text: str) -> None:
        """Put a program on the phone's PATH."""
        _write_program(self.tools / name, f"#!/bin/sh\n{text}\n")

    def vanish(self) -> None:
        (self._folder / "down").touch()

    def stop(self) -> None:
        """Do nothing: no process outlives its command."""


def _write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def runner_with_quick_bench(bench: Path) -> bytes:
    """Return the runner with a bench that only takes its time and leaves a copy of `bench`, and with short waits."""
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive.runner())) as source, zipfile.ZipFile(content, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name == "stlm_edge/bench/__main__.py":
                data = _BENCH.format(bench=str(bench)).encode()
            if name == "stlm_edge/bench/devices/runner.py":
                for wait in (b"_LEAVING_S = 20.0", b"HEARTBEAT_S = 5.0"):
                    assert wait in data
                    data = data.replace(wait, wait.partition(b"=")[0] + b"= 1.0")
            target.writestr(zipfile.ZipInfo(name), data)
    return content.getvalue()
