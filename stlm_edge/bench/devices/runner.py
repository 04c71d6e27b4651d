"""Device side of `--device ssh:…`: started by the host for each command, and detached for the bench itself.

    python3 runner.pyz capabilities            report the installed runtimes, and whether this is a Jetson
    python3 runner.pyz have DIGEST             report whether the folder with this digest is here, unchanged
    python3 runner.pyz receive DIGEST          take that folder as a tar from standard input
    python3 runner.pyz start RUN JSON          start a run that outlives the connection, or join it
    python3 runner.pyz watch RUN               report its progress until it ends, then its bench.json
    python3 runner.pyz judge RUN BUNDLE IMAGES THREADS FIRST
                                               send a bundle's maps and scores of the test images, from FIRST on
    python3 runner.pyz clean RUN KEEP          end the run, and remove it; KEEP: keep or remove everything else

Each answers with lines of JSON that begin with ANSWER, unlike what a login shell may print. All files are in
`~/.cache/stlm-edge/bench/`. A run is alive while its worker holds its lock, regardless of clocks and process ids.
Imports that open a bundle are local, so that following a run costs the device next to nothing.
"""

import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stlm_edge.errors import JobError, UsageError
from stlm_edge.files import cache_folder, sha256_of, write_text

if TYPE_CHECKING:
    import numpy as np

try:
    import fcntl
except ImportError:  # a host with Windows can still import, and send, this file
    fcntl = None  # type: ignore[assignment]

ANSWER = "stlm-edge:"
HEARTBEAT_S = 5.0
LARGEST_FOLDER = 1 << 31  # bytes
_PID, _BENCH, _FAILURE, _LOG = "pid", "bench.json", "failure", "progress"
_STARTING_S = 20.0  # in which a worker takes its lock
_GRACE_S = 60.0  # beyond the time limit, which the bench keeps by itself unless it hangs
_LEAVING_S = 20.0  # from a SIGTERM to the end
_FULL = 1 << 20  # bytes free, below which a disk counts as full: even the failure cannot be written


def main(arguments: list[str] | None = None) -> None:
    """Run one command. A failure is the answer {"error": …} and exit code 1."""
    command, *words = sys.argv[1:] if arguments is None else arguments
    commands: dict[str, Callable[..., None]] = {
        **{"capabilities": _capabilities, "have": _have, "receive": _receive, "start": _start, "watch": _watch},
        **{"judge": _judge, "clean": _clean, "work": _work},
    }
    try:
        commands[command](*words)
    except (UsageError, JobError, OSError, tarfile.TarError) as error:
        reason = f"{error.filename or 'device'}: {error.strerror}" if isinstance(error, OSError) else str(error)
        _send({"error": reason})
        raise SystemExit(1) from None


_sending = threading.Lock()


def _send(answer: dict[str, Any]) -> None:
    with _sending:
        print(f"\n{ANSWER}{json.dumps(answer)}", flush=True)  # on a line of its own


def home() -> Path:
    """Return the folder of all files of the bench on the device."""
    return cache_folder() / "bench"


def _folder(digest: str) -> Path:
    return home() / "folders" / digest


def _run(name: str) -> Path:
    return home() / "runs" / name


