"""reports/speed.json -> tables, for the page and for Markdown. A part or a number that is not in it is not shown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common.files import read_json
from .text import NONE, number, signed

PHASES = {  # of a training step
    "batch": "batch",
    "views": "views",
    "forward": "forward",
    "backward": "backward",
    "optimizer": "optimizer",
    "after_step": "teacher, queue",
}
RATIOS = {
    "over_kornia": "times kornia's views",
    "over_modules": "times lightly's modules",
    "over_stock": "times lightly",
    "compiled_over_modules": "compiled, times its modules",
    "compiled_over_stock": "compiled, times lightly",
}


@dataclass(frozen=True)
class Table:
    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]  # the first of each names its row; the rest are numbers


@dataclass(frozen=True)
class Speed:
    """What `stages.speed` measured; nothing where it was not run."""

    heading: str = ""
    tables: Sequence[Table] = ()


def read(root: Path) -> Speed:
    """What reports/speed.json under `root` says, a table for each part that was measured."""
    found = read_json(root / "reports/speed.json")
    parts = {"peers": peers, "methods": methods, "growth": growth, "overhead": overhead}
    tables = [make(found[part]) for part, make in parts.items() if found.get(part)]
    return Speed(heading(found), tables) if tables else Speed()


def heading(found: Mapping[str, Any]) -> str:
    """The device and, where it was measured, its limit, in words."""
    precision = f", in {found['precision']}" if "precision" in found else ""
    torch = f", with torch {found['torch']}" if "torch" in found else ""
    device = f"Measured on {found.get('device', 'an unknown device')}{precision}{torch}"
    limit, prefix = found.get("limit", {}), "tera_multiply_adds_"
    peaks = [f"{value:.3g} in {key.removeprefix(prefix)}" for key, value in limit.items() if key.startswith(prefix)]
    most = [f"{' and '.join(peaks)} of 10^12 multiply-adds a second in a matrix product"] if peaks else []
    if "copy_gigabytes" in limit:
        most.append(f"{limit['copy_gigabytes']:,.0f} GB a second in a copy")
    return f"{device}: at most {', and '.join(most)}." if most else f"{device}."


def peers(found: Mapping[str, Any]) -> Table:
    rows = [
        [
            name,
            spread(of.get("ours")),
            *(number(of.get(over), 2) for over in RATIOS),
            number(of.get("products")),
            number(of.get("phases", {}).get("views", 0), 1),
        ]
        for name, of in found.items()
    ]
    return table(
        "Beside lightly and kornia",
        "The same encoder, batch and pictures, from uint8 pictures to the next weights, in turns, each in a process of "
        "its own: our samples a second "
        "(lowest and highest turn), over ours with kornia's views, over those of lightly's modules and losses with our "
        "views, precision and memory layout, and over those of lightly as its examples show it, with PIL views in two "
        "workers and float32. "
        "Compiled is `compile: true`, without the time that it takes to compile. "
        "At the end, in percent, what convolutions and matrix products take of a step of lightly's modules, which ours "
        "shares with them and cannot save; and what the views take of our step.",
        ["method", "samples/s", *RATIOS.values(), "products, %", "views, %"],
        rows,
    )


def methods(found: Mapping[str, Any]) -> Table:
    rows = [
        [
            name,
            spread(of.get("samples_per_second")),
            number(of["multiply_adds"] / 1e6 if of.get("multiply_adds") else None, 1),
            number(of.get("share_of_peak"), 1),
            number(of.get("products")),
            *(number(of.get("phases", {}).get(phase, 0)) for phase in PHASES),
        ]
        for name, of in found.items()
    ]
    return table(
        "Where a step's time goes",
        "Samples a second (lowest and highest turn); millions of multiply-adds a sample in training, and how many of "
        "those a second, in percent of what a large matrix product does; the share of convolutions and matrix products "
        "in the time of a step, and that of each phase.",
        ["entry", "samples/s", "M multiply-adds", "% of a product", "products, %"]
        + [f"{phase}, %" for phase in PHASES.values()],
        rows,
    )


def growth(found: Mapping[str, Any]) -> Table:
    rows = [
        [
            name,
            ", ".join(f"{point['at']:,}" for point in points),
            ", ".join(f"{1e6 * point['seconds']:,.0f}" for point in points),
            signed(exponent(points), 2),
        ]
        for name, points in found.items()
    ]
    return Table(
        "As work grows",
        "Microseconds for a sample, or for a row, as one thing grows and the rest stays. The exponent is the slope on "
        "logarithmic axes: 0 where a sample costs the same however much there is, 1 where its cost is proportional.",
        ["what grows", "from, to", "microseconds", "exponent"],
        rows,
    )


def exponent(points: Sequence[Mapping[str, float]]) -> float:
    """The least-squares slope of log seconds against log size."""
    return float(np.polyfit([math.log(p["at"]) for p in points], [math.log(p["seconds"]) for p in points], 1)[0])


def overhead(found: Mapping[str, Any]) -> Table:
    rows = [[f"import of stages.{stage}", f"{seconds:.1f} s"] for stage, seconds in found.get("import", {}).items()]
    if "nothing" in found:
        rows.append(["the stage that pretrains `untrained`, which takes no steps", f"{found['nothing']:.1f} s"])
    for of in found.get("dvc", []):
        rows += [[f"`dvc {verb}`, {of['at']} stages, none to run", f"{of[verb]:.1f} s"] for verb in ("repro", "status")]
    if "tracking" in found:
        rows.append(["writing an entry into MLflow, of `simclr`'s pretraining", f"{found['tracking']:.2f} %"])
    return Table("Around the work", "Times are the least of three.", ["what", "takes"], rows)


def table(title: str, note: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Without the columns in which nothing was measured."""
    shown = [place for place in range(len(header)) if any(row[place] != NONE for row in rows)]
    return Table(title, note, [header[at] for at in shown], [[row[at] for at in shown] for row in rows])


def spread(speed: Mapping[str, float] | None) -> str:
    """As in 1,204 (1,190 to 1,220)."""
    return f"{speed['median']:,.0f} ({speed['low']:,.0f} to {speed['high']:,.0f})" if speed else NONE
