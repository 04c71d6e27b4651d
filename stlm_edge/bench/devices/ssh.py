"""The desk's end of a connection by the system's own ssh: one command at a time, answered by lines of JSON.

No shell string is made from what a user gave: the destination is an argument of its own, checked by `parse_device`,
and the remote command is made of words that are quoted. The device is not trusted: its answers are limited in size and
time, parsed strictly, and their text is stripped of what could steer a terminal.
"""

import contextlib
import hashlib
import json
import queue
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from stlm_edge import strict_json
from stlm_edge.bench.devices.device import Device
from stlm_edge.bench.devices.runner import ANSWER, HEARTBEAT_S
from stlm_edge.errors import JobError, UsageError

ANSWER_LIMIT = 16 << 20  # bytes, a whole bench.json included
CONNECT_S = 10
_SSH_FAILED = 255  # ssh's exit code when it, not the command, failed
_OPTIONS = ("BatchMode=yes", "ClearAllForwardings=yes", f"ConnectTimeout={CONNECT_S}", "ServerAliveInterval=10")
# Any Python: tells whether the runner is there, or takes it from standard input. argv: its sha256, its bytes (0: ask).
_BOOTSTRAP = """
import hashlib, os, sys
cache = os.environ.get("XDG_CACHE_HOME", "")
folder = os.path.join(cache if os.path.isabs(cache) else os.path.expanduser("~/.cache"), "stlm-edge", "bench")
path = os.path.join(folder, "runner-" + sys.argv[1] + ".pyz")
data = sys.stdin.buffer.read(int(sys.argv[2]))
error = ""
try:
    if data:
        os.makedirs(folder, exist_ok=True)
        with open(path + ".part", "wb") as file:
            file.write(data)
        os.replace(path + ".part", path)
    with open(path, "rb") as file:
        have = hashlib.sha256(file.read()).hexdigest() == sys.argv[1]
except OSError as problem:
    have, error = False, problem.strerror
print("stlm-edge:" + __import__("json").dumps({"have": have, "path": path, "error": error}))
"""


class Lost(JobError):
    """The connection failed or fell silent; the device may go on."""


