"""The report's charts: matplotlib drawings as SVG text whose colours are CSS variables, so that they follow the page.

Colours are Okabe and Ito's, which colour-blind people tell apart; a mark's form says the same thing a second time.
Sizes suit a phone's width: two or three stand side by side on a wide page.
"""

import html
import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

INK, MUTED, RULE, PAPER = "#010101", "#010102", "#010103", "#010104"
BLUE, ORANGE, GREEN, PURPLE, SKY = "#010105", "#010106", "#010107", "#010108", "#010109"
VARIABLES = {  # stands in the drawing → stands in the page
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
    PURPLE: "var(--purple)",
    SKY: "var(--sky)",
}
LINES = [(BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PURPLE, ":"), (SKY, (0, (5, 1, 1, 1, 1, 1)))]
MARKS = [(BLUE, "o"), (ORANGE, "D"), (GREEN, "s"), (PURPLE, "^"), (SKY, "v")]
MOST = len(MARKS)  # artifacts that one chart tells apart
Answers: TypeAlias = Sequence[tuple[str, Sequence[float]]]  # artifact, one figure per golden image
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


class Scored(NamedTuple):
    """An image's score and what is true of it."""

    score: float
    defect: str
    anomalous: bool


class Timed(NamedTuple):
    """A row's latency in milliseconds, the medians of its rounds, and its percentiles from 0 to 100, if it has them."""

    name: str
    p50: float
    p90: float | None
    p99: float | None
    rounds: list[float]
    quantiles: list[float]


class Spent(NamedTuple):
    """What a part of the network takes, computes and moves: milliseconds, 10⁹ operations, 10⁶ bytes."""

    name: str
    ms: float
    gflop: float
    megabytes: float


def loss_curves(phase: str, steps: Sequence[float], losses: dict[str, list[float]]) -> str:
    """A phase of training: each loss over its steps, logarithmic, smoothed, with the raw values of the first behind."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(height=2.6)
        for number, (name, values) in enumerate(losses.items()):
            turn, place = divmod(number, len(LINES))
            colour, dashes = LINES[place][0], LINES[(place + turn) % len(LINES)][1]
            x, y = np.asarray(steps, float), np.asarray(values, float)
            if not number:
                axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.3)
            axes.plot(x, _smooth(y), color=colour, linestyle=dashes, linewidth=1.8 if not number else 1.2, label=name)
        if min(value for values in losses.values() for value in values if np.isfinite(value)) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("step")
        _legend(axes, columns=3)
        return _svg(figure, f"losses of {phase} over its steps")


def score_histogram(images: Sequence[Scored], threshold: float) -> str:
    """Scores of normal and anomalous images in common bins, and the threshold between them."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(height=2.6)
        scores = [image.score for image in images] + [threshold]
        bins = np.linspace(min(scores), max(scores) + 1e-9, 31)
        normal = [image.score for image in images if not image.anomalous]
        anomalous = [image.score for image in images if image.anomalous]
        axes.hist(normal, bins, color=BLUE, alpha=0.75, label=f"normal ({len(normal)})")
        axes.hist(anomalous, bins, histtype="step", color=ORANGE, linewidth=1.8, label=f"anomalous ({len(anomalous)})")
        _line(axes, threshold, "threshold")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("score")
        axes.set_ylabel("images")
        axes.grid(axis="x", visible=False)
        _legend(axes, columns=2)
        return _svg(figure, "histogram of scores with the threshold")


