"""The report's figures: arrays in, SVG out, to stand inside a page in light or dark.

What is ink takes the page's text colour (`currentColor`); text stays text, in the page's font.
"""

import io
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.transforms import Bbox

WIDE, NARROW = (7.6, 4.4), (3.5, 4.6)  # inches, for a screen and for a phone
NEAR = 7  # pixels from a point to its name
BESIDE = 1.5 * NEAR  # a name that is farther has a line to its point
TITLE = "title: "  # before the id of what has a title
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


@dataclass(frozen=True)
class Line:
    """One entry's accuracies (percent) against numbers of labels, both (T,); those that are `named` stand out."""

    name: str
    family: str
    labels: Sequence[float]
    accuracies: Sequence[float]
    named: bool


@dataclass(frozen=True)
class Bar:
    """A stage of one run, in its lane of a Gantt chart, from `start` to `end` in minutes."""

    lane: str
    family: str
    start: float
    end: float


def colour(family: str) -> str:
    return COLOURS.get(family, COLOURS["baselines"])


def curve(samples: Sequence[float], losses: np.ndarray, family: str) -> str:
    """The loss against samples seen: the mean over seeds, in a band from the lowest to the highest.

    samples (T,), losses (seeds, T) with NaN where a seed has no value, as after it diverged.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(2.9, 1.7))
        figure.subplots_adjust(left=0.16, right=0.98, bottom=0.14, top=0.97)  # as cropped, in half the time
        line = np.nanmean(losses, axis=0)
        band = np.nanmin(losses, axis=0), np.nanmax(losses, axis=0)
        axes.fill_between(samples, *band, color=colour(family), alpha=0.25, linewidth=0)
        axes.plot(samples, line, color=colour(family), linewidth=1.4)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x else "0")
        axes.locator_params(nbins=4)
        axes.set_xlim(0, max(samples))
        return svg(figure, crop=None)


def scatter(
    points: Sequence[Point],
    front: Collection[str],
    levels: dict[str, float],
    measure: str,
    unit: str = "seconds",
    size: tuple[float, float] = WIDE,
) -> str:
    """Accuracy against what pretraining cost, in some `unit`, on a log scale; `size` is in inches.

    The points named in `front` are joined by the line below which nothing is both better and cheaper, and are the first
    to have their names written. A name that finds no room is the point's title alone. `levels` are dotted lines, as of
    the controls.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=size)
        axes.set_xlabel(f"{unit} of pretraining")
        axes.set_ylabel(f"{measure}, %")
        best = sorted((p for p in points if p.name in front), key=lambda p: p.seconds)
        axes.step(
            [p.seconds for p in best], [p.accuracy for p in best], color=INK, alpha=0.35, linewidth=1.2, where="post"
        )
        for point in points:
            if point.low is not None:
                axes.vlines(point.seconds, point.low, point.high, color=colour(point.family), alpha=0.3, linewidth=1)
            (dot,) = axes.plot(point.seconds, point.accuracy, "o", color=colour(point.family), markersize=5)
            dot.set_gid(f"{TITLE}{point.name}: {point.accuracy:.1f} % in {point.seconds:.0f} {unit}")
        log_scale(axes, [point.seconds for point in points])
        axes.margins(x=0.12, y=0.08)
        write_at_edge(axes, levels)
        for level in levels.values():
            axes.axhline(level, color=INK, alpha=0.5, linewidth=0.8, linestyle=(0, (2, 3)))
        write_names(axes, sorted(points, key=lambda p: (p.name not in front, -p.accuracy)))
        return svg(figure)


def write_names(axes: Axes, points: Sequence[Point]) -> None:
    """Each name near its point, in the first place inside the axes that covers no point and no other name.

    Beside a point stands only a name that is nearest to it; one that stands off has a line to its point, which runs
    through no name; and one without a place is left out.
    """
    axes.figure.canvas.draw()  # fixes the scales, so that points have places in pixels
    places = axes.transData.transform([(point.seconds, point.accuracy) for point in points])
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in places]
    lines: list[Path] = []
    scale = 72 / axes.figure.dpi
    for point, (x, y) in zip(points, places, strict=True):
        text = axes.annotate(
            escape(point.name),
            (point.seconds, point.accuracy),
            (0, 0),
            textcoords="offset points",
            va="bottom",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": INK, "alpha": 0.5, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3},
        )
        width, height = text.get_window_extent().size
        boxes = [Bbox.from_bounds(x + dx, y + dy, width, height) for dx, dy in sides(width, height)]
        free = [b for b in boxes if inside(b, axes.bbox) and not any(b.overlaps(other) for other in taken)]
        clear = [b for b in free if off(b, x, y) > BESIDE or off(b, x, y) <= min(off(b, *place) for place in places)]
        box = next((b for b in clear if not crosses(b, (x, y), taken[len(points) :], lines)), None)
        if box is None:
            text.remove()
            continue
        taken.append(box)
        text.set_position(((box.x0 - x) * scale, (box.y0 - y) * scale))
        text.arrow_patch.set_visible(off(box, x, y) > BESIDE)
        if off(box, x, y) > BESIDE:
            lines.append(line_to(box, (x, y)))


def crosses(box: Bbox, place: tuple[float, float], names: Sequence[Bbox], lines: Sequence[Path]) -> bool:
    """Whether a line would run through a name, were this one in that box."""
    through = off(box, *place) > BESIDE and any(line_to(box, place).intersects_bbox(n, filled=False) for n in names)
    return through or any(line.intersects_bbox(box, filled=False) for line in lines)


