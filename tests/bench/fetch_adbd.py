"""Fetches Android's adbd from Debian's backports, without installing it: it would listen on every interface.

    python3 tests/bench/fetch_adbd.py build/adbd

Needs what tests/android/android_jar.py needs; the libraries that it shares with adb come with Debian's package adb.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "android"))

from android_jar import unpack

RELEASE, BACKPORTS = "bookworm", "bookworm-backports"
PACKAGES = [f"{name}/{BACKPORTS}" for name in ("adbd", "android-libbase", "android-libcutils", "android-liblog")]


def main() -> None:
    place = Path(sys.argv[1])
    if place.exists():
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            unpacked = unpack([RELEASE, BACKPORTS], [*PACKAGES, "libprotobuf32"], Path(folder))
            (binary,) = unpacked.glob("usr/lib/android-sdk/platform-tools/adbd")
            libraries = [*unpacked.glob("usr/lib/*/android/*.so.0"), *unpacked.glob("usr/lib/*/libprotobuf.so.32")]
            place.mkdir(parents=True)
            for file in [*libraries, binary]:
                shutil.copy(file, place / file.name)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        told = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
        reason = (told.strip() or str(error)).splitlines()[-1]
        print(f"adbd can't be had here ({reason}); the tests that need it are skipped")


if __name__ == "__main__":
    main()
