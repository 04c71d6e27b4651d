"""Fetches onnxruntime's C and C++ headers from Debian 13, the first release that has them, without installing them.

    python3 tests/fetch_onnxruntime_headers.py build/onnxruntime

Needs what tests/android/android_jar.py needs. A newer library takes what was compiled with older headers.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "android"))

from android_jar import unpack

RELEASE, PACKAGE, INSIDE = "trixie", "libonnxruntime-dev", "usr/include/onnxruntime"


def main() -> None:
    place = Path(sys.argv[1])
    if place.exists():
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(unpack([RELEASE], [PACKAGE], Path(folder)) / INSIDE, place)
    except (OSError, subprocess.SubprocessError) as error:
        told = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
        reason = (told.strip() or str(error)).splitlines()[-1]
        print(f"onnxruntime's headers can't be had here ({reason}); the tests that need them are skipped")


if __name__ == "__main__":
    main()
