"""One device by ssh: copy what isn't there, begin the bench, follow it through dropped lines, bring the answer."""

import hashlib
import json
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from stlm_edge import strict_json
from stlm_edge.bench.devices.archive import runner
from stlm_edge.bench.devices.images import digest_of, longest, map_of, name_of
from stlm_edge.bench.devices.runner import LARGEST_TAR
from stlm_edge.bench.devices.ssh import Lost, Ssh, printable
from stlm_edge.bench.match import RUNTIMES, Host
from stlm_edge.bench.result import Bench, Row
from stlm_edge.bundle import Bundle
from stlm_edge.bundle.manifest import MANIFEST
from stlm_edge.errors import JobError, UsageError
from stlm_edge.files import sha256_of

if TYPE_CHECKING:
    from stlm_edge.bench.accuracy import Judged
    from stlm_edge.data.sample import Sample

PATIENCE_S = 120.0  # without a connection, before a device counts as lost
_COPY_LIMIT_S = 3600.0


class Line(Protocol):
    """A connection that knows when it last heard of its device, by the monotonic clock."""

    heard: float


T = TypeVar("T")
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """What every device is asked: bundles, the bench's own arguments, and what is left behind on the device.

    `samples`: the labelled images that accuracy is measured on; none: it isn't.
    """

    bundles: tuple[Bundle, ...]
    arguments: tuple[str, ...]
    time_limit_s: float
    keep: bool
    samples: "tuple[Sample, ...]" = ()


def measure_over_ssh(ssh: Ssh, job: Job, progress: Progress) -> Bench:
    """The device's own bench.json. Raises JobError: unreachable, lost for PATIENCE_S, failed there, hostile answers.

    Whatever happens but a lost connection, the device is left clean. A lost one goes on measuring, and the same command
    picks its result up.
    """
    progress("connecting")
    archive = runner()
    ssh.install(archive)  # a first contact that fails is no dropped connection
    digests = [_digest(bundle) for bundle in job.bundles]
    text = json.dumps({"bundles": digests, "arguments": job.arguments, "time_limit_s": job.time_limit_s})
    run = hashlib.sha256(archive + text.encode()).hexdigest()[:16]
    keep = "keep" if job.keep else "remove"
    try:
        copy_missing(ssh, job, progress)
        images = copy_images(ssh, job, progress)
        state = _start(ssh, run, text, progress)
        while state.get("phase") == "running":
            state = patiently(ssh, progress, _follow, ssh, run, progress)
        if state.get("phase") != "done":
            raise JobError(printable(str(state.get("failure"))))
        bench = read_bench(patiently(ssh, progress, ssh.ask, "fetch", run).get("bench"))
        if len(bench.rows) != len(job.bundles):
            raise JobError(f"its bench.json: {len(bench.rows)} rows, expected {len(job.bundles)}")
        if job.samples:
            pairs = zip(bench.rows, job.bundles, strict=True)
            judged = [with_accuracy(ssh, (run, images), row, bundle, job, progress) for row, bundle in pairs]
            bench = replace(bench, rows=tuple(judged))
    except Lost as lost:
        raise JobError(f"lost: {lost}; if it still runs it goes on, and the same command picks its result up") from None
    except JobError:
        _clean(ssh, run, keep)
        raise
    _clean(ssh, run, keep)
    return bench


def host_of(ssh: Ssh, progress: Progress) -> Host:
    """What the device is, as far as bundles for it go by that. Raises JobError as `measure_over_ssh` does."""
    progress("connecting")
    try:
        ssh.install(runner())
        answer = ssh.ask("host")
    except Lost as lost:
        raise JobError(f"lost: {lost}") from None
    runtimes, jetson = answer.get("runtimes"), answer.get("jetson")
    if not isinstance(runtimes, list) or not isinstance(jetson, bool):
        raise JobError("its answer to host: not what was asked for")
    return Host(frozenset(name for name in RUNTIMES if name in runtimes), jetson)


def copy_missing(ssh: Ssh, job: Job, progress: Progress) -> None:
    """Copy the bundles that the device hasn't, or not whole."""
    for bundle in job.bundles:
        if patiently(ssh, progress, ssh.ask, "have", _digest(bundle)).get("have") is not True:
            progress(f"copying {bundle.folder.name}")
            patiently(ssh, progress, _send, ssh, bundle)


def _digest(bundle: Bundle) -> str:
    """Of its manifest, which holds those of all files: what a bundle is called on the device."""
    return sha256_of(bundle.folder / MANIFEST)


def read_bench(text: Any) -> Bench:
    """A device's bench.json, by the published schema, its texts printable. Raises JobError: anything else."""
    try:
        if not isinstance(text, (str, bytes)):
            raise UsageError("its bench.json: missing")
        return strict_json.read(Bench, _printable(strict_json.parse(text, "its bench.json")), "its bench.json")
    except UsageError as error:
        raise JobError(printable(str(error))) from None


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value, 2000)
    if isinstance(value, list):
        return [_printable(item) for item in value]
    if isinstance(value, dict):
        return {printable(key): _printable(item) for key, item in value.items()}
    return value


