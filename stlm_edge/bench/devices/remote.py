"""Measuring on a device behind ssh: copy what is missing, start the bench, follow it, and fetch its result."""

import contextlib
import hashlib
import json
import tarfile
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stlm_edge import strict_json
from stlm_edge.bench.devices.archive import runner
from stlm_edge.bench.devices.device import Job, Progress
from stlm_edge.bench.devices.runner import LARGEST_FOLDER, digest_of, map_of
from stlm_edge.bench.devices.ssh import Lost, Ssh, printable
from stlm_edge.bench.result import Bench, Row
from stlm_edge.bench.subjects import RUNTIMES, Capabilities
from stlm_edge.bundle import Bundle
from stlm_edge.bundle.manifest import MANIFEST
from stlm_edge.errors import JobError, UsageError

if TYPE_CHECKING:
    from stlm_edge.bench.accuracy import Judged

_COPY_LIMIT_S = 3600.0


def measure_over_ssh(ssh: Ssh, job: Job, progress: Progress) -> Bench:
    """Return the bench.json that the device wrote.

    The device is left clean unless the connection is lost. A lost device goes on measuring, and the same job joins
    its run.

    Raises:
        JobError: the device is unreachable (Lost), the bench failed there, or its answers are not valid
    """
    progress("connecting")
    archive = runner()
    ssh.install(archive)  # a first contact that fails is no dropped connection
    folders = [_files_of(bundle) for bundle in job.bundles]
    digests = [digest_of(files) for files in folders]
    text = json.dumps({"bundles": digests, "arguments": _arguments(job), "time_limit_s": job.plan.time_limit_s})
    run = hashlib.sha256(archive + text.encode()).hexdigest()[:16]
    try:
        for bundle, files in zip(job.bundles, folders, strict=True):
            copy_missing(ssh, bundle.folder.name, files, progress)
        images = {f"{number:06}": sample.image for number, sample in enumerate(job.samples)}
        image_digest = copy_missing(ssh, f"{len(images)} test images", images, progress) if images else ""
        if ssh.retry(progress, ssh.ask, "start", run, text).get("joined") is True:
            progress("joining the run that was started there")
        bench = read_bench(ssh.retry(progress, _follow, ssh, run, progress), rows=len(job.bundles))
        if images:
            words = [(run, digest, image_digest, str(job.threads)) for digest in digests]
            each = zip(words, bench.rows, job.bundles, strict=True)
            bench = replace(bench, rows=tuple(with_accuracy(ssh, *one, job, progress) for one in each))
    except Lost as lost:
        raise Lost(f"{lost}; the device goes on: run the same command again to fetch its result") from None
    except JobError:
        _clean(ssh, run, job.keep)
        raise
    _clean(ssh, run, job.keep)
    return bench


def capabilities_of(ssh: Ssh, progress: Progress) -> Capabilities:
    """Return the device's runtimes, and whether it is a Jetson. Raises JobError as `measure_over_ssh` does."""
    progress("connecting")
    ssh.install(runner())
    answer = ssh.ask("capabilities")
    runtimes, jetson = answer.get("runtimes"), answer.get("jetson")
    if not isinstance(runtimes, list) or not isinstance(jetson, bool):
        raise JobError('the device\'s answer to "capabilities": expected its runtimes and whether it is a Jetson')
    return Capabilities(frozenset(name for name in RUNTIMES if name in runtimes), jetson)


def _files_of(bundle: Bundle) -> dict[str, Path]:
    paths = (MANIFEST, *(listed.path for listed in bundle.manifest.files))
    return {path: bundle.folder / path for path in paths}


def _arguments(job: Job) -> list[str]:
    """Return the options of stlm-bench on the device."""
    plan = job.plan
    arguments = ["--threads", str(job.threads), "--queries", str(plan.queries), "--seconds", f"{plan.seconds:g}"]
    arguments += [part for streams in plan.streams for part in ("--streams", str(streams))]
    arguments += ["--even-if-wrong"] if plan.even_if_wrong else []
    return arguments + ([] if job.power_mode is None else ["--set-power-mode", str(job.power_mode)])


