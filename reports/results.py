"""The results of one study at one protocol: its variants, the state of every planned cell, scores and pictures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reports import metrics

CELL_TAGS = ("config_digest", "data_fingerprint", "metric_fingerprint", "device", "git_commit", "error",
             "shared_study")  # fmt: skip
ENDED_EARLY = ("collapsed", "diverged")  # the states of a run that is done and has no score
# With adaptive seeds: missing cells that no look needs, and those that a later look may need.
NOT_NEEDED, LATER = "not needed", "later if needed"

# Parts of a metric fingerprint that name what is scored rather than what scores it, and the fields that decide them.
_SCORED = {"optim.ema_decay": ("ema", "raw"), "eval.bn": ("bn running", "bn standing")}


@dataclass(frozen=True)
class Variant:
    """A row of the table: a name for changes of the preset's config.

    `build_error` says why the preset cannot carry them ("needs 128 px"); such cells are never run.
    `params` is the complete config as its newest run stored it, each field as text; {} before one has started.
    """

    name: str
    factors: dict[str, str] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    build_error: str | None = None
    config_digest: str | None = None
    params: dict[str, str] = field(default_factory=dict)

    @property
    def rates(self) -> tuple[float | None, float | None]:
        """The learning rates of G and D that were trained with; None before a run has started."""
        equal = self.params.get("optim.ttur") == "false"  # as params are stored
        fields = ("optim.lr_equal",) * 2 if equal else ("optim.lr_g", "optim.lr_d")
        lr_g, lr_d = (self.params.get(field) for field in fields)
        return (None if lr_g is None else float(lr_g)), (None if lr_d is None else float(lr_d))


@dataclass(frozen=True)
class SearchTrial:
    """One run of a search. `state` is complete, failed, running, collapsed or diverged; `value` may be None."""

    number: int
    variant: str
    params: dict[str, Any]
    value: float | None
    state: str


@dataclass(frozen=True)
class Search:
    """What search.json holds. A field has {"low", "high", "log"} or {"choices"}; `best` names a trial's variant."""

    objective: str
    fields: dict[str, dict[str, Any]]
    trials: tuple[SearchTrial, ...]
    importances: dict[str, float] | None
    best: str | None

    @property
    def tried(self) -> int:
        """How many trials have ended."""
        return sum(trial.state != "running" for trial in self.trials)


@dataclass(frozen=True)
class Adaptive:
    """Seeds that are added until each comparison is decided: the first `first` of `seeds`, then more of them.

    A ratio from 1 / (1 + `margin`) to 1 + `margin` (0.1 for 10 %) is no difference that matters; None where every
    difference does.
    """

    first: int
    seeds: tuple[int, ...]
    margin: float | None


@dataclass(frozen=True)
class Picture:
    """An image artifact of a cell: a sample grid (PNG) or one attention map (npz, `name` is "g32")."""

    variant: str
    seed: int
    kind: str
    name: str
    step: int
    path: Path
    tile_px: int | None


