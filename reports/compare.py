"""Does a finding replicate? Two stores or reports side by side: `python -m reports.compare A B`.

A and B are each a tracking URI, a folder with the mlflow.db of a launch, or a folder of reports such as
reports/published/embedded. For every study that both have: which verdicts agree, and which differences from the
reference differ by more than their intervals.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any

import pandas as pd

from reports import format
from reports.build import say
from reports.frames import Frames, load
from reports.statistics import Gap
from reports.store import printable

SIDES = ("A", "B")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 compared, whatever was found; 2 bad input, with one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m reports.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for side in SIDES:
        parser.add_argument(side, help="tracking URI, folder with mlflow.db, or folder of reports")
    parser.add_argument("--study", help="one study; all that both have by default")
    options = parser.parse_args(arguments)
    try:
        one, other = (load(options.study, getattr(options, side)) for side in SIDES)
        say(printable(compare(one, other)).replace("−", "-"), sys.stdout)  # a minus that every terminal has
    except (ValueError, OSError) as error:
        say(f"reports.compare: {error}", sys.stderr)
        return 2
    return 0


def compare(one: Frames, other: Frames) -> str:
    """Every study and protocol that both have, as text. ValueError where they have none in common."""
    keys = [list(dict.fromkeys(zip(side.cells["study"], side.cells["protocol"], strict=True))) for side in (one, other)]
    common = [key for key in keys[0] if key in keys[1]]
    if not common:
        listed = (", ".join(f"{study} ({protocol})" for study, protocol in side) for side in keys)
        raise ValueError(f"A and B have no study at one protocol in common: A has {next(listed)}; B has {next(listed)}")
    return "\n\n".join(_compare_study(*key, one, other) for key in common)


def _compare_study(study: str, protocol: str, one: Frames, other: Frames) -> str:
    cells, rows = zip(*(_of(study, protocol, side) for side in (one, other)), strict=True)
    metrics = [str(side["metric"].iloc[0]) if len(side) else "" for side in rows]
    lines = [f"{study} ({protocol})"]
    lines += [f"  {name}: {_provenance(side)}" for name, side in zip(SIDES, cells, strict=True)]
    prints = [[set(side[f"{what}_fingerprint"].dropna()) for side in cells] for what in ("data", "metric")]
    if any(a and b and not a & b for a, b in prints):
        lines.append("  A and B were measured in different ways: compare their verdicts, and no figure")
    if metrics[0] != metrics[1] or not metrics[0]:
        return "\n".join([*lines, f"  nothing to compare: A answers by {metrics[0] or 'nothing yet'}, B by "
                                  f"{metrics[1] or 'nothing yet'}"])  # fmt: skip
    scored = (side.loc[side["state"] == "finished", ["variant", "seed", metrics[0]]].dropna() for side in cells)
    both = next(scored).merge(next(scored), on=["variant", "seed"], suffixes=SIDES)
    same = (both[f"{metrics[0]}A"] == both[f"{metrics[0]}B"]).sum()
    lines.append(f"  of {len(both)} cells that finished in both, {same} have the same {metrics[0]} to the last digit")
    joined = rows[0].merge(rows[1], on=["variant", "reference"], suffixes=SIDES)
    table = [("variant", "against", f"A: {metrics[0]}", "n", "verdict", "B", "n", "verdict", "verdicts", "differences")]
    agreeing, beyond = [], []
    for row in joined.to_dict("records"):
        gaps = [_gap(row, side) for side in SIDES]
        verdicts = [format.ABSENT if pd.isna(row[f"verdict{side}"]) else row[f"verdict{side}"] for side in SIDES]
        agreeing.append(verdicts[0] == verdicts[1])
        beyond.append(_differ(*gaps))
        shown = ((format.gap(gap), str(gap.n), verdict) for gap, verdict in zip(gaps, verdicts, strict=True))
        words = "agree" if agreeing[-1] else "contradict" if {*verdicts} == {"better", "worse"} else "differ"
        figures = {True: "differ", False: "agree", None: "no interval"}[beyond[-1]]
        table.append((row["variant"], row["reference"], *next(shown), *next(shown), words, figures))
    known = [found for found in beyond if found is not None]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for texts in table:
        padded = (text.ljust(width) for text, width in zip(texts, widths, strict=True))
        lines.append(f"  {'  '.join(padded)}".rstrip())
    lines.append(
        f"  verdicts: {sum(agreeing)} of {len(agreeing)} agree; differences: {sum(known)} of {len(known)} differ by "
        "more than their intervals"
    )
    if missing := sorted({*rows[0]["variant"], *rows[1]["variant"]} - set(joined["variant"])):
        lines.append(f"  compared in one alone: {', '.join(missing)}")
    return "\n".join(lines)


def _of(study: str, protocol: str, side: Frames) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cells of a study, and its comparisons by the primary metric, as most of its cells were measured."""
    cells, rows = (
        frame[(frame["study"] == study) & (frame["protocol"] == protocol)] for frame in (side.cells, side.comparisons)
    )
    if len(rows):
        rows = rows[(rows["role"] == "primary") & rows["reference"].notna()]
        rows = rows[rows["metric_fingerprint"].fillna("") == rows["metric_fingerprint"].fillna("").iloc[:1].max()]
    return cells, rows


def _provenance(cells: pd.DataFrame) -> str:
    """ "12 of 15 cells finished, code 9eb6597, cpu"."""
    ran = cells[cells["run_id"].notna()]
    known = (", ".join(sorted({str(text)[:12] for text in ran[name].dropna()})) or "unknown"
             for name in ("git_commit", "device"))  # fmt: skip
    return f"{(cells['state'] == 'finished').sum()} of {len(cells)} cells finished, code {next(known)}, {next(known)}"


def _gap(row: dict[str, Any], side: str) -> Gap:
    """The comparison of one side, as table.csv has it."""
    log = row[f"scale{side}"] == "log"
    back = math.log1p if log else float
    ends = (row[f"difference_{end}95{side}"] for end in ("low", "high"))
    low, high = (None if pd.isna(end) else back(end) for end in ends)
    n = row[f"n{side}"] if pd.isna(row[f"decided_after{side}"]) else row[f"decided_after{side}"]
    return Gap(back(row[f"difference{side}"]), low, high, None, int(n), log)


def _differ(one: Gap, other: Gap) -> bool | None:
    """Whether the two differences differ by more than their intervals allow; None where one has no interval.

    By the interval of the difference of two independent estimates, whose half width is the root of the sum of squares
    of theirs. Overlap of the intervals would be a weaker rule: they may overlap where this one excludes 0.
    """
    if one.low is None or one.high is None or other.low is None or other.high is None or one.log != other.log:
        return None
    return abs(one.value - other.value) > math.hypot(one.high - one.low, other.high - other.low) / 2


if __name__ == "__main__":
    sys.exit(main())
