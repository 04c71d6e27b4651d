"""What a latency was measured on. A fact the system does not tell is None (or an empty list), never a guess."""

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from stlm_edge.bench.machine.jetson import Jetson, read_jetson
from stlm_edge.bench.machine.nvidia import read_gpu

INSTRUCTIONS = (  # those that decide how fast float32, bfloat16 and int8 matrix products are
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "bf16", "i8mm", "sve"),
)

_EMULATORS = ("qemu-", "box64", "FEX", "rosetta")  # of another processor's programs

_CPUS = Path("/sys/devices/system/cpu")
_HWMON = Path("/sys/class/hwmon")
_FIRMWARE = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")  # a Raspberry Pi's


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
    power_mode: Annotated[str | None, "as a Jetson's nvpmodel names it"]
    clocks: Annotated[dict[str, Any], "part to its clock after the bench, MHz"]
    celsius_before: Annotated[dict[str, Any], "sensor to its temperature"]
    celsius_after: dict[str, Any]
    throttling_events: Annotated[int | None, "times the processor slowed itself down while the bench ran"]
    system: str
    kernel: str
    python: str
    packages: Annotated[dict[str, Any], "name to version"]
    gpu: Annotated[str | None, "an NVIDIA one and its driver, as nvidia-smi names them"] = None
    emulated: Annotated[str | None, "what plays this processor, whose latencies therefore mean nothing"] = None


@dataclass(frozen=True)
class Moment:
    """What changes while a bench runs."""

    load: float | None
    celsius: dict[str, float]
    throttled: int | None
    slowed_since_boot: bool  # a Raspberry Pi tells that it happened, not how often


def moment() -> Moment:
    """Tell this machine's load, its sensors' temperatures, and how often its processors have slowed themselves down."""
    paths = [*_CPUS.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"), *_HWMON.glob("hwmon*/oc*_event_cnt")]
    counts = [_read(str(path)) for path in paths]
    counted = [int(count) for count in counts if count and count.isdecimal()]
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None  # Windows has none
    bits = int(_read(str(_FIRMWARE)) or "0", 16) >> 16 & 0xF  # under-voltage, capped, throttled, too hot: since boot
    told = counted or _FIRMWARE.exists()
    return Moment(
        load,
        sensors() | (gpu.celsius if (gpu := read_gpu()) else {}),
        sum(counted) + bits.bit_count() if told else None,
        bool(bits),
    )


def describe(packages: tuple[str, ...] = (), before: Moment | None = None) -> Machine:
    """Describe this machine and the installed ones of `packages`; `before` is what `moment()` said beforehand."""
    after = moment()
    jetson = read_jetson()
    gpu = read_gpu()
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
        load_before=before.load if before else None,
        load_after=after.load,
        power_mode=_power_mode(jetson) if jetson else None,
        clocks=cpu_clocks()
        | ({name: clock.now for name, clock in jetson.clocks.items()} if jetson else {})
        | (gpu.clocks if gpu else {}),
        celsius_before=before.celsius if before else {},
        celsius_after=after.celsius,
        throttling_events=_since(before, after),
        system=_system() + (f", Jetson Linux {jetson.l4t} ({jetson.jetpack or 'unknown JetPack'})" if jetson else ""),
        kernel=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        packages=_versions(packages),
        gpu=gpu.words if gpu else None,
        emulated=emulator(),
    )


def _power_mode(jetson: Jetson) -> str | None:
    """nvpmodel's name, and whether jetson_clocks holds the GPU's clock: both decide what a latency means."""
    gpu = jetson.clocks.get("GPU")
    return jetson.power_mode and jetson.power_mode + (
        f", GPU clock {'locked' if gpu.locked else 'free'}" if gpu else ""
    )


def _since(before: Moment | None, after: Moment) -> int | None:
    """None, too, where it had happened before: whether it did again is not told."""
    if before and before.slowed_since_boot:
        return None
    if before is None or before.throttled is None or after.throttled is None:
        return None
    return after.throttled - before.throttled


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


def memory_kills() -> int:
    """How often the kernel has killed a process for want of memory since it booted; 0 where it doesn't tell."""
    for line in (_read("/proc/vmstat") or "").splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


def emulator(root: Path = Path("/")) -> str | None:
    """What plays this processor for this process, None where nothing shows.

    An emulator of user programs answers for /proc/self itself, so its own program is looked for by another way there.
    """
    maps = _read(str(root / "proc/thread-self/maps")) or ""
    programs = {Path(line.split(maxsplit=5)[-1]).name for line in maps.splitlines() if "/" in line}
    for name in sorted(programs):
        if name.startswith(_EMULATORS):
            return name
    return None


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


def sensors() -> dict[str, float]:
    """Sensor to its temperature. Some tell -256 for a part that is off, which is none."""
    found = {}
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        value = _read(str(zone / "temp"))
        if value and value.lstrip("-").isdecimal() and int(value) > -100_000:
            found[_read(str(zone / "type")) or zone.name] = int(value) / 1000
    return found


def cpu_clocks() -> dict[str, float]:
    """Core to its clock now, MHz."""
    clocks = {
        path.parent.parent.name: _read(str(path)) for path in sorted(_CPUS.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    }
    return {name: int(clock) / 1000 for name, clock in clocks.items() if clock and clock.isdecimal()}


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
