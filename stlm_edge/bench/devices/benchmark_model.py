"""LiteRT's own benchmark_model on a phone, pushed there by adb: latency alone, with no word on verdicts.

Its answer is a binary protobuf, tensorflow/lite/tools/benchmark/proto/benchmark_result.proto: latency_metrics (2) with
avg_ms 1, median_ms 5, p5_ms 6, p95_ms 7, init_ms 8, first_inference_ms 9, all float; memory_metrics (3) with
peak_mem_mb 3; misc_metrics (4) with num_runs 2 and num_warmup_runs 3. It tells neither p90 nor p99.
"""

import io
import math
import struct
from dataclasses import dataclass, replace
from pathlib import Path

from stlm_edge.bench.devices.adb import Adb
from stlm_edge.bench.devices.remote import Progress
from stlm_edge.bench.devices.self_check import PhoneJob
from stlm_edge.bench.devices.ssh import printable
from stlm_edge.bench.machine.system import Machine
from stlm_edge.bench.result import Latency, Row
from stlm_edge.errors import JobError
from stlm_edge.formats import protobuf

FOLDER = "/data/local/tmp/stlm-edge"
NOT_PROVEN = "its verdicts were not checked: benchmark_model only times"
_LATENCY, _MEMORY, _MISC = 2, 3, 4


@dataclass(frozen=True)
class Told:
    """What benchmark_model tells; None where it doesn't. Its memory is in MiB."""

    median_ms: float
    init_ms: float | None
    first_inference_ms: float | None
    peak_mib: float | None
    runs: int
    warmup_runs: int


def time_by_benchmark_model(adb: Adb, binary: Path, job: PhoneJob, rows: list[Row], progress: Progress) -> list[Row]:
    """Time each bundle's .tflite; the rows have latency and are not passed, since nothing was proven.

    Raises JobError when the phone is lost or the binary fails, as it does where the GPU doesn't take the whole graph.
    """
    progress("connecting")
    adb.check()
    try:
        adb.shell("mkdir", "-p", FOLDER)
        adb.push(binary, f"{FOLDER}/benchmark_model")
        adb.shell("chmod", "755", f"{FOLDER}/benchmark_model")
        found = []
        for bundle, row in zip(job.bundles, rows, strict=True):
            progress(f"timing {row.name}")
            adb.shell("rm", "-f", f"{FOLDER}/result.pb", f"{FOLDER}/model.tflite")
            adb.push(bundle.folder / bundle.manifest.artifact, f"{FOLDER}/model.tflite")
            gpu = ["--use_gpu=true", "--use_cpu=false", "--require_full_delegation=true"]
            adb.shell(
                f"{FOLDER}/benchmark_model",
                f"--graph={FOLDER}/model.tflite",
                f"--num_threads={row.threads}",
                f"--num_runs={job.queries}",
                f"--result_file_path={FOLDER}/result.pb",
                *(gpu if job.delegate == "gpu" else []),
                time_limit_s=job.time_limit_s,
            )
            found.append(_timed(row, parse_result(adb.read(f"{FOLDER}/result.pb") or b""), job.delegate))
        return found
    finally:
        adb.clean(FOLDER)


def _timed(row: Row, told: Told, delegate: str) -> Row:
    return replace(
        row,
        runtime=f"litert {delegate}, benchmark_model",
        passed=False,
        failure=NOT_PROVEN,
        timed_even_if_wrong=True,
        load_ms=told.init_ms,
        first_inference_ms=told.first_inference_ms,
        peak_memory_mb=None if told.peak_mib is None else round(told.peak_mib * 1.048576, 1),
        warmup=told.warmup_runs,
        queries=told.runs,
        latency_ms=Latency(told.median_ms, None, None, None),
    )


def describe_phone(adb: Adb) -> Machine:
    """What a phone's shell tells of it."""

    def told(*words: str) -> str | None:
        try:
            return printable(adb.shell(*words)) or None
        except JobError:
            return None

    names = [told("getprop", f"ro.product.{name}") for name in ("manufacturer", "model")]
    release, cores = told("getprop", "ro.build.version.release"), told("nproc")
    return Machine(
        device=" ".join(filter(None, names)) or None,
        processor=told("getprop", "ro.soc.model"),
        architecture=told("uname", "-m") or "unknown",
        instructions=(),
        cores=int(cores) if cores and cores.isdecimal() and len(cores) < 4 else 1,
        cores_of_machine=None,
        memory_gb=None,
        virtual=None,
        governor=None,
        load_before=None,
        load_after=None,
        power_mode=None,
        clocks={},
        celsius_before={},
        celsius_after={},
        throttling_events=None,
        system=f"Android {release}" if release else "unknown",
        kernel=f"Linux {told('uname', '-r') or 'unknown'}",
        python="none: benchmark_model",
        packages={},
    )


def parse_result(data: bytes) -> Told:
    """Read benchmark_model's answer. Raises JobError for anything else, and for one without a median."""
    try:
        parts = _messages(data)
        latency, memory, misc = (_numbers(parts.get(number, b"")) for number in (_LATENCY, _MEMORY, _MISC))
        median = latency.get(5)
        if median is None or median <= 0:
            raise protobuf.Malformed("it tells no median")
        runs = [int(misc.get(number, 0)) for number in (2, 3)]
        if not all(0 <= count < 1 << 31 for count in runs):
            raise protobuf.Malformed("its number of runs is none")
        return Told(float(median), latency.get(8), latency.get(9), memory.get(3) or None, *runs)
    except protobuf.Malformed as error:
        raise JobError(f"benchmark_model's answer can't be read: {error}") from None


def _messages(data: bytes) -> dict[int, bytes]:
    return {
        field.number: data[field.content : field.end]
        for field in protobuf.fields(io.BytesIO(data), len(data))
        if field.wire == protobuf.BYTES
    }


def _numbers(data: bytes) -> dict[int, float]:
    """Its floats and whole numbers, by field; a float that isn't finite or is negative is Malformed."""
    found: dict[int, float] = {}
    for field in protobuf.fields(io.BytesIO(data), len(data)):
        content = data[field.content : field.end]
        if field.wire == protobuf.FIXED32:
            (value,) = struct.unpack("<f", content)
            if not math.isfinite(value) or value < 0:
                raise protobuf.Malformed(f"field {field.number} is {value}")
            found[field.number] = value
        elif field.wire == protobuf.VARINT:
            found[field.number] = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(content))
    return found
