"""The device's end of `--device ssh:…`: started anew for each command by the desk, and detached for the bench itself.

    python3 runner.pyz host                    which runtimes are installed, and is it a Jetson?
    python3 runner.pyz have BUNDLE             is this bundle (the sha256 of its manifest) here, and whole?
    python3 runner.pyz receive BUNDLE          take it as a tar from standard input
    python3 runner.pyz start RUN JSON          begin a run that outlives the connection, or find it begun
    python3 runner.pyz watch RUN               tell how it goes, until it is over
    python3 runner.pyz fetch RUN               its bench.json
    python3 runner.pyz have-images SET       are these test images (images.digest_of) here, and whole?
    python3 runner.pyz receive-images SET    take them as a tar from standard input
    python3 runner.pyz judge RUN BUNDLE SET THREADS FIRST
                                               a finished run's bundle's maps and scores of them, from the n-th on
    python3 runner.pyz clean RUN KEEP          end it if it still runs, and remove it; KEEP: keep, remove (all else)

Each answers with lines of JSON behind ANSWER, so that what a login shell prints does no harm. Everything stands in
`~/.cache/stlm-edge/bench/`. A run is alive while its worker holds its lock, whatever the clock or the process ids say.
What opens a bundle is imported where that is done: following a run costs the device next to nothing.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stlm_edge.errors import JobError, UsageError
from stlm_edge.files import cache_folder, write_text

try:
    import fcntl
except ImportError:  # Windows: a desk there can still send this file
    fcntl = None  # type: ignore[assignment]

ANSWER = "stlm-edge:"
HEARTBEAT_S = 5.0
_STATE, _BENCH, _LOG = "state.json", "bench.json", "progress"
_STARTING_S = 20.0  # in which a worker takes its lock
_GRACE_S = 60.0  # at most, beyond the time limit, which the bench keeps by itself unless it hangs
_LEAVING_S = 20.0  # from a SIGTERM to the end
LARGEST_TAR = 1 << 31  # bytes of the files of a bundle, and of a set of images
_FULL = 1 << 20  # bytes free, below which a disk counts as full: what failed there cannot even be written down


def main(arguments: list[str] | None = None) -> None:
    """Do one command. What fails is an answer, {"error": …}, with exit code 1."""
    command, *given = sys.argv[1:] if arguments is None else arguments
    known: dict[str, Callable[..., None]] = {
        **{"have": _have, "receive": _receive, "start": _start, "watch": _watch, "fetch": _fetch, "clean": _clean},
        **{"host": _host, "work": _work, "judge": _judge},
        **{"have-images": _have_images, "receive-images": _receive_images},
    }
    try:
        known[command](*given)
    except (UsageError, JobError, OSError, tarfile.TarError) as error:
        reason = f"{error.filename or 'device'}: {error.strerror}" if isinstance(error, OSError) else str(error)
        _say({"error": reason})
        raise SystemExit(1) from None


_saying = threading.Lock()


def _say(answer: dict[str, Any]) -> None:
    with _saying:
        print(ANSWER + json.dumps(answer), flush=True)


def home() -> Path:
    """Where bundles, runs and this file stand on the device."""
    return cache_folder() / "bench"


def _bundle(digest: str) -> Path:
    return home() / "bundles" / digest


def _images(digest: str) -> Path:
    return home() / "images" / digest


def _run(name: str) -> Path:
    return home() / "runs" / name


def _host() -> None:
    from stlm_edge.bench.match import this_host

    host = this_host()
    _say({"runtimes": sorted(host.runtimes), "jetson": host.jetson})


def _have(digest: str) -> None:
    from stlm_edge.bundle import open_bundle

    try:
        open_bundle(_bundle(digest))
    except UsageError:
        _say({"have": False})
    else:
        _say({"have": True})


def _receive(digest: str) -> None:
    from stlm_edge.bundle import open_bundle
    from stlm_edge.bundle.manifest import MANIFEST
    from stlm_edge.files import sha256_of

    with _arriving(_bundle(digest)) as part:
        open_bundle(part)
        if sha256_of(part / MANIFEST) != digest:
            raise JobError("the bundle arrived as another one; its manifest's sha256 differs")
    _say({"have": True})


@contextlib.contextmanager
def _arriving(place: Path) -> Iterator[Path]:
    """Unpack plain files from standard input beside `place`, which they take if the block finds them right."""
    part = place.with_name(f".{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        left = LARGEST_TAR
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
            for member in archive:
                path, left = Path(member.name), left - member.size
                source = archive.extractfile(member) if member.isreg() else None
                if source is None or path.is_absolute() or ".." in path.parts or left < 0:
                    raise JobError(f"{member.name[:80]!r}: not a plain file inside what is sent, or too large")
                (part / path).parent.mkdir(parents=True, exist_ok=True)
                with (part / path).open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
        yield part
        shutil.rmtree(place, ignore_errors=True)
        part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _have_images(digest: str) -> None:
    from stlm_edge.bench.devices.images import digest_of

    folder = _images(digest)
    _say({"have": folder.is_dir() and digest_of(sorted(folder.iterdir())) == digest})


def _receive_images(digest: str) -> None:
    from stlm_edge.bench.devices.images import digest_of

    with _arriving(_images(digest)) as part:
        if digest_of(sorted(part.iterdir())) != digest:
            raise JobError("the images arrived as others; their sha256 differ")
    _say({"have": True})


def _judge(run: str, bundle: str, images: str, threads: str, first: str) -> None:
    """Say a map in parts, then its score, image by image. It holds the run's lock: no other bench is disturbed."""
    from stlm_edge.bench.devices.images import parts_of
    from stlm_edge.bundle import open_bundle
    from stlm_edge.images import load

    threading.Thread(target=_beat, daemon=True).start()
    with contextlib.suppress(PermissionError):  # it leads a group already, by which `clean` ends it
        os.setsid()
    folder = _run(run)
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # once another judge, whose line broke, has left
        _write(folder, {**_state(folder), "pid": os.getpid()})
        opened = open_bundle(_bundle(bundle), threads=int(threads))
        for number, path in enumerate(sorted(_images(images).iterdir())):
            if number >= int(first):
                anomaly_map, score = opened.runtime.run(load(path, opened.manifest.input.size))
                for part in parts_of(anomaly_map):
                    _say({"image": number, "part": part})
                _say({"image": number, "score": score})


