"""A desktop's NVIDIA GPUs, as nvidia-smi tells them: the fields are those of its documentation, no GPU was read yet."""

from dataclasses import dataclass

from stlm_edge.bench.machine.jetson import run_tool

QUERY = (
    "nvidia-smi",
    "--query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu,utilization.gpu,memory.used",
    "--format=csv,noheader,nounits",
)
_FIELDS = 7


@dataclass(frozen=True)
class Gpu:
    """What one answer tells of all GPUs; what it doesn't tell is missing."""

    words: str  # names and driver
    clocks: dict[str, float]  # MHz
    celsius: dict[str, float]
    percent: float | None  # of the first
    memory_mb: float | None  # of the first, in use, as nvidia-smi counts (MiB)


def read_gpu() -> Gpu | None:
    """The GPUs of this machine; None without nvidia-smi, or where it finds none (a Jetson's tells no figures)."""
    return parse_gpus(run_tool(QUERY) or "")


def parse_gpus(text: str) -> Gpu | None:
    """Read QUERY's answer, a line for each GPU; [N/A] and [Not Supported] are missing."""
    lines = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    lines = [cells for cells in lines if len(cells) == _FIELDS and _number(cells[2]) is not None]
    if not lines:
        return None
    clocks: dict[str, float] = {}
    celsius: dict[str, float] = {}
    for number, cells in enumerate(lines):
        name = "GPU" if len(lines) == 1 else f"GPU {number}"
        for place, key, found in ((2, name, clocks), (3, f"{name} memory", clocks), (4, name, celsius)):
            if (value := _number(cells[place])) is not None:
                found[key] = value
    names = " and ".join(cells[0] for cells in lines)
    return Gpu(f"{names}, driver {lines[0][1]}", clocks, celsius, _number(lines[0][5]), _number(lines[0][6]))


def _number(text: str) -> float | None:
    return float(text) if text.replace(".", "", 1).isdecimal() else None
