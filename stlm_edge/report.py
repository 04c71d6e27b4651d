"""The report: one HTML file that shows what was trained, how well it finds defects, and what each artifact of it does.

It stands alone: pictures inside, nothing fetched, readable on paper, on a phone and in the dark. Every input may be
missing, and what nobody measured says so.
"""

import base64
import io
import json
import math
import re
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from stlm_edge import strict_json
from stlm_edge.bench.result import is_stand_in
from stlm_edge.errors import UsageError
from stlm_edge.files import write_text
from stlm_edge.parity import MAP_LIMITS
from stlm_edge.picture import PICTURE_SUFFIXES, read_picture
from stlm_edge.runtimes import name_here
from stlm_edge.targets import TARGETS, Target

MAX_JSON_BYTES = 64_000_000
MAX_SHEETS = 12
_NO_LOSSES = ("step", "loss", "seconds", "epoch", "rate", "lr")
SHEET_SIDE = 1600  # pixels; a contact sheet is inlined no larger


def write_report(
    out_html: Path,
    bench: dict[str, Any] | None = None,
    run_folder: Path | None = None,
    evaluation: Path | None = None,
    frontiers: dict[str, Any] | None = None,
) -> None:
    """Write the report to `out_html`, whole or not at all.

    Args:
        bench: the content of a bench.json.
        run_folder: what stlm-train wrote; config.json and log.jsonl are read.
        evaluation: what stlm-eval wrote; metrics.json and the contact sheets beside it are read.
        frontiers: a row's name → what its export tried, `exported.Tried` as JSON; what is anything else is left out.

    Raises:
        UsageError: jinja2 or matplotlib are missing, or a file is there and cannot be read.
        JobError: the report cannot be written.
    """
    try:
        import jinja2
        import markupsafe

        from stlm_edge import charts
    except ImportError as error:
        raise UsageError(f'the report needs {error.name}: pip install "stlm-edge[train]"') from None

    def shown(value: Any, spec: str = "", unit: str = "", missing: str = "not measured") -> str:
        """Format a figure; without one, say so in a way that nobody reads as a figure."""
        if value is None or isinstance(value, jinja2.Undefined):
            return markupsafe.Markup('<span class="none">{}</span>').format(missing)
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        return format(value, spec) + (f"\N{NO-BREAK SPACE}{unit}" if unit else "")

    def small(value: Any) -> str:
        """Format a difference: 0, 0.0123 or 3.1e-6."""
        if not isinstance(value, float) or not math.isfinite(value):
            return shown(value)
        mantissa, exponent = f"{value:.1e}".split("e")
        return "0" if value == 0 else f"{value:.4f}" if abs(value) >= 0.001 else f"{mantissa}e{int(exponent)}"

    config = _read_object(run_folder / "config.json") if run_folder else {}
    metrics = _read_object(evaluation / "metrics.json") if evaluation else {}
    log = _read_log(run_folder / "log.jsonl") if run_folder else []
    rows = (bench or {}).get("rows", [])
    teachers = [teacher for teacher in [config.get("teacher"), *(row.get("teacher") for row in rows)] if teacher]

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stlm_edge"),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(shown=shown, told=partial(shown, missing="not told"), small=small, seconds=_duration)
    page = environment.get_template("report.html").render(
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        bench=bench,
        rows=rows,
        peer=_peer(rows),
        settings=_settings(config),
        parts=_parts(config),
        trained_seconds=max((entry["seconds"] for entry in log if "seconds" in entry), default=None),
        metrics=metrics,
        stand_in=any(is_stand_in(json.dumps(teacher)) for teacher in teachers),
        sheets=_contact_sheets(evaluation) if evaluation else [],
        targets=_targets(rows),
        curves=[
            (phase, markupsafe.Markup(charts.loss_curves(phase, *curves))) for phase, curves in _phases(log).items()
        ],
        score_charts=[(title, markupsafe.Markup(svg)) for title, svg in _score_charts(metrics)],
        golden_charts=[(*words, markupsafe.Markup(svg)) for *words, svg in _golden_charts(rows)],
        frontiers=[
            (name, tries, markupsafe.Markup(charts.frontier(tries)))
            for name, tries in (frontiers or {}).items()
            if _are_tries(tries)
        ],
        latency_charts=[(*words, markupsafe.Markup(svg)) for *words, svg in _latency_charts(rows)],
    )
    write_text(out_html, page)


