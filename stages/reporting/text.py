"""Numbers and lists in words, the same in every document of the report."""

from collections.abc import Iterable

from .statistics import Correlation, Estimate, Place

NONE = "\N{EN DASH}"  # in place of what was not measured


def number(value: float | None, digits: int = 0) -> str:
    """As in 1,234.5 or −0.3; a dash for what was not measured."""
    return NONE if value is None else f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float, digits: int = 1) -> str:
    """As in +1.2 or −1.2; never −0.0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def plus_minus(estimate: Estimate | None, digits: int = 1) -> str:
    """As in " ± 1.2": half the 95 % interval; nothing where there is none."""
    return "" if estimate is None or estimate.half_width is None else f" ± {number(estimate.half_width, digits)}"


def difference(estimate: Estimate) -> str:
    """As in "+1.2 (+0.4 to +2.0)": with its 95 % interval where it has one."""
    return signed(estimate.mean) + interval(estimate.low, estimate.high)


def correlation(found: Correlation | None) -> str:
    """As in "+0.81 (+0.60 to +0.93)"; a dash for none."""
    return NONE if found is None else signed(found.value, 2) + interval(found.low, found.high, 2)


def interval(low: float | None, high: float | None, digits: int = 1) -> str:
    return "" if low is None else f" ({signed(low, digits)} to {signed(high, digits)})"


def probable(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def placed(place: Place | None) -> str:
    """As in "2.3 (1 to 4)"."""
    return f"{place.mean:.1f} ({place.low} to {place.high})" if place else NONE


def percent(estimate: Estimate) -> str:
    if estimate.low is None:
        return f"{estimate.mean:.1f} %"
    return f"{estimate.mean:.1f} % (95 % interval {estimate.low:.1f} to {estimate.high:.1f})"


def counted(amount: float, noun: str) -> str:
    """To a whole number, as in `1 minute` and `3 seeds`."""
    count = round(amount)
    return f"{count:,} {noun}{'s' * (count != 1)}"


def listed(words: Iterable[str]) -> str:
    """As in "a, b and c"; "" for none."""
    *head, last = [*words] or [""]
    return f"{', '.join(head)} and {last}" if head else last