def _start(ssh: Ssh, run: str, text: str, progress: Progress) -> dict[str, Any]:
    for fresh in (False, True):
        answer = patiently(ssh, progress, ssh.ask, "start", run, text)
        state = answer.get("state")
        if not isinstance(state, dict):
            raise JobError("its answer to start: no state")
        if fresh or answer.get("joined") is not True:
            return state
        if state.get("phase") in ("running", "done"):
            progress("picking up the run that was begun there")
            return state
        patiently(ssh, progress, ssh.ask, "clean", run, "keep")  # an old failure: begin anew
    raise JobError("the device keeps an old failure of this run")


def _follow(ssh: Ssh, run: str, progress: Progress) -> dict[str, Any]:
    """The run's last state that was told. Raises Lost when the line breaks before it is over."""
    for answer in ssh.listen("watch", run):
        state = answer.get("state")
        if not isinstance(state, dict):
            raise JobError("its answer to watch: no state")
        progress(printable(str(answer.get("progress", ""))))
        if state.get("phase") != "running":
            return state
    raise Lost("the connection ended before the bench did")


def _send(ssh: Ssh, bundle: Bundle) -> dict[str, Any]:
    paths = (MANIFEST, *(listed.path for listed in bundle.manifest.files))
    return _send_files(ssh, "receive", _digest(bundle), {path: bundle.folder / path for path in paths})


def _send_files(ssh: Ssh, command: str, digest: str, files: dict[str, Path]) -> dict[str, Any]:
    """`files`: the names that they get there, and where they are here."""
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for name, path in files.items():
                member = tarfile.TarInfo(name)
                member.size = path.stat().st_size
                with path.open("rb") as source:
                    archive.addfile(member, source)
        file.seek(0)
        return ssh.ask(command, digest, source=file, time_limit_s=_COPY_LIMIT_S)


def copy_images(ssh: Ssh, job: Job, progress: Progress) -> str:
    """Copy the test images, as they are, unless the device has them; what they are called there."""
    if not job.samples:
        return ""
    paths = [sample.image for sample in job.samples]
    size = sum(path.stat().st_size for path in paths)
    if size > LARGEST_TAR:
        raise JobError(f"--data: {size >> 20} MB of images, a device takes at most {LARGEST_TAR >> 20}")
    digest = digest_of(paths)
    if patiently(ssh, progress, ssh.ask, "have-images", digest).get("have") is not True:
        progress(f"copying {len(paths)} test images")
        files = {name_of(number): path for number, path in enumerate(paths)}
        patiently(ssh, progress, _send_files, ssh, "receive-images", digest, files)
    return digest


def with_accuracy(
    ssh: Ssh, run_and_images: tuple[str, str], row: Row, bundle: Bundle, job: Job, progress: Progress
) -> Row:
    """The row with what the device's own maps are worth, if it answered the golden images as far as a wrong row does.

    What fails there fails the row. Raises Lost.
    """
    if row.parity is None:
        return replace(row, accuracy=None)
    from stlm_edge.bench.accuracy import Judged

    run, images = run_and_images
    judged = Judged(job.samples, bundle.manifest.input.size, bundle.folder.name, progress)
    words = (run, _digest(bundle), images, str(row.threads))
    try:
        ends = time.monotonic() + job.time_limit_s
        patiently(ssh, progress, _judge, ssh, words, judged, len(job.samples), ends, progress)
        return replace(row, accuracy=judged.accuracy())
    except Lost:
        raise
    except (JobError, UsageError) as error:
        return replace(row, passed=False, failure=f"accuracy: {error}", accuracy=None)


def _judge(ssh: Ssh, words: tuple[str, ...], judged: "Judged", total: int, ends: float, progress: Progress) -> None:
    """Take the device's answers on the images that aren't judged yet."""
    text = ""
    for answer in ssh.listen("judge", *words, str(len(judged))):
        progress("")  # where an interruption is heard of
        if time.monotonic() > ends:
            raise JobError(f"{len(judged)} of {total} images judged within the time limit")
        if "error" in answer:
            raise JobError(printable(str(answer["error"])))
        if answer.get("image", len(judged)) != len(judged):
            raise JobError(f"the device answered {printable(str(answer['image']))}, expected image {len(judged)}")
        if isinstance(part := answer.get("part", ""), str):
            text += part
        if len(text) > longest(judged.size):
            raise JobError(f"the device sent a map that isn't {judged.size}×{judged.size}")
        if "score" in answer:
            score = answer["score"]
            if isinstance(score, bool) or not isinstance(score, (int, float)):
                raise JobError(f"the device sent the score {printable(str(score))}, expected a number")
            judged.add(map_of(text, judged.size), float(score))
            text = ""
        if len(judged) == total:
            return
    raise JobError(f"the device ended after {len(judged)} of {total} images")


def _clean(ssh: Ssh, run: str, keep: str) -> None:
    try:
        ssh.ask("clean", run, keep)
    except JobError:
        return  # the result is worth more; what is left there is in one folder, which the runbooks name


def patiently(line: Line, progress: Progress, do: Callable[..., T], *arguments: Any) -> T:
    """Do it, again after a lost connection, until PATIENCE_S have passed without any."""
    failing, pause = None, 1.0
    while True:
        try:
            return do(*arguments)
        except Lost as lost:
            if failing is None or line.heard > failing:
                failing, pause = time.monotonic(), 1.0
            if time.monotonic() - failing + pause > PATIENCE_S:
                raise
            progress(f"{lost}; trying again")
            time.sleep(pause)
            pause = min(2 * pause, 15.0)
