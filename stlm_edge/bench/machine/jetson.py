"""Release, power mode and clocks of a Jetson. Only `power_mode` changes anything, and only if it is asked to.

Sources: NVIDIA's Jetson Linux Developer Guide (nvpmodel, jetson_clocks). jetson_clocks prints nothing without root, so
the GPU's clock is also read from /sys, which needs no rights.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stlm_edge.bench.machine.nvidia import output_of
from stlm_edge.errors import JobError, UsageError

_JETPACKS = (  # last L4T release and its JetPack: developer.nvidia.com/embedded/jetpack-archive
    ((35, 99), "JetPack 5"),
    ((36, 3), "JetPack 6.0"),
    ((36, 99), "JetPack 6.1 or 6.2"),
    ((38, 3), "JetPack 7.0"),
    ((38, 99), "JetPack 7.1"),
    ((39, 99), "JetPack 7.2"),
)


@dataclass(frozen=True)
class Clock:
    """Clock of one part in MHz. jetson_clocks locks it by making the minimum equal to the maximum."""

    minimum: float
    maximum: float
    current: float

    @property
    def locked(self) -> bool:
        """True if the clock cannot change."""
        return self.minimum == self.maximum


@dataclass(frozen=True)
class Jetson:
    """A Jetson board; a fact that it does not report is None or an empty dict."""

    l4t: str
    jetpack: str | None
    power_mode: str | None
    clocks: dict[str, Clock]


def read_jetson(root: Path = Path("/")) -> Jetson | None:
    """Return the facts of this machine, or None if it is no Jetson."""
    release = parse_release(_text(root / "etc/nv_tegra_release"))
    if release is None:
        return None
    clocks = parse_jetson_clocks(output_of("jetson_clocks", "--show")) or _gpu_clock(root)
    mode = parse_nvpmodel(output_of("nvpmodel", "-q"))
    return Jetson(release, jetpack(release), mode and mode[0], clocks)


def parse_release(text: str) -> str | None:
    """Return the release of Jetson Linux: 36.4.7 for `# R36 (release), REVISION: 4.7, GCID: …`."""
    match = re.match(r"# R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", text)
    return f"{match[1]}.{match[2]}" if match else None


def jetpack(l4t: str) -> str | None:
    """Return the JetPack that contains this release of Jetson Linux, or None if it is not in the table."""
    release = tuple(int(part) for part in (l4t + ".0").split(".")[:2])
    names = (name for last, name in _JETPACKS if last[0] == release[0] and release <= last)
    return next(names, None)


def parse_nvpmodel(text: str) -> tuple[str, int] | None:
    """Read the mode's name and number from `nvpmodel -q`: `NV Power Mode: 25W`, and the number on the next line."""
    match = re.search(r"^NV Power Mode: *(\S+)\s+(\d+)\s*$", text, re.MULTILINE)
    return (match[1], int(match[2])) if match else None


def parse_jetson_clocks(text: str) -> dict[str, Clock]:
    """Read `jetson_clocks --show`: cpu0, cpu1, … in kHz; GPU and EMC in Hz."""
    clocks = {}
    for line in text.splitlines():
        match = re.match(r"(\w+):? .*?\bMinFreq=(\d+) MaxFreq=(\d+) CurrentFreq=(\d+)", line)
        if match:
            unit = 1e3 if match[1].lower().startswith("cpu") else 1e6
            clocks[match[1]] = Clock(*(int(value) / unit for value in match.groups()[1:]))
    return clocks


def _gpu_clock(root: Path) -> dict[str, Clock]:
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if re.search(r"gpu|g[abpv]\d\db", folder.name):
            values = [_text(folder / f"{name}_freq").strip() for name in ("min", "max", "cur")]
            if all(value.isdecimal() for value in values):
                return {"GPU": Clock(*(int(value) / 1e6 for value in values))}
    return {}


@contextlib.contextmanager
def power_mode(number: int | None) -> Iterator[None]:
    """Set nvpmodel's mode and restore the former one at the end; None changes nothing.

    Raises:
        UsageError: there is no nvpmodel.
        JobError: the mode was not set, because it needs root or a reboot.
    """
    if number is None:
        yield
        return
    before = parse_nvpmodel(output_of("nvpmodel", "-q"))
    if before is None:
        raise UsageError("--set-power-mode: nvpmodel reports no mode here; expected a Jetson")
    _set_mode(before[1], number)
    try:
        yield
    finally:
        _set_mode(number, before[1])


def _set_mode(current: int, number: int) -> None:
    if number == current:
        return
    output = output_of("sudo", "-n", "nvpmodel", "-m", str(number))
    mode = parse_nvpmodel(output_of("nvpmodel", "-q"))
    if mode is None or mode[1] != number:
        reason = " ".join(output.split())[-200:] or "it needs root without a password, and some modes need a reboot"
        raise JobError(
            f"nvpmodel did not change to mode {number} ({reason}); set it by hand: sudo nvpmodel -m {number}"
        )


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")[:4096]
    except OSError:
        return ""
