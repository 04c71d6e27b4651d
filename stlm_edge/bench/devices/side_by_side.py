"""Several devices at once, each followed by its own thread, with a live table; a lost device is one row of it."""

import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from stlm_edge.errors import JobError, UsageError

T = TypeVar("T")
Measure = Callable[[Callable[[str], None]], T]


def measure_side_by_side(devices: Mapping[str, Measure[T]]) -> dict[str, T | JobError]:
    """What each device's function returned, or why it failed. Ctrl-C stops the devices too, and is raised again."""
    found: dict[str, T | JobError] = {}
    said = dict.fromkeys(devices, "waiting")
    stopped = threading.Event()

    def follow(name: str, measure: Measure[T]) -> None:
        def progress(text: str) -> None:
            if stopped.is_set():
                raise JobError("interrupted")
            said[name] = text or said[name]

        try:
            found[name] = measure(progress)
            said[name] = "done"
        except (JobError, UsageError) as error:
            found[name] = JobError(str(error))
            said[name] = f"FAILED: {error}"

    threads = [threading.Thread(target=follow, args=pair, daemon=True) for pair in devices.items()]
    show = _live_table() if sys.stderr.isatty() else _lines()
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            show(said)
            time.sleep(0.2)
        show(said)
    except KeyboardInterrupt:
        stopped.set()
        for thread in threads:
            thread.join(30)
        raise
    finally:
        show({})
    lost = JobError("the desk failed to follow it")  # by a defect, whose traceback its thread has shown
    return {name: found.get(name, lost) for name in devices}


def _lines() -> Callable[[Mapping[str, str]], None]:
    """Print what changed, for logs and pipes."""
    last: dict[str, str] = {}

    def show(said: Mapping[str, str]) -> None:
        for name, text in list(said.items()):
            if last.get(name) != text:
                print(f"{name}: {text}", file=sys.stderr, flush=True)
                last[name] = text

    return show


def _live_table() -> Callable[[Mapping[str, str]], None]:
    """Redraw one row per device; where rich isn't installed, print lines. Nothing said ends the table."""
    try:
        from rich.console import Console
        from rich.live import Live
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return _lines()
    live: Any = Live(console=Console(stderr=True), auto_refresh=False)
    live.start()
    began = time.monotonic()

    def show(said: Mapping[str, str]) -> None:
        if not said:
            live.stop()
            return
        table = Table("device", "state", f"{time.monotonic() - began:.0f} s")
        for name, text in said.items():
            table.add_row(name, Text(text, "red" if text.startswith("FAILED") else ""))
        live.update(table, refresh=True)

    return show
