"""Download Android's adbd from Debian's backports without installing it: it would listen on every interface.

    python3 tests/bench/fetch_adbd.py build/adbd

The libraries that it shares with adb come with Debian's package adb.
"""

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from debian_packages import reporting_missing, unpack

RELEASE, BACKPORTS = "bookworm", "bookworm-backports"
PACKAGES = [f"{name}/{BACKPORTS}" for name in ("adbd", "android-libbase", "android-libcutils", "android-liblog")]


def main() -> None:
    place = Path(sys.argv[1])
    if place.exists():
        return
    with reporting_missing("adbd"), tempfile.TemporaryDirectory() as folder:
        unpacked = unpack([RELEASE, BACKPORTS], [*PACKAGES, "libprotobuf32"], Path(folder))
        (binary,) = unpacked.glob("usr/lib/android-sdk/platform-tools/adbd")
        libraries = [*unpacked.glob("usr/lib/*/android/*.so.0"), *unpacked.glob("usr/lib/*/libprotobuf.so.32")]
        place.mkdir(parents=True)
        for file in [*libraries, binary]:
            shutil.copy(file, place / file.name)


if __name__ == "__main__":
    main()
