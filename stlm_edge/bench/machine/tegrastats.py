"""One line of NVIDIA's tegrastats, in each form that JetPack 4 to 7 print it.

    RAM 20642/62817MB (lfb 1x2MB) … GR3D_FREQ 12%@[1300,1300] … cpu@52.9C/52.9C … VDD_IN 4970mW/4970mW/4970mW

The GPU's load may be missing, its clock may be missing, one number or a list; a temperature may come twice and is -256
where the part is off; power is the present value first, then averages, with or without its unit. Order doesn't matter.
"""

import re
from dataclasses import dataclass

_MEMORY = re.compile(r"\bRAM (\d+)/(\d+)MB")
_GPU = re.compile(r"\bGR3D_FREQ (?:(\d+)%)?(?:@\[?([\d,]+)\]?)?")
_CELSIUS = re.compile(r"(?<!\S)([A-Za-z]\w*)@(-?\d+(?:\.\d+)?)C(?=[\s/]|$)")
_POWER = re.compile(r"(?<!\S)([A-Z]\w*) (\d+)(?:mW)?((?:/\d+(?:mW)?){1,2})(?!\S)")
_OFF = -200.0  # below this a temperature is none


@dataclass(frozen=True)
class Tegrastats:
    """What one line tells; None, or an empty dict, where it doesn't."""

    memory_mb: tuple[int, int] | None  # used, of
    gpu_percent: int | None
    gpu_mhz: tuple[int, ...]
    celsius: dict[str, float]
    milliwatts: dict[str, float]  # of each rail, now


def parse_tegrastats(line: str) -> Tegrastats:
    """Read a line; what it doesn't hold is missing, and no line is an error."""
    line = line[:4096]
    memory, gpu = _MEMORY.search(line), _GPU.search(line)
    return Tegrastats(
        memory_mb=(int(memory[1]), int(memory[2])) if memory else None,
        gpu_percent=int(gpu[1]) if gpu and gpu[1] else None,
        gpu_mhz=tuple(int(part) for part in gpu[2].split(",") if part) if gpu and gpu[2] else (),
        celsius={name: float(value) for name, value in _CELSIUS.findall(line) if float(value) > _OFF},
        milliwatts={name: float(now) for name, now, _ in _POWER.findall(line) if name != "NC"},
    )
