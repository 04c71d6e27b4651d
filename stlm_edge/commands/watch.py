"""Images as they arrive in a folder."""

import time
from collections.abc import Iterator
from pathlib import Path

from stlm_edge.errors import JobError, UsageError
from stlm_edge.images import is_image

POLL_SECONDS = 0.5


def arrivals(folder: str | Path, poll_seconds: float = POLL_SECONDS) -> Iterator[Path]:
    """Yield each image file of a folder once, those already there first, and never end.

    A file is yielded when its size and time have not changed between two looks, `poll_seconds` apart, and it isn't
    empty; written again later, it counts as another image. Raises UsageError when there is no such folder, JobError
    when it goes away.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder to watch; make it first")
    before: dict[Path, tuple[int, int]] = {}
    done: dict[Path, tuple[int, int]] = {}
    while True:
        now = _images(folder)
        done = {path: state for path, state in done.items() if path in now}
        for path, state in now.items():
            if state[1] and before.get(path) == state and done.get(path) != state:
                done[path] = state
                yield path
        before = now
        time.sleep(poll_seconds)


def _images(folder: Path) -> dict[Path, tuple[int, int]]:
    """Time (ns) and size of each image file, oldest first."""
    found = {}
    try:
        paths = [path for path in folder.iterdir() if is_image(path)]
    except OSError as error:
        raise JobError(f"{folder}: can no longer be watched ({error.strerror})") from None
    for path in paths:
        try:
            status = path.stat()
        except OSError:  # gone between the two calls
            continue
        found[path] = (status.st_mtime_ns, status.st_size)
    return dict(sorted(found.items(), key=lambda item: (item[1][0], item[0])))
