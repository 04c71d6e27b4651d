"""Other bench.json files: their rows beside those of this bench, and an earlier bench as the baseline of this one."""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stlm_edge.bench.percentiles import slower_by
from stlm_edge.bench.result import Bench, DeviceResult, Row, read_bench
from stlm_edge.errors import UsageError

_KEY = "name, device, runtime, precision, size, threads"


def merged(
    paths: Sequence[str], data: str | None, taken: Collection[str]
) -> tuple[list[Row], tuple[DeviceResult, ...], str | None]:
    """Return the rows and devices of these files; the machine that wrote a file gets the file's name.

    Accuracy is that of one data set: `data`, or the first one that a file names. Accuracy on another one is left out.

    Args:
        paths: bench.json files.
        data: the data set of this bench, or None.
        taken: names of devices that are in use; a second device of a name gets a number.

    Raises:
        UsageError: no bench.json, or one with a row of a device that it does not list.
    """
    rows: list[Row] = []
    devices: list[DeviceResult] = []
    names = set(taken)
    for path in map(Path, paths):
        bench = read_bench(path)
        data = data or bench.data
        new: dict[str | None, str] = {}
        if any(row.device is None for row in bench.rows):
            new[None] = _free(path.resolve().parent.name if path.stem == "bench" else path.stem, names)
            devices.append(DeviceResult(new[None], bench.machine, None, bench.date))
        for device in bench.devices:
            new[device.name] = _free(device.name, names)
            devices.append(replace(device, name=new[device.name], date=device.date or bench.date))
        if bench.data != data and any(row.accuracy for row in bench.rows):
            print(f"{path}: accuracy left out, it is of {bench.data}", file=sys.stderr)
        for row in bench.rows:
            if row.device not in new:
                raise UsageError(f"{path}: its row {row.name!r} is of {row.device!r}, which is not among its devices")
            rows.append(replace(row, device=new[row.device], accuracy=row.accuracy if bench.data == data else None))
    return rows, tuple(devices), data


def _free(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} ({number})"
    taken.add(free)
    return free


@dataclass(frozen=True)
class Change:
    """One row against the baseline's; a regression exceeds the limit even by the lower end of the interval."""

    name: str
    regressed: bool
    text: str


def check_comparable(before: Bench, rows: Sequence[Row]) -> None:
    """Raise UsageError unless the baseline has one of these rows, which are not measured yet."""
    if not {_key_before(row) for row in before.rows} & {_key_before(row) for row in rows}:
        raise UsageError(
            f"--against: has no row with the {_KEY} of this bench; "
            f"it has {', '.join(sorted(row.name for row in before.rows))}"
        )


def changes(before: Bench, rows: Sequence[Row], allowed: float) -> list[Change]:
    """Compare each row with the baseline's row of the same key; `allowed` is a share, 0.05 for 5%."""
    baseline = {_key(row): row for row in before.rows}
    return [_change(baseline.get(_key(row)), row, allowed) for row in rows]


def _key(row: Row) -> tuple[object, ...]:
    return row.name, row.device, row.runtime, row.precision, row.input_size, row.threads


def _key_before(row: Row) -> tuple[object, ...]:
    """Return the key before the measurement; a phone or browser reports runtime and threads only afterwards."""
    if row.device is not None and not row.device.startswith("ssh:"):
        return row.name, row.device, row.precision, row.input_size
    return _key(row)


def _change(before: Row | None, after: Row, allowed: float) -> Change:
    if before is None:
        return Change(after.name, False, f"not compared: that bench has no row of the same {_KEY}")
    if before.passed and not after.passed:
        return Change(after.name, True, f"it passed, and now fails: {after.failure}")
    if len(before.round_p50_ms) < 2 or len(after.round_p50_ms) < 2:
        return Change(after.name, False, "no latency to compare")
    slower, low, high = slower_by(before.round_p50_ms, after.round_p50_ms)
    text = f"{slower:+.1%} (95% interval {low:+.1%} to {high:+.1%})"
    if low > allowed:
        return Change(after.name, True, f"slower by {text}, at most {100 * allowed:g}% is allowed")
    if high > allowed:
        return Change(after.name, False, f"{text}: too noisy to rule out more than {100 * allowed:g}%")
    return Change(after.name, False, f"{text}: within {100 * allowed:g}%")