def copy_missing(ssh: Ssh, name: str, files: Mapping[str, Path], progress: Progress) -> str:
    """Copy files, given as path in a folder to file on this host, unless the device has them; return their digest."""
    size = sum(path.stat().st_size for path in files.values())
    if size > LARGEST_FOLDER:
        raise JobError(f"{name}: {size >> 20} MB, a device accepts at most {LARGEST_FOLDER >> 20} MB")
    digest = digest_of(files)
    if ssh.retry(progress, ssh.ask, "have", digest).get("have") is not True:
        progress(f"copying {name}")
        ssh.retry(progress, _send, ssh, digest, files)
    return digest


def _send(ssh: Ssh, digest: str, files: Mapping[str, Path]) -> None:
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for name, path in files.items():
                member = tarfile.TarInfo(name)
                member.size = path.stat().st_size
                with path.open("rb") as source:
                    archive.addfile(member, source)
        file.seek(0)
        ssh.ask("receive", digest, source=file, time_limit_s=_COPY_LIMIT_S)


def _follow(ssh: Ssh, run: str, progress: Progress) -> Any:
    """Return the text of the run's bench.json once it has ended. Raises Lost when the connection ends before."""
    for answer in ssh.listen("watch", run):
        progress(printable(answer.get("progress", "")))
        if answer.get("phase") == "done":
            return answer.get("bench")
        if answer.get("phase") != "running":
            raise JobError(printable(answer.get("failure") or answer.get("error")))
    raise Lost("the connection ended before the bench did")


def read_bench(text: Any, rows: int) -> Bench:
    """Read a device's bench.json by the published schema, its texts made printable. Raises JobError otherwise."""
    name = "bench.json of the device"
    if not isinstance(text, (str, bytes)):
        raise JobError(f"{name}: missing")
    try:
        bench = strict_json.read(Bench, _printable(strict_json.parse(text, name)), name)
    except UsageError as error:
        raise JobError(printable(error)) from None
    if len(bench.rows) != rows:
        raise JobError(f"{name}: {len(bench.rows)} rows, expected {rows}")
    return bench


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value, 2000)
    if isinstance(value, list):
        return [_printable(item) for item in value]
    if isinstance(value, dict):
        return {printable(key): _printable(item) for key, item in value.items()}
    return value


def with_accuracy(ssh: Ssh, words: tuple[str, ...], row: Row, bundle: Bundle, job: Job, progress: Progress) -> Row:
    """Return the row with the accuracy of the device's own maps; without, if it did not run the golden images.

    `words` are those of the runner's `judge`. A failure there is the row's failure. Raises Lost without a connection.
    """
    if row.parity is None:
        return replace(row, accuracy=None)
    from stlm_edge.bench.accuracy import Judged

    judged = Judged(job.samples, bundle.manifest.input.size, bundle.folder.name, progress)
    try:
        ends = time.monotonic() + job.plan.time_limit_s
        ssh.retry(progress, _judge, ssh, words, judged, len(job.samples), ends, progress)
        return replace(row, accuracy=judged.accuracy())
    except Lost:
        raise
    except (JobError, UsageError) as error:
        return replace(row, passed=False, failure=f"accuracy: {error}", accuracy=None)


def _judge(ssh: Ssh, words: tuple[str, ...], judged: "Judged", total: int, ends: float, progress: Progress) -> None:
    """Add the device's maps and scores of the images that are not judged yet."""
    for answer in ssh.listen("judge", *words, str(len(judged))):
        progress("")  # raises after an interruption
        if time.monotonic() > ends:
            raise JobError(f"{len(judged)} of {total} images judged within the time limit")
        if "error" in answer:
            raise JobError(printable(answer["error"]))
        if "image" not in answer:
            continue  # a heartbeat
        if answer["image"] != len(judged):
            raise JobError(f"the device answered {printable(answer['image'])}, expected image {len(judged)}")
        score = answer.get("score")
        if isinstance(score, bool) or not isinstance(score, (int, float)):
            raise JobError(f"the device sent the score {printable(score)}, expected a number")
        judged.add(map_of(answer.get("map"), judged.size), float(score))
        if len(judged) == total:
            return
    raise JobError(f"the device ended after {len(judged)} of {total} images")


def _clean(ssh: Ssh, run: str, keep: bool) -> None:
    """End the run and remove its files; if that fails, what is left is in one folder, which the runbooks name."""
    with contextlib.suppress(JobError):
        ssh.ask("clean", run, "keep" if keep else "remove")
