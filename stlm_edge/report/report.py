"""The report: one HTML file about what was trained, how well it finds defects, and how each artifact behaves.

It needs no other file and no network, and can be read on paper, on a phone and in dark mode. Every input is optional;
a value that was not measured is shown as such.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from stlm_edge import strict_json
from stlm_edge.bench.summary import is_proxy_teacher
from stlm_edge.bundle import Bundle
from stlm_edge.bundle.parity import MAP_LIMITS
from stlm_edge.bundle.reader import CANDIDATES
from stlm_edge.errors import UsageError
from stlm_edge.export.targets import TARGETS, Target
from stlm_edge.files import write_text
from stlm_edge.images import is_image, read_image
from stlm_edge.report import charts
from stlm_edge.report.golden_images import jpeg, thumbnails, worst
from stlm_edge.runtimes import name_here

MAX_JSON_BYTES = 64_000_000
MAX_SHEETS = 12
SHEET_SIDE = 1600  # pixels; contact sheets are inlined no larger
NOT_LOSSES = ("step", "loss", "seconds", "epoch", "rate", "lr")


def write_report(
    out_html: Path,
    bench: dict[str, Any] | None = None,
    run_folder: Path | None = None,
    evaluation: Path | None = None,
    bundles: Mapping[str, Bundle] | None = None,
) -> None:
    """Write the report to `out_html`, whole or not at all.

    Args:
        out_html: the file to write.
        bench: the content of a bench.json.
        run_folder: output folder of stlm-train; config.json and log.jsonl are read.
        evaluation: output folder of stlm-eval; metrics.json and the contact sheets beside it are read.
        bundles: by the `bundle` of a row, that bundle, or for a checkpoint the one whose golden images it ran on.

    Raises:
        UsageError: an input file exists and cannot be read.
        JobError: the report cannot be written.
    """
    config = _read_object(run_folder / "config.json") if run_folder else {}
    metrics = _read_object(evaluation / "metrics.json") if evaluation else {}
    log = _read_log(run_folder / "log.jsonl") if run_folder else []
    sheets = sorted(path for path in evaluation.iterdir() if is_image(path)) if evaluation else []
    bundles = bundles or {}
    rows = _rows(bench or {})
    devices = _devices(bench or {}, rows)
    measured = [row for device in devices if not device["lost"] for row in device["rows"]]
    teachers = [config.get("teacher"), *(row.get("teacher") for row in rows)]

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stlm_edge.report"),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    reported = partial(shown, missing="not reported")
    environment.filters.update(shown=shown, reported=reported, small=small, duration=duration)
    environment.tests.update(fell_back=fell_back)
    page = environment.get_template("report.html").render(
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        bench=bench,
        rows=measured,
        devices=devices,
        headline=_headline(devices) or (bench or {}).get("headline"),
        settings=_settings(config),
        parts={name: _settings(value) for name, value in config.items() if isinstance(value, dict)},
        trained_seconds=max((entry["seconds"] for entry in log if "seconds" in entry), default=None),
        metrics=metrics,
        proxy_teacher=any(is_proxy_teacher(json.dumps(teacher)) for teacher in teachers),
        sheets=[_contact_sheet(path) for path in sheets[:MAX_SHEETS]],
        sheets_left_out=max(0, len(sheets) - MAX_SHEETS),
        targets=_targets(measured),
        losses=[(phase, charts.losses(phase, *curves)) for phase, curves in _phases(log).items()],
        score_charts=_score_charts(metrics),
        golden_charts=_golden_charts(measured),
        differing=_differing(measured, bundles),
        worst=[(row, images) for row in measured if (images := worst(row, bundles.get(row["bundle"])))],
        exports=[
            (row, candidates, charts.candidates(candidates), _notes(bundles[row["bundle"]]))
            for row in measured
            if row.get("target") and (candidates := _candidates(bundles.get(row["bundle"])))
        ],
        part_charts=_part_charts(measured),
        latency_charts=[
            (device, drawn) for device in devices if not device["lost"] and (drawn := _latency_charts(device["rows"]))
        ],
        trained_accuracy=next(
            (row["accuracy"] for row in measured if row.get("accuracy") and row.get("target") is None), None
        ),
    )
    write_text(out_html, page)


def shown(value: Any, spec: str = "", unit: str = "", missing: str = "not measured") -> str:
    """Format a value with its unit; in place of None or an undefined value, return `missing` in a style of its own."""
    if value is None or isinstance(value, jinja2.Undefined):
        return Markup('<span class="none">{}</span>').format(missing)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return format(value, spec) + (f"\N{NO-BREAK SPACE}{unit}" if unit else "")


def small(value: Any) -> str:
    """Format a difference: 0, 0.0123 or 3.1e-6."""
    if not isinstance(value, float) or not math.isfinite(value):
        return shown(value)
    mantissa, exponent = f"{value:.1e}".split("e")
    return "0" if value == 0 else f"{value:.4f}" if abs(value) >= 0.001 else f"{mantissa}e{int(exponent)}"


def duration(seconds: float) -> str:
    """Format seconds as hours and minutes, minutes and seconds, or seconds."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def fell_back(row: dict[str, Any]) -> bool:
    """Return True if a part of the graph did not run on the requested execution provider or delegate."""
    return any(part.get("fell_back") for part in row.get("placement") or [])


