"""Description of the machine that latencies are measured on. A fact that it does not report is None or empty."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from stlm_edge.bench.machine.jetson import Jetson, read_jetson
from stlm_edge.bench.machine.nvidia import NVIDIA_SMI, Reading, merge, output_of, parse_nvidia_smi
from stlm_edge.versions import installed_versions

INSTRUCTIONS = (  # those that decide the speed of float32, bfloat16 and int8 matrix products
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "bf16", "i8mm", "sve"),
)
_EMULATORS = ("qemu-", "box64", "FEX", "rosetta")  # of another processor's user programs
_CPUS = Path("/sys/devices/system/cpu")
_HWMON = Path("/sys/class/hwmon")
_FIRMWARE = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")  # of a Raspberry Pi


@dataclass(frozen=True)
class Machine:
    """The measured machine."""

    device: Annotated[str | None, "the board's own name, as a Raspberry Pi or a Jetson reports it"]
    processor: str | None
    architecture: str
    instructions: Annotated[tuple[str, ...], "those that make matrix products fast"]
    cores: Annotated[int, "those that this process may run on"]
    cores_of_machine: int | None
    memory_gb: float | None
    virtual: Annotated[bool | None, "a virtual machine, on which the load of its neighbours is not visible"]
    governor: Annotated[str | None, "how the clock is chosen: performance, powersave, schedutil"]
    load_before: Annotated[float | None, "load average over one minute"]
    load_after: float | None
    power_mode: Annotated[str | None, "nvpmodel's name for it on a Jetson"]
    clocks: Annotated[dict[str, Any], "part to its clock after the bench, MHz"]
    celsius_before: Annotated[dict[str, Any], "sensor to its temperature"]
    celsius_after: dict[str, Any]
    throttling_events: Annotated[int | None, "how often the processor throttled itself during the bench"]
    system: str
    kernel: str
    python: str
    packages: Annotated[dict[str, Any], "name to version"]
    gpu: Annotated[str | None, "NVIDIA GPUs and their driver, as nvidia-smi names them"] = None
    emulated: Annotated[str | None, "emulator of this processor; its latencies mean nothing"] = None


@dataclass(frozen=True)
class Moment:
    """The values that change during a bench."""

    load: float | None
    reading: Reading
    throttled: int | None
    throttled_since_boot: bool  # a Raspberry Pi reports that it happened, not how often


def moment() -> Moment:
    """Read this machine's load, its sensors and how often its processors have throttled themselves."""
    paths = [*_CPUS.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"), *_HWMON.glob("hwmon*/oc*_event_cnt")]
    counts = [int(count) for path in paths if (count := _read(path)) and count.isdecimal()]
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None  # Windows has none
    bits = int(_read(_FIRMWARE) or "0", 16) >> 16 & 0xF  # under-voltage, capped, throttled, too hot: since boot
    return Moment(
        load,
        merge((read_sensors(), parse_nvidia_smi(output_of(*NVIDIA_SMI)))),
        sum(counts) + bits.bit_count() if counts or _FIRMWARE.exists() else None,
        bool(bits),
    )


def describe(packages: tuple[str, ...] = (), before: Moment | None = None) -> Machine:
    """Describe this machine and the versions of these packages; `before` is the `moment()` before the bench."""
    after = moment()
    jetson = read_jetson()
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
        governor=_read(_CPUS / "cpu0/cpufreq/scaling_governor"),
        load_before=before.load if before else None,
        load_after=after.load,
        power_mode=_power_mode(jetson) if jetson else None,
        clocks=after.reading.clocks
        | ({name: clock.current for name, clock in jetson.clocks.items()} if jetson else {}),
        celsius_before=before.reading.celsius if before else {},
        celsius_after=after.reading.celsius,
        throttling_events=_throttling_events(before, after),
        system=_system() + (f", Jetson Linux {jetson.l4t} ({jetson.jetpack or 'unknown JetPack'})" if jetson else ""),
        kernel=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        packages=installed_versions(packages),
        gpu=after.reading.gpu,
        emulated=emulator(),
    )


def _power_mode(jetson: Jetson) -> str | None:
    """Return nvpmodel's name, and whether jetson_clocks has locked the GPU's clock: a latency depends on both."""
    gpu = jetson.clocks.get("GPU")
    clock = f", GPU clock {'locked' if gpu.locked else 'free'}" if gpu else ""
    return jetson.power_mode and jetson.power_mode + clock


def _throttling_events(before: Moment | None, after: Moment) -> int | None:
    """Return the events in between; None, too, on a Raspberry Pi that throttled before and so cannot tell."""
    if before is None or before.throttled_since_boot or before.throttled is None or after.throttled is None:
        return None
    return after.throttled - before.throttled


def peak_memory_mb() -> float | None:
    """Return this process's peak resident memory in MB (10⁶ bytes).

    On Linux it is VmHWM: `ru_maxrss` begins there with the memory of the parent at the fork, so that a small child of a
    large parent would appear large.
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
    """Return how many processes the kernel has killed since boot because memory ran out; 0 if it does not report it."""
    for line in (_read("/proc/vmstat") or "").splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


def emulator(root: Path = Path("/")) -> str | None:
    """Return the program that emulates this processor for this process, or None if none is visible.

    An emulator of user programs forges /proc/self, but not /proc/thread-self.
    """
    maps = _read(root / "proc/thread-self/maps") or ""
    programs = {Path(line.split(maxsplit=5)[-1]).name for line in maps.splitlines() if "/" in line}
    return next((name for name in sorted(programs) if name.startswith(_EMULATORS)), None)


def read_sensors() -> Reading:
    """Read the clock of each core and the temperature of each thermal zone."""
    clocks = {path.parent.parent.name: _read(path) for path in sorted(_CPUS.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))}
    celsius = {}
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        value = _read(zone / "temp")
        if value and value.lstrip("-").isdecimal() and int(value) > -100_000:  # -256 °C is a part that is off
            celsius[_read(zone / "type") or zone.name] = int(value) / 1000
    return Reading({name: int(khz) / 1000 for name, khz in clocks.items() if khz and khz.isdecimal()}, celsius)


def _read(path: Path | str) -> str | None:
    try:
        return Path(path).read_text("utf-8", "replace").strip("\0\n ") or None
    except OSError:
        return None


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's entry of /proc/cpuinfo; an Arm one often has features and no name."""
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
