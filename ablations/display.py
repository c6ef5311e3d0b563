"""What a launch shows while it runs: a table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

if TYPE_CHECKING:
    from ablations.queue import CellState

_LINE_SECONDS = 10.0
_MAX_ROWS = 40


class LiveTable:
    """A row a cell, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=2)
        self._live.start()

    def update(self, states: Sequence[CellState], workers: int) -> None:
        table = Table(caption=headline(states, workers), caption_justify="left")
        for title in ("cell", "state", "step", "images/s", _distance(states), "left"):
            table.add_column(title, justify="left" if title in ("cell", "state") else "right")
        for state in sorted(states, key=_rank)[:_MAX_ROWS]:
            table.add_row(*_row(state))
        if len(states) > _MAX_ROWS:
            table.add_row(f"... {len(states) - _MAX_ROWS} more")
        self._live.update(table)

    def close(self) -> None:
        self._live.stop()


class PlainLines:
    """A line when a cell ends, and every ten seconds one for each running cell and one for the whole."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._ended: set[str] | None = None
        self._last = time.monotonic()

    def update(self, states: Sequence[CellState], workers: int) -> None:
        ended = {state.cell.key: state for state in states if state.state in ("done", "failed")}
        known = set(ended) if self._ended is None else self._ended
        for key in [key for key in ended if key not in known]:
            self._say(ended[key])
        self._ended = set(ended)
        if time.monotonic() - self._last >= _LINE_SECONDS:
            self._last = time.monotonic()
            for state in states:
                if state.state == "running":
                    self._say(state)
            self._print(headline(states, workers))

    def close(self) -> None:
        pass

    def _say(self, state: CellState) -> None:
        name, what, step, speed, fid, left = _row(state)
        parts = [f"{name}: {what}", f"step {step}"]
        parts += [f"{speed} images/s"] if speed else []
        parts += [f"{_distance([state])} {fid}"] if fid else []
        parts += [f"{left} left"] if left else []
        self._print(", ".join(parts))

    def _print(self, line: str) -> None:
        self._console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False, highlight=False, soft_wrap=True)


def headline(states: Sequence[CellState], workers: int) -> str:
    """ "7 of 12 cells done, 4 running, 1 waiting, about 3 min left"."""
    counts = Counter(state.state for state in states)
    parts = [f"{counts['done']} of {len(states)} cells done"]
    parts += [f"{counts[name]} {name}" for name in ("running", "waiting", "failed") if counts[name]]
    left = _seconds_left_of_all(states, workers)
    return ", ".join([*parts, f"about {duration(left)} left"] if left is not None else parts)


def _distance(states: Sequence[CellState]) -> str:
    """ "FID" of Inception's features alone; other extractors are named: "FD embedded-v2"."""
    extractors = {state.cell.config.eval.extractor for state in states}
    if extractors == {"inception"}:
        return "FID"
    return " ".join(["FD", *extractors]) if len(extractors) == 1 else "FD"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 10 * 60:
        return f"{seconds / 60:.1f} min"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"


def _row(state: CellState) -> tuple[str, str, str, str, str, str]:
    progress = state.progress
    what = state.outcome or state.state
    if "shared_study" in progress:
        what = f"{what}, shared with {progress['shared_study']}"
    if state.error:
        what = f"failed: {state.error.splitlines()[0][:80]}"
    speed = f"{progress['images_per_sec']:.0f}" if "images_per_sec" in progress else ""
    fid = f"{progress['fid']:.4g}" if "fid" in progress else ""
    seconds = _seconds_per_step(state)
    left = duration(_steps_left(state) * seconds) if seconds and state.state == "running" else ""
    return state.cell.name, what, f"{progress.get('step', 0)}/{state.cell.config.optim.steps}", speed, fid, left


def _rank(state: CellState) -> int:
    return ("running", "failed", "waiting", "new", "done").index(state.state)


def _steps_left(state: CellState) -> int:
    return int(state.cell.config.optim.steps - state.progress.get("step", 0))


def _seconds_per_step(state: CellState) -> float | None:
    progress = state.progress
    steps = progress.get("step", 0) - progress.get("since", 0)
    return progress["seconds"] / steps if steps > 0 and "seconds" in progress else None


def _seconds_left_of_all(states: Sequence[CellState], workers: int) -> float | None:
    open_cells = [state for state in states if state.state in ("running", "waiting")]
    rates = [rate for state in states if (rate := _seconds_per_step(state))]
    if not open_cells or not rates:
        return None
    return sum(map(_steps_left, open_cells)) * sum(rates) / len(rates) / max(1, min(workers, len(open_cells)))
