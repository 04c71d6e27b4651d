"""The report's charts: matplotlib figures as SVG whose colours are CSS variables of the page.

The colours are Okabe and Ito's, which colour-blind people can distinguish; markers and dashes repeat the distinction.
The size suits a phone's width; two or three charts fit side by side on a wide page.
"""

import html
import io
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

_NAMES = ("ink", "muted", "rule", "paper", "blue", "orange", "green", "purple", "sky")
VARIABLES = {f"#0101{number:02}": f"var(--{name})" for number, name in enumerate(_NAMES)}  # placeholder → page's colour
INK, MUTED, RULE, PAPER, BLUE, ORANGE, GREEN, PURPLE, SKY = VARIABLES
LINES = [(BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PURPLE, ":"), (SKY, (0, (5, 1, 1, 1, 1, 1)))]
MARKS = [(BLUE, "o"), (ORANGE, "D"), (GREEN, "s"), (PURPLE, "^"), (SKY, "v")]
WIDTH = 4.4  # inches
MOST = len(MARKS)  # artifacts that one chart can distinguish
Rows: TypeAlias = Sequence[dict[str, Any]]
PerImage: TypeAlias = Sequence[tuple[str, np.ndarray]]  # artifact, one value per golden image
STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "text.parse_math": False,  # a defect called "$x$" is a name, not a formula
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.8,
    "svg.fonttype": "none",
}


@matplotlib.rc_context(STYLE)
def losses(phase: str, steps: Sequence[float], values_by_loss: dict[str, list[float]]) -> Markup:
    """Draw a phase's losses over its steps, smoothed, on a log scale if all are positive; the first one raw as well."""
    figure, axes = _canvas(height=2.6)
    for number, (name, values) in enumerate(values_by_loss.items()):
        turn, place = divmod(number, len(LINES))
        colour, dashes = LINES[place][0], LINES[(place + turn) % len(LINES)][1]
        x, y = np.asarray(steps, float), np.asarray(values, float)
        if not number:
            axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.3)
        axes.plot(x, _smooth(y), color=colour, linestyle=dashes, linewidth=1.2 if number else 1.8, label=name)
    if min(value for values in values_by_loss.values() for value in values if np.isfinite(value)) > 0:
        _logarithmic(axes.set_yscale, axes.yaxis, "g")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.set_xlabel("step")
    _legend(axes, columns=3)
    return _svg(figure, f"losses of {phase} over its steps")


@matplotlib.rc_context(STYLE)
def score_histogram(images: Rows, threshold: float) -> Markup:
    """Draw the scores of metrics.json, normal and anomalous images in common bins, and the threshold."""
    figure, axes = _canvas(height=2.6)
    scores = [image["score"] for image in images] + [threshold]
    bins = np.linspace(min(scores), max(scores) + 1e-9, 31)
    normal = [image["score"] for image in images if not image["anomalous"]]
    anomalous = [image["score"] for image in images if image["anomalous"]]
    axes.hist(normal, bins, color=BLUE, alpha=0.75, label=f"normal ({len(normal)})")
    axes.hist(anomalous, bins, histtype="step", color=ORANGE, linewidth=1.8, label=f"anomalous ({len(anomalous)})")
    _line(axes, threshold, "threshold")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("score")
    axes.set_ylabel("images")
    axes.grid(axis="x", visible=False)
    _legend(axes, columns=2)
    return _svg(figure, "histogram of scores with the threshold")


