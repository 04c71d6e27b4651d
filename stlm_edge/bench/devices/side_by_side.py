"""Several devices at once, each followed by its own thread, with a live table on a terminal."""

import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from stlm_edge.errors import JobError, UsageError

T = TypeVar("T")
Measure = Callable[[Callable[[str], None]], T]


def measure_side_by_side(devices: Mapping[str, Measure[T]]) -> dict[str, T | JobError]:
    """Return the result of each device's function, or why it failed. Ctrl-C ends the functions, and is raised again."""
    results: dict[str, T | JobError] = {}
    states = dict.fromkeys(devices, "waiting")
    stopped = threading.Event()

    def follow(name: str, measure: Measure[T]) -> None:
        def progress(text: str) -> None:
            if stopped.is_set():
                raise JobError("interrupted")
            states[name] = text or states[name]

        try:
            results[name] = measure(progress)
            states[name] = "done"
        except (JobError, UsageError) as error:
            results[name] = JobError(str(error))
            states[name] = f"FAILED: {error}"

    threads = [threading.Thread(target=follow, args=pair, daemon=True) for pair in devices.items()]
    show = _live_table() if sys.stderr.isatty() else _lines()
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            show(states)
            time.sleep(0.2)
        show(states)
    except KeyboardInterrupt:
        stopped.set()
        for thread in threads:
            thread.join(30)
        raise
    finally:
        show({})
    defect = JobError("the host failed to follow it; see the traceback above")
    return {name: results.get(name, defect) for name in devices}


def _lines() -> Callable[[Mapping[str, str]], None]:
    """Return a function that prints the states that changed, for logs and pipes."""
    printed: dict[str, str] = {}

    def show(states: Mapping[str, str]) -> None:
        for name, text in list(states.items()):
            if printed.get(name) != text:
                print(f"{name}: {text}", file=sys.stderr, flush=True)
                printed[name] = text

    return show


def _live_table() -> Callable[[Mapping[str, str]], None]:
    """Return a function that redraws one row per device, and ends the table when there are no states."""
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

    def show(states: Mapping[str, str]) -> None:
        if not states:
            live.stop()
            return
        table = Table("device", "state", f"{time.monotonic() - began:.0f} s")
        for name, text in states.items():
            table.add_row(name, Text(text, "red" if text.startswith("FAILED") else ""))
        live.update(table, refresh=True)

    return show