def _read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, an empty one where there is no file."""
    if not path.is_file():
        return {}
    value = strict_json.load(path, MAX_JSON_BYTES)
    if not isinstance(value, dict):
        raise UsageError(f"{path}: a JSON object was expected; write the file anew with the command that made it")
    return value


def _read_log(path: Path) -> list[dict[str, Any]]:
    """Return the logged steps. A line that is not an object is left out: a killed run leaves half a last line."""
    if not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
        return []
    entries = []
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


def _phases(log: list[dict[str, Any]]) -> dict[str, tuple[list[float], dict[str, list[float]]]]:
    """Group logged steps by phase: phase → (steps, {loss → its value at each step, NaN where it has none})."""
    phases: dict[str, list[dict[str, Any]]] = {}
    for entry in log:
        if _is_number(entry.get("step")) and _is_number(entry.get("loss")):
            phases.setdefault(str(entry.get("phase", "training")), []).append(entry)
    curves = {}
    for phase, entries in phases.items():
        names = dict.fromkeys(name for entry in entries for name in entry if _is_number(entry[name]))
        losses = ["loss", *(name for name in names if name not in _NO_LOSSES and not name.startswith("validation_"))]
        values = {
            name: [float(entry[name]) if _is_number(entry.get(name)) else math.nan for entry in entries]
            for name in losses
        }
        curves[phase] = ([float(entry["step"]) for entry in entries], values)
    return curves


def _are_tries(value: Any) -> bool:
    """Whether a manifest's frontier is one that can be drawn: manifests come from anywhere."""
    figures = ("bytes", "latency_ms", "cosine", "verdict_failures")
    return (
        isinstance(value, list)
        and 0 < len(value) <= 100
        and all(isinstance(tried, dict) and all(_is_number(tried.get(name)) for name in figures) for tried in value)
        and all(isinstance(tried.get(name), list) for tried in value for name in ("kept", "losses"))
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _settings(config: dict[str, Any]) -> dict[str, str]:
    """Return settings as text. Of an object among them its name is shown here, its parts by `_parts`."""
    return {
        name: _text(value.get("name", "see below") if isinstance(value, dict) else value)
        for name, value in config.items()
        if value is not None
    }


def _parts(config: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return the settings that are objects, such as the recipe: name → its settings."""
    return {name: _settings(value) for name, value in config.items() if isinstance(value, dict)}


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if re.fullmatch("[0-9a-f]{40,}", text):
        return text[:12] + "…"  # a digest
    return text if len(text) <= 160 else text[:159] + "…"


def _contact_sheets(folder: Path) -> list[tuple[str, str]]:
    """Return (caption, JPEG as base64) of the pictures beside metrics.json."""
    sheets = []
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)[:MAX_SHEETS]:
        picture = read_picture(path)
        picture.thumbnail((SHEET_SIDE, SHEET_SIDE * 4))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=86)
        caption = path.stem.replace("_", " ").replace("-", " ").capitalize()
        sheets.append((caption, base64.b64encode(buffer.getvalue()).decode()))
    return sheets


def _score_charts(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Draw the scores of an evaluation, if it kept them."""
    from stlm_edge import charts

    pictures = [
        charts.Scored(float(picture["score"]), str(picture.get("defect", "")), bool(picture.get("anomalous")))
        for picture in metrics.get("scores") or []
        if isinstance(picture, dict) and _is_number(picture.get("score"))
    ]
    threshold: Any = metrics.get("threshold")
    if not pictures or not _is_number(threshold):
        return []
    return [
        ("Scores of normal and anomalous pictures", charts.score_histogram(pictures, threshold)),
        ("Scores by defect type", charts.scores_by_defect(pictures, threshold)),
    ]


def _golden_charts(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Draw what every row said that was shown the same golden pictures as the first: (title, explanation, SVG)."""
    from stlm_edge import charts

    answered = [row for row in rows if row.get("golden") and row.get("threshold") is not None]
    if not answered:
        return []
    first = answered[0]
    pictures = sorted(first["golden"], key=lambda picture: picture["expected_score"])
    names = [picture["name"] for picture in pictures]
    by_name = {row["name"]: {picture["name"]: picture for picture in row["golden"]} for row in answered}
    same = {row: said for row, said in by_name.items() if said.keys() == set(names)}
    scores = {row: [said[name]["score"] for name in names] for row, said in same.items()}
    worst = {row: [said[name]["max_abs_diff"] or 0.0 for name in names] for row, said in same.items()}
    expected = [picture["expected_score"] for picture in pictures]
    delta = first.get("verdict_delta") or 0.0
    return [
        (
            "Scores on the golden pictures",
            "a mark on its stroke says what the trained model said",
            charts.golden_scores(names, expected, scores, first["threshold"], delta),
        ),
        (
            "Largest difference of the maps",
            "on the same pictures, logarithmic; maps lie between 0 and 1",
            charts.golden_differences(names, worst, MAP_LIMITS["fp32"]),
        ),
    ]


def _latency_charts(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Draw the latencies: (title, explanation, SVG)."""
    from stlm_edge import charts

    timed = [
        charts.Timed(row["name"], latency["p50"], latency["p90"], latency["p99"], row.get("round_p50_ms") or [])
        for row in rows
        if (latency := row.get("latency_ms")) and latency["p99"] is not None
    ]
    if not timed:
        return []
    return [
        ("Latency per picture", "", charts.latencies(timed)),
        ("How steady the machine was", "", charts.rounds(timed)),
    ]


def _peer(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row whose speed the others' is told against: the checkpoint's, else the first fp32 one."""
    timed = [row for row in rows if row.get("latency_ms")]
    return next((row for row in timed if row.get("target") is None), None) or next(
        (row for row in timed if row.get("precision") == "fp32"), None
    )


def _targets(rows: list[dict[str, Any]]) -> list[tuple[Target, list[str]]]:
    """Return each target with the names of the bundles that were timed here as such."""
    timed = [row for row in rows if row.get("latency_ms")]
    return [
        (
            target,
            [
                row["name"]
                for row in timed
                if row.get("target") == target.name
                and row.get("runtime") in (target.runtime, name_here(target.runtime))
            ],
        )
        for target in TARGETS
    ]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )
