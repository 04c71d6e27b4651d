"""A phone by Android's adb: files there and back, and commands in its shell, whose words are quoted and whose answers
are limited in size and time. Tried on Debian's adbd, not yet on a phone."""

import contextlib
import re
import shlex
import subprocess
import time
from pathlib import Path

from stlm_edge.bench.devices.device import Device
from stlm_edge.bench.devices.ssh import Lost, printable, within_limits
from stlm_edge.errors import JobError, UsageError

_GONE = re.compile(r"device '.*' not found|device offline|no devices|device unauthorized|closed|more than one device")
_COPY_LIMIT_S = 3600.0


class Adb:
    """One phone, or the only one there is. Raises Lost where adb says that the phone isn't there, else JobError."""

    def __init__(self, device: Device) -> None:
        self.heard = time.monotonic()  # when the phone last answered
        self._command = ["adb", *(("-s", device.serial) if device.serial else ())]

    def check(self) -> None:
        """Raise JobError unless the phone is there and lets this desk in."""
        said = self._run("get-state")
        if said.strip() != b"device":
            raise JobError(f"adb says {printable(said.decode('utf-8', 'replace'))!r}, expected 'device'")

    def shell(self, *words: str, time_limit_s: float = 60.0) -> str:
        """What a command prints on the phone. Raises JobError with its last line when it fails."""
        return self._run("shell", "-T", shlex.join(words), time_limit_s=time_limit_s).decode("utf-8", "replace")

    def read(self, path: str) -> bytes | None:
        """A file's content, at most ANSWER_LIMIT bytes of it; None where there is none."""
        try:
            return self._run("exec-out", shlex.join(["cat", path]) + " 2>/dev/null || true") or None
        except Lost:
            raise
        except JobError as error:
            if "the limit" in str(error):
                raise
            return None

    def push(self, source: Path, target: str) -> None:
        """Copy a file or folder to a path that does not exist there."""
        self._run("push", str(source.resolve()), target, time_limit_s=_COPY_LIMIT_S)

    def clean(self, *paths: str, stop: str | None = None) -> None:
        """Stop an app and remove paths; a phone that is lost keeps them, which is no failure of its own."""
        with contextlib.suppress(JobError):
            if stop:
                self.shell("am", "force-stop", stop)
            self.shell("rm", "-rf", *paths)

    def _run(self, *words: str, time_limit_s: float = 60.0) -> bytes:
        try:
            process = subprocess.Popen(
                [*self._command, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except FileNotFoundError:
            raise UsageError("adb is not installed here; install Android's platform tools") from None
        said, code = within_limits(process, time_limit_s)
        if code:
            lines = said.decode("utf-8", "replace").strip().splitlines() or [f"exit code {code}"]
            told = [line for line in lines if line.startswith(("adb: error: ", "error: "))]  # push ends with a summary
            reason = printable((told or lines)[-1].removeprefix("adb: ").removeprefix("error: "))
            raise (Lost if _GONE.search(reason) else JobError)(f"adb: {reason}")
        self.heard = time.monotonic()
        return said
