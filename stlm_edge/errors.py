"""Expected failures of commands: a one-line message and an exit code each."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator


class UsageError(Exception):
    """Unusable input. The message names the input, the expectation and the remedy. Exit code 2."""


class JobError(Exception):
    """Failure of a valid job. Exit code 1."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command with the same cleanup as Ctrl-C."""


@contextlib.contextmanager
def exit_with_one_line(interrupted: str = "interrupted") -> Iterator[None]:
    """Turn an expected failure into one line on standard error and an exit code.

    The codes: 2 for a UsageError, 1 for a JobError or OSError, 130 for Ctrl-C, 143 for SIGTERM. Any other exception
    keeps its traceback, since it is a bug.

    Args:
        interrupted: Line printed after Ctrl-C or SIGTERM.
    """
    try:
        with _sigterm_raises():
            yield
    except UsageError as error:
        _leave(str(error), 2)
    except JobError as error:
        _leave(str(error), 1)
    except KeyboardInterrupt as error:
        _leave(interrupted, 143 if isinstance(error, Terminated) else 130)
    except OSError as error:
        _leave(f"{error.filename or 'file system'}: {error.strerror or error}", 1)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Raise Terminated on SIGTERM, in the main thread; signals cannot be handled in another one."""

    def terminate(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _leave(line: str, code: int) -> None:
    print("error: " + " ".join(line.split()), file=sys.stderr)
    raise SystemExit(code)
