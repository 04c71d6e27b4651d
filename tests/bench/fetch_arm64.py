"""Make Debian's Python for arm64 with onnxruntime, run by qemu's user emulation, for a parity test.

    .venv/bin/python tests/bench/fetch_arm64.py build/arm64

Nothing is installed: apt downloads the arm64 packages of this machine's Debian into a separate folder, and uv the
wheels. `build/arm64/python` is the interpreter.
"""

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from debian_packages import reporting_missing, run, sources

RELEASE, PACKAGES = "bookworm", ("python3-minimal", "libpython3.11-stdlib", "libstdc++6")
WHEELS = ("numpy", "Pillow", "onnxruntime")
CPUINFO = """processor\t: 0
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1
"""


def main() -> None:
    place = Path(sys.argv[1]).resolve()
    if place.exists():
        return
    part = place.with_name(f".{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with reporting_missing("an arm64 Python"):
        try:
            make(part, place)
            part.rename(place)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def make(folder: Path, place: Path) -> None:
    """Fill `folder`, which is then moved to `place`. Raises OSError or subprocess.SubprocessError."""
    lines = [line.replace("[", "[arch=arm64 ", 1) for line in sources(RELEASE)]
    if not lines:
        raise OSError("this system has no source of Debian packages")
    root = folder / "root"
    root.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        apt = Path(name)
        apt.chmod(0o755)  # apt reads and writes as another user
        for inside in ("lists/partial", "cache/archives/partial"):
            (apt / inside).mkdir(parents=True)
        (apt / "sources.list").write_text("".join(lines))
        (apt / "status").write_text("")
        private = {
            "Dir::Etc::sourcelist": apt / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::lists": apt / "lists",
            "Dir::State::status": apt / "status",
            "Dir::Cache": apt / "cache",
            "APT::Sandbox::User": "root",
            "APT::Architecture": "arm64",
            "APT::Architectures::": "arm64",
            "Debug::NoLocking": "1",
        }
        options = [word for key, value in private.items() for word in ("-o", f"{key}={value}")]
        run("apt-get", *options, "-q", "update")
        run("apt-get", *options, "-qy", "--no-install-recommends", "--download-only", "install", *PACKAGES)
        for package in (apt / "cache" / "archives").glob("*.deb"):
            run("dpkg-deb", "-x", str(package), str(root))
    uv = str(Path(sys.executable).with_name("uv"))
    wanted = ["--python-platform", "aarch64-manylinux_2_28", "--python-version", "3.11", "--only-binary", ":all:"]
    run(uv, "pip", "install", "-q", *wanted, "--target", str(folder / "site"), *WHEELS)
    files = {
        "usr/lib/python3/dist-packages/site.pth": f"{place}/site\n",
        "proc/cpuinfo": CPUINFO,  # onnxruntime reads the supported instructions
        **{f"sys/devices/system/cpu/{name}": "0\n" for name in ("possible", "present", "online")},
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\nPYTHONHOME="{place}/root/usr" PYTHONDONTWRITEBYTECODE=1 exec qemu-aarch64-static '
        f'-L "{place}/root" -0 "{place}/python" "{place}/root/usr/bin/python3.11" "$@"\n'
    )
    python.chmod(0o755)


if __name__ == "__main__":
    main()