def _read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, an empty one if there is no file."""
    if not path.is_file():
        return {}
    value = strict_json.load(path, MAX_JSON_BYTES)
    if not isinstance(value, dict):
        raise UsageError(f"{path}: expected a JSON object; write the file again with the command that made it")
    return value


def _read_log(path: Path) -> list[dict[str, Any]]:
    """Return the logged steps. Lines that are not JSON objects are skipped: an interrupted run leaves a partial one."""
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
        losses = ["loss", *(name for name in names if name not in NOT_LOSSES and not name.startswith("validation_"))]
        values = {
            name: [float(entry[name]) if _is_number(entry.get(name)) else math.nan for entry in entries]
            for name in losses
        }
        curves[phase] = ([float(entry["step"]) for entry in entries], values)
    return curves


def _rows(bench: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the bench's rows, each with a unique `label`."""
    rows = bench.get("rows", [])
    several = len({row.get("device") for row in rows}) > 1
    labelled: dict[str, dict[str, Any]] = {}
    for row in rows:
        label = (row.get("name") or row["bundle"]) + (f" on {_device_name(row)}" if several else "")
        endings = ("", f" by {row.get('runtime')}", *(f" ({number})" for number in range(2, len(rows) + 2)))
        label = next(label + ending for ending in endings if label + ending not in labelled)
        labelled[label] = row | {"label": label}
    return list(labelled.values())


def _device_name(row: dict[str, Any]) -> str:
    return row.get("device") or "this machine"


