"""Thresholds from normal pictures alone; `stlm-calibrate` finds a bundle's anew with the device's own camera."""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from stlm_edge.bundle import Bundle, open_bundle
from stlm_edge.errors import JobError, UsageError, exit_with_one_line
from stlm_edge.manifest import Calibration
from stlm_edge.pack import recalibrate
from stlm_edge.picture import list_pictures, load

MARGIN = 0.1


EXAMPLE = """example:
  stlm-calibrate --bundle bundles/cpu-int8 --data /var/line3/normal --false-alarm-rate 0.01
writes the new threshold into the bundle; what the export shipped is kept beside it"""


def calibrate(
    scores: Sequence[float],
    maps: Sequence[np.ndarray | float],
    false_alarm_rate: float = 0.01,
    source: Literal["training", "site"] = "training",
) -> Calibration:
    """The threshold of a model from the scores of n held-out normal pictures and the median of each one's map.

    With n ≥ 1/rate it is the score of rank ⌈(1 − rate)(n + 1)⌉ counted from the lowest: of pictures like these a share
    of at most `rate` lies above it, on average (split conformal prediction; Vovk et al., 2005, "Algorithmic Learning
    in a Random World"). With fewer pictures nothing is known of so rare scores, and the next normal picture exceeds the
    maximum of n once in n + 1: the threshold is then the maximum plus a margin of MARGIN × (maximum − median), a tenth
    of the spread that was seen, but never more than half the way to 1, the highest possible score.

    `maps` are the pictures' anomaly maps, or only the median of each: colours run from the median of those medians to
    as far above the threshold as that is below it. Raises UsageError for no pictures, a rate outside ]0, 0.5[, or
    values that are not finite.
    """
    _check_rate(false_alarm_rate)
    if not len(scores):
        raise UsageError("calibration: no normal pictures; give at least one, better 1/(false-alarm rate) of them")
    medians = [float(np.median(anomaly_map)) for anomaly_map in maps]
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    if not (np.isfinite(ordered).all() and np.isfinite(medians).all()):
        raise UsageError("calibration: a score is not finite; train or export the model anew")
    count, median = len(ordered), float(np.median(ordered))
    enough = count * false_alarm_rate >= 1 - 1e-9
    if enough:
        rank = count + 1 - math.floor(false_alarm_rate * (count + 1) + 1e-9)
        margin, highest = 0.0, float(ordered[rank - 1])
    else:
        highest = float(ordered[-1])
        margin = min(MARGIN * (highest - median), max(0.0, (1 - highest) / 2))
    threshold = highest + margin
    map_low = min(float(np.median(medians)), threshold)
    return Calibration(
        threshold=threshold,
        median_score=median,
        map_low=map_low,
        map_high=2 * threshold - map_low,
        false_alarm_rate=false_alarm_rate,
        pictures=count,
        method="quantile" if enough else "maximum plus margin",
        margin=margin,
        source=source,
    )


def describe(calibration: Calibration) -> str:
    """The calibration in a line for people: the threshold and what it rests on."""
    pictures = f"{calibration.pictures} normal pictures"
    if calibration.method == "quantile":
        rate = f"{calibration.false_alarm_rate:g}"
        return f"threshold {calibration.threshold:.4g} from {pictures}, for a false-alarm rate of {rate}"
    needed = math.ceil(1 / calibration.false_alarm_rate - 1e-9)
    return (
        f"threshold {calibration.threshold:.4g}, the maximum of {pictures} plus a margin of {calibration.margin:.2g}, "
        f"because a false-alarm rate of {calibration.false_alarm_rate:g} needs {needed}"
    )


def judge(
    run: Callable[[np.ndarray], tuple[np.ndarray, float]], pictures: Iterable[np.ndarray]
) -> tuple[list[float], list[float]]:
    """The score of each picture, S×S×3 uint8, and the median of its map, ready for `calibrate`."""
    scores, medians = [], []
    for picture in pictures:
        anomaly_map, score = run(picture)
        scores.append(score)
        medians.append(float(np.median(anomaly_map)))
    return scores, medians


def main(arguments: Sequence[str] | None = None) -> None:
    """Run stlm-calibrate."""
    parser = argparse.ArgumentParser(
        "stlm-calibrate",
        description="Find a bundle's threshold anew from normal pictures taken on site.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--bundle", required=True, metavar="B", help="the bundle's folder, which is rewritten")
    add("--data", required=True, metavar="NORMAL", help="folder of normal pictures, none of them defective")
    add(
        "--false-alarm-rate",
        type=float,
        default=0.01,
        metavar="R",
        help="share of false alarms (default: 0.01)",
    )
    add("--threads", type=int, metavar="N", help="threads of the runtime (default: one per physical core)")
    add("--json", action="store_true", help="print both calibrations as JSON and nothing else")
    options = parser.parse_args(arguments)
    with exit_with_one_line("interrupted; the bundle is whole, run it again"):
        _check_rate(options.false_alarm_rate)
        bundle = open_bundle(options.bundle, threads=options.threads)
        run, size = bundle.runtime.run, bundle.runtime.size
        pictures = (load(path, size) for path in _counted(list_pictures(options.data)))
        found = calibrate(*judge(run, pictures), options.false_alarm_rate, "site")
        _check_sense(bundle, found.threshold)
        manifest = recalibrate(bundle, found)
        if options.json:
            keys = ("calibration", "training_calibration", "verdict_delta")
            print(json.dumps({key: dataclasses.asdict(manifest)[key] for key in keys}, indent=2))
        else:
            print(f"{options.bundle}: {describe(manifest.calibration)}")
            print(f"as exported, {describe(manifest.training_calibration)}")


def _check_rate(rate: float) -> None:
    if not 0 < rate < 0.5:
        raise UsageError(f"false-alarm rate: found {rate}, expected more than 0 and less than 0.5, such as 0.01")


def _check_sense(bundle: Bundle, threshold: float) -> None:
    """Refuse a threshold above everything anomalous that the bundle knows of: such a bundle would find nothing."""
    highest = max((golden.score for golden in bundle.manifest.golden if golden.anomalous), default=1.0)
    if threshold >= highest:
        raise JobError(
            f"{bundle.folder}: the threshold would be {threshold:.4g}, above every anomalous golden picture (highest "
            f"{highest:.4g}), so nothing would be found; are there defects or foreign pictures in --data?"
        )


def _counted(paths: Sequence[Path]) -> Iterator[Path]:
    """The paths, with a count on a terminal of those that are done."""
    for done, path in enumerate(paths, 1):
        yield path
        if sys.stderr.isatty():
            end = "\n" if done == len(paths) else ""
            print(f"\r{done} of {len(paths)} pictures", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
