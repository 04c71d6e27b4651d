"""Rows of other bench.json files beside this one's, as those of further devices."""

import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from stlm_edge.bench.against import read_bench
from stlm_edge.bench.result import DeviceAnswer, Row
from stlm_edge.errors import UsageError


def merged(
    paths: Sequence[str], data: str | None, taken: Collection[str]
) -> tuple[list[Row], tuple[DeviceAnswer, ...], str | None]:
    """All their rows and devices, with names that aren't taken: what wrote a file is called as the file is.

    Third is the data that accuracy is of: `data`, or where that is None what the first of the files names that has
    any. Accuracy on other data is left out, since a bench tells of one alone. Raises UsageError for a file that is no
    bench.json, or has a row of a device that it doesn't describe.
    """
    rows: list[Row] = []
    answers: list[DeviceAnswer] = []
    names = set(taken)
    for path in map(Path, paths):
        bench = read_bench(path)
        data = data or bench.data
        called = path.resolve().parent.name if path.stem == "bench" else path.stem
        new: dict[str | None, str] = {}
        if any(row.device is None for row in bench.rows):
            new[None] = _free(called, names)
            answers.append(DeviceAnswer(new[None], bench.machine, None, bench.date))
        for answer in bench.devices:
            new[answer.name] = _free(answer.name, names)
            answers.append(replace(answer, name=new[answer.name], date=answer.date or bench.date))
        if bench.data != data and any(row.accuracy for row in bench.rows):
            print(f"{path}: accuracy left out, it is of {bench.data}", file=sys.stderr)
        for row in bench.rows:
            if row.device not in new:
                raise UsageError(f"{path}: its row {row.name!r} is of {row.device!r}, which is not among its devices")
            rows.append(replace(row, device=new[row.device], accuracy=row.accuracy if bench.data == data else None))
    return rows, tuple(answers), data


def _free(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} ({number})"
    taken.add(free)
    return free
