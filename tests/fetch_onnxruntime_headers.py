"""Fetches onnxruntime's C and C++ headers from Debian 13, the first release that has them.

    python3 tests/fetch_onnxruntime_headers.py build/onnxruntime

A newer library takes what was compiled with older headers.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from debian_packages import reporting_missing, unpack

RELEASE, PACKAGE, INSIDE = "trixie", "libonnxruntime-dev", "usr/include/onnxruntime"


def main() -> None:
    place = Path(sys.argv[1])
    if place.exists():
        return
    with reporting_missing("onnxruntime's headers"), tempfile.TemporaryDirectory() as folder:
        shutil.copytree(unpack([RELEASE], [PACKAGE], Path(folder)) / INSIDE, place)


if __name__ == "__main__":
    main()