def _devices(bench: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the devices in the order of their rows, each with its machine, rows, fastest row and failures.

    `lost` is the reason why a device returned nothing, and None for the others.
    """
    results = {device["name"]: device for device in bench.get("devices") or []}
    devices = []
    for name in dict.fromkeys([*(row.get("device") for row in rows), *results]):
        of_device = [row for row in rows if row.get("device") == name]
        result = results.get(name) or {} if name is not None else {"machine": bench.get("machine")}
        lost = result.get("failure") or (None if of_device else "it returned nothing")
        machine = result.get("machine") or {}
        timed = [row for row in of_device if row.get("latency_ms")]
        passed = [row for row in timed if row.get("passed")]
        reference = [row for row in timed if row.get("target") is None]
        reference += [row for row in timed if row.get("precision") == "fp32"]
        devices.append(
            {
                "name": name,
                "title": machine.get("device") or machine.get("gpu") or machine.get("processor") or name,
                "machine": machine,
                "date": result.get("date"),
                "lost": lost,
                "rows": of_device,
                "fastest": min([row for row in passed if row.get("target")] or passed, key=_p90, default=None),
                "reference": next(iter(reference), None),
                "passed": bool(of_device) and not lost and all(row.get("passed") for row in of_device),
                "failed": sum(not row.get("passed") for row in of_device),
                "fell_back": sum(fell_back(row) for row in of_device),
            }
        )
    return devices


def _p90(row: dict[str, Any]) -> float:
    latency = row["latency_ms"]
    return latency["p50"] if latency.get("p90") is None else latency["p90"]


def _headline(devices: list[dict[str, Any]]) -> str | None:
    """Return the headline of several devices; for one device, the bench has its own."""
    if len(devices) < 2:
        return None
    lost = sum(device["lost"] is not None for device in devices)
    same = sum(device["passed"] for device in devices)
    return f"Same verdicts as the trained model on {same} of {len(devices) - lost} devices" + (
        f"; {lost} more returned no result" if lost else ""
    )


def _candidates(bundle: Bundle | None) -> list[dict[str, Any]]:
    """Return the candidates of the bundle's export; with times if the export left its own file beside the bundle."""
    if bundle is None:
        return []
    timed = bundle.folder / CANDIDATES
    try:
        candidates: Any = strict_json.load(timed) if timed.is_file() else bundle.manifest.provenance.get("candidates")
    except UsageError:
        return []
    is_list = isinstance(candidates, list) and len(candidates) <= 100
    return candidates if is_list and all(map(_is_candidate, candidates)) else []


def _is_candidate(value: Any) -> bool:
    """Return True for a candidate that can be drawn: provenance may hold anything."""
    return (
        isinstance(value, dict)
        and all(_is_number(value.get(name)) for name in ("bytes", "cosine", "verdict_failures"))
        and (value.get("latency_ms") is None or _is_number(value["latency_ms"]))
        and all(isinstance(value.get(name), list) for name in ("kept_in_float", "losses"))
    )


def _notes(bundle: Bundle) -> list[str]:
    """Return the export's notes: what stayed in float32, what has never run."""
    notes = bundle.manifest.provenance.get("notes")
    return [note for note in notes if isinstance(note, str)][:100] if isinstance(notes, list) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _settings(config: dict[str, Any]) -> dict[str, str]:
    """Return settings as short texts; of a setting that is an object, its name."""
    settings = {}
    for name, value in config.items():
        value = value.get("name", "see below") if isinstance(value, dict) else value
        text = value if isinstance(value, str) else json.dumps(value)
        if re.fullmatch("[0-9a-f]{40,}", text):
            text = text[:12] + "…"  # a checksum
        if value is not None:
            settings[name] = text if len(text) <= 160 else text[:159] + "…"
    return settings


def _contact_sheet(path: Path) -> tuple[str, str]:
    """Return a caption and the JPEG as base64."""
    image = read_image(path)
    image.thumbnail((SHEET_SIDE, SHEET_SIDE * 4))
    return path.stem.replace("_", " ").replace("-", " ").capitalize(), jpeg(image)


def _score_charts(metrics: dict[str, Any]) -> list[tuple[str, Markup]]:
    """Draw the scores of an evaluation: (title, SVG)."""
    threshold: Any = metrics.get("threshold")
    images = [
        {"defect": "", "anomalous": False} | image
        for image in metrics.get("scores") or []
        if isinstance(image, dict) and _is_number(image.get("score"))
    ]
    if not images or not _is_number(threshold):
        return []
    return [
        ("Scores of normal and anomalous images", charts.score_histogram(images, threshold)),
        ("Scores by defect type", charts.scores_by_defect(images, threshold)),
    ]


def _golden_charts(rows: list[dict[str, Any]]) -> list[tuple[str, str, Markup]]:
    """Draw the results on golden images, rows with the same images together: (title, explanation, SVG)."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        if row.get("golden") and row.get("threshold") is not None:
            images = sorted((image["expected_score"], image["name"]) for image in row["golden"])
            groups.setdefault((*images, row["threshold"]), []).append(row)
    drawn = []
    for (*images, threshold), group in groups.items():
        expected, names = [score for score, _ in images], [name for _, name in images]
        for part in _in_parts(group):
            results = [(row["label"], {image["name"]: image for image in row["golden"]}) for row in part]
            scores, differences = (  # None, a difference that is not finite, becomes NaN
                [(label, np.array([by_name[name][key] for name in names], float)) for label, by_name in results]
                for key in ("score", "max_abs_diff")
            )
            delta = part[0].get("verdict_delta") or 0.0
            drawn += [
                (
                    "Scores on the golden images",
                    "a mark on its stroke equals the trained model’s score",
                    charts.golden_scores(names, expected, scores, threshold, delta),
                ),
                (
                    "Largest difference of the maps",
                    "on the same images, logarithmic; maps lie between 0 and 1",
                    charts.golden_differences(names, differences, MAP_LIMITS["fp32"]),
                ),
            ]
    return drawn


def _in_parts(rows: Sequence[Any]) -> list[Sequence[Any]]:
    """Divide rows into as many as one chart can distinguish."""
    return [rows[begin : begin + charts.MOST] for begin in range(0, len(rows), charts.MOST)]


def _differing(
    rows: list[dict[str, Any]], bundles: Mapping[str, Bundle]
) -> list[tuple[dict[str, Any], dict[str, Any], str | None]]:
    """Return the golden images whose verdicts differ: (row, its result, JPEG as base64 if the bundle has it)."""
    differing = []
    for row in rows:
        results = [result for result in row.get("golden") or [] if result["verdict"] != "same"]
        images = thumbnails(bundles.get(row["bundle"]), {result["name"] for result in results})
        differing += [(row, result, images.get(result["name"])) for result in results]
    return differing


def _latency_charts(rows: list[dict[str, Any]]) -> list[tuple[str, str, Markup]]:
    """Draw the latencies of one device: (title, explanation, SVG)."""
    timed = [row for row in rows if row.get("latency_ms")]
    if not timed:
        return []
    drawn = [("Latency per image", "", charts.latencies(timed))]
    if with_quantiles := [row for row in timed if len(row.get("quantiles_ms") or ()) == 101]:
        drawn.append(
            ("Distribution of latencies", "each artifact on its own scale", charts.distributions(with_quantiles))
        )
    for part in _in_parts([row for row in timed if row.get("round_p50_ms")]):
        drawn.append(("Stability of the machine", "medians of the rounds", charts.rounds(part)))
    return drawn


def _part_charts(rows: list[dict[str, Any]]) -> list[tuple[str, str, Markup]]:
    """Draw the time by part of the network, and for each artifact its roofline: (title, explanation, SVG)."""
    profiled = [row for row in rows if row.get("profile")]
    drawn = [("Time by part of the network", "", charts.parts(part)) for part in _in_parts(profiled)]
    explanation = "parts below the slope are limited by memory, those below the level by arithmetic"
    return drawn + [(f"Roofline of {row['label']}", explanation, charts.roofline(row["profile"])) for row in profiled]


def _targets(rows: list[dict[str, Any]]) -> list[tuple[Target, list[str]]]:
    """Return each target with the rows that were timed as such: their names, and on which device."""
    measured: dict[Target, list[str]] = {target: [] for target in TARGETS}
    for row in rows:
        runtime = re.split("[ /]", str(row.get("runtime")))[0]
        for target in TARGETS if row.get("latency_ms") else ():
            if row.get("target") == target.name and runtime in (target.runtime, name_here(target.runtime)):
                measured[target].append(f"{row['name']} on {_device_name(row)}")
    return list(measured.items())
