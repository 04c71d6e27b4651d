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
Answers: TypeAlias = dict[str, list[float]]  # artifact → one figure per golden picture
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
    """A picture's score and what is true of it."""

    score: float
    defect: str
    anomalous: bool


class Timed(NamedTuple):
    """A row's latency in milliseconds and the medians of its rounds."""

    name: str
    p50: float
    p90: float
    p99: float
    rounds: list[float]


def loss_curves(phase: str, steps: Sequence[float], losses: dict[str, list[float]]) -> str:
    """A phase of training: each loss over its steps, logarithmic, smoothed, with the raw values of the first behind."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(height=2.6)
        for number, (name, values) in enumerate(list(losses.items())[: len(LINES)]):
            colour, dashes = LINES[number]
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


def score_histogram(pictures: Sequence[Scored], threshold: float) -> str:
    """Scores of normal and anomalous pictures in common bins, and the threshold between them."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(height=2.6)
        scores = [picture.score for picture in pictures] + [threshold]
        bins = np.linspace(min(scores), max(scores) + 1e-9, 31)
        normal = [picture.score for picture in pictures if not picture.anomalous]
        anomalous = [picture.score for picture in pictures if picture.anomalous]
        axes.hist(normal, bins, color=BLUE, alpha=0.75, label=f"normal ({len(normal)})")
        axes.hist(anomalous, bins, histtype="step", color=ORANGE, linewidth=1.8, label=f"anomalous ({len(anomalous)})")
        _line(axes, threshold, "threshold")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("score")
        axes.set_ylabel("pictures")
        axes.grid(axis="x", visible=False)
        _legend(axes, columns=2)
        return _svg(figure, "histogram of scores with the threshold")


def scores_by_defect(pictures: Sequence[Scored], threshold: float, most: int = 24) -> str:
    """One line of dots per defect type, normal first; a filled dot is called anomalous. At most `most` lines."""
    with matplotlib.rc_context(STYLE):
        names = sorted({(picture.anomalous, picture.defect) for picture in pictures})[:most]
        figure, axes = _canvas(height=1.0 + 0.28 * len(names))
        spread = np.random.default_rng(0)
        for line, name in enumerate(names):
            scores = np.array([p.score for p in pictures if (p.anomalous, p.defect) == name])
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
    """Per row: a bar from nothing to the median, a whisker from there to p99 with p90 marked."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(height=1.0 + 0.36 * max(len(rows), 3))
        for line, row in enumerate(rows):
            axes.barh(line, row.p50, height=0.55, color=BLUE, alpha=0.85, linewidth=0)
            axes.plot([row.p50, row.p99], [line, line], color=INK, linewidth=1.2, solid_capstyle="butt")
            axes.plot([row.p90], [line], "|", color=INK, markersize=7, markeredgewidth=1.2)
            axes.plot([row.p99], [line], "|", color=INK, markersize=11, markeredgewidth=1.2)
        axes.set_yticks(range(len(rows)), [_short(row.name) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel("ms (bar: p50, strokes: p90 and p99)")
        axes.grid(axis="y", visible=False)
        return _svg(figure, "latency per artifact: p50, p90, p99")


def frontier(tries: Sequence[dict[str, Any]]) -> str:
    """Each try's size and map error; filled where the gate held. Beside it, the groups of layers kept in float."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(height=2.4)
        for tried in tries:
            x, y = tried["bytes"] / 1e6, max(1 - tried["cosine"], 1e-9)
            face = "none" if tried["losses"] else BLUE
            axes.scatter([x], [y], 34, facecolors=face, edgecolors=BLUE, linewidth=1.3, zorder=3)
            axes.annotate(str(len(tried["kept"])), (x, y), xytext=(6, 4), textcoords="offset points", fontsize=8)
        axes.set_yscale("log")
        axes.margins(0.15, 0.25)
        axes.set_xlabel("MB (number: groups of layers kept in float)")
        axes.set_ylabel("1 − cosine of the map")
        return _svg(figure, "size against map error of each try; filled where the gate held")


def rounds(rows: Sequence[Timed]) -> str:
    """Each row's median in each of its rounds, in percent of its median over all: how steady the machine was."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(height=1.0 + 0.36 * max(len(rows), 3))
        for (colour, dashes), (_, mark), row in zip(LINES, MARKS, rows, strict=False):
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
    pictures: Sequence[str], expected: Sequence[float], answers: Answers, threshold: float, delta: float
) -> str:
    """Per golden picture: the trained model's score as a stroke, each artifact's as a mark on it, threshold ± delta.

    `expected[i]` and each artifact's `answers[...][i]` are scores of `pictures[i]`.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _golden_canvas(pictures)
        axes.axvspan(threshold - delta, threshold + delta, color=INK, alpha=0.15, linewidth=0)
        lines = np.arange(len(pictures))
        axes.vlines(expected, lines - 0.38, lines + 0.38, color=INK, linewidth=1.3, label="trained model")
        _golden_marks(axes, answers)
        _line(axes, threshold, "threshold")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("score")
        _legend(axes, columns=2)
        return _svg(figure, "scores of the trained model and of each artifact on the golden pictures")


def golden_differences(pictures: Sequence[str], answers: Answers, limit: float) -> str:
    """Per golden picture: each artifact's largest map difference, logarithmic, and what float32 is allowed."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _golden_canvas(pictures)
        axes.set_xscale("log")
        _golden_marks(axes, {name: [max(value, 1e-8) for value in values] for name, values in answers.items()})
        _line(axes, limit, "limit for fp32")
        axes.xaxis.set_major_locator(LogLocator(base=100))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-")))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("largest difference of two map values")
        _legend(axes, columns=2)
        return _svg(figure, "largest map difference of each artifact on the golden pictures")


def _golden_canvas(pictures: Sequence[str]) -> tuple[Figure, Any]:
    figure, axes = _canvas(height=1.4 + 0.3 * len(pictures))
    axes.set_yticks(range(len(pictures)), [_short(name) for name in pictures])
    axes.set_ylim(len(pictures) - 0.4, -0.6)
    return figure, axes


def _golden_marks(axes: Any, answers: Answers) -> None:
    """One mark per artifact and picture, side by side in the picture's line."""
    shown = list(answers.items())[: len(MARKS)]
    for number, (name, values) in enumerate(shown):
        colour, mark = MARKS[number]
        lines = np.arange(len(values)) + 0.25 * (number - (len(shown) - 1) / 2)
        axes.scatter(values, lines, 17, color=colour, marker=mark, linewidth=0, label=_short(name), zorder=3)


def _canvas(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.4, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.tick_params(length=0)
    return figure, axes


def _legend(axes: Any, columns: int) -> None:
    """Below the axes, where it hides no mark."""
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=columns)


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


def _short(text: str, most: int = 22) -> str:
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= most else text[: most - 1] + "…"


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
