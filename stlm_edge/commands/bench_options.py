"""The command line of stlm-bench."""

import argparse
import re
from collections.abc import Sequence
from typing import Any

from stlm_edge.commands.parser import CommandParser

EXAMPLE = """examples:
  stlm-bench --bundle bundles/cpu-fp32 --bundle bundles/cpu-int8 --checkpoint runs/demo/checkpoint.safetensors \\
             --data runs/demo/data --out runs/demo
  stlm-bench --bundle bundles/cpu --bundle bundles/jetson --bundle bundles/android \\
             --device local --device ssh:nano@jetson.local --device adb --with runs/iphone/bench.json --out runs/all
each writes bench.json and report.html into --out; the exit code is 1 when an artifact failed"""


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Exits with 2 and a line for what can't be read."""
    return parser().parse_args(arguments)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    command = CommandParser(
        "stlm-bench", "Check each bundle's verdicts on its devices, and measure its speed.", EXAMPLE
    )
    add = command.add_argument
    add("--bundle", action="append", default=[], metavar="B", help="a bundle's folder; may be given several times")
    add("--checkpoint", metavar="F", help="also run the trained model itself, on the first bundle's golden images")
    add("--data", metavar="DIR", help="also measure accuracy on these test images, here and on devices by ssh")
    add("--category", metavar="NAME", help="the category of --data, where it holds several")
    add(
        "--runtime",
        action="append",
        default=[],
        metavar="R",
        help="run bundles on this machine by R, not by their own: torch, onnxruntime, onnxruntime/cuda, litert, "
        "openvino, tensorrt, coreml, or all that are installed here and take the artifact",
    )
    add("--threads", type=_at_least(1), default=1, metavar="N", help="threads of each runtime (default: 1)")
    add("--quick", action="store_true", help="128 queries and 10 s per row are enough")
    add("--queries", type=_at_least(1), metavar="N", help="queries that count, per row, at least (default: 1024)")
    add("--seconds", type=_at_least(0), metavar="N", help="seconds that they take, at least (default: 60)")
    add("--streams", type=_at_least(1), action="append", default=[], metavar="N", help="throughput of N at once, too")
    add("--even-if-wrong", action="store_true", help="time what fails parity as well, and mark it")
    add("--against", metavar="F", help="an earlier bench.json: exit with 1 where a row became slower or wrong")
    add("--max-regression", type=_percent, default=0.05, metavar="P", help="that much slower may be (default: 5%%)")
    add("--with", dest="others", action="append", default=[], metavar="F", help="add the rows of another bench.json")
    add("--out", default="bench", metavar="DIR", help="folder for bench.json and report.html (default: bench)")
    add(
        "--device",
        action="append",
        metavar="D",
        help="local (the default), ssh:[USER@]HOST[:PORT], adb[:SERIAL], web (Chromium here); several run at once, "
        "each with the bundles that are for it",
    )
    add("--delegate", choices=("cpu", "gpu"), default="cpu", help="what runs the model on a phone (default: cpu)")
    add("--ssh-config", metavar="F", help="ssh's configuration, in place of ~/.ssh/config")
    add("--remote-python", type=_plain_path, default="python3", metavar="P", help="Python on the device, 3.10 or newer")
    add("--keep-on-device", action="store_true", help="leave bundles, engines and test images there for the next time")
    add(
        "--set-power-mode",
        type=_at_least(0),
        metavar="N",
        help="set a Jetson's nvpmodel mode, and the former one after",
    )
    add("--time-limit", type=_at_least(1), default=7200, metavar="S", help="seconds per device (default: 7200)")
    add("--json", action="store_true", help="print bench.json and nothing else")
    return command


def _at_least(minimum: int) -> Any:
    def number(text: str) -> int:
        if not text.isdecimal() or not minimum <= int(text) <= 1_000_000:
            raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from {minimum} to 1000000")
        return int(text)

    return number


def _plain_path(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._/][A-Za-z0-9._/+\-]{0,199}", text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a path in letters, digits, '.', '_', '-' and '/'")
    return text


def _percent(text: str) -> float:
    """5% and 5 are 0.05. A bare 0.05 may be meant as either, and is refused."""
    number = text.removesuffix("%")
    if not number.replace(".", "", 1).isdecimal() or float(number) > 1000:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a percentage such as 5%")
    if 0 < float(number) < 1 and number == text:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected a percentage: {100 * float(text):g}% if you mean that share, else {text}%"
        )
    return float(number) / 100
