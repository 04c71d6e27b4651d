"""The two ways a command fails, each one line long and each with its exit code."""

import contextlib
import sys
from collections.abc import Iterator


class UsageError(Exception):
    """What the user gave cannot be used. The message: what was found, what was expected, what to do. Exit code 2."""


class JobError(Exception):
    """The job was understood and failed. Exit code 1."""


@contextlib.contextmanager
def exit_with_one_line(interrupted: str = "interrupted") -> Iterator[None]:
    """Turn a foreseen failure into one line on standard error and an exit code: 2 for usage, 1 for a failed job.

    `interrupted` is what Ctrl-C says. Anything unforeseen keeps its traceback: it is a defect of this software.
    """
    try:
        yield
    except UsageError as error:
        _leave(str(error), 2)
    except JobError as error:
        _leave(str(error), 1)
    except KeyboardInterrupt:
        _leave(interrupted, 1)
    except OSError as error:
        _leave(f"{error.filename or 'file system'}: {error.strerror or error}", 1)


def _leave(line: str, code: int) -> None:
    print("error: " + " ".join(line.split()), file=sys.stderr)
    raise SystemExit(code)
