"""Numbers as text: how many digits, signs, units and intervals. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from reports.statistics import Gap

ABSENT = "–"


def decimals(values: Iterable[float], digits: int = 3) -> int:
    """Decimals that show so many digits of the smallest value; one number for all of a column keeps it aligned."""
    sizes = [abs(value) for value in values if value]
    return min(4, max(0, digits - 1 - math.floor(math.log10(min(sizes))))) if sizes else 0


def number(value: float, digits: int, signed: bool = False) -> str:
    """Fixed decimals, with a real minus sign: "−1.9", "12,345"."""
    text = f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"
    return text.replace("-", "−")


def number_or_absent(value: float | None, digits: int) -> str:
    """A dash for None and NaN."""
    return ABSENT if value is None or math.isnan(value) else number(value, digits)


def interval(mean: float, low: float | None, high: float | None, digits: int) -> str:
    """ "18.4 (12.1 to 28.0)", or the mean alone where there is no interval."""
    text = number(mean, digits)
    return text if low is None or high is None else f"{text} ({number(low, digits)} to {number(high, digits)})"


def percent(ratio: float, signed: bool = True) -> str:
    """ "−31 %" of a ratio of 0.69; "+250 %", and "x 12" from ten times on, where per cent say little."""
    if ratio >= 10 and signed:
        return f"× {ratio:.3g}"
    share = 100 * (ratio - 1)
    digits = 1 if abs(share) < 9.95 else 0
    return f"{number(share if signed else abs(share), digits, signed)} %"


def count(value: float) -> str:
    """ "1.32 M", "884 k": parameters."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def counted(quantity: int, noun: str) -> str:
    """ "1 comparison", "3 comparisons"."""
    return f"{quantity} {noun}" if quantity == 1 else f"{quantity} {noun}s"


def span(counts: Iterable[int]) -> str:
    """ "3", or "2 to 3" where the counts differ."""
    low, high = min(counts := list(counts)), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def p_value(found: Gap | None) -> str:
    """Adjusted; a dash where nothing was tested."""
    p = found.p if found else None
    return ABSENT if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def gap(found: Gap | None) -> str:
    """ "−31 % (−46 to −12)" where a ratio is compared, "+0.41 (0.10 to 0.72)" where a difference."""
    if found is None:
        return ABSENT
    ends, digits = _gap_ends(found)
    text = percent(math.exp(found.value)) if found.log else number(found.value, digits, signed=True)
    return f"{text} ({number(ends[0], digits)} to {number(ends[1], digits)})" if ends else text


def gap_size(found: Gap) -> str:
    """How large a gap is, without its sign: "31 %" of a ratio, "0.41" of a difference."""
    if found.log:
        return percent(math.exp(found.value), signed=False)
    return number(abs(found.value), _gap_ends(found)[1])


def gap_size_interval(found: Gap) -> str:
    """The interval of `gap_size`, smaller end first; an end on the other side of "no difference" is below 0."""
    ends, digits = _gap_ends(found)
    low, high = sorted(-end if found.value < 0 else end for end in ends)
    return f"{number(low, digits)} to {number(high, digits)}{' %' if found.log else ''}"


def _gap_ends(found: Gap) -> tuple[tuple[float, ...], int]:
    """The ends of a gap's interval, in per cent for a ratio, () where there is none; and how many decimals to show."""
    if found.low is None or found.high is None:
        return (), decimals([found.value], digits=2)
    if found.log:
        ends = (100 * math.expm1(found.low), 100 * math.expm1(found.high))
        return ends, 1 if min(map(abs, ends)) < 9.95 else 0
    return (found.low, found.high), decimals([found.high - found.low or found.value], digits=2)
