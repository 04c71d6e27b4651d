"""stlm-build-engine: build a bundle's TensorRT engine on the device, before the first image."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stlm_edge.bundle import open_bundle
from stlm_edge.commands.parser import CommandParser
from stlm_edge.errors import UsageError, exit_with_one_line

EXAMPLE = """example:
  stlm-build-engine --bundle bundles/jetson
the engine is kept beside the bundle; without this command the first stlm-predict builds it"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run stlm-build-engine."""
    options = parser().parse_args(arguments)
    with exit_with_one_line("interrupted; no engine was kept"):
        print(f"engine of {options.bundle} for this GPU: {build_engine(options.bundle)}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    command = CommandParser("stlm-build-engine", "Build a bundle's TensorRT engine on this device.", EXAMPLE)
    command.add_argument(
        "--bundle", type=Path, required=True, metavar="B", help="bundle folder, of target jetson or desktop-gpu"
    )
    return command


def build_engine(folder: Path) -> Path:
    """Return the engine of a bundle for this device, built and loaded. Raises UsageError for another bundle."""
    bundle = open_bundle(folder)
    if bundle.manifest.runtime != "tensorrt":
        raise UsageError(
            f"{folder}: made for {bundle.manifest.runtime}; expected a bundle of target jetson or desktop-gpu"
        )
    return Path(bundle.runtime.artifact)


if __name__ == "__main__":
    main()
