"""stlm-build-engine: build a bundle's TensorRT engine on the device, before the first image."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stlm_edge.commands.parser import CommandParser
from stlm_edge.errors import exit_with_one_line

EXAMPLE = """example:
  stlm-build-engine --bundle bundles/jetson
the engine is kept beside the bundle; without this command the first stlm-predict builds it"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run stlm-build-engine."""
    options = parser().parse_args(arguments)
    with exit_with_one_line("interrupted; no engine was kept"):
        from stlm_edge.runtimes.tensorrt import build_engine

        print(f"engine of {options.bundle} for this GPU: {build_engine(options.bundle)}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    command = CommandParser("stlm-build-engine", "Build a bundle's TensorRT engine on this device.", EXAMPLE)
    command.add_argument(
        "--bundle", type=Path, required=True, metavar="B", help="bundle folder, of target jetson or desktop-gpu"
    )
    return command


if __name__ == "__main__":
    main()
