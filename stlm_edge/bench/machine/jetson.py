"""What a Jetson tells of itself: release, power mode, clocks. Read only; `power_mode` sets one when it is asked to.

Sources: NVIDIA's Jetson Linux Developer Guide (nvpmodel, jetson_clocks, tegrastats, INA3221). These tools are run as
they are; jetson_clocks wants root to show anything, so the GPU's clock is also looked up where everybody may read it.
"""

import contextlib
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stlm_edge.errors import JobError, UsageError

_TOOL_LIMIT_S = 10.0
_JETPACKS = (  # L4T's number up to, JetPack: developer.nvidia.com/embedded/jetpack-archive
    ((35, 99), "JetPack 5"),
    ((36, 3), "JetPack 6.0"),
    ((36, 99), "JetPack 6.1 or 6.2"),
    ((38, 3), "JetPack 7.0"),
    ((38, 99), "JetPack 7.1"),
    ((39, 99), "JetPack 7.2"),
)


@dataclass(frozen=True)
class Clock:
    """Of one part, MHz. It is locked when jetson_clocks has made its least and its greatest the same."""

    least: float
    greatest: float
    now: float

    @property
    def locked(self) -> bool:
        return self.least == self.greatest


@dataclass(frozen=True)
class Jetson:
    """This board. What it doesn't tell is None, or an empty dict."""

    l4t: str
    jetpack: str | None
    power_mode: str | None
    clocks: dict[str, Clock]


def read_jetson(root: Path = Path("/")) -> Jetson | None:
    """Facts of this machine, or None where it is no Jetson."""
    release = parse_release(_text(root / "etc/nv_tegra_release"))
    if release is None:
        return None
    clocks = parse_jetson_clocks(_said_by("jetson_clocks", "--show")) or _gpu_clock(root)
    mode = parse_nvpmodel(_said_by("nvpmodel", "-q"))
    return Jetson(release, jetpack(release), mode and mode[0], clocks)


def parse_release(text: str) -> str | None:
    """`# R36 (release), REVISION: 4.7, GCID: …` is 36.4.7."""
    found = re.match(r"# R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", text)
    return f"{found[1]}.{found[2]}" if found else None


def jetpack(l4t: str) -> str | None:
    """The JetPack that brings this release of Jetson Linux; None for one that is not known here."""
    numbers = tuple(int(part) for part in (l4t + ".0").split(".")[:2])
    if numbers[0] not in {upto[0] for upto, _ in _JETPACKS}:
        return None
    return next((name for upto, name in _JETPACKS if numbers <= upto), None)


def parse_nvpmodel(text: str) -> tuple[str, int] | None:
    """`nvpmodel -q`: `NV Power Mode: 25W`, its number on the next line; warnings may stand before."""
    found = re.search(r"^NV Power Mode: *(\S+)\s+(\d+)\s*$", text, re.MULTILINE)
    return (found[1], int(found[2])) if found else None


def parse_jetson_clocks(text: str) -> dict[str, Clock]:
    """`jetson_clocks --show`: cpu0, cpu1, … in kHz; GPU and EMC in Hz."""
    clocks = {}
    for line in text.splitlines():
        found = re.match(r"(\w+):? .*?\bMinFreq=(\d+) MaxFreq=(\d+) CurrentFreq=(\d+)", line)
        if found:
            unit = 1e3 if found[1].lower().startswith("cpu") else 1e6
            clocks[found[1]] = Clock(*(int(value) / unit for value in found.groups()[1:]))
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
    """Set nvpmodel's mode for a while, and the former one again; None leaves everything as it is.

    Raises UsageError where there is no nvpmodel, JobError when the mode isn't taken: no right to, or it wants a reboot.
    """
    if number is None:
        yield
        return
    before = parse_nvpmodel(_said_by("nvpmodel", "-q"))
    if before is None:
        raise UsageError("--set-power-mode: nvpmodel tells no mode here; expected a Jetson")
    if before[1] != number:
        _set_mode(number)
    try:
        yield
    finally:
        if before[1] != number:
            _set_mode(before[1])


def _set_mode(number: int) -> None:
    said = _said_by("sudo", "-n", "nvpmodel", "-m", str(number))
    now = parse_nvpmodel(_said_by("nvpmodel", "-q"))
    if now is None or now[1] != number:
        reason = " ".join(said.split())[-200:] or "it needs root without a password, and some modes want a reboot"
        raise JobError(
            f"nvpmodel did not change to mode {number} ({reason}); set it by hand: sudo nvpmodel -m {number}"
        )


def _said_by(*command: str) -> str:
    """What a tool prints, both its streams; nothing where it is missing, fails to end, or fails."""
    return "" if (said := run_tool(command)) is None else said


def run_tool(command: Sequence[str]) -> str | None:
    """A tool's output, at most 64 KB; None where it is missing or doesn't end in time."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TOOL_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout[: 1 << 16].decode("utf-8", "replace")


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")[:4096]
    except OSError:
        return ""