def line_to(box: Bbox, place: tuple[float, float]) -> Path:
    """From the middle of a box to a point."""
    return Path([((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2), place])


def off(box: Bbox, x: float, y: float) -> float:
    """The distance of a point from a box that it is not in."""
    return float(np.hypot(max(box.x0 - x, 0, x - box.x1), max(box.y0 - y, 0, y - box.y1)))


def sides(width: float, height: float) -> list[tuple[float, float]]:
    """Where a box of that size may stand from a point, the nearest places first: offsets of its corner, in pixels."""
    across, middle = (-width / 2, 0.0, -width), -height / 2
    places = []
    for far in (NEAR * times for times in (1, 2, 3, 4, 6, 8, 11)):
        places += [(far, middle), (-far - width, middle)]
        places += [(dx, dy) for dx, dy in product(across, (far, -far - height))]
        places += [(dx, dy) for dx, dy in product((far, -far - width), (far, -far - height))]
    return places


def inside(box: Bbox, outer: Bbox) -> bool:
    return outer.x0 <= box.x0 and box.x1 <= outer.x1 and outer.y0 <= box.y0 and box.y1 <= outer.y1


def fewer_labels(lines: Sequence[Line], measure: str) -> str:
    """Accuracy against the number of labels, on a log scale; named lines have their colour and, at their end, name."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.2, 3.6))
        log_scale(axes, [count for line in lines for count in line.labels])
        for line in sorted(lines, key=lambda line: line.named):
            drawn = {"color": colour(line.family), "linewidth": 1.6, "marker": "o", "markersize": 3.5}
            plain = {"color": INK, "linewidth": 0.7, "alpha": 0.25}
            (curve,) = axes.plot(line.labels, line.accuracies, **(drawn if line.named else plain))
            curve.set_gid(f"{TITLE}{line.name}")
        write_at_edge(axes, {line.name: line.accuracies[-1] for line in lines if line.named})
        axes.set_xlabel("labels")
        axes.set_ylabel(f"{measure}, %")
        return svg(figure)


def gantt(bars: Sequence[Bar], cuts: Sequence[float]) -> str:
    """Bars in their lanes, the first lane on top, with a dotted line at each cut of the clock.

    Bars of a lane that overlap, as those of seeds side by side, stand below one another.
    """
    lanes: dict[str, list[Bar]] = {}
    for bar in sorted(bars, key=lambda bar: bar.start):
        lanes.setdefault(bar.lane, []).append(bar)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDE[0], 0.6 + 0.34 * len(lanes)))
        for place, own in enumerate(lanes.values()):
            tracks = packed(own)
            height = 0.8 / (1 + max(tracks))
            for bar, track in zip(own, tracks, strict=True):
                span, top = [(bar.start, bar.end - bar.start)], place - 0.4 + track * height
                axes.broken_barh(span, (top, height), facecolor=colour(bar.family), edgecolor="none", alpha=0.85)
        for cut in cuts:
            axes.axvline(cut, color=INK, alpha=0.5, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.set_yticks(range(len(lanes)), [escape(lane) for lane in lanes])
        axes.set_ylim(len(lanes) - 0.5, -0.5)
        axes.set_xlim(0, max(bar.end for bar in bars))
        axes.set_xlabel("minutes")
        return svg(figure)


def packed(bars: Sequence[Bar]) -> list[int]:
    """The track of each bar, the first that is free by then; `bars` are in the order in which they start."""
    ends: list[float] = []  # by track, when its last bar ends
    tracks = []
    for bar in bars:
        track = next((track for track, end in enumerate(ends) if end <= bar.start), len(ends))
        ends[track : track + 1] = [bar.end]
        tracks.append(track)
    return tracks


def log_scale(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic x axis with a few round numbers about the values."""
    low, high = min(values), max(values)
    steps = (1, 2, 5) if high < 100 * low else (1,)
    ticks = (step * 10.0**power for power, step in product(range(-3, 9), steps))
    axes.set_xscale("log")
    axes.set_xticks([tick for tick in ticks if low / 1.5 < tick < high * 1.5])
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.minorticks_off()


def write_at_edge(axes: Axes, heights: dict[str, float]) -> None:
    """Names to the right of the axes, each as near its height as the others let it."""
    beside = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "va": "center", "fontsize": 8}
    for name, y in zip(heights, apart(axes, list(heights.values())), strict=True):
        axes.annotate(escape(name), (1, y), (5, 0), **beside)


def apart(axes: Axes, values: Sequence[float], gap: float = 11) -> list[float]:
    """The heights nearest above `values`, in their order, at which lines of text stand `gap` points apart."""
    axes.figure.canvas.draw()
    pixels = gap * axes.figure.dpi / 72
    heights, last = [0.0] * len(values), -np.inf
    for index in sorted(range(len(values)), key=values.__getitem__):
        last = max(last + pixels, axes.transData.transform((1, values[index]))[1])
        heights[index] = axes.transData.inverted().transform((0, last))[1]
    return heights


def escape(name: str) -> str:
    """A name as text that matplotlib does not read as mathematics."""
    return name.replace("$", r"\$")


def svg(figure: Figure, crop: str | None = "tight") -> str:
    """A figure as an <svg> element for the inside of an HTML page: no ids that could clash, no fixed size or font."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, bbox_inches=crop, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'<clipPath.*?</clipPath>| clip-path="[^"]*"', "", text, flags=re.DOTALL)  # nothing leaves the axes
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| (width|height)="[\d.]+pt"| version="1.1"', "", text)
    text = re.sub(rf'<g id="{TITLE}([^"]*)">', r"<g><title>\1</title>", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number.group()):.2f}", text)
    text = re.sub(r" ?font-family: [^;]*;", "", text)
    return re.sub(r"\s*\n\s*", "\n", text.replace(INK, "currentColor"))
