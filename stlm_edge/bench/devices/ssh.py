"""Host side of a connection by the system's own ssh: one command at a time, answered by lines of JSON.

No shell string is made from what a user gave: the destination is an argument of its own, checked by `parse_device`,
and each word of the remote command is quoted. The device is not trusted: its answers are limited in size and time,
parsed strictly, and stripped of control characters.
"""

import contextlib
import hashlib
import json
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from stlm_edge import strict_json
from stlm_edge.bench.devices.archive import BOOTSTRAP
from stlm_edge.bench.devices.device import Device, Progress
from stlm_edge.bench.devices.runner import ANSWER
from stlm_edge.errors import JobError, UsageError

ANSWER_LIMIT = 16 << 20  # bytes; a bench.json and an anomaly map of 1024×1024 are smaller
RETRY_LIMIT_S = 120.0  # without a connection, before a device counts as lost
SILENCE_S = 60.0  # without a line from a command that sends heartbeats
_SSH_FAILED = 255  # exit code of ssh when the connection, not the command, failed
_OPTIONS = ("BatchMode=yes", "ClearAllForwardings=yes", "ConnectTimeout=10", "ServerAliveInterval=10")
_PACKAGES = {"ssh": "OpenSSH's client", "adb": "Android's platform tools"}

T = TypeVar("T")


class Lost(JobError):
    """The connection failed or fell silent; the device may still be running."""


class Connection:
    """Connection with the time of its device's last answer (`time.monotonic()`)."""

    def __init__(self) -> None:
        self.answered_at = time.monotonic()

    def retry(self, progress: Progress, do: Callable[..., T], *arguments: Any) -> T:
        """Return what the call returns; repeat it while it raises Lost, until RETRY_LIMIT_S without an answer."""
        failing, pause = None, 1.0
        while True:
            try:
                return do(*arguments)
            except Lost as lost:
                if failing is None or self.answered_at > failing:
                    failing, pause = time.monotonic(), 1.0
                if time.monotonic() - failing + pause > RETRY_LIMIT_S:
                    raise
                progress(f"{lost}; trying again")
                time.sleep(pause)
                pause = min(2 * pause, 15.0)


class Ssh(Connection):
    """Machine that ssh reaches without asking for a password, and the runner on it."""

    def __init__(self, device: Device, python: str = "python3", config: Path | None = None) -> None:
        super().__init__()
        self._command = ["ssh", "-T", "-a", "-x", *(part for option in _OPTIONS for part in ("-o", option))]
        self._command += ["-F", str(config)] if config else []
        self._command += ["--", device.address]
        self._python = python
        self._runner = ""

    def install(self, runner: bytes) -> None:
        """Copy the runner to the device unless it is there. Raises JobError, or Lost without a connection."""
        digest = hashlib.sha256(runner).hexdigest()
        for content in (b"", runner):
            with tempfile.TemporaryFile() as source:
                source.write(content)
                source.seek(0)
                answer = self._answer([self._python, "-c", BOOTSTRAP, digest, str(len(content))], source)
            if answer.get("have") is True and isinstance(answer.get("path"), str):
                self._runner = answer["path"]
                return
        raise JobError(f"the runner cannot be written on the device: {printable(answer.get('error'))}")

    def ask(self, *words: str, source: IO[bytes] | None = None, time_limit_s: float = 60.0) -> dict[str, Any]:
        """Return the runner's answer to a command. Raises JobError with its reason, Lost without a connection."""
        return self._answer([self._python, self._runner, *words], source, time_limit_s)

    def listen(self, *words: str) -> Iterator[dict[str, Any]]:
        """Yield the runner's answers to one command as they come. Raises Lost when the connection breaks."""
        command = [*self._command, shlex.join([self._python, self._runner, *words])]
        process = start(command, None, subprocess.DEVNULL)
        assert process.stdout
        code = None
        try:
            while code is None:
                with _time_limit(process, SILENCE_S):
                    line = process.stdout.readline(ANSWER_LIMIT + 1)
                    code = None if line else process.wait()
                _check_size(line)
                if line.startswith(ANSWER.encode()) and line.endswith(b"\n"):
                    self.answered_at = time.monotonic()
                    yield parse_answer(line[len(ANSWER) :])
        finally:
            process.kill()
            process.wait()
        if code == _SSH_FAILED:
            raise Lost("the connection broke")

    def _answer(self, words: list[str], source: IO[bytes] | None, time_limit_s: float = 60.0) -> dict[str, Any]:
        output, code = run([*self._command, shlex.join(words)], source, time_limit_s)
        answers = [line for line in output.splitlines() if line.startswith(ANSWER.encode())]
        if not answers:
            reason = last_line(output) or f"exit code {code}"
            if code == _SSH_FAILED:
                raise Lost(f"ssh: {reason}")
            raise JobError(f"{self._python} on the device: {reason}")
        self.answered_at = time.monotonic()
        answer = parse_answer(answers[-1][len(ANSWER) :])
        if code:
            raise JobError(printable(answer.get("error")))
        return answer


def run(command: Sequence[str], source: IO[bytes] | None, time_limit_s: float) -> tuple[bytes, int]:
    """Run a command; return what it printed, standard error included, and its exit code.

    Raises JobError beyond ANSWER_LIMIT, Lost beyond the time limit; the command has ended in any case.
    """
    process = start(command, source, subprocess.STDOUT)
    assert process.stdout
    try:
        with _time_limit(process, time_limit_s):
            output = process.stdout.read(ANSWER_LIMIT + 1)
            _check_size(output)
            return output, process.wait()
    finally:
        process.kill()
        process.wait()


def start(command: Sequence[str], source: IO[bytes] | None, errors: int) -> "subprocess.Popen[bytes]":
    """Start a command with its output in a pipe. Raises UsageError where it is not installed."""
    try:
        return subprocess.Popen(command, stdin=source or subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
    except FileNotFoundError:
        package = _PACKAGES.get(command[0], command[0])
        raise UsageError(f"{command[0]}: command not found on this host; install {package}") from None


@contextlib.contextmanager
def _time_limit(process: "subprocess.Popen[bytes]", seconds: float) -> Iterator[None]:
    """Kill the process, and raise Lost, if the block takes longer."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    began = time.monotonic()
    try:
        yield
    finally:
        timer.cancel()
    if time.monotonic() - began >= seconds:
        raise Lost(f"no answer within {seconds:g} s")


def _check_size(output: bytes) -> None:
    if len(output) > ANSWER_LIMIT:
        raise JobError(f"the device sent more than {ANSWER_LIMIT >> 20} MB, the limit")


def parse_answer(text: bytes) -> dict[str, Any]:
    """Return the JSON object that a device sent. Raises JobError for anything else."""
    try:
        answer = strict_json.parse(text, "the device's answer")
    except UsageError as error:
        raise JobError(printable(error)) from None
    if not isinstance(answer, dict):
        raise JobError(f"the device's answer: found {printable(json.dumps(answer))}, expected an object")
    return answer


def printable(value: object, limit: int = 300) -> str:
    """Return a device's text on one line, without control characters."""
    text = str(value)[:limit]
    return "".join(character if character.isprintable() else " " for character in text).strip()


def last_line(output: bytes) -> str:
    """Return the last line that is not empty, printable; "" where there is none."""
    lines = output[-4096:].decode("utf-8", "replace").strip().splitlines()
    return printable(lines[-1]) if lines else ""
