"""Measuring on a phone by Android's adb: the demo app checks and times each bundle and leaves bench.json.

The interface: package `org.stlm_edge.demo`, activity `.SelfCheckActivity`, extras `--es bundle NAME --ei queries N --es
delegate cpu|gpu`, NAME a folder in `bundles/` of the app's external files. The result is `bench.json` in those files,
its last key `done: true`; the app removes an old one first. Tested with Debian's adbd, never run on a phone.
"""

import contextlib
import re
import shlex
import time
from dataclasses import replace
from pathlib import Path

from stlm_edge.bench.devices.device import Device, Job, Progress
from stlm_edge.bench.devices.remote import read_bench
from stlm_edge.bench.devices.ssh import Connection, Lost, last_line, printable, run
from stlm_edge.bench.result import Bench
from stlm_edge.bundle import Bundle
from stlm_edge.bundle.manifest import MANIFEST
from stlm_edge.errors import JobError
from stlm_edge.files import sha256_of

PACKAGE = "org.stlm_edge.demo"
FILES = f"/sdcard/Android/data/{PACKAGE}/files"
POLL_S = 3.0
_COPY_LIMIT_S = 3600.0
_GONE = re.compile(r"device '.*' not found|device offline|no devices|device unauthorized|closed|more than one device")
_ERROR = re.compile(rb"^(?:adb: )?error: .*$", re.MULTILINE)  # push prints a summary after it


class Adb(Connection):
    """Phone with this serial, or the only one. Methods raise Lost where adb cannot reach it, else JobError."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._command = ["adb", *(("-s", device.address) if device.address else ())]

    def check(self) -> None:
        """Raise JobError unless the phone is connected and has authorized this host."""
        state = printable(self._run("get-state").decode("utf-8", "replace"))
        if state != "device":
            raise JobError(f"adb get-state: found {state!r}, expected 'device'")

    def shell(self, *words: str) -> str:
        """Return what a command prints on the phone. Raises JobError with its last line when it fails."""
        return self._run("shell", "-T", shlex.join(words)).decode("utf-8", "replace")

    def read(self, path: str) -> bytes | None:
        """Return a file's content, or None where there is none. Raises JobError beyond ANSWER_LIMIT."""
        return self._run("exec-out", shlex.join(["cat", path]) + " 2>/dev/null || true") or None

    def push(self, source: Path, target: str) -> None:
        """Copy a file to a path that does not exist on the phone."""
        self._run("push", str(source.resolve()), target, time_limit_s=_COPY_LIMIT_S)

    def _run(self, *words: str, time_limit_s: float = 60.0) -> bytes:
        output, code = run([*self._command, *words], None, time_limit_s)
        if code:
            errors = _ERROR.findall(output) or [output]
            reason = last_line(errors[-1]).removeprefix("adb: ").removeprefix("error: ") or f"exit code {code}"
            raise (Lost if _GONE.search(reason) else JobError)(f"adb: {reason}")
        self.answered_at = time.monotonic()
        return output


def measure_by_app(adb: Adb, job: Job, progress: Progress) -> Bench:
    """Return the phone's bench.json, one row per bundle.

    Raises:
        JobError: no app, phone lost (Lost), time limit reached, or an invalid bench.json
    """
    progress("connecting")
    adb.check()
    ends = time.monotonic() + job.plan.time_limit_s
    names = {bundle.folder: f"bench-{sha256_of(bundle.folder / MANIFEST)[:16]}" for bundle in job.bundles}
    answer = f"{FILES}/bench.json"
    benches = []
    try:
        for bundle in job.bundles:
            name = names[bundle.folder]
            _copy_missing(adb, bundle, f"{FILES}/bundles/{name}", progress)
            progress(f"self-check: {bundle.folder.name}")
            adb.shell("rm", "-f", answer)
            extras = f"--es bundle {name} --ei queries {job.plan.queries} --es delegate {job.delegate}"
            output = adb.shell("am", "start", "-S", "-n", f"{PACKAGE}/.SelfCheckActivity", *extras.split())
            if "Error" in output:  # the exit code of am is 0
                raise JobError(f"the demo app did not start; install it on the phone ({last_line(output.encode())})")
            benches.append(_wait_for(adb, answer, ends, progress))
    finally:
        with contextlib.suppress(JobError):  # a lost phone keeps its files
            adb.shell("am", "force-stop", PACKAGE)
            copies = [] if job.keep else [f"{FILES}/bundles/{name}" for name in names.values()]
            adb.shell("rm", "-rf", answer, *copies)
    return replace(benches[-1], rows=tuple(row for bench in benches for row in bench.rows))


def _copy_missing(adb: Adb, bundle: Bundle, folder: str, progress: Progress) -> None:
    """Copy the bundle unless it is there; its manifest goes last, so that a bundle that has one is whole."""
    with contextlib.suppress(JobError):  # no such file
        if adb.shell("sha256sum", f"{folder}/{MANIFEST}").split()[:1] == [sha256_of(bundle.folder / MANIFEST)]:
            return
    progress(f"copying {bundle.folder.name}")
    adb.shell("rm", "-rf", folder)
    for path in (*(file.path for file in bundle.manifest.files), MANIFEST):
        adb.shell("mkdir", "-p", f"{folder}/{path}".rpartition("/")[0])
        adb.retry(progress, adb.push, bundle.folder / path, f"{folder}/{path}")


def _wait_for(adb: Adb, answer: str, ends: float, progress: Progress) -> Bench:
    """Poll until bench.json is complete. One that stays incomplete is refused; so is an app that has ended."""
    before, gone = None, False
    while time.monotonic() < ends:
        gone_before, gone = gone, not _is_alive(adb)
        text = adb.retry(progress, adb.read, answer)
        if text is not None:
            try:
                return read_bench(text, rows=1)
            except JobError:
                if text == before:  # otherwise it is still being written
                    raise
        if gone and gone_before:  # once may be before it has started
            raise JobError(
                "the demo app ended before its bench.json was complete: it crashed, or Android closed it; see "
                f"adb logcat -b crash ({PACKAGE})"
            )
        before = text
        progress("measuring")
        time.sleep(POLL_S)
    raise JobError("no complete bench.json within the time limit; keep the phone unlocked and the app in front")


def _is_alive(adb: Adb) -> bool:
    """Return whether the app has a process; True where the phone cannot report it."""
    try:
        return bool(adb.shell("pidof", PACKAGE).strip())
    except Lost:
        return True  # reading the answer handles that
    except JobError as error:
        return "exit code 1" not in str(error)
