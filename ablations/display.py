"""Progress of a launch: on a terminal the table of verdicts with what runs now, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from ablations.results import label
from ablations.verdicts import VerdictRow

if TYPE_CHECKING:
    from ablations.plan import Study
    from ablations.queue import CellState

_LINE_SECONDS = 10.0


class LiveTable:
    """A row per variant, redrawn in place until `close`. `rows` reads scores; it is called when a cell has ended."""

    def __init__(
        self, console: Console, study: Study, rows: Callable[[Sequence[CellState]], Sequence[VerdictRow]]
    ) -> None:
        self._study, self._read_rows = study, rows
        self._rows: Sequence[VerdictRow] = ()
        self._ended: int | None = None
        self._live = Live(console=console, refresh_per_second=2, transient=True)
        self._live.start()

    def update(self, states: Sequence[CellState], workers: int) -> None:
        ended = sum(state.state in ("done", "failed") for state in states)
        if ended != self._ended:
            self._rows, self._ended = self._read_rows(states), ended
        self._live.update(Group(verdict_table(self._study, self._rows, states), progress_line(states, workers)))

    def close(self) -> None:
        self._live.stop()


class PlainLines:
    """A line when a cell ends, and every ten seconds one per running cell and one for all together."""

    def __init__(self, console: Console, study: Study) -> None:
        self._console, self._fid = console, label(study, "fid")
        self._ended: set[str] | None = None  # keys of cells; None before the first update
        self._last = time.monotonic()

    def update(self, states: Sequence[CellState], workers: int) -> None:
        ended = [state for state in states if state.state in ("done", "failed")]
        shown = [] if self._ended is None else [state for state in ended if state.cell.key not in self._ended]
        self._ended = {state.cell.key for state in ended}
        is_due = time.monotonic() - self._last >= _LINE_SECONDS
        if is_due:
            self._last = time.monotonic()
            shown += [state for state in states if state.state == "running"]
        lines = [_line(state, self._fid) for state in shown]
        for line in [*lines, progress_line(states, workers)] if is_due else lines:
            self._console.out(f"{time.strftime('%H:%M:%S')} {line}")

    def close(self) -> None:
        pass


def verdict_table(study: Study, rows: Sequence[VerdictRow], states: Sequence[CellState] = ()) -> Table:
    """Variant, n, mean, difference and verdict; where `states` are given, also the cells that run, with their progress.

    Trials of a search, which are compared with nothing, have rows while they run.
    """
    references = {reference for _, reference in study.pairs}
    table, reference = Table(), str(*references) if len(references) == 1 else "each other"
    for title in ("variant", "n", label(study, study.metric), f"against {reference}", "verdict"):
        table.add_column(title, justify="left" if title in ("variant", "verdict") else "right")
    if states:
        table.add_column("running")
    running: dict[str, list[CellState]] = {}
    for state in states:
        if state.state == "running":
            running.setdefault(state.cell.variant, []).append(state)
    for row in [*rows, *(VerdictRow(name, None) for name in running.keys() - {row.variant for row in rows})]:
        # A variant with several comparisons has its cells in the first of its rows.
        bars = [_bars(running.pop(row.variant, []))] if states else []
        table.add_row(*row_texts(row, reference), *bars)
    return table


def row_texts(row: VerdictRow, reference: str) -> tuple[str, str, str, str, str]:
    """Variant, n, mean, ratio or difference with its interval, and verdict; names references other than `reference`."""
    found, compared = row.estimate, row.comparison
    against = verdict = ""
    if compared is not None:
        gap = compared.gap
        back = math.exp if gap.log else float
        against = f"{'x ' if gap.log else ''}{back(gap.value):.3g}"
        if gap.low is not None and gap.high is not None:
            against += f" ({back(gap.low):.3g} to {back(gap.high):.3g})"
        if compared.reference != reference:
            against += f" to {compared.reference}"
        verdict = compared.verdict
        if verdict != "undecided" or compared.stopped_for_futility:
            verdict += f" after {compared.decided_after or gap.n}"
        if compared.stopped_for_futility:
            verdict += ", stopped for futility"
    return row.variant, str(found.n if found else 0), f"{found.mean:.3g}" if found else "", against, verdict


def progress_line(states: Sequence[CellState], workers: int) -> str:
    """ "7 of 12 cells done, 4 running, 1 waiting, about 3 min left"."""
    counts = Counter(state.state for state in states)
    parts = [f"{counts['done']} of {len(states)} cells done"]
    parts += [f"{counts[name]} {name}" for name in ("running", "waiting", "failed") if counts[name]]
    unfinished = [state for state in states if state.state in ("running", "waiting")]
    speeds = [seconds for state in states if (seconds := _seconds_per_step(state))]
    if unfinished and speeds:
        seconds = sum(map(_steps_left, unfinished)) * sum(speeds) / len(speeds)
        parts.append(f"about {duration(seconds / max(1, min(workers, len(unfinished))))} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 10 * 60:
        return f"{seconds / 60:.1f} min"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"


def _bars(states: Sequence[CellState]) -> RenderableType:
    """A line per running cell: seed, progress and time left."""
    if not states:
        return ""
    grid = Table.grid(padding=(0, 1))
    for state in states:
        steps, step = state.cell.config.optim.steps, state.progress.get("step", 0)
        grid.add_row(f"seed {state.cell.seed}", ProgressBar(steps, step, width=16), f"{step / steps:.0%}", _left(state))
    return grid


def _line(state: CellState, metric: str) -> str:
    """ "feat32/seed20: running, step 20/100, 118 images/s, FID 40.2, 2.1 min left"; `metric` is the name of `fid`."""
    progress = state.progress
    what = state.outcome or state.state
    if "shared_study" in progress:
        what = f"{what}, shared with {progress['shared_study']}"
    if state.error:
        what = f"failed: {state.error.splitlines()[0][:80]}"
    speed = f"{progress['images_per_sec']:.0f} images/s" if "images_per_sec" in progress else ""
    fid = f"{metric} {progress['fid']:.4g}" if "fid" in progress else ""
    left = f"{_left(state)} left" if _left(state) else ""
    step = f"step {progress.get('step', 0)}/{state.cell.config.optim.steps}"
    return ", ".join(filter(None, [f"{state.cell.name}: {what}", step, speed, fid, left]))


def _left(state: CellState) -> str:
    """How long a running cell still takes, as far as it is known."""
    seconds = _seconds_per_step(state)
    return duration(_steps_left(state) * seconds) if seconds and state.state == "running" else ""


def _steps_left(state: CellState) -> int:
    return int(state.cell.config.optim.steps - state.progress.get("step", 0))


def _seconds_per_step(state: CellState) -> float | None:
    """The mean time of a step since the cell was started or resumed."""
    progress = state.progress
    steps = progress.get("step", 0) - progress.get("since", 0)
    return progress["seconds"] / steps if steps > 0 and "seconds" in progress else None
