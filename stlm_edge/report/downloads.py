"""What a report shows, as files inside its page: JSON as it was written, tables as CSV."""

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

TABLE = dict[str, Any]  # a line of a table: column → text, number, bool or None


class Download(NamedTuple):
    """A file's name, what it holds in words, and its content as a data: address."""

    name: str
    holds: str
    address: str


def downloads(
    bench: Mapping[str, Any] | None,
    labels: Sequence[str],
    metrics: Mapping[str, Any],
    config: Mapping[str, Any],
    log: Sequence[TABLE],
    tries: Mapping[str, Sequence[TABLE]],
) -> list[Download]:
    """Everything that there is; `labels` name the bench's rows."""
    rows = bench["rows"] if bench else []
    named = list(zip(labels, rows, strict=True))
    objects = [("bench.json", "the whole bench", bench), ("metrics.json", "the evaluation", metrics)]
    objects.append(("config.json", "the training's settings", config))
    objects.append(("tries.json", "what the exports tried", tries))
    tables: list[tuple[str, str, list[TABLE]]] = [
        (
            "rows.csv",
            "artifacts and their figures",
            [{"artifact": label, **_flat(row | {"worst": None})} for label, row in named],
        ),
        ("golden.csv", "answers on the golden images", _inside(named, "golden")),
        ("rounds.csv", "medians of the rounds", _listed(named, "round_p50_ms", "round", "ms", 1)),
        ("latencies.csv", "latency by percentile", _listed(named, "quantiles_ms", "percentile", "ms", 0)),
        ("parts.csv", "time by part of the network", _inside([(a, r.get("profile") or {}) for a, r in named], "parts")),
        (
            "tries.csv",
            "what the exports tried",
            [{"artifact": a, **_flat(t)} for a, each in tries.items() for t in each],
        ),
        ("scores.csv", "scores of the evaluation", [s for s in metrics.get("scores") or [] if isinstance(s, dict)]),
        ("by_defect.csv", "the evaluation by defect", _by_defect(metrics)),
        ("training.csv", "the training's log", [_flat(entry) for entry in log]),
    ]
    found = [
        Download(name, holds, _address("application/json", json.dumps(value, indent=1)))
        for name, holds, value in objects
        if value
    ]
    return found + [Download(name, holds, _address("text/csv", _csv(table))) for name, holds, table in tables if table]


def _inside(named: Sequence[tuple[str, Mapping[str, Any]]], key: str) -> list[TABLE]:
    return [{"artifact": label, **_flat(each)} for label, row in named for each in row.get(key) or []]


def _listed(named: Sequence[tuple[str, TABLE]], key: str, number: str, figure: str, first: int) -> list[TABLE]:
    return [
        {"artifact": label, number: place, figure: value}
        for label, row in named
        for place, value in enumerate(row.get(key) or [], first)
    ]


def _by_defect(metrics: Mapping[str, Any]) -> list[TABLE]:
    return [{"defect": name, **_flat(part)} for name, part in (metrics.get("by_defect") or {}).items()]


def _flat(value: Mapping[str, Any], before: str = "") -> TABLE:
    """An object's texts and figures, those of objects in it as outer.inner; lists have tables of their own."""
    line: TABLE = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            line |= _flat(inner, f"{before}{key}.")
        elif not isinstance(inner, list):
            line[before + key] = inner
        elif not any(isinstance(item, (dict, list)) for item in inner) and all(isinstance(item, str) for item in inner):
            line[before + key] = "; ".join(inner)
    return line


def _csv(table: Sequence[TABLE]) -> str:
    columns = dict.fromkeys(column for line in table for column in line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\r\n")
    writer.writerow({column: _cell(column) for column in columns})
    writer.writerows({column: _cell(value) for column, value in line.items()} for line in table)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula is quoted."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _address(kind: str, text: str) -> str:
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"
