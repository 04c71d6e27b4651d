"""The report: one HTML file that shows what was trained, how well it finds defects, and what each artifact of it does.

It stands alone: images inside, nothing fetched, readable on paper, on a phone and in the dark. Every input may be
missing, and what nobody measured says so.
"""

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from stlm_edge import strict_json
from stlm_edge.bench.result import is_stand_in
from stlm_edge.bundle import Bundle
from stlm_edge.bundle.parity import MAP_LIMITS
from stlm_edge.bundle.reader import FRONTIER
from stlm_edge.errors import UsageError
from stlm_edge.export.targets import TARGETS, Target
from stlm_edge.files import write_text
from stlm_edge.images import IMAGE_SUFFIXES, read_image
from stlm_edge.report.downloads import downloads
from stlm_edge.report.worst_images import thumbnails, worst
from stlm_edge.runtimes import name_here

MAX_JSON_BYTES = 64_000_000
MAX_SHEETS = 12
_NO_LOSSES = ("step", "loss", "seconds", "epoch", "rate", "lr")
SHEET_SIDE = 1600  # pixels; a contact sheet is inlined no larger


def write_report(
    out_html: Path,
    bench: dict[str, Any] | None = None,
    run_folder: Path | None = None,
    evaluation: Path | None = None,
    bundles: Mapping[str, Bundle] | None = None,
) -> None:
    """Write the report to `out_html`, whole or not at all.

    Args:
        bench: the content of a bench.json.
        run_folder: what stlm-train wrote; config.json and log.jsonl are read.
        evaluation: what stlm-eval wrote; metrics.json and the contact sheets beside it are read.
        bundles: a row's `bundle` → that bundle, or for a checkpoint the one whose golden images it was shown; their
            golden images are shown, and what their exports tried.

    Raises:
        UsageError: jinja2 or matplotlib are missing, or a file is there and cannot be read.
        JobError: the report cannot be written.
    """
    try:
        import jinja2
        import markupsafe

        from stlm_edge.report import charts
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
    bundles = bundles or {}
    rows = _rows(bench or {})
    devices = _devices(bench or {}, rows)
    answered = [row for device in devices if not device["lost"] for row in device["rows"]]
    tries = {row["label"]: found for row in answered if row.get("target") and (found := _tries(row, bundles))}
    teachers = [teacher for teacher in [config.get("teacher"), *(row.get("teacher") for row in rows)] if teacher]

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stlm_edge.report"),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(shown=shown, told=partial(shown, missing="not told"), small=small, seconds=_duration)
    environment.tests.update(fell_back=fell_back)
    page = environment.get_template("report.html").render(
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        bench=bench,
        rows=answered,
        devices=devices,
        headline=_headline(devices) or (bench or {}).get("headline"),
        settings=_settings(config),
        parts=_parts(config),
        trained_seconds=max((entry["seconds"] for entry in log if "seconds" in entry), default=None),
        metrics=metrics,
        stand_in=any(is_stand_in(json.dumps(teacher)) for teacher in teachers),
        sheets=_contact_sheets(evaluation) if evaluation else [],
        sheets_left_out=max(0, len(_images(evaluation)) - MAX_SHEETS) if evaluation else 0,
        targets=_targets(answered),
        curves=[
            (phase, markupsafe.Markup(charts.loss_curves(phase, *curves))) for phase, curves in _phases(log).items()
        ],
        score_charts=[(title, markupsafe.Markup(svg)) for title, svg in _score_charts(metrics)],
        golden_charts=[(*words, markupsafe.Markup(svg)) for *words, svg in _golden_charts(answered)],
        worst=[
            (row, seen) for row in answered if (bundle := bundles.get(row["bundle"])) and (seen := worst(row, bundle))
        ],
        thumbnails=_thumbnails(answered, bundles),
        tries=[
            (row, tries[row["label"]], markupsafe.Markup(charts.frontier(tries[row["label"]])), _notes(row, bundles))
            for row in answered
            if row["label"] in tries
        ],
        part_charts=[(*words, markupsafe.Markup(svg)) for *words, svg in _part_charts(answered)],
        latency_charts=[
            (device, [(*words, markupsafe.Markup(svg)) for *words, svg in drawn])
            for device in devices
            if not device["lost"] and (drawn := _latency_charts(device["rows"]))
        ],
        trained_accuracy=next(
            (row["accuracy"] for row in answered if row.get("accuracy") and row.get("target") is None), None
        ),
        downloads=downloads(bench, [row["label"] for row in rows], metrics, config, log, tries),
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


def _rows(bench: dict[str, Any]) -> list[dict[str, Any]]:
    """The bench's rows, each with a `label` that no other has; without a latency where what ran it isn't the device."""
    rows = bench.get("rows", [])
    machines = {device["name"]: device.get("machine") for device in bench.get("devices") or []}
    several = len({row.get("device") for row in rows}) > 1
    labels: list[str] = []
    for row in rows:
        label = row.get("name") or row["bundle"]
        label += f" on {row.get('device') or 'this machine'}" if several else ""
        more = (f" by {row.get('runtime')}", *(f" ({number})" for number in range(2, len(rows) + 2)))
        labels.append(next(label + end for end in ("", *more) if label + end not in labels))
    played = []
    for row in rows:
        machine = machines.get(row["device"]) if row.get("device") else bench.get("machine")
        plays = "an evaluator" if row.get("runtime") == "mil-evaluator" else (machine or {}).get("emulated")
        played.append(row.get("untimed") or (f"{plays} plays this device" if plays else None))
    nothing = dict.fromkeys(("latency_ms", "end_to_end_ms", "load_ms", "first_inference_ms", "energy_mj", "profile"))
    nothing |= dict.fromkeys(("throughput", "round_p50_ms", "quantiles_ms"), ())
    return [
        row | {"label": label} | ({**nothing, "untimed": why} if why else {})
        for row, label, why in zip(rows, labels, played, strict=True)
    ]


def _devices(bench: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The devices in the order of their rows: each one's name, machine, rows, the row to tell of it, and if it passed.

    `lost` is why a device gave no answer, and else None.
    """
    told = {device["name"]: device for device in bench.get("devices") or []}
    devices = []
    for name in dict.fromkeys([*(row.get("device") for row in rows), *told]):
        mine = [row for row in rows if row.get("device") == name]
        answer = told.get(name) or {} if name is not None else {"machine": bench.get("machine")}
        lost = answer.get("failure") or ("it told nothing" if not mine else None)
        machine = answer.get("machine") or {}
        timed = [row for row in mine if row.get("latency_ms") and row.get("passed")]
        best = min([row for row in timed if row.get("target")] or timed, key=_p90, default=None)
        devices.append(
            {
                "name": name,
                "title": machine.get("device") or machine.get("gpu") or machine.get("processor") or name,
                "machine": machine,
                "date": answer.get("date"),
                "lost": lost,
                "rows": mine,
                "best": best,
                "peer": _peer(mine),
                "passed": bool(mine) and not lost and all(row.get("passed") for row in mine),
                "failed": sum(not row.get("passed") for row in mine),
                "fell_back": sum(fell_back(row) for row in mine),
            }
        )
    return devices


def _p90(row: dict[str, Any]) -> float:
    latency = row["latency_ms"]
    return latency["p50"] if latency.get("p90") is None else latency["p90"]


def fell_back(row: dict[str, Any]) -> bool:
    """Whether a part of the graph ran on something else than what was asked for."""
    return any(part.get("fell_back") for part in row.get("placement") or [])


def _headline(devices: list[dict[str, Any]]) -> str | None:
    """For several devices; one has the bench's own."""
    if len(devices) < 2:
        return None
    lost = sum(device["lost"] is not None for device in devices)
    same = sum(device["passed"] for device in devices)
    return f"Same verdicts as the trained model on {same} of {len(devices) - lost} devices" + (
        f"; {lost} more gave no answer" if lost else ""
    )


def _tries(row: dict[str, Any], bundles: Mapping[str, Bundle]) -> list[dict[str, Any]]:
    """What the export of a row's bundle tried, with the times of it where the export left them beside the bundle."""
    bundle = bundles.get(row["bundle"])
    if bundle is None:
        return []
    timed = bundle.folder / FRONTIER
    try:
        found: Any = strict_json.load(timed) if timed.is_file() else bundle.manifest.provenance.get("frontier")
    except UsageError:
        return []
    return found if _are_tries(found) else []


def _are_tries(value: Any) -> bool:
    """Whether a manifest's frontier is one that can be drawn: manifests come from anywhere."""
    figures = ("bytes", "cosine", "verdict_failures")
    return (
        isinstance(value, list)
        and 0 < len(value) <= 100
        and all(isinstance(tried, dict) and all(_is_number(tried.get(name)) for name in figures) for tried in value)
        and all(tried.get("latency_ms") is None or _is_number(tried["latency_ms"]) for tried in value)
        and all(isinstance(tried.get(name), list) for tried in value for name in ("kept", "losses"))
    )


def _notes(row: dict[str, Any], bundles: Mapping[str, Bundle]) -> list[str]:
    """What the export wants said of the bundle: what stayed in float32, what nobody has run."""
    notes = bundles[row["bundle"]].manifest.provenance.get("notes")
    return [note for note in notes if isinstance(note, str)][:100] if isinstance(notes, list) else []


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
    """Return (caption, JPEG as base64) of the images beside metrics.json."""
    sheets = []
    for path in _images(folder)[:MAX_SHEETS]:
        image = read_image(path)
        image.thumbnail((SHEET_SIDE, SHEET_SIDE * 4))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=86)
        caption = path.stem.replace("_", " ").replace("-", " ").capitalize()
        sheets.append((caption, base64.b64encode(buffer.getvalue()).decode()))
    return sheets


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _score_charts(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Draw the scores of an evaluation, if it kept them."""
    from stlm_edge.report import charts

    images = [
        charts.Scored(float(image["score"]), str(image.get("defect", "")), bool(image.get("anomalous")))
        for image in metrics.get("scores") or []
        if isinstance(image, dict) and _is_number(image.get("score"))
    ]
    threshold: Any = metrics.get("threshold")
    if not images or not _is_number(threshold):
        return []
    return [
        ("Scores of normal and anomalous images", charts.score_histogram(images, threshold)),
        ("Scores by defect type", charts.scores_by_defect(images, threshold)),
    ]


def _golden_charts(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Draw what the rows said of their golden images, those of the same images together: (title, detail, SVG)."""
    from stlm_edge.report import charts

    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        if row.get("golden") and row.get("threshold") is not None:
            shown = sorted((image["expected_score"], image["name"]) for image in row["golden"])
            groups.setdefault((*shown, row["threshold"]), []).append(row)
    found = []
    for (*shown, threshold), every in groups.items():
        expected, names = [score for score, _ in shown], [name for _, name in shown]
        for together in _in_charts(every):
            said = [(row["label"], {image["name"]: image for image in row["golden"]}) for row in together]
            scores = [(label, [images[name]["score"] for name in names]) for label, images in said]
            worst = [
                (label, [math.nan if (each := images[name]["max_abs_diff"]) is None else each for name in names])
                for label, images in said
            ]
            delta = together[0].get("verdict_delta") or 0.0
            found += [
                (
                    "Scores on the golden images",
                    "a mark on its stroke says what the trained model said",
                    charts.golden_scores(names, expected, scores, threshold, delta),
                ),
                (
                    "Largest difference of the maps",
                    "on the same images, logarithmic; maps lie between 0 and 1",
                    charts.golden_differences(names, worst, MAP_LIMITS["fp32"]),
                ),
            ]
    return found


def _in_charts(rows: Sequence[Any]) -> list[Sequence[Any]]:
    """As many at a time as one chart tells apart."""
    from stlm_edge.report.charts import MOST

    return [rows[begin : begin + MOST] for begin in range(0, len(rows), MOST)]


def _thumbnails(rows: list[dict[str, Any]], bundles: Mapping[str, Bundle]) -> dict[tuple[str, str], str]:
    """The golden images whose verdicts differ: (the row's bundle, name) → JPEG as base64."""
    names: dict[str, set[str]] = {}
    for row in rows:
        differ = {image["name"] for image in row.get("golden") or [] if image["verdict"] != "same"}
        names.setdefault(row["bundle"], set()).update(differ)
    return {
        (folder, name): image
        for folder, wanted in names.items()
        if wanted and folder in bundles
        for name, image in thumbnails(bundles[folder], wanted).items()
    }


def _latency_charts(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Draw the latencies of one device: (title, explanation, SVG)."""
    from stlm_edge.report import charts

    timed = [
        charts.Timed(
            row["label"],
            latency["p50"],
            latency.get("p90"),
            latency.get("p99"),
            list(row.get("round_p50_ms") or []),
            list(row.get("quantiles_ms") or []),
        )
        for row in rows
        if (latency := row.get("latency_ms"))
    ]
    if not timed:
        return []
    found = [("Latency per image", "", charts.latencies(timed))]
    if spread := [row for row in timed if len(row.quantiles) == 101]:
        found.append(("How the latencies spread", "each artifact on its own scale", charts.distributions(spread)))
    for together in _in_charts([row for row in timed if row.rounds]):
        found.append(("How steady the machine was", "medians of the rounds", charts.rounds(together)))
    return found


def _part_charts(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Draw where the time goes, and for each artifact its roofline: (title, explanation, SVG)."""
    from stlm_edge.report import charts

    profiled = [
        (row["label"], [charts.Spent(**part) for part in profile["parts"]], profile)
        for row in rows
        if (profile := row.get("profile"))
    ]
    found = [
        ("Time by part of the network", "", charts.parts([(label, spent) for label, spent, _ in together]))
        for together in _in_charts(profiled)
    ]
    return found + [
        (
            f"Roofline of {label}",
            "a part under the slope waits for memory, one under the level for arithmetic",
            charts.roofline(spent, profile["gflop_per_second"], profile["gigabyte_per_second"]),
        )
        for label, spent, profile in profiled
    ]


def _peer(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of the same device whose speed the others' is told against: the checkpoint's, else the first fp32 one."""
    timed = [row for row in rows if row.get("latency_ms")]
    return next((row for row in timed if row.get("target") is None), None) or next(
        (row for row in timed if row.get("precision") == "fp32"), None
    )


def _targets(rows: list[dict[str, Any]]) -> list[tuple[Target, list[str]]]:
    """Return each target with the rows that were timed as such: their names, and on which device."""
    timed = [row for row in rows if row.get("latency_ms")]
    return [
        (
            target,
            [
                f"{row['name']} on {row.get('device') or 'this machine'}"
                for row in timed
                if row.get("target") == target.name
                and re.split("[ /]", str(row.get("runtime")))[0] in (target.runtime, name_here(target.runtime))
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