class Ssh:
    """A machine that ssh reaches without asking for a password, and the runner on it."""

    def __init__(self, device: Device, python: str = "python3", config: Path | None = None) -> None:
        self._command = ["ssh", "-T", "-a", "-x", *(part for option in _OPTIONS for part in ("-o", option))]
        self._command += ["-F", str(config)] if config else []
        self._command += ["-p", str(device.port)] if device.port else []
        self._command += ["-l", device.user] if device.user else []
        self._command += ["--", device.host or ""]
        self._python = python
        self._runner = ""
        self.heard = time.monotonic()  # when the device last answered

    def install(self, runner: bytes) -> None:
        """Put the runner on the device unless it is there. Raises JobError, Lost among them."""
        digest = hashlib.sha256(runner).hexdigest()
        for size, source in ((0, b""), (len(runner), runner)):
            words = [self._python, "-c", _BOOTSTRAP, digest, str(size)]
            answer = self._answer(words, source)
            if answer.get("have") is True and isinstance(answer.get("path"), str):
                self._runner = answer["path"]
                return
        raise JobError(f"the runner can't be written there: {printable(str(answer.get('error')))}")

    def ask(self, *words: str, source: bytes | IO[bytes] = b"", time_limit_s: float = 60.0) -> dict[str, Any]:
        """The runner's answer to a command. Raises JobError with the device's reason, Lost without a connection."""
        return self._answer([self._python, self._runner, *words], source, time_limit_s)

    def listen(self, *words: str) -> Iterator[dict[str, Any]]:
        """The runner's answers to one command as they come. Raises Lost when it falls silent or the line breaks."""
        process = self._start([self._python, self._runner, *words], subprocess.DEVNULL)
        _Tail(process.stderr)
        lines: queue.Queue[bytes] = queue.Queue(maxsize=100)
        threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True).start()
        try:
            while True:
                try:
                    line = lines.get(timeout=CONNECT_S + 4 * HEARTBEAT_S)
                except queue.Empty:
                    raise Lost("it fell silent") from None
                if not line:
                    if process.wait(CONNECT_S) == _SSH_FAILED:
                        raise Lost("the connection broke")
                    return
                self.heard = time.monotonic()
                if line.startswith(ANSWER.encode()):
                    yield _parsed(line)
        finally:
            process.kill()
            process.wait()

    def _answer(self, words: list[str], source: bytes | IO[bytes], time_limit_s: float = 60.0) -> dict[str, Any]:
        process = self._start(words, subprocess.PIPE if isinstance(source, bytes) else source)
        tail = _Tail(process.stderr)
        if isinstance(source, bytes):
            threading.Thread(target=_send, args=(process.stdin, source), daemon=True).start()
        output, code = within_limits(process, time_limit_s)
        answers = [line for line in output.splitlines() if line.startswith(ANSWER.encode())]
        if not answers:
            reason = tail.last_line() or f"exit code {code}"
            if code == _SSH_FAILED:
                raise Lost(f"ssh: {reason}")
            raise JobError(f"{self._python} on the device: {reason}")
        self.heard = time.monotonic()
        answer = _parsed(answers[-1])
        if code:
            raise JobError(printable(str(answer.get("error"))))
        return answer

    def _start(self, words: list[str], source: int | IO[bytes]) -> subprocess.Popen:
        try:
            return subprocess.Popen(
                [*self._command, shlex.join(words)], stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except FileNotFoundError:
            raise UsageError("ssh is not installed here; install OpenSSH's client") from None


def within_limits(process: "subprocess.Popen[bytes]", time_limit_s: float) -> tuple[bytes, int]:
    """What a command prints, and its exit code. Raises JobError beyond ANSWER_LIMIT, Lost beyond the time limit; in
    any case it has ended then."""
    timer = threading.Timer(time_limit_s, process.kill)
    timer.start()
    began = time.monotonic()
    try:
        assert process.stdout
        output = process.stdout.read(ANSWER_LIMIT + 1)
        if len(output) > ANSWER_LIMIT:
            raise JobError(f"it answered more than {ANSWER_LIMIT >> 20} MB, the limit")
        code = process.wait()
    finally:
        timer.cancel()
        process.kill()
        process.wait()
    if time.monotonic() - began >= time_limit_s:
        raise Lost(f"no answer within {time_limit_s:g} s")
    return output, code


class _Tail:
    """Drains a stream, keeping its end."""

    def __init__(self, stream: IO[bytes] | None) -> None:
        self._kept = b""
        self._thread = threading.Thread(target=self._drain, args=(stream,), daemon=True)
        self._thread.start()

    def _drain(self, stream: IO[bytes]) -> None:
        while piece := stream.read1(4096):  # type: ignore[attr-defined]
            self._kept = (self._kept + piece)[-4096:]

    def last_line(self) -> str:
        self._thread.join(1.0)
        lines = self._kept.decode("utf-8", "replace").strip().splitlines()
        return printable(lines[-1]) if lines else ""


def _read_lines(stream: IO[bytes], lines: "queue.Queue[bytes]") -> None:
    """Lines that are too long end it, as the stream's end does: by an empty one."""
    with contextlib.suppress(queue.Full):  # nobody listens any more
        while (line := stream.readline(1 << 16)).endswith(b"\n"):
            lines.put(line, timeout=CONNECT_S)
        lines.put(b"", timeout=CONNECT_S)


def _send(stream: IO[bytes], data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), stream:
        stream.write(data)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        answer = strict_json.parse(line[len(ANSWER) :], "its answer")
    except UsageError as error:
        raise JobError(printable(str(error))) from None
    if not isinstance(answer, dict):
        raise JobError(f"its answer: found {printable(json.dumps(answer))}, expected an object")
    return answer


def printable(text: str, limit: int = 300) -> str:
    """A device's text on one line, without what could steer a terminal."""
    return "".join(character if character.isprintable() else " " for character in text[:limit]).strip()