@matplotlib.rc_context(STYLE)
def scores_by_defect(images: Rows, threshold: float) -> Markup:
    """Draw a line of dots per defect type, normal images first; a filled dot is above the threshold."""
    scores_by_name: dict[tuple[bool, str], list[float]] = {}
    for image in images:
        scores_by_name.setdefault((image["anomalous"], image["defect"]), []).append(image["score"])
    names = sorted(scores_by_name)
    figure, axes = _lines_canvas([name for _, name in names], height=1.0 + 0.28 * len(names))
    spread = np.random.default_rng(0)
    for line, name in enumerate(names):
        scores = np.array(scores_by_name[name])
        heights = line + spread.uniform(-0.24, 0.24, len(scores))
        colour, marker, size = (ORANGE, "D", 14) if name[0] else (BLUE, "o", 18)
        for chosen, face in ((scores > threshold, colour), (scores <= threshold, PAPER)):
            style: Any = {"facecolor": face, "edgecolor": colour, "marker": marker, "linewidth": 1.0}
            axes.scatter(scores[chosen], heights[chosen], size, **style)
    _line(axes, threshold, "threshold")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("score (filled: verdict anomalous)")
    return _svg(figure, "scores by defect type with the threshold")


@matplotlib.rc_context(STYLE)
def latencies(rows: Rows) -> Markup:
    """Draw a bar to each row's p50, and a whisker to p99 with p90 marked if they were measured."""
    figure, axes = _lines_canvas([row["label"] for row in rows], height=1.0 + 0.36 * max(len(rows), 3))
    for line, row in enumerate(rows):
        p50, p90, p99 = map(row["latency_ms"].get, ("p50", "p90", "p99"))
        axes.barh(line, p50, height=0.55, color=BLUE, alpha=0.85, linewidth=0)
        if p90 is not None and p99 is not None:
            axes.plot([p50, p99], [line, line], color=INK, linewidth=1.2, solid_capstyle="butt")
            axes.plot([p90], [line], "|", color=INK, markersize=7, markeredgewidth=1.2)
            axes.plot([p99], [line], "|", color=INK, markersize=11, markeredgewidth=1.2)
    axes.set_xlim(left=0)
    axes.set_xlabel("ms (bar: p50, strokes: p90 and p99)")
    return _svg(figure, "latency per artifact: p50, p90, p99")


@matplotlib.rc_context(STYLE)
def distributions(rows: Rows) -> Markup:
    """Draw a histogram of each row's latencies up to p99, on its own scale."""
    figure = Figure(figsize=(WIDTH, 0.5 + 0.86 * len(rows)), layout="constrained")
    figure.patch.set_alpha(0)
    for axes, row in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows, strict=True):
        axes.patch.set_alpha(0)
        axes.tick_params(length=0)
        axes.hist(row["quantiles_ms"][:100], 40, color=BLUE, alpha=0.85)
        for percentile, dashes in (("p50", "-"), ("p90", (0, (4, 2)))):
            if (value := row["latency_ms"].get(percentile)) is not None:
                axes.axvline(value, color=INK, linewidth=1.1, linestyle=dashes)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_title(f"{_short(row['label'])}, slowest {row['quantiles_ms'][-1]:.4g} ms", loc="left", fontsize=9)
    axes.set_xlabel("ms (stroke: p50, dashes: p90)")
    return _svg(figure, "distribution of latencies per artifact, up to p99")


@matplotlib.rc_context(STYLE)
def parts(rows: Rows) -> Markup:
    """Draw the milliseconds by part of the network, at most MOST artifacts side by side."""
    ms_by_part = [{part["name"]: part["ms"] for part in row["profile"]["parts"]} for row in rows]
    names = list(dict.fromkeys(name for ms in ms_by_part for name in ms))
    figure, axes = _lines_canvas(names, height=1.2 + len(names) * (0.12 + 0.17 * len(rows)))
    thickness = 0.8 / len(rows)
    for number, (row, ms) in enumerate(zip(rows, ms_by_part, strict=True)):
        lines = np.arange(len(names)) + thickness * (number - (len(rows) - 1) / 2)
        values = [ms.get(name, 0.0) for name in names]
        bars = axes.barh(
            lines, values, thickness * 0.9, color=MARKS[number][0], label=_short(row["label"]), linewidth=0
        )
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=7)
    axes.margins(x=0.1)
    axes.set_xlabel("ms, each node at its fastest")
    _legend(axes, columns=2)
    return _svg(figure, "milliseconds by part of the network")