def digest_of(files: Mapping[str, Path]) -> str:
    """Return the sha256 of a folder's content, given as path in the folder to file."""
    lines = [f"{sha256_of(path)} {name}\n" for name, path in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _content_digest(folder: Path) -> str:
    return digest_of({path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()})


def _capabilities() -> None:
    from stlm_edge.bench.subjects import capabilities

    machine = capabilities()
    _send({"runtimes": sorted(machine.runtimes), "jetson": machine.jetson})


def _have(digest: str) -> None:
    _send({"have": _content_digest(_folder(digest)) == digest})


def _receive(digest: str) -> None:
    place = _folder(digest)
    part = place.with_name(f".{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        free = LARGEST_FOLDER
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
            for member in archive:
                path, free = Path(member.name), free - member.size
                source = archive.extractfile(member) if member.isreg() else None
                if source is None or path.is_absolute() or ".." in path.parts or free < 0:
                    raise JobError(f"{member.name[:80]!r}: not a plain file inside the folder, or too large")
                (part / path).parent.mkdir(parents=True, exist_ok=True)
                with (part / path).open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
        if _content_digest(part) != digest:
            raise JobError("checksum mismatch: the files changed while they were copied; run the command again")
        shutil.rmtree(place, ignore_errors=True)
        part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _send({"have": True})


def _start(run: str, text: str) -> None:
    """Start a worker in its own session, unless the run is alive or done.

    `text` is JSON: {"bundles": digests, "arguments": of stlm-bench, "time_limit_s": …}.
    """
    folder = _run(run)
    for other in sorted(folder.parent.glob("*")):
        if other != folder and _alive(other):
            raise JobError(f"another bench runs on this device ({other.name}); wait until it has ended")
    joined = _state(folder)["phase"] != "failed"
    if not joined:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
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
        while not (folder / _PID).exists() and time.monotonic() - began < _STARTING_S:
            time.sleep(0.02)
    _send({"joined": joined})


def _watch(run: str) -> None:
    """Send what changed, and a heartbeat every HEARTBEAT_S, until the run has ended."""
    folder, sent, sent_at = _run(run), None, 0.0
    while True:
        answer = _state(folder)
        if answer != sent or time.monotonic() - sent_at >= HEARTBEAT_S:
            _send(answer)
            sent, sent_at = answer, time.monotonic()
        if answer["phase"] != "running":
            return
        time.sleep(0.2)


def _judge(run: str, bundle: str, images: str, threads: str, first: str) -> None:
    """Send map and score of each image; it holds the run's lock, which keeps other benches away."""
    from stlm_edge.bundle import open_bundle
    from stlm_edge.images import load

    threading.Thread(target=_beat, daemon=True).start()
    with contextlib.suppress(PermissionError):  # it leads a process group already, by which `clean` ends it
        os.setsid()
    folder = _run(run)
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # waits for a judge whose connection broke
        write_text(folder / _PID, str(os.getpid()))
        opened = open_bundle(_folder(bundle), threads=int(threads))
        for number, path in enumerate(sorted(_folder(images).iterdir())):
            if number >= int(first):
                anomaly_map, score = opened.runtime.run(load(path, opened.manifest.input.size))
                _send({"image": number, "score": score, "map": packed(anomaly_map)})


def packed(anomaly_map: "np.ndarray") -> str:
    """Return a map S×S as text: float16, little-endian, zlib, base64."""
    return base64.b64encode(zlib.compress(anomaly_map.astype("<f2").tobytes(), 1)).decode()


def map_of(text: Any, size: int) -> "np.ndarray":
    """Return the map float32 S×S of a packed text. Raises JobError for anything else, and for values not finite."""
    import numpy as np

    inflating, expected = zlib.decompressobj(), 2 * size * size
    try:
        data = inflating.decompress(base64.b64decode(text, validate=True), expected + 1)
    except (TypeError, ValueError, zlib.error):
        raise JobError("the device sent a map that cannot be unpacked") from None
    if len(data) != expected or not inflating.eof:
        raise JobError(f"the device sent a map that is not {size}×{size}")
    values = np.frombuffer(data, "<f2").reshape(size, size).astype(np.float32)
    if not np.isfinite(values).all():
        raise JobError("the device sent a map with values that are not finite")
    return values


def _beat() -> None:
    """Send heartbeats; end the process when nobody listens any more."""
    try:
        while True:
            time.sleep(HEARTBEAT_S)
            _send({})
    except OSError:
        os._exit(1)


def _clean(run: str, keep: str) -> None:
    folder = _run(run)
    for sign in (signal.SIGTERM, signal.SIGKILL):  # the first lets the bench restore a power mode
        began = time.monotonic()
        if _alive(folder):
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                os.killpg(int((folder / _PID).read_text()), sign)
        while _alive(folder) and time.monotonic() - began < _LEAVING_S:
            time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)
    if keep != "keep" and not any(folder.parent.glob("*")):  # another host's run may wait to be fetched
        shutil.rmtree(home(), ignore_errors=True)
        with contextlib.suppress(OSError):
            home().parent.rmdir()  # unless it has other files
    _send({"clean": True})


def _work(run: str, text: str) -> None:
    """Run the bench as a child of this detached process, and record how it ended."""
    folder, job = _run(run), json.loads(text)
    signal.signal(signal.SIGTERM, lambda *_: None)  # a handler, which unlike SIG_IGN is not inherited
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        write_text(folder / _PID, str(os.getpid()))
        try:
            failure = _bench(folder, job, lock.fileno())
        except (UsageError, JobError, OSError) as error:
            failure = str(error)
        write_text(folder / _FAILURE, failure)


def _bench(folder: Path, job: dict[str, Any], lock: int) -> str:
    """Run stlm-bench; return why it failed, for a run without bench.json.

    The child imports this zip application. It holds the lock, too, so that it is not forgotten if the worker dies.
    """
    from stlm_edge.bench.machine.system import memory_kills

    limit = job["time_limit_s"]
    arguments = [word for digest in job["bundles"] for word in ("--bundle", str(_folder(digest)))]
    arguments += [*job["arguments"], "--time-limit", str(max(1, int(limit))), "--out", str(folder)]
    kills = memory_kills()
    with (folder / _LOG).open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "stlm_edge.bench", *arguments],
            env={**os.environ, "PYTHONPATH": str(Path(sys.argv[0]).resolve())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=(lock,),
        )
    code = None
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = child.wait(limit + min(limit, _GRACE_S))
    finally:
        os.killpg(0, signal.SIGTERM)  # the child and its children; this process ignores it
        try:
            child.wait(_LEAVING_S)  # the bench restores a power mode
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if code is None:
        return f"not finished within the time limit of {limit:g} s; terminated"
    if code < 0:
        reason = " while the device was out of memory" if memory_kills() > kills else ""
        return f"terminated by signal {-code}{reason}"
    return _full(folder) or _last_line(folder / _LOG).removeprefix("error: ") or f"exit code {code}"


def _state(folder: Path) -> dict[str, Any]:
    """Return the phase of a run (running, done or failed), its progress, and its bench.json or failure."""
    if _alive(folder):
        return {"phase": "running", "progress": _last_line(folder / _LOG)}
    if (folder / _BENCH).exists():
        return {"phase": "done", "bench": (folder / _BENCH).read_text("utf-8")}
    failure = _last_line(folder / _FAILURE)
    if not failure and folder.exists():
        failure = _full(folder) or _last_line(folder / "worker.log")
        failure = failure or "the device restarted, or the bench was killed there"
    return {"phase": "failed", "failure": failure or "no such run on the device"}


def _full(folder: Path) -> str | None:
    return "the device's disk is full" if shutil.disk_usage(folder).free < _FULL else None


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
