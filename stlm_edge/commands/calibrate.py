"""stlm-calibrate: choose a bundle's decision threshold again, from normal images of the device's own camera."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from stlm_edge.bundle import Bundle, open_bundle
from stlm_edge.bundle.writer import recalibrate
from stlm_edge.commands.parser import CommandParser
from stlm_edge.errors import JobError, exit_with_one_line
from stlm_edge.images import list_images, load
from stlm_edge.threshold import calibrate, check_rate, describe, judge

EXAMPLE = """example:
  stlm-calibrate --bundle bundles/cpu-int8 --data /var/line3/normal --false-alarm-rate 0.01
writes the new threshold into the bundle's manifest, which also keeps the threshold of the export"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run stlm-calibrate."""
    options = parser().parse_args(arguments)
    with exit_with_one_line("interrupted; the bundle is unchanged, run it again"):
        check_rate(options.false_alarm_rate)
        bundle = open_bundle(options.bundle, threads=options.threads)
        run, size = bundle.runtime.run, bundle.runtime.size
        images = (load(path, size) for path in _counted(list_images(options.data)))
        decision_threshold = calibrate(*judge(run, images), options.false_alarm_rate, "site")
        _check_finds_anomalies(bundle, decision_threshold.value)
        manifest = recalibrate(bundle, decision_threshold)
        if options.json:
            keys = ("decision_threshold", "exported_threshold", "verdict_delta")
            print(json.dumps({key: dataclasses.asdict(manifest)[key] for key in keys}, indent=2))
        else:
            print(f"{options.bundle}: {describe(manifest.decision_threshold)}")
            print(f"as exported, {describe(manifest.exported_threshold)}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    command = CommandParser("stlm-calibrate", "Set a bundle's threshold from normal images taken on site.", EXAMPLE)
    add = command.add_argument
    add("--bundle", required=True, metavar="B", help="the bundle's folder")
    add("--data", required=True, metavar="NORMAL", help="folder of normal images, none of them defective")
    add("--false-alarm-rate", type=float, default=0.01, metavar="R", help="share of false alarms (default: 0.01)")
    add("--threads", type=int, metavar="N", help="threads of the runtime (default: one per physical core)")
    add("--json", action="store_true", help="print both thresholds as JSON and nothing else")
    return command


def _check_finds_anomalies(bundle: Bundle, threshold: float) -> None:
    """Refuse a threshold above the scores of all anomalous golden images."""
    highest = max((golden.score for golden in bundle.manifest.golden if golden.anomalous), default=1.0)
    if threshold >= highest:
        raise JobError(
            f"{bundle.folder}: the threshold would be {threshold:.4g}, above every anomalous golden image (highest "
            f"score {highest:.4g}), so nothing would be found; remove defects and foreign images from --data"
        )


def _counted(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the paths, and count them on a terminal."""
    for done, path in enumerate(paths, 1):
        yield path
        if sys.stderr.isatty():
            end = "\n" if done == len(paths) else ""
            print(f"\r{done} of {len(paths)} images", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
