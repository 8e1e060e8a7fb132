"""The report's figures: arrays in, SVG out, to stand inside a page in light or dark.

What is ink takes the page's text colour (`currentColor`); text stays text, in the page's font.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

INK = "#010203"  # a colour that no figure uses; the page's own replaces it
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # the same figure is the same bytes
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}
# Of middling lightness, so that they are seen on white and on black.
COLOURS = {
    "baselines": "#8a8a8a",
    "pretext": "#b8860b",
    "contrastive": "#3b82d6",
    "distillation": "#d1603d",
    "clustering": "#2f9e6e",
    "decorrelation": "#a463c7",
    "masked": "#c9447e",
    "generative": "#6b8e23",
    "cross_modal": "#1fa2b0",
}


@dataclass(frozen=True)
class Point:
    """One entry in the scatter of accuracy (percent, with its interval where it has one) against cost (seconds)."""

    name: str
    family: str
    seconds: float
    accuracy: float
    low: float | None
    high: float | None


def colour(family: str) -> str:
    return COLOURS.get(family, COLOURS["baselines"])


def curve(samples: Sequence[float], losses: np.ndarray, family: str) -> str:
    """The loss against samples seen: the mean over seeds, in a band from the lowest to the highest.

    samples (T,), losses (seeds, T) with NaN where a seed has no value, as after it diverged.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(2.7, 1.6))
        line = np.nanmean(losses, axis=0)
        band = np.nanmin(losses, axis=0), np.nanmax(losses, axis=0)
        axes.fill_between(samples, *band, color=colour(family), alpha=0.25, linewidth=0)
        axes.plot(samples, line, color=colour(family), linewidth=1.4)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x else "0")
        axes.locator_params(nbins=4)
        axes.set_xlim(0, max(samples))
        return svg(figure)


def scatter(points: Sequence[Point], levels: dict[str, float], measure: str) -> str:
    """Accuracy against pretraining seconds, each point with its name; `levels` are dotted lines, as of the controls."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.6, 4.2))
        axes.set_xlabel("seconds of pretraining")
        axes.set_ylabel(f"{measure}, %")
        for point in points:
            if point.low is not None:
                axes.vlines(point.seconds, point.low, point.high, color=colour(point.family), alpha=0.5, linewidth=1)
            axes.plot(point.seconds, point.accuracy, "o", color=colour(point.family), markersize=5)
        axes.margins(x=0.12, y=0.08)
        beside = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "va": "center", "fontsize": 8}
        for name, level in levels.items():
            axes.axhline(level, color=INK, alpha=0.5, linewidth=0.8, linestyle=(0, (2, 3)))
            axes.annotate(escape(name), (1, level), (5, 0), **beside)
        write_names(axes, points)
        return svg(figure)


def write_names(axes: Axes, points: Sequence[Point]) -> None:
    """Each name beside its point, on the first side that is inside the axes and covers no other point or name."""
    axes.figure.canvas.draw()  # fixes the scales, so that points have places in pixels
    places = axes.transData.transform([(point.seconds, point.accuracy) for point in points])
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in places]
    for point, (x, y) in zip(points, places, strict=True):
        text = axes.annotate(
            escape(point.name), (point.seconds, point.accuracy), (0, 0), textcoords="offset points", fontsize=8
        )
        width, height = text.get_window_extent().size
        far = 7
        sides = [(far, -height / 2), (-far - width, -height / 2), (-width / 2, far), (-width / 2, -far - height)]
        sides += [(a, b) for a, b in product((far, -far - width), (far, -far - height))]
        boxes = [Bbox.from_bounds(x + dx, y + dy, width, height) for dx, dy in sides]
        inside = [b for b in boxes if axes.bbox.x0 <= b.x0 and b.x1 <= axes.bbox.x1]
        box = next((b for b in inside if not any(b.overlaps(t) for t in taken)), boxes[0])
        taken.append(box)
        text.set_position(((box.x0 - x) * 72 / axes.figure.dpi, (box.y0 - y) * 72 / axes.figure.dpi))


def escape(name: str) -> str:
    """A name as text that matplotlib does not read as mathematics."""
    return name.replace("$", r"\$")


def svg(figure: Figure) -> str:
    """A figure as an <svg> element for the inside of an HTML page: no ids that could clash, no fixed size or font."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None}
    )
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| (width|height)="[\d.]+pt"| version="1.1"', "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number.group()):.2f}", text)
    text = re.sub(r" ?font-family: [^;]*;", "", text)
    return re.sub(r"\s*\n\s*", "\n", text.replace(INK, "currentColor"))