@matplotlib.rc_context(STYLE)
def roofline(profile: dict[str, Any]) -> Markup:
    """Draw each part's rate over its operations per byte, below the machine's limits of memory and arithmetic."""
    figure, axes = _canvas(height=2.6)
    peak, bandwidth = profile["gflop_per_second"], profile["gigabyte_per_second"]
    parts = [(number, *map(part.get, ("gflop", "ms", "megabytes"))) for number, part in enumerate(profile["parts"], 1)]
    computing = [values for values in parts if all(values)]
    x = [1e3 * gflop / megabytes for _, gflop, _, megabytes in computing]
    y = [1e3 * gflop / ms for _, gflop, ms, _ in computing]
    ridge = peak / bandwidth
    low, high = min([*x, ridge]) / 2, max([*x, ridge]) * 4
    axes.plot([low, ridge, high], [bandwidth * low, peak, peak], color=INK, linewidth=1.2)
    axes.scatter(x, y, 34, color=BLUE, zorder=3)
    for (number, *_), *point in zip(computing, x, y, strict=True):
        axes.annotate(str(number), point, (5, 3), textcoords="offset points", fontsize=8)
    _logarithmic(axes.set_xscale, axes.xaxis, "g")
    _logarithmic(axes.set_yscale, axes.yaxis, "g")
    axes.margins(y=0.15)
    axes.set_xlabel("operations per byte (numbers: see the table)")
    axes.set_ylabel("10⁹ operations/s")
    return _svg(figure, "rate of each part of the network under the machine's roof")


@matplotlib.rc_context(STYLE)
def candidates(rows: Rows) -> Markup:
    """Draw each export candidate's size and map error with its number; a filled mark passed the gate."""
    figure, axes = _canvas(height=2.4)
    for number, row in enumerate(rows, 1):
        x, y = row["bytes"] / 1e6, max(1 - row["cosine"], 1e-9)
        face = "none" if row["losses"] else BLUE
        axes.scatter([x], [y], 34, facecolors=face, edgecolors=BLUE, linewidth=1.3, zorder=3)
        axes.annotate(str(number), (x, y), xytext=(6, 4), textcoords="offset points", fontsize=8)
    _logarithmic(axes.set_yscale, axes.yaxis, ".0e")
    axes.margins(0.15, 0.25)
    axes.set_xlabel("MB (number: the candidate)")
    axes.set_ylabel("1 − cosine of the map")
    return _svg(figure, "size against map error of each candidate; filled: passed the gate")


@matplotlib.rc_context(STYLE)
def rounds(rows: Rows) -> Markup:
    """Draw each row's median per round, in percent of its overall median; at most MOST rows."""
    figure, axes = _canvas(height=1.0 + 0.36 * max(len(rows), 3))
    for (colour, dashes), (_, marker), row in zip(LINES, MARKS, rows, strict=False):
        style: Any = {"color": colour, "linestyle": dashes, "linewidth": 1.2, "marker": marker, "markersize": 3.5}
        shares = [100 * median / row["latency_ms"]["p50"] for median in row["round_p50_ms"]]
        axes.plot(range(1, len(shares) + 1), shares, label=_short(row["label"]), **style)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 90), max(high, 110))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")
    axes.set_ylabel("% of p50")
    _legend(axes, columns=3)
    return _svg(figure, "median of each round in percent of the artifact's p50")


@matplotlib.rc_context(STYLE)
def golden_scores(
    images: Sequence[str], expected: Sequence[float], scores: PerImage, threshold: float, delta: float
) -> Markup:
    """Draw per golden image the trained model's score as a stroke, each artifact's as a mark, and threshold ± delta.

    At most MOST artifacts; `expected` and `scores` in the order of `images`.
    """
    figure, axes = _lines_canvas(images, height=1.4 + 0.3 * len(images))
    axes.axvspan(threshold - delta, threshold + delta, color=INK, alpha=0.15, linewidth=0)
    lines = np.arange(len(images))
    axes.vlines(expected, lines - 0.38, lines + 0.38, color=INK, linewidth=1.3, label="trained model")
    _golden_marks(axes, scores)
    _line(axes, threshold, "threshold")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("score")
    _legend(axes, columns=2)
    return _svg(figure, "scores of the trained model and of each artifact on the golden images")


