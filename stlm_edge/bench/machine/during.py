"""What a device tells of itself while it is timed: clocks, temperatures, load and memory, once a second."""

import contextlib
import shutil
import statistics
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from stlm_edge.bench.machine.nvidia import QUERY, parse_gpus
from stlm_edge.bench.machine.system import cpu_clocks, sensors
from stlm_edge.bench.machine.tegrastats import parse_tegrastats
from stlm_edge.bench.result import During

INTERVAL_S = 1.0


@dataclass(frozen=True)
class Reading:
    """One moment; what isn't told is missing, or None."""

    clocks: dict[str, float]
    celsius: dict[str, float]
    gpu_percent: float | None = None
    memory_mb: float | None = None


class Lines:
    """The last line of a tool that prints one again and again, until `stop`. Empty at first and where it fails."""

    def __init__(self, *command: str) -> None:
        self.last = ""
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._said = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        self._said.wait(5.0)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.last = line
            self._said.set()
        self.last = ""
        self._said.set()


@contextlib.contextmanager
def watching() -> Iterator[list[Reading]]:
    """Yield a list that grows by a reading each INTERVAL_S."""
    readings: list[Reading] = []
    ended = threading.Event()
    with contextlib.ExitStack() as stack:
        tools: list[tuple[Lines, Callable[[str], Reading | None]]] = []
        milliseconds = str(int(INTERVAL_S * 1e3))
        for words, read in (
            (("tegrastats", "--interval", milliseconds), _by_tegrastats),
            ((*QUERY, "--id=0", f"--loop-ms={milliseconds}"), _by_nvidia_smi),
        ):
            if shutil.which(words[0]):
                lines = Lines(*words)
                stack.callback(lines.stop)
                tools.append((lines, read))

        def run() -> None:
            while not ended.wait(INTERVAL_S):
                parts = [Reading(cpu_clocks(), sensors())]
                parts += [told for lines, read in tools if lines.last and (told := read(lines.last))]
                readings.append(_joined(parts))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield readings
        finally:
            ended.set()
            thread.join()


def summary(readings: Sequence[Reading]) -> During | None:
    """The readings of one row together; None where they tell nothing."""
    clocks, celsius = ([getattr(reading, name) for reading in readings] for name in ("clocks", "celsius"))
    percent = [reading.gpu_percent for reading in readings if reading.gpu_percent is not None]
    memory = [reading.memory_mb for reading in readings if reading.memory_mb is not None]
    if not (any(clocks) or any(celsius) or percent or memory):
        return None
    of_part = {name: [told[name] for told in clocks if name in told] for told in clocks for name in told}
    return During(
        readings=len(readings),
        clocks={name: [min(all_), round(statistics.mean(all_), 1), max(all_)] for name, all_ in of_part.items()},
        celsius={name: max(told[name] for told in celsius if name in told) for told in celsius for name in told},
        gpu_percent=round(statistics.mean(percent), 1) if percent else None,
        memory_mb=max(memory, default=None),
    )


def _joined(parts: Sequence[Reading]) -> Reading:
    return Reading(
        clocks={name: value for part in parts for name, value in part.clocks.items()},
        celsius={name: value for part in parts for name, value in part.celsius.items()},
        gpu_percent=next((part.gpu_percent for part in parts if part.gpu_percent is not None), None),
        memory_mb=next((part.memory_mb for part in parts if part.memory_mb is not None), None),
    )


def _by_tegrastats(line: str) -> Reading:
    told = parse_tegrastats(line)
    clocks = {"GPU": float(max(told.gpu_mhz))} if told.gpu_mhz else {}
    memory = float(told.memory_mb[0]) if told.memory_mb else None
    return Reading(clocks, told.celsius, None if told.gpu_percent is None else float(told.gpu_percent), memory)


def _by_nvidia_smi(line: str) -> Reading | None:
    told = parse_gpus(line)
    return Reading(told.clocks, told.celsius, told.percent, told.memory_mb) if told else None
