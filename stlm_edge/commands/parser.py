"""The argument parser that all commands share, and the options that several of them have."""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import stlm_edge
from stlm_edge.errors import UsageError


class CommandParser(argparse.ArgumentParser):
    """Parser with --version, examples below the help, and one line on standard error for a usage error."""

    def __init__(self, name: str, description: str, examples: str) -> None:
        super().__init__(
            name,
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        version = f"stlm-edge {stlm_edge.__version__}"
        self.add_argument("--version", action="version", version=version, help="print the version and exit")

    def error(self, message: str) -> NoReturn:
        """Print the message as one line and exit with code 2."""
        self.exit(2, f"error: {message} (see --help)\n")


def number(kind: Callable[[str], Any], minimum: float, maximum: float = 1_000_000) -> Callable[[str], Any]:
    """Return a converter from text to a number of this kind between two limits, both included."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not minimum <= value <= maximum:
            expected = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected} from {minimum:g} to {maximum:g}")
        return value

    return convert


def add_data_options(parser: argparse.ArgumentParser, data_help: str, category_help: str, required: bool) -> None:
    """Add --data, --category and --format."""
    parser.add_argument("--data", type=Path, required=required, metavar="DIR", help=data_help)
    parser.add_argument("--category", metavar="NAME", help=category_help)
    parser.add_argument(
        "--format",
        metavar="F",
        help="layout of the data: visa, dagm, btad, kolektor, mvtec or plain (default: auto-detected)",
    )


def add_devices_option(parser: argparse.ArgumentParser) -> None:
    """Add --devices."""
    parser.add_argument(
        "--devices",
        type=number(int, 1),
        default=1,
        metavar="N",
        help="GPUs, or processes on a CPU, that share the work (default: %(default)s)",
    )


@contextlib.contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn a missing package into a UsageError that names the extra which installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("stlm_edge"):
            raise
        raise UsageError(f'this command needs {error.name}: pip install "stlm-edge[{extra}]"') from None
