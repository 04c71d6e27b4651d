"""The demo app's self-check, started by adb: the app proves and times each bundle on the phone and leaves bench.json.

The contract: package `org.stlm_edge.demo`, activity `.SelfCheckActivity`, extras `--es bundle NAME --ei queries N --es
delegate cpu|gpu`, NAME a folder in `bundles/` of the app's external files. The answer is `bench.json` in those files,
its last key `done: true`; the app removes an old one first. No phone has run this yet.
"""

import time
from dataclasses import dataclass, replace
from typing import Literal

from stlm_edge import strict_json
from stlm_edge.bench.devices.adb import Adb
from stlm_edge.bench.devices.remote import Progress, patiently, read_bench
from stlm_edge.bench.devices.ssh import Lost
from stlm_edge.bench.result import Bench
from stlm_edge.bundle import Bundle
from stlm_edge.bundle.manifest import MANIFEST
from stlm_edge.errors import JobError, UsageError
from stlm_edge.files import sha256_of

PACKAGE = "org.stlm_edge.demo"
FILES = f"/sdcard/Android/data/{PACKAGE}/files"
ANSWER = f"{FILES}/bench.json"
POLL_S = 3.0

Delegate = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class PhoneJob:
    """What every phone is asked."""

    bundles: tuple[Bundle, ...]
    queries: int
    delegate: Delegate
    time_limit_s: float
    keep: bool


def measure_by_app(adb: Adb, job: PhoneJob, progress: Progress) -> Bench:
    """The phone's own bench.json, one row per bundle. Raises JobError: no app, lost, time is up, no honest answer."""
    progress("connecting")
    adb.check()
    ends = time.monotonic() + job.time_limit_s
    names = {bundle.folder: f"bench-{sha256_of(bundle.folder / MANIFEST)[:16]}" for bundle in job.bundles}
    benches = []
    try:
        for bundle in job.bundles:
            name = names[bundle.folder]
            _push(adb, bundle, name, progress)
            progress(f"self-check: {bundle.folder.name}")
            adb.shell("rm", "-f", ANSWER)
            extras = ["--es", "bundle", name, "--ei", "queries", str(job.queries), "--es", "delegate", job.delegate]
            said = adb.shell("am", "start", "-S", "-n", f"{PACKAGE}/.SelfCheckActivity", *extras)
            if "Error" in said:  # am's own exit code is 0
                raise JobError(f"the demo app didn't start; install it on the phone ({_last_line(said)})")
            benches.append(_wait_for_answer(adb, ends, progress))
    finally:
        adb.clean(ANSWER, *(() if job.keep else (f"{FILES}/bundles/{name}" for name in names.values())), stop=PACKAGE)
    return replace(benches[-1], rows=tuple(row for bench in benches for row in bench.rows))


def _push(adb: Adb, bundle: Bundle, name: str, progress: Progress) -> None:
    """Copy the bundle unless it is there; its manifest goes last, so that one that is there is whole."""
    there = f"{FILES}/bundles/{name}"
    digest = sha256_of(bundle.folder / MANIFEST)
    try:
        if adb.shell("sha256sum", f"{there}/{MANIFEST}").split()[:1] == [digest]:
            return
    except JobError:
        pass  # not there
    progress(f"copying {bundle.folder.name}")
    adb.shell("rm", "-rf", there)
    for file in bundle.manifest.files:
        folder = f"{there}/{file.path}".rpartition("/")[0]
        adb.shell("mkdir", "-p", folder)
        patiently(adb, progress, adb.push, bundle.folder / file.path, f"{there}/{file.path}")
    patiently(adb, progress, adb.push, bundle.folder / MANIFEST, f"{there}/{MANIFEST}")


def _wait_for_answer(adb: Adb, ends: float, progress: Progress) -> Bench:
    """Poll until the file is whole; one that stays as it is and isn't, is refused, and an app that is gone is told."""
    before, gone = None, False
    while time.monotonic() < ends:
        gone_before, gone = gone, not _is_alive(adb)
        text = patiently(adb, progress, adb.read, ANSWER)
        if text is not None:
            whole = _is_done(text)
            if whole or text == before:
                bench = read_bench(text)
                if len(bench.rows) != 1:
                    raise JobError(f"its bench.json: {len(bench.rows)} rows, expected 1")
                return bench
        if gone and gone_before:  # once may be before it has begun
            raise JobError(
                "the demo app ended before its bench.json was whole: it crashed, or Android closed it; "
                f"adb logcat -b crash tells which ({PACKAGE})"
            )
        before = text
        progress("measuring")
        time.sleep(POLL_S)
    raise JobError("no whole bench.json before the time limit; keep the phone unlocked and the app in front")


def _is_alive(adb: Adb) -> bool:
    """Whether the app has a process; true where the phone can't tell."""
    try:
        return bool(adb.shell("pidof", PACKAGE).strip())
    except Lost:
        return True  # what reads the answer deals with that
    except JobError as error:
        return "exit code 1" not in str(error)


def _is_done(text: bytes) -> bool:
    try:
        value = strict_json.parse(text, "its bench.json")
    except UsageError:
        return False
    return isinstance(value, dict) and value.get("done") is True


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:200]