def _beat() -> None:
    """Show that this process is alive; leave when nobody listens any more."""
    try:
        while True:
            time.sleep(HEARTBEAT_S)
            _say({})
    except OSError:
        os._exit(1)


def _start(run: str, text: str) -> None:
    """Start a worker in a session of its own. `text`: {"bundles": digests, "arguments": …, "time_limit_s": …}."""
    folder = _run(run)
    for other in sorted(folder.parent.glob("*")):
        if other != folder and _alive(other):
            raise JobError(f"another bench runs on this device ({other.name}); two would spoil each other's figures")
    if (folder / _STATE).exists():
        _say({"state": _state(folder), "joined": True})
        return
    folder.mkdir(parents=True, exist_ok=True)
    if full := _full(folder):
        raise JobError(full)
    with (folder / "worker.log").open("wb") as log:
        subprocess.Popen(
            [sys.executable, sys.argv[0], "work", run, text],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    began = time.monotonic()
    while not (folder / _STATE).exists() and time.monotonic() - began < _STARTING_S:
        time.sleep(0.02)
    _say({"state": _state(folder), "joined": False})


def _watch(run: str) -> None:
    """Say what changed, and that it still runs every HEARTBEAT_S, until it is over."""
    folder, said, beat = _run(run), None, time.monotonic()
    while True:
        state = _state(folder)
        now = {"state": state, "progress": _last_line(folder / _LOG)}
        if now != said or time.monotonic() - beat >= HEARTBEAT_S:
            _say(now)
            said, beat = now, time.monotonic()
        if state["phase"] != "running":
            return
        time.sleep(0.2)


def _fetch(run: str) -> None:
    _say({"bench": (_run(run) / _BENCH).read_text("utf-8")})


def _clean(run: str, keep: str) -> None:
    folder = _run(run)
    for sign in (signal.SIGTERM, signal.SIGKILL):  # the first lets the bench set a power mode back
        began = time.monotonic()
        if _alive(folder) and (group := _state(folder)["pid"]):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, sign)
        while _alive(folder) and time.monotonic() - began < _LEAVING_S:
            time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)
    if keep != "keep" and not any(folder.parent.glob("*")):  # another desk's run may wait to be fetched
        shutil.rmtree(home(), ignore_errors=True)
        with contextlib.suppress(OSError):
            home().parent.rmdir()  # unless something else stands there
    _say({"clean": True})


