"""Two benches compared, for a machine that decides: is a row wrong now, or slower than it was?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stlm_edge import strict_json
from stlm_edge.bench.percentiles import slower_by
from stlm_edge.bench.result import Bench, Row
from stlm_edge.errors import UsageError

MAX_BYTES = 64_000_000


@dataclass(frozen=True)
class Change:
    """One row then and now. `regressed` only where even the lower end of the interval is beyond what is allowed."""

    name: str
    regressed: bool
    words: str


def read_bench(path: Path) -> Bench:
    """A bench.json, read strictly. Raises UsageError when it is none of this version."""
    return strict_json.read(Bench, strict_json.load(path, MAX_BYTES), str(path))


def check_comparable(before: Bench, rows: Sequence[Row]) -> None:
    """Raise UsageError unless one of these rows, which aren't measured yet, has its like in the earlier bench."""
    known = {_known_beforehand(row) for row in before.rows}
    if not known & {_known_beforehand(row) for row in rows}:
        raise UsageError(
            "--against: none of its rows is one of these (same name, device, runtime, precision, size, threads); "
            f"it has {', '.join(sorted(row.name for row in before.rows))}"
        )


def changes(before: Bench, rows: Sequence[Row], allowed: float) -> list[Change]:
    """Each row against the one it is comparable with, by _key; one without says so."""
    known = {_key(row): row for row in before.rows}
    alone = "nothing to compare with: that bench has no such row (name, device, runtime, precision, size, threads)"
    return [
        _change(known[_key(row)], row, allowed) if _key(row) in known else Change(row.name, False, alone)
        for row in rows
    ]


def _key(row: Row) -> tuple[object, ...]:
    return row.name, row.device, row.runtime, row.precision, row.input_size, row.threads


def _known_beforehand(row: Row) -> tuple[object, ...]:
    """A phone's or browser's row tells only afterwards what ran it, and on how many threads."""
    told_later = row.device is not None and not row.device.startswith("ssh:")
    return tuple(None if told_later and place in (2, 5) else part for place, part in enumerate(_key(row)))


def _change(before: Row, after: Row, allowed: float) -> Change:
    if before.passed and not after.passed:
        return Change(after.name, True, f"it passed, and now fails: {after.failure}")
    if len(before.round_p50_ms) < 2 or len(after.round_p50_ms) < 2:
        return Change(after.name, False, "no latency to compare")
    slower, low, high = slower_by(before.round_p50_ms, after.round_p50_ms)
    words = f"{_signed(slower)} (95% interval {_signed(low)} to {_signed(high)})"
    if low > allowed:
        return Change(after.name, True, f"slower by {words}, at most {100 * allowed:g}% is allowed")
    if high > allowed:
        return Change(after.name, False, f"{words}: too noisy to rule out more than {100 * allowed:g}%")
    return Change(after.name, False, f"{words}: within {100 * allowed:g}%")


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}%"
