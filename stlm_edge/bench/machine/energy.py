"""The energy a device takes, by its own meters: a Jetson's INA3221 power monitors, or tegrastats where those are shut.

What is counted is what the board takes, idle power included: VDD_IN where the board has that rail, else AGX Orin's
three that add up to the module. A board whose rails aren't known here has no figure.
"""

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from stlm_edge.bench.machine.during import Lines
from stlm_edge.bench.machine.tegrastats import parse_tegrastats

INTERVAL_S = 0.1
_WHOLE = (("VDD_IN",), ("POM_5V_IN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))


def board_milliwatts(rails: Mapping[str, float]) -> float | None:
    """The board's power from its rails' by name; None where they aren't known to add up to it."""
    for names in _WHOLE:
        if all(name in rails for name in names):
            return sum(rails[name] for name in names)
    return None


def read_rails(root: Path = Path("/")) -> dict[str, float]:
    """Milliwatts now, by rail, from each INA3221: `inN_label`, `inN_input` in mV, `currN_input` in mA."""
    rails = {}
    for label in sorted((root / "sys/bus/i2c/drivers/ina3221").glob("*/hwmon/hwmon*/in[1-3]_label")):
        number = label.name[2]
        try:
            name = label.read_text().strip()
            volts = int((label.parent / f"in{number}_input").read_text())
            amperes = int((label.parent / f"curr{number}_input").read_text())
        except (OSError, ValueError):
            continue
        rails[name] = volts * amperes / 1e3
    return rails


class Meter:
    """Adds up energy from its making on, by the monotonic clock. `millijoules` is exact at the moment of asking."""

    def __init__(self, milliwatts: Callable[[], float | None]) -> None:
        self._milliwatts = milliwatts
        self._lock = threading.Lock()
        self._total, self._power, self._at = 0.0, milliwatts() or 0.0, time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def millijoules(self) -> float:
        """Energy since the meter was made: power between two readings counts as their mean."""
        with self._lock:
            power, now = self._milliwatts(), time.monotonic()
            power = self._power if power is None else power
            self._total += (self._power + power) / 2 * (now - self._at)
            self._power, self._at = power, now
            return self._total

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            self.millijoules()


@contextlib.contextmanager
def metering() -> Iterator[Callable[[], float | None]]:
    """Yield what tells the millijoules since it was made; None, each time, on a machine without a meter."""
    with contextlib.ExitStack() as stack:
        if board_milliwatts(read_rails()) is not None:
            meter = Meter(lambda: board_milliwatts(read_rails()))
        elif shutil.which("tegrastats"):
            lines = Lines("tegrastats", "--interval", str(int(INTERVAL_S * 1e3)))
            stack.callback(lines.stop)

            def by_tegrastats() -> float | None:
                return board_milliwatts(parse_tegrastats(lines.last).milliwatts)

            if by_tegrastats() is None:
                yield lambda: None
                return
            meter = Meter(by_tegrastats)
        else:
            yield lambda: None
            return
        stack.callback(meter.stop)
        yield meter.millijoules