def scores_by_defect(images: Sequence[Scored], threshold: float) -> str:
    """One line of dots per defect type, normal first; a filled dot is called anomalous."""
    with matplotlib.rc_context(STYLE):
        names = sorted({(image.anomalous, image.defect) for image in images})
        figure, axes = _canvas(height=1.0 + 0.28 * len(names))
        spread = np.random.default_rng(0)
        for line, name in enumerate(names):
            scores = np.array([p.score for p in images if (p.anomalous, p.defect) == name])
            heights = line + spread.uniform(-0.24, 0.24, len(scores))
            colour, mark = (ORANGE, "D") if name[0] else (BLUE, "o")
            above = scores > threshold
            size = 14 if name[0] else 18
            axes.scatter(scores[above], heights[above], size, color=colour, marker=mark, linewidth=0.8)
            axes.scatter(
                *(scores[~above], heights[~above], size), facecolor=PAPER, edgecolor=colour, marker=mark, linewidth=1.1
            )
        _line(axes, threshold, "threshold")
        axes.set_yticks(range(len(names)), [_short(name) for _, name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("score (filled: called anomalous)")
        axes.grid(axis="y", visible=False)
        return _svg(figure, "scores by defect type with the threshold")


def latencies(rows: Sequence[Timed]) -> str:
    """Per row: a bar from nothing to the median, a whisker from there to p99 with p90 marked, where they were told."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(height=1.0 + 0.36 * max(len(rows), 3))
        for line, row in enumerate(rows):
            axes.barh(line, row.p50, height=0.55, color=BLUE, alpha=0.85, linewidth=0)
            if row.p90 is not None and row.p99 is not None:
                axes.plot([row.p50, row.p99], [line, line], color=INK, linewidth=1.2, solid_capstyle="butt")
                axes.plot([row.p90], [line], "|", color=INK, markersize=7, markeredgewidth=1.2)
                axes.plot([row.p99], [line], "|", color=INK, markersize=11, markeredgewidth=1.2)
        axes.set_yticks(range(len(rows)), [_short(row.name) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel("ms (bar: p50, strokes: p90 and p99)")
        axes.grid(axis="y", visible=False)
        return _svg(figure, "latency per artifact: p50, p90, p99")


def distributions(rows: Sequence[Timed]) -> str:
    """Per row, on its own scale: how its queries spread, up to p99."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 0.5 + 0.86 * len(rows)), layout="constrained")
        figure.patch.set_alpha(0)
        for axes, row in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows, strict=True):
            axes.patch.set_alpha(0)
            axes.tick_params(length=0)
            shown = row.quantiles[:100]
            axes.hist(shown, 40, color=BLUE, alpha=0.85)
            for value, dashes in ((row.p50, "-"), (row.p90, (0, (4, 2)))):
                if value is not None:
                    axes.axvline(value, color=INK, linewidth=1.1, linestyle=dashes)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            axes.grid(axis="y", visible=False)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.set_title(f"{_short(row.name)}, slowest {row.quantiles[-1]:.4g} ms", loc="left", fontsize=9)
        axes.set_xlabel("ms (stroke: p50, dashes: p90)")
        return _svg(figure, "distribution of latencies per artifact, up to p99")


def parts(rows: Sequence[tuple[str, Sequence[Spent]]]) -> str:
    """Milliseconds by part of the network, at most MOST artifacts side by side."""
    with matplotlib.rc_context(STYLE):
        names = list(dict.fromkeys(part.name for _, spent in rows for part in spent))
        figure, axes = _canvas(height=1.2 + len(names) * (0.12 + 0.17 * len(rows)))
        thickness = 0.8 / len(rows)
        for number, (label, spent) in enumerate(rows):
            ms = {part.name: part.ms for part in spent}
            lines = np.arange(len(names)) + thickness * (number - (len(rows) - 1) / 2)
            values = [ms.get(name, 0.0) for name in names]
            axes.barh(lines, values, thickness * 0.9, color=MARKS[number][0], label=_short(label), linewidth=0)
            for line, value in zip(lines, values, strict=True):
                axes.annotate(
                    f"{value:.1f}", (value, line), (3, 0), textcoords="offset points", va="center", fontsize=7
                )
        axes.set_yticks(range(len(names)), [_short(name, 28) for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.margins(x=0.1)
        axes.set_xlabel("ms, every node at its best")
        axes.grid(axis="y", visible=False)
        _legend(axes, columns=2)
        return _svg(figure, "milliseconds by part of the network")


def roofline(spent: Sequence[Spent], gflop_per_second: float, gigabyte_per_second: float) -> str:
    """Each part's rate over its operations per byte, and above it what the machine could do at best."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(height=2.6)
        computing = [
            (number, part) for number, part in enumerate(spent, 1) if part.gflop and part.ms and part.megabytes
        ]
        x = [1e3 * part.gflop / part.megabytes for _, part in computing]
        y = [1e3 * part.gflop / part.ms for _, part in computing]
        ridge = gflop_per_second / gigabyte_per_second
        low, high = min([*x, ridge]) / 2, max([*x, ridge]) * 4
        roof = [gigabyte_per_second * low, gflop_per_second, gflop_per_second]
        axes.plot([low, ridge, high], roof, color=INK, linewidth=1.2)
        axes.scatter(x, y, 34, color=BLUE, zorder=3)
        for (number, _), place in zip(computing, zip(x, y, strict=True), strict=True):
            axes.annotate(str(number), place, (5, 3), textcoords="offset points", fontsize=8)
        for scale, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
            scale("log")
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.margins(y=0.15)
        axes.set_xlabel("operations per byte (numbers: see the table)")
        axes.set_ylabel("10⁹ operations/s")
        return _svg(figure, "rate of each part of the network under the machine's roof")


def frontier(tries: Sequence[dict[str, Any]]) -> str:
    """Each try's size and map error; filled where the gate held. Beside it, its number."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(height=2.4)
        for number, tried in enumerate(tries, 1):
            x, y = tried["bytes"] / 1e6, max(1 - tried["cosine"], 1e-9)
            face = "none" if tried["losses"] else BLUE
            axes.scatter([x], [y], 34, facecolors=face, edgecolors=BLUE, linewidth=1.3, zorder=3)
            axes.annotate(str(number), (x, y), xytext=(6, 4), textcoords="offset points", fontsize=8)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-")))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.margins(0.15, 0.25)
        axes.set_xlabel("MB (number: which try)")
        axes.set_ylabel("1 − cosine of the map")
        return _svg(figure, "size against map error of each try; filled where the gate held")


def rounds(rows: Sequence[Timed]) -> str:
    """Each row's median in each of its rounds, in percent of its median over all: how steady the machine was.

    At most MOST rows.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(height=1.0 + 0.36 * max(len(rows), 3))
        for (colour, dashes), (_, mark), row in zip(LINES[: len(rows)], MARKS[: len(rows)], rows, strict=True):
            shares = [100 * median / row.p50 for median in row.rounds]
            axes.plot(
                *(range(1, len(shares) + 1), shares),
                color=colour,
                linestyle=dashes,
                linewidth=1.2,
                marker=mark,
                markersize=3.5,
                label=_short(row.name),
            )
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 90), max(high, 110))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("round")
        axes.set_ylabel("% of p50")
        _legend(axes, columns=3)
        return _svg(figure, "median of each round in percent of the artifact's p50")


def golden_scores(
    images: Sequence[str], expected: Sequence[float], answers: Answers, threshold: float, delta: float
) -> str:
    """Per golden image: the trained model's score as a stroke, each artifact's as a mark on it, threshold ± delta.

    `expected[i]` and each artifact's figures[i] are scores of `images[i]`. At most MOST artifacts.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _golden_canvas(images)
        axes.axvspan(threshold - delta, threshold + delta, color=INK, alpha=0.15, linewidth=0)
        lines = np.arange(len(images))
        axes.vlines(expected, lines - 0.38, lines + 0.38, color=INK, linewidth=1.3, label="trained model")
        _golden_marks(axes, answers)
        _line(axes, threshold, "threshold")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("score")
        _legend(axes, columns=2)
        return _svg(figure, "scores of the trained model and of each artifact on the golden images")


def golden_differences(images: Sequence[str], answers: Answers, limit: float) -> str:
    """Per golden image: each artifact's largest map difference, logarithmic, and what float32 is allowed.

    One that is not finite stands as a cross at the right edge. At most MOST artifacts.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _golden_canvas(images)
        axes.set_xscale("log")
        edge = 100 * max([limit, *(value for _, values in answers for value in values if np.isfinite(value))])
        finite = [(name, [max(value, 1e-8) if np.isfinite(value) else np.nan for value in v]) for name, v in answers]
        beyond = [("", [np.nan if np.isfinite(value) else edge for value in values]) for _, values in answers]
        _golden_marks(axes, finite)
        if np.isfinite([values for _, values in beyond]).any():
            _golden_marks(axes, beyond, cross=True)
            axes.scatter([], [], 30, color=INK, marker="x", label="not finite")
        _line(axes, limit, "limit for fp32")
        axes.xaxis.set_major_locator(LogLocator(base=100))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-")))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("largest difference of two map values")
        _legend(axes, columns=2)
        return _svg(figure, "largest map difference of each artifact on the golden images")


def _golden_canvas(images: Sequence[str]) -> tuple[Figure, Any]:
    figure, axes = _canvas(height=1.4 + 0.3 * len(images))
    axes.set_yticks(range(len(images)), [_short(name) for name in images])
    axes.set_ylim(len(images) - 0.4, -0.6)
    return figure, axes


def _golden_marks(axes: Any, answers: Answers, cross: bool = False) -> None:
    """One mark per artifact and image, side by side in the image's line."""
    for number, (name, values) in enumerate(answers):
        colour, mark = MARKS[number]
        lines = np.arange(len(values)) + 0.25 * (number - (len(answers) - 1) / 2)
        style: Any = {"marker": "x", "linewidth": 1.6} if cross else {"marker": mark, "linewidth": 0}
        axes.scatter(values, lines, 30 if cross else 17, color=colour, label=_short(name), zorder=3, **style)


def _canvas(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.4, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.tick_params(length=0)
    return figure, axes


def _legend(axes: Any, columns: int) -> None:
    """Below the axes, where it hides no mark."""
    shown = [(mark, name) for mark, name in zip(*axes.get_legend_handles_labels(), strict=True) if name]
    axes.figure.legend(*zip(*shown, strict=True), loc="outside lower left", ncols=columns)


def _line(axes: Any, value: float, meaning: str) -> None:
    axes.axvline(value, color=INK, linewidth=1.1, linestyle=(0, (4, 2)))
    axes.annotate(
        *(meaning, (value, 1.0)),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        color=MUTED,
        fontsize=8,
    )


def _smooth(values: np.ndarray) -> np.ndarray:
    """Median of a twentieth of the curve around each point: a spike leaves no trace, a step stays a step."""
    half = len(values) // 40
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def _short(text: str, most: int = 26) -> str:
    """Without its middle, where it is too long: names differ at their ends."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2 - 1) :]}"


def _svg(figure: Figure, description: str) -> str:
    """Return `<svg>…</svg>` for a page: no XML header, metadata or address, no identifiers but those it refers to."""
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
    return text.strip()