@matplotlib.rc_context(STYLE)
def golden_differences(images: Sequence[str], differences: PerImage, limit: float) -> Markup:
    """Draw per golden image each artifact's largest map difference, on a log scale, and the limit for float32.

    NaN, a difference that is not finite, is a cross at the right edge. At most MOST artifacts.
    """
    figure, axes = _lines_canvas(images, height=1.4 + 0.3 * len(images))
    _logarithmic(axes.set_xscale, axes.xaxis, ".0e")
    axes.xaxis.set_major_locator(LogLocator(base=100))
    every = np.stack([values for _, values in differences])
    edge = 100 * max([limit, *every[np.isfinite(every)]])
    _golden_marks(axes, [(name, np.maximum(values, 1e-8)) for name, values in differences])
    if not np.isfinite(every).all():
        _golden_marks(axes, [("", np.where(np.isfinite(row), np.nan, edge)) for row in every], cross=True)
        axes.scatter([], [], 30, color=INK, marker="x", label="not finite")
    _line(axes, limit, "limit for fp32")
    axes.set_xlabel("largest difference of two map values")
    _legend(axes, columns=2)
    return _svg(figure, "largest map difference of each artifact on the golden images")


def _golden_marks(axes: Any, values_by_artifact: PerImage, cross: bool = False) -> None:
    """Draw one mark per artifact and image, side by side on the image's line."""
    for number, (name, values) in enumerate(values_by_artifact):
        colour, marker = MARKS[number]
        lines = np.arange(len(values)) + 0.8 / MOST * (number - (len(values_by_artifact) - 1) / 2)
        style: Any = {"marker": "x", "linewidth": 1.6} if cross else {"marker": marker, "linewidth": 0}
        axes.scatter(values, lines, 30 if cross else 17, color=colour, label=_short(name), zorder=3, **style)


def _canvas(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.tick_params(length=0)
    return figure, axes


def _lines_canvas(names: Sequence[str], height: float) -> tuple[Figure, Any]:
    """Return a canvas with one line per name, from top to bottom."""
    figure, axes = _canvas(height)
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    return figure, axes


def _logarithmic(set_scale: Any, axis: Any, spec: str) -> None:
    set_scale("log")
    axis.set_major_formatter(FuncFormatter(lambda value, _: format(value, spec).replace("e-0", "e-")))
    axis.set_minor_formatter(NullFormatter())


def _legend(axes: Any, columns: int) -> None:
    """Draw the legend below the axes, where it hides no mark."""
    shown = [(mark, name) for mark, name in zip(*axes.get_legend_handles_labels(), strict=True) if name]
    axes.figure.legend(*zip(*shown, strict=True), loc="outside lower left", ncols=columns)


def _line(axes: Any, value: float, meaning: str) -> None:
    axes.axvline(value, color=INK, linewidth=1.1, linestyle=(0, (4, 2)))
    place: Any = {"xycoords": ("data", "axes fraction"), "xytext": (0, 3), "textcoords": "offset points"}
    axes.annotate(meaning, (value, 1.0), ha="center", color=MUTED, fontsize=8, **place)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return the running median over a twentieth of the curve: it removes spikes and keeps steps."""
    half = len(values) // 40
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def _short(text: str, most: int = 26) -> str:
    """Return the text without its middle if it is too long: names differ at their ends."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2 - 1) :]}"


def _svg(figure: Figure, description: str) -> Markup:
    """Return `<svg>…</svg>` for a page: without XML header, metadata and unused identifiers."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": description}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    view = re.search(r'viewBox="[\d. ]*"', text)
    assert view
    text = f'<svg {view[0]} role="img" aria-label="{html.escape(description)}">' + text[text.index("</style>") + 8 :]
    text = text.replace(' </defs>\n <g id="figure_1">', "<g>", 1)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return Markup(text.strip())
