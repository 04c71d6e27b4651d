"""Run a command's main() in this process, where the process itself is not what is tested."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest


class Finished(NamedTuple):
    """A finished command: its exit code and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def run_main(
    main: Callable[[Sequence[str]], None], arguments: Sequence[object], capsys: pytest.CaptureFixture[str]
) -> Finished:
    """Run a command with these arguments."""
    capsys.readouterr()
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0
    return Finished(code, *capsys.readouterr())
