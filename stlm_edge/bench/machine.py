"""What a latency was measured on. A fact the system does not tell is None (or an empty list), never a guess."""

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

INSTRUCTIONS = (  # those that decide how fast float32, bfloat16 and int8 matrix products are
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "bf16", "i8mm", "sve"),
)


@dataclass(frozen=True)
class Machine:
    """What was measured on."""

    device: Annotated[str | None, "the board's own name, as a Raspberry Pi or a Jetson tells it"]
    processor: str | None
    architecture: str
    instructions: Annotated[tuple[str, ...], "those that make matrix products fast"]
    cores: Annotated[int, "those this process may run on"]
    cores_of_machine: int | None
    memory_gb: float | None
    virtual: Annotated[bool | None, "a virtual machine: its neighbours' load is not seen"]
    governor: Annotated[str | None, "how the clock is chosen: performance, powersave, schedutil"]
    load_before: Annotated[float | None, "processes that ran or waited, mean over one minute"]
    load_after: float | None
    system: str
    kernel: str
    python: str
    packages: Annotated[dict[str, Any], "name to version"]


def describe(packages: tuple[str, ...] = (), load_before: float | None = None) -> Machine:
    """Describe this machine and the installed ones of `packages`; `load_before` is what `load()` said beforehand."""
    cpu = _cpuinfo()
    flags = set((cpu.get("flags") or cpu.get("Features") or "").split())
    return Machine(
        device=_read("/proc/device-tree/model"),
        processor=cpu.get("model name") or cpu.get("Hardware") or platform.processor() or None,
        architecture=platform.machine(),
        instructions=tuple(name for name in INSTRUCTIONS if name in flags),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        cores_of_machine=os.cpu_count(),
        memory_gb=_memory_gb(),
        virtual="hypervisor" in flags if flags and platform.machine() in ("x86_64", "i686") else None,
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        load_before=load_before,
        load_after=load(),
        system=_system(),
        kernel=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        packages=_versions(packages),
    )


def load() -> float | None:
    """Return the one-minute load average, or None where the system has none (Windows)."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def peak_memory_mb() -> float | None:
    """Return this process's peak resident memory in MB (10⁶ bytes).

    On Linux from VmHWM: `ru_maxrss` there starts at what the parent held when it forked, so that a small child of a
    large parent would look large.
    """
    for line in (_read("/proc/self/status") or "").splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if platform.system() == "Darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text("utf-8", "replace").strip("\0\n ") or None
    except OSError:
        return None


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's entry of /proc/cpuinfo; an Arm one often tells its features and no name."""
    entry: dict[str, str] = {}
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        entry.setdefault(name.strip(), value.strip())
    return entry


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform(terse=True)


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