def _work(run: str, text: str) -> None:
    """The detached process: runs the bench in its own process, writes down how it ended."""
    folder, job = _run(run), json.loads(text)
    signal.signal(signal.SIGTERM, lambda *_: None)  # a handler, which unlike SIG_IGN is not inherited
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _write(folder, {"phase": "running", "pid": os.getpid(), "failure": None})
        try:
            failure = _bench(folder, job, lock.fileno())
        except (UsageError, JobError, OSError) as error:
            failure = str(error)
        _write(folder, {"phase": "failed" if failure else "done", "pid": os.getpid(), "failure": failure})


def _bench(folder: Path, job: dict[str, Any], lock: int) -> str | None:
    """Run everything; returns why there is no bench.json, or None."""
    from stlm_edge.bench.machine.system import memory_kills

    limit = job["time_limit_s"]
    given = [argument for digest in job["bundles"] for argument in ("--bundle", str(_bundle(digest)))]
    given += [*job["arguments"], "--time-limit", str(max(1, int(limit))), "--out", str(folder)]
    killed_before = memory_kills()
    code = _child(folder, ["-m", "stlm_edge.bench", *given], limit + min(limit, _GRACE_S), lock)
    if (folder / _BENCH).exists():
        return None
    if code is None:
        return f"not finished within {limit:g} s, the time limit; it was ended"
    if code < 0:
        short = memory_kills() > killed_before
        return f"ended by signal {-code}" + (" while the device was out of memory" if short else "")
    return _full(folder) or _last_line(folder / _LOG).removeprefix("error: ") or f"ended with exit code {code}"


def _child(folder: Path, arguments: list[str], limit_s: float, lock: int) -> int | None:
    """Exit code, negative for a signal; None when it was ended because time was up.

    The child can import this runner, and holds the lock with it: it is not forgotten when the worker dies.
    """
    with (folder / _LOG).open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": str(Path(sys.argv[0]).resolve())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=(lock,),
        )
        try:
            return child.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            os.killpg(0, signal.SIGTERM)  # its own children with it; this process heeds no SIGTERM
            try:
                child.wait(_LEAVING_S)  # the bench sets a power mode back
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _state(folder: Path) -> dict[str, Any]:
    """{"phase": running, done, failed or missing, "pid": …, "failure": …}; a worker that died is a failure."""
    try:
        state = _read_state(folder)
    except FileNotFoundError:
        why = _last_line(folder / "worker.log") or "the device knows no such run"
        return {"phase": "missing", "pid": 0, "failure": why}
    if state["phase"] == "running" and not _alive(folder):
        state = _read_state(folder)  # again: it writes how it ended before it lets go of the lock
        if state["phase"] == "running":
            why = _last_line(folder / "worker.log") or "the device restarted, or the bench was killed there"
            return {**state, "phase": "failed", "failure": _full(folder) or why}
    return state


def _read_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / _STATE).read_text("utf-8"))
    return state


def _full(folder: Path) -> str | None:
    return "the device's disk is full" if shutil.disk_usage(folder).free < _FULL else None


def _write(folder: Path, state: dict[str, Any]) -> None:
    write_text(folder / _STATE, json.dumps(state))


def _alive(folder: Path) -> bool:
    try:
        with (folder / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 2000))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""
