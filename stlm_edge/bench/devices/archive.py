"""The runner as one file: what a device needs of this package, as a zip application, the same bytes each time."""

import io
import zipfile
from pathlib import Path

import stlm_edge

_FOLDERS = (".", "bench", "bench/devices", "bench/machine", "bundle", "commands", "formats", "runtimes")
_OLDEST_DATE = (1980, 1, 1, 0, 0, 0)
# Read by whatever Python the device has, so it is written for Python 3.4 and reads nothing newer before it has looked.
_MAIN = """import sys
if sys.version_info < (3, 10):
    print('stlm-edge:{"error": "Python %d.%d on the device, expected 3.10 or newer; name another by --remote-python"}'
          % sys.version_info[:2])
    sys.exit(1)
from stlm_edge.bench.devices.runner import main
main()
"""


def runner() -> bytes:
    """The zip application's bytes."""
    package = Path(stlm_edge.__file__).parent
    files = {f"stlm_edge/{folder}/{path.name}": path for folder in _FOLDERS for path in (package / folder).glob("*.py")}
    content = {name.replace("/./", "/"): path.read_bytes() for name, path in files.items()}
    content["__main__.py"] = _MAIN.encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as target:
        for name in sorted(content):
            target.writestr(zipfile.ZipInfo(name, _OLDEST_DATE), content[name])
    return archive.getvalue()
