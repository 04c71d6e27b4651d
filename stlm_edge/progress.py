"""Progress bars of long jobs on standard error, if that is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)


@contextmanager
def step(
    description: str, total: int | None = None, *, completed: int = 0, in_bytes: bool = False, hidden: bool = False
) -> Iterator[Callable[..., None]]:
    """Show the progress of a step.

    Args:
        description: Name of the step.
        total: The number of parts, if known.
        completed: The parts already done.
        in_bytes: The parts are bytes.
        hidden: Show nothing.

    Yields:
        A function `advance(count=1, note="")` to call after `count` parts; the note is shown beside the bar.
    """
    columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}")]
    if total is not None:
        columns += [BarColumn(), DownloadColumn() if in_bytes else MofNCompleteColumn(), TimeRemainingColumn()]
    columns.append(TextColumn("{task.fields[note]}"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=hidden or not console.is_terminal) as progress:
        task = progress.add_task(description, total=total, completed=completed, note="")

        def advance(count: int = 1, note: str = "") -> None:
            progress.update(task, advance=count, note=note)

        yield advance