@dataclass(frozen=True)
class Results:
    """One study at one protocol.

    `cells` has one row per planned cell: variant, seed, state, step (reached), steps (asked for), endpoint, run_id,
    seconds and the tags in CELL_TAGS. A state is finished, collapsed, diverged, running, interrupted, failed, missing,
    NOT_NEEDED, LATER, or why the preset cannot carry the variant.
    `final_scores` has the same rows and one column per metric: the mean over the last `endpoint` evaluations (geometric
    for metrics compared by their logarithm), NaN where one is missing; for a cell that did not finish, the last finite
    one.
    `histories` is long: variant, seed, key, step, value. `launched` is in milliseconds since 1970.
    `noise` is the sd over seeds of the log of the primary metric, pooled over the preset's other studies.
    """

    study: str
    protocol: str
    preset: str
    question: str
    paper: str | None
    baseline: str
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    cells: pd.DataFrame
    final_scores: pd.DataFrame
    histories: pd.DataFrame
    pictures: tuple[Picture, ...]
    classes: tuple[str, ...]
    groups: dict[str, tuple[int, ...]]
    launched: int
    notes: tuple[str, ...] = ()
    design: str = "one_at_a_time"  # or grid, ladder, search
    factors: tuple[str, ...] = ()  # names, in the study's order
    search: Search | None = None
    metric: str = "fid"  # the primary one; all others are secondary
    contrasts: tuple[tuple[str, str], ...] = ()  # (variant, reference) that the study names; () where it names none
    noise: float | None = None
    adaptive: Adaptive | None = None  # where seeds are no list

    @property
    def endpoint(self) -> int:
        """How many of a run's last evaluations its score is the mean of (`eval.endpoint`)."""
        found = self.cells.loc[self.cells["state"] == "finished", "endpoint"].dropna()
        return int(found.max()) if len(found) else 1

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """What is compared, (variant, reference): as the study names it, else rung by rung, else with the baseline.

        Without variants that the preset cannot carry.
        """
        names = [variant.name for variant in self.variants if variant.build_error is None]
        if self.contrasts:
            return [pair for pair in self.contrasts if set(pair) <= set(names)]
        if self.design == "ladder":
            return [(low, high) for high, low in zip(names, names[1:], strict=False)]
        return [(name, self.baseline) for name in names if name != self.baseline and self.baseline in names]

    @property
    def fingerprint(self) -> str:
        """How the shown cells were measured (see `by_measurement`); "" before the first one has started."""
        found = self.cells["metric_fingerprint"].dropna().unique()
        return str(found[0]) if len(found) else ""

    @property
    def last_steps(self) -> list[int]:
        """The steps at which finished runs ended, each once, in order."""
        steps = self.cells.loc[self.cells["state"] == "finished", "step"].dropna()
        return sorted({int(step) for step in steps})

    def to_run(self, variant: str) -> int:
        """How many of a variant's cells are to run; with adaptive seeds, as far as the looks have come."""
        states = self.of(variant)["state"]
        cannot_be_built = any(item.build_error for item in self.variants if item.name == variant)
        return 0 if cannot_be_built else int((~states.isin([NOT_NEEDED, LATER])).sum())

    @property
    def any_ended_early(self) -> bool:
        return bool(self.cells["state"].isin(ENDED_EARLY).any())

    def label(self, key: str = "", arrow: bool = False) -> str:
        """The heading of a metric, by default of the primary one."""
        return metrics.heading(key or self.metric, self.fingerprint, arrow)

    def of(self, variant: str) -> pd.DataFrame:
        """The cells of one variant."""
        return self.cells[self.cells["variant"] == variant]

    def finished(self, key: str) -> dict[str, dict[int, float]]:
        """{variant: {seed: score}} over finished cells that have the metric."""
        values: dict[str, dict[int, float]] = {variant.name: {} for variant in self.variants}
        if key in self.final_scores:
            columns = (self.cells[name] for name in ("variant", "seed", "state"))
            for variant, seed, state, value in zip(*columns, self.final_scores[key], strict=True):
                if state == "finished" and pd.notna(value):
                    values[variant][int(seed)] = float(value)
        return values

    def history(self, key: str) -> pd.DataFrame:
        return self.histories[(self.histories["key"] == key) & self.histories["value"].notna()]


def by_measurement(results: Results) -> list[Results]:
    """The results split so that each part holds one data set and one metric fingerprint: only such numbers compare.

    The part with most finished cells comes first. A cell belongs to every part that agrees with what is known of it:
    one that has not started to all, one that has not been scored yet to those of its data. Which weights are scored
    does not split a study whose variants differ in just that.
    """
    cells, notes = results.cells, results.notes
    varied = {name for variant in results.variants for name in variant.changes}
    if dropped := {part for name, parts in _SCORED.items() if name in varied for part in parts}:
        shortened = [text if pd.isna(text) else "; ".join(part for part in text.split("; ") if part not in dropped)
                     for text in cells["metric_fingerprint"]]  # fmt: skip
        cells = cells.assign(metric_fingerprint=shortened)
        notes = (*notes, f"Variants differ in what is scored ({', '.join(sorted(dropped))}): see their fields.")
    prints = [tuple(None if pd.isna(known) else str(known) for known in row)
              for row in cells[["data_fingerprint", "metric_fingerprint"]].to_numpy()]  # fmt: skip

    def agree(one: tuple[str | None, ...], other: tuple[str | None, ...]) -> bool:
        return all(a is None or b is None or a == b for a, b in zip(one, other, strict=True))

    ways: list[tuple[str | None, ...]] = []
    for known in sorted(dict.fromkeys(prints), key=lambda known: known.count(None)):  # those known in full first
        if any(known) and not any(agree(known, way) for way in ways):
            ways.append(known)
    if len(ways) < 2:
        return [replace(results, cells=cells, notes=notes)]
    finished = Counter(known for known, state in zip(prints, cells["state"], strict=True) if state == "finished")
    parts = []
    for place, way in enumerate(sorted(ways, key=lambda way: -finished[way]), 1):
        keep = pd.Series([agree(known, way) for known in prints], cells.index)
        pairs = set(zip(cells.loc[keep, "variant"], cells.loc[keep, "seed"], strict=True))
        rows = [pair in pairs for pair in zip(results.histories["variant"], results.histories["seed"], strict=True)]
        note = (
            f"The cells of this study were measured in {len(ways)} ways; numbers of different ways never share a "
            f"table. This is way {place}, with {sum(any(known) and agree(known, way) for known in prints)} cells."
        )
        shown = {name: cells[name].where(keep, None) for name in ("metric_fingerprint", "data_fingerprint")}
        parts.append(
            replace(
                results,
                cells=cells.assign(state=cells["state"].where(keep, "measured otherwise"), **shown),
                final_scores=results.final_scores.where(keep),
                histories=results.histories[np.array(rows, dtype=bool)],
                pictures=tuple(item for item in results.pictures if (item.variant, item.seed) in pairs),
                notes=(*notes, note),
            )
        )
    return parts
