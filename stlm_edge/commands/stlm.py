"""stlm: every command under one name; `stlm train` is `stlm-train`.

Only the requested command is imported, so that `stlm predict` works on a device without the packages for training.
"""

import importlib
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from types import ModuleType

import stlm_edge
from stlm_edge.commands.completion import SHELLS, completion

COMMANDS = {
    "train": "stlm_edge.commands.train",
    "eval": "stlm_edge.commands.evaluate",
    "export": "stlm_edge.commands.export",
    "predict": "stlm_edge.commands.predict",
    "calibrate": "stlm_edge.commands.calibrate",
    "bench": "stlm_edge.commands.bench",
    "build-engine": "stlm_edge.commands.build_engine",
}
"""Name → module with `main(arguments)`, which runs the command, and `parser()`, which returns its argparse parser."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run stlm: one of COMMANDS, `completion SHELL`, --help or --version."""
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    rest = rest[:-1]
    if name in COMMANDS:
        _module(name).main(rest)
    elif name == "completion" and len(rest) == 1 and rest[0] in SHELLS:
        print(completion(parsers(), rest[0]), end="")
    elif name == "--version":
        print(f"stlm-edge {stlm_edge.__version__}")
    elif name in ("", "--help", "-h"):
        print(_help())
    else:
        known = f"{', '.join(COMMANDS)}, completion {'|'.join(SHELLS)}"
        print(f"error: stlm {' '.join([name, *rest])}: unknown command, expected one of {known}", file=sys.stderr)
        raise SystemExit(2)


def parsers() -> dict[str, ArgumentParser]:
    """Return the parser of each command."""
    return {name: _module(name).parser() for name in COMMANDS}


def _module(name: str) -> ModuleType:
    return importlib.import_module(COMMANDS[name])


def _help() -> str:
    summaries = {name: (parser.description or "").split(".")[0] for name, parser in parsers().items()}
    summaries["completion"] = f"print a completion script for a shell: {', '.join(SHELLS)}"
    lines = ["usage: stlm COMMAND [OPTIONS]", "", "commands:"]
    lines += [f"  {name:<13} {summary}" for name, summary in summaries.items()]
    return "\n".join([*lines, "", "stlm COMMAND --help shows a command's options; stlm --version prints the version."])


if __name__ == "__main__":
    main()
