"""Clocks, temperatures, load, memory and energy of this machine, sampled while rows are timed.

Energy is what the whole board takes, idle power included, by a Jetson's INA3221 power monitors, or by tegrastats where
these cannot be read: the rail VDD_IN, or on AGX Orin the three rails that add up to the module. A machine whose rails
are not known here has no energy.
"""

import contextlib
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from stlm_edge.bench.machine.nvidia import NVIDIA_SMI, Reading, merge, parse_nvidia_smi, parse_tegrastats
from stlm_edge.bench.machine.system import read_sensors
from stlm_edge.bench.result import Telemetry

INTERVAL_S = 1.0
POWER_INTERVAL_S = 0.1
_BOARD_RAILS = (("VDD_IN",), ("POM_5V_IN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))


class Watch:
    """Samples the sensors in a thread until `stop`.

    Attributes:
        readings: grows by one reading every INTERVAL_S.
    """

    def __init__(self) -> None:
        self.readings: list[Reading] = []
        interval_s = POWER_INTERVAL_S if board_milliwatts(read_rails()) is None else INTERVAL_S
        self._tegrastats = _LastLine("tegrastats", "--interval", str(int(interval_s * 1e3)))
        self._nvidia_smi = _LastLine(*NVIDIA_SMI, "--id=0", f"--loop-ms={int(INTERVAL_S * 1e3)}")
        self._lock = threading.Lock()
        self._energy_mj, self._milliwatts, self._time = 0.0, self._power(), time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def millijoules(self) -> float | None:
        """Return the energy used since the start; None on a machine without a known power sensor."""
        if self._milliwatts is None:
            return None
        with self._lock:
            power, now = self._power(), time.monotonic()
            power = self._milliwatts if power is None else power
            self._energy_mj += (self._milliwatts + power) / 2 * (now - self._time)
            self._milliwatts, self._time = power, now
            return self._energy_mj

    def stop(self) -> None:
        """Stop the thread and the tools."""
        self._stopped.set()
        self._thread.join()
        self._tegrastats.stop()
        self._nvidia_smi.stop()

    def _power(self) -> float | None:
        by_monitor = board_milliwatts(read_rails())
        return (
            board_milliwatts(parse_tegrastats(self._tegrastats.text).milliwatts) if by_monitor is None else by_monitor
        )

    def _run(self) -> None:
        latest = time.monotonic()
        while not self._stopped.wait(min(INTERVAL_S, POWER_INTERVAL_S)):
            self.millijoules()
            if time.monotonic() - latest >= INTERVAL_S:
                latest = time.monotonic()
                by_tools = (parse_tegrastats(self._tegrastats.text), parse_nvidia_smi(self._nvidia_smi.text))
                self.readings.append(merge((read_sensors(), *by_tools)))


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """Sample the sensors for the duration of the block."""
    watch = Watch()
    try:
        yield watch
    finally:
        watch.stop()


class _LastLine:
    """The last line of a tool that prints one repeatedly, `text`; "" if the tool is missing or has ended."""

    def __init__(self, *command: str) -> None:
        self.text = ""
        self._process = None
        if shutil.which(command[0]):
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            self._printed = threading.Event()
            threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()
            self._printed.wait(5.0)

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait()

    def _read(self, lines: Iterator[str]) -> None:
        for line in lines:
            self.text = line
            self._printed.set()
        self.text = ""
        self._printed.set()


def summary(readings: Sequence[Reading]) -> Telemetry | None:
    """Return the telemetry of one row, or None if its readings hold nothing."""
    clocks = _by_name([reading.clocks for reading in readings])
    celsius = _by_name([reading.celsius for reading in readings])
    percent = [reading.gpu_percent for reading in readings if reading.gpu_percent is not None]
    memory = [reading.memory_mb for reading in readings if reading.memory_mb is not None]
    if not (clocks or celsius or percent or memory):
        return None
    return Telemetry(
        readings=len(readings),
        clocks={name: [min(mhz), round(statistics.mean(mhz), 1), max(mhz)] for name, mhz in clocks.items()},
        celsius={name: max(values) for name, values in celsius.items()},
        gpu_percent=round(statistics.mean(percent), 1) if percent else None,
        memory_mb=max(memory, default=None),
    )


def _by_name(readings: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    names = dict.fromkeys(name for values in readings for name in values)
    return {name: [values[name] for values in readings if name in values] for name in names}


def board_milliwatts(rails: Mapping[str, float]) -> float | None:
    """Return the board's power from that of its rails, or None if these are not known to add up to it."""
    for names in _BOARD_RAILS:
        if all(name in rails for name in names):
            return sum(rails[name] for name in names)
    return None


def read_rails(root: Path = Path("/")) -> dict[str, float]:
    """Return milliwatts by rail, from each INA3221: `inN_label`, `inN_input` in mV, `currN_input` in mA."""
    rails = {}
    for label in sorted((root / "sys/bus/i2c/drivers/ina3221").glob("*/hwmon/hwmon*/in[1-3]_label")):
        number = label.name[2]
        try:
            name = label.read_text().strip()
            millivolts = int((label.parent / f"in{number}_input").read_text())
            milliamperes = int((label.parent / f"curr{number}_input").read_text())
        except (OSError, ValueError):
            continue
        rails[name] = millivolts * milliamperes / 1e3
    return rails
