"""stlm: every command under one name; `stlm train` is `stlm-train`.

Only the requested command is imported, so that `stlm predict` works on a device without the packages for training.
"""

import importlib
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

import stlm_edge

COMMANDS = {
    "train": "stlm_edge.commands.train:main",
    "eval": "stlm_edge.commands.evaluate:main",
    "export": "stlm_edge.commands.export:main",
    "predict": "stlm_edge.commands.predict:main",
    "calibrate": "stlm_edge.commands.calibrate:main",
    "bench": "stlm_edge.commands.bench:main",
    "build-engine": "stlm_edge.commands.build_engine:main",
    "completion": "stlm_edge.commands.completion:main",
}
USAGE = f"""usage: stlm COMMAND [OPTIONS]

commands: {", ".join(COMMANDS)}
stlm COMMAND --help shows a command's options; stlm --version prints the version.

exit codes: 0 success, 1 failed job, 2 usage error, 130 Ctrl-C, 143 SIGTERM"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of COMMANDS, --help or --version."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given else "--help"
    if name in COMMANDS:
        _function(name, "main")(given[1:])
    elif name == "--version":
        print(f"stlm-edge {stlm_edge.__version__}")
    elif name in ("--help", "-h"):
        print(USAGE)
    else:
        print(f"error: {name}: unknown command, expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)


def parsers() -> dict[str, ArgumentParser]:
    """Return the parser of each command, from the function `parser` beside its `main`."""
    return {name: _function(name, "parser")() for name in COMMANDS}


def _function(command: str, name: str) -> Any:
    return getattr(importlib.import_module(COMMANDS[command].partition(":")[0]), name)
