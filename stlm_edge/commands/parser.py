"""The argument parser of all commands."""

import argparse
import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import stlm_edge
from stlm_edge.errors import UsageError


class CommandParser(argparse.ArgumentParser):
    """Parser with --version, examples below the help, and one line on standard error for a usage error."""

    def __init__(self, name: str, description: str, examples: str) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(name, description=description, epilog=examples, formatter_class=formatter, allow_abbrev=False)
        self.add_argument("--version", action="version", version=f"stlm-edge {stlm_edge.__version__}")

    def add_data(self, data: str, category: str, required: bool = True) -> None:
        """Add --data, --category and --format; the first two with these help texts."""
        self.add_argument("--data", type=Path, required=required, metavar="DIR", help=data)
        self.add_argument("--category", metavar="NAME", help=category)
        formats = "visa, dagm, btad, kolektor, mvtec or plain"
        self.add_argument("--format", metavar="F", help=f"layout of the data: {formats} (default: auto-detected)")

    def error(self, message: str) -> NoReturn:
        """Print the message as one line and exit with code 2."""
        self.exit(2, f"error: {message} (see --help)\n")


def number(kind: Callable[[str], Any], minimum: float, maximum: float = math.inf) -> Callable[[str], Any]:
    """Return a converter from text to int or float that refuses values outside the limits."""

    def convert(text: str) -> Any:
        value = kind(text)
        if not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(f"found {text}, expected {minimum:g} to {maximum:g}")
        return value

    convert.__name__ = kind.__name__  # for argparse's message where `kind` refuses the text
    return convert


@contextlib.contextmanager
def needs_extra(extra: str, needed_by: str = "this command") -> Iterator[None]:
    """Turn a missing package into a UsageError that names the extra which installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(f'{needed_by} needs {error.name}: pip install "stlm-edge[{extra}]"') from None
