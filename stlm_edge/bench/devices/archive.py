"""Programs that run on a device behind ssh: the runner as one zip application, and the bootstrap that installs it."""

import io
import zipfile
from pathlib import Path

import stlm_edge

# The rooms that a device needs; of the commands, the bench alone.
_FILES = (
    *("*.py", "formats/*.py", "runtimes/*.py", "bundle/*.py", "bench/*.py", "bench/machine/*.py", "bench/devices/*.py"),
    *("commands/__init__.py", "commands/bench*.py", "commands/parser.py"),
)
_OLDEST_DATE = (1980, 1, 1, 0, 0, 0)
# Both programs are read by any Python that the device may have: no syntax newer than 3.4.
_MAIN = """import sys
if sys.version_info < (3, 10):
    print('stlm-edge:{"error": "found Python %d.%d on the device, expected 3.10 or newer; see --remote-python"}'
          % sys.version_info[:2])
    sys.exit(1)
from stlm_edge.bench.devices.runner import main
main()
"""
# Arguments: the runner's sha256, and how many bytes of it standard input holds (0: report whether it is installed).
BOOTSTRAP = """
import hashlib, os, sys
cache = os.environ.get("XDG_CACHE_HOME", "")
folder = os.path.join(cache if os.path.isabs(cache) else os.path.expanduser("~/.cache"), "stlm-edge", "bench")
path = os.path.join(folder, "runner-" + sys.argv[1] + ".pyz")
data = sys.stdin.buffer.read(int(sys.argv[2]))
error = ""
try:
    if data:
        os.makedirs(folder, exist_ok=True)
        with open(path + ".part", "wb") as file:
            file.write(data)
        os.replace(path + ".part", path)
    with open(path, "rb") as file:
        have = hashlib.sha256(file.read()).hexdigest() == sys.argv[1]
except OSError as problem:
    have, error = False, problem.strerror
print("stlm-edge:" + __import__("json").dumps({"have": have, "path": path, "error": error}))
"""


def runner() -> bytes:
    """Return the zip application, byte-identical for the same sources."""
    package = Path(stlm_edge.__file__).parent
    paths = {path for pattern in _FILES for path in package.glob(pattern)}
    content = {f"stlm_edge/{path.relative_to(package).as_posix()}": path.read_bytes() for path in paths}
    content["__main__.py"] = _MAIN.encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as target:
        for name in sorted(content):
            target.writestr(zipfile.ZipInfo(name, _OLDEST_DATE), content[name])
    return archive.getvalue()
