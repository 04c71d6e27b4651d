"""Readings printed by NVIDIA's tools: nvidia-smi for desktop GPUs, tegrastats for Jetsons.

The fields of nvidia-smi are those of its documentation; it has not been run on a GPU yet. A line of tegrastats, in the
forms of JetPack 4 to 7:

    RAM 20642/62817MB (lfb 1x2MB) … GR3D_FREQ 12%@[1300,1300] … cpu@52.9C/52.9C … VDD_IN 4970mW/4970mW/4970mW

The GPU's load and clock may be missing, and its clock is one number or a list. A temperature may come twice, and is
-256 for a part that is off. Power is the present value followed by averages, with or without its unit.
"""

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field

NVIDIA_SMI = (
    "nvidia-smi",
    "--query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu,utilization.gpu,memory.used",
    "--format=csv,noheader,nounits",
)
_FIELDS = 7
_TIME_LIMIT_S = 10.0
_MEMORY = re.compile(r"\bRAM (\d+)/\d+MB")
_GPU = re.compile(r"\bGR3D_FREQ (?:(\d+)%)?(?:@\[?(\d[\d,]*)\]?)?")
_CELSIUS = re.compile(r"(?<!\S)([A-Za-z]\w*)@(-?\d+(?:\.\d+)?)C(?=[\s/]|$)")
_POWER = re.compile(r"(?<!\S)([A-Z]\w*) (\d+)(?:mW)?(?:/\d+(?:mW)?){1,2}(?!\S)")
_OFF_CELSIUS = -200.0  # below this, the part is off


@dataclass(frozen=True)
class Reading:
    """Sensor values of one moment; a value that the machine does not report is missing or None."""

    clocks: dict[str, float] = field(default_factory=dict)  # MHz
    celsius: dict[str, float] = field(default_factory=dict)
    gpu_percent: float | None = None  # load of the first GPU
    memory_mb: float | None = None  # in use on a Jetson, or on the first GPU; MiB by nvidia-smi
    milliwatts: dict[str, float] = field(default_factory=dict)  # by power rail
    gpu: str | None = None  # names of the GPUs, and their driver


def merge(readings: Iterable[Reading]) -> Reading:
    """Return one reading with the values of all; of single values the first."""
    every = list(readings)

    def first(name: str) -> float | None:
        return next((value for reading in every if (value := getattr(reading, name)) is not None), None)

    return Reading(
        clocks={name: value for reading in every for name, value in reading.clocks.items()},
        celsius={name: value for reading in every for name, value in reading.celsius.items()},
        gpu_percent=first("gpu_percent"),
        memory_mb=first("memory_mb"),
        gpu=next((reading.gpu for reading in every if reading.gpu), None),
    )


def output_of(*command: str) -> str:
    """Return what a tool prints on both its streams, at most 64 KB; "" if it is missing or does not end in time."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TIME_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout[: 1 << 16].decode("utf-8", "replace")


def parse_nvidia_smi(text: str) -> Reading:
    """Read the output of NVIDIA_SMI, one line per GPU; [N/A] and [Not Supported] are missing values."""
    lines = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    lines = [cells for cells in lines if len(cells) == _FIELDS and _number(cells[2]) is not None]
    if not lines:
        return Reading()
    clocks: dict[str, float] = {}
    celsius: dict[str, float] = {}
    for number, cells in enumerate(lines):
        name = "GPU" if len(lines) == 1 else f"GPU {number}"
        for column, key, values in ((2, name, clocks), (3, f"{name} memory", clocks), (4, name, celsius)):
            if (value := _number(cells[column])) is not None:
                values[key] = value
    gpu = f"{' and '.join(cells[0] for cells in lines)}, driver {lines[0][1]}"
    return Reading(clocks, celsius, _number(lines[0][5]), _number(lines[0][6]), gpu=gpu)


def parse_tegrastats(line: str) -> Reading:
    """Read one line of tegrastats."""
    line = line[:4096]
    memory, gpu = _MEMORY.search(line), _GPU.search(line)
    return Reading(
        clocks={"GPU": max(float(part) for part in gpu[2].split(",") if part)} if gpu and gpu[2] else {},
        celsius={name: float(value) for name, value in _CELSIUS.findall(line) if float(value) > _OFF_CELSIUS},
        gpu_percent=float(gpu[1]) if gpu and gpu[1] else None,
        memory_mb=float(memory[1]) if memory else None,
        milliwatts={name: float(now) for name, now in _POWER.findall(line) if name != "NC"},
    )


def _number(text: str) -> float | None:
    return float(text) if text.replace(".", "", 1).isdecimal() else None
