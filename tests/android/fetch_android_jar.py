"""Download android.jar (API 23, with its resources) from Debian 11, the last release that has it.

python3 tests/android/fetch_android_jar.py build/android.jar
"""

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from debian_packages import reporting_missing, unpack

RELEASE, PACKAGE = "bullseye", "libandroid-23-java"
INSIDE = "usr/share/java/com.android.android-23.jar"


def main() -> None:
    place = Path(sys.argv[1])
    if place.exists():
        return
    with reporting_missing("android.jar"), tempfile.TemporaryDirectory() as folder:
        unpacked = unpack([RELEASE], [PACKAGE], Path(folder))
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(unpacked / INSIDE, f"{place}.tmp")
        Path(f"{place}.tmp").rename(place)


if __name__ == "__main__":
    main()
