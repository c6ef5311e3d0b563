"""From stored runs to what a page reports: one study at one protocol, with the state of every planned cell."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reports.statistics import on_log_scale, pooled_sd, run_score
from reports.store import Run, Store, printable

# What is logged while training; everything else is measured on samples, at evaluations.
TRACES = ("loss_", "logit_", "gamma/", "attention_", "sigma_max/", "num_params_", "flops_", "images_per_sec",
          "peak_memory")  # fmt: skip
CELL_TAGS = ("config_digest", "data_fingerprint", "metric_fingerprint", "device", "git_commit", "error",
             "shared_study")  # fmt: skip
TRIAL = re.compile(r"trial\d+")  # how the variants of a search's trials are called


@dataclass(frozen=True)
class Variant:
    """`obstacle` says why the preset cannot carry it ("needs 128 px"); such cells are never run.

    `params` is the whole config as its newest run stored it, each field as text; {} before one has started.
    """

    name: str
    factors: dict[str, str] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    obstacle: str | None = None
    config_digest: str | None = None
    params: dict[str, str] = field(default_factory=dict)

    @property
    def rates(self) -> tuple[float | None, float | None]:
        """The learning rates of G and D that were trained with; None before a run has started."""
        equal = self.params.get("optim.ttur") == "false"  # as params are shown
        fields = ("optim.lr_equal",) * 2 if equal else ("optim.lr_g", "optim.lr_d")
        lr_g, lr_d = (self.params.get(field) for field in fields)
        return (None if lr_g is None else float(lr_g)), (None if lr_d is None else float(lr_d))


@dataclass(frozen=True)
class SearchTrial:
    """`state` is complete, failed, running, collapsed or diverged; `value` is the objective's, None without one."""

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
class Unit:
    """One study at one protocol.

    `cells` has one row per planned cell: variant, seed, state, step (reached), steps (asked for), endpoint, run_id,
    seconds and the tags in CELL_TAGS. A state is finished, collapsed, diverged, running, interrupted, failed, missing,
    or an obstacle.
    `finals` has the same rows and one column a metric: the mean over the last `endpoint` evaluations (geometric for
    metrics compared by their logarithm), NaN where one is missing; for a cell that did not finish, the last finite one.
    `histories` is long: variant, seed, key, step, value.
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
    finals: pd.DataFrame
    histories: pd.DataFrame
    pictures: tuple[Picture, ...]
    classes: tuple[str, ...]
    groups: dict[str, tuple[int, ...]]
    launched: int  # first launch, milliseconds since 1970
    notes: tuple[str, ...] = ()
    design: str = "one_at_a_time"  # or grid, ladder, search
    factors: tuple[str, ...] = ()  # names, in the study's order
    search: Search | None = None
    metric: str = "fid"  # the primary one; all others are secondary
    contrasts: tuple[tuple[str, str], ...] = ()  # (variant, reference) that the study names; () where it names none
    noise: dict[str, float] = field(
        default_factory=dict
    )  # {metric: sd of log over seeds} of the preset's other studies

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
        names = [variant.name for variant in self.variants if variant.obstacle is None]
        if self.contrasts:
            return [pair for pair in self.contrasts if set(pair) <= set(names)]
        if self.design == "ladder":
            return [(low, high) for high, low in zip(names, names[1:], strict=False)]
        return [(name, self.baseline) for name in names if name != self.baseline and self.baseline in names]

    @property
    def fingerprint(self) -> str:
        """How the shown cells were measured; "" before the first one has started. See measures.py."""
        found = self.cells["metric_fingerprint"].dropna().unique()
        return str(found[0]) if len(found) else ""

    def finished(self, key: str) -> dict[str, dict[int, float]]:
        """{variant: {seed: score}} over finished cells that have the metric."""
        values: dict[str, dict[int, float]] = {variant.name: {} for variant in self.variants}
        if key in self.finals:
            columns = (self.cells[name] for name in ("variant", "seed", "state"))
            for variant, seed, state, value in zip(*columns, self.finals[key], strict=True):
                if state == "finished" and pd.notna(value):
                    values[variant][int(seed)] = float(value)
        return values

    def history(self, key: str) -> pd.DataFrame:
        return self.histories[(self.histories["key"] == key) & self.histories["value"].notna()]


def load_units(store: Store, study: str | None = None) -> list[Unit]:
    """Every (study, protocol) in the store, or those of one study, in the order of their first launch.

    One whose only launch died before it wrote its plan has nothing to tell, and is left out.
    """
    stored = store.runs()
    sources = {run.id: run for run in stored}
    runs = [run for run in stored if study is None or run.tags.get("study", run.experiment) == study]
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        name = run.tags.get("study", run.experiment)
        groups.setdefault((name, run.tags.get("protocol", run.tags.get("preset", ""))), []).append(run)
    histories = store.histories([run for run in runs if run.tags["kind"] == "cell"])
    found = (_unit(store, *key, group, histories, sources) for key, group in groups.items())
    units = [unit for unit in found if unit is not None]
    return [replace(unit, noise=_noise(unit, units)) for unit in units]


def _noise(unit: Unit, units: list[Unit]) -> dict[str, float]:
    """Sd over seeds of the log of the primary metric, pooled over the preset's other studies.

    Over variants that were measured as this study's and trained for as many steps: others have another noise.
    """
    if not on_log_scale(unit.metric):
        return {}
    steps = set(unit.cells["steps"].dropna())
    groups = []
    for other in units:
        alike = other is not unit and other.preset == unit.preset
        if not alike or (unit.fingerprint and other.fingerprint != unit.fingerprint):
            continue
        for name, own in other.finished(unit.metric).items():
            trained = set(other.cells.loc[other.cells["variant"] == name, "steps"].dropna())
            if own and min(own.values()) > 0 and (not steps or trained <= steps):
                groups.append(list(own.values()))
    sd = pooled_sd(groups, log=True)
    return {} if sd is None else {unit.metric: sd}


def _unit(
    store: Store, study: str, protocol: str, runs: list[Run], histories: pd.DataFrame, sources: dict[str, Run]
) -> Unit | None:
    launches = [run for run in reversed(runs) if run.tags["kind"] == "launch"]
    plans = [plan for launch in launches if (plan := store.document(launch, "plan.json")) and _is_plan(plan)]
    searches = (found for launch in launches if (found := store.document(launch, "search.json")) is not None)
    design = str(plans[0].get("design") or "one_at_a_time") if plans else "one_at_a_time"
    all_cell_runs = [run for run in runs if run.tags["kind"] == "cell"]
    cell_runs = [run for run in all_cell_runs if "variant" in run.tags and _whole(run, "seed") is not None]
    unnamed = len(all_cell_runs) - len(cell_runs)
    variants = _variants(plans, cell_runs)
    if design == "search":  # its trials choose what is compared; they are not compared themselves
        variants = tuple(variant for variant in variants if not TRIAL.fullmatch(variant.name))
        cell_runs = [run for run in cell_runs if not TRIAL.fullmatch(run.tags["variant"])]
    seeds = sorted({seed for plan in plans for seed in plan["seeds"]} | {int(run.tags["seed"]) for run in cell_runs})
    if not variants or not seeds:
        return None
    newest = plans[0] if plans else {**runs[-1].tags, "question": ""}
    counted, notes = _counted(cell_runs, variants)
    if unnamed:
        notes = (*notes, f"{unnamed} runs are left out: their tags name no variant, or no seed.")

    identity = {run.id: pair for pair, run in counted.items()}
    points = histories[histories["run_id"].isin(list(identity))].copy()
    points["variant"] = points["run_id"].map({run_id: variant for run_id, (variant, _) in identity.items()})
    points["seed"] = points["run_id"].map({run_id: seed for run_id, (_, seed) in identity.items()})
    cells = pd.DataFrame(
        [_cell(variant, seed, counted.get((variant.name, seed)), points) for variant in variants for seed in seeds]
    )
    finals = _finals(cells, points)
    metric = str(newest.get("metric") or "fid")
    if metric not in finals and "fid" in finals:
        notes = (*notes, f"No run has the primary metric {metric}; fid stands in its place.")
        metric = "fid"
    described = next((run.tags for run in counted.values() if "classes" in run.tags), {})
    return Unit(
        study=study,
        protocol=protocol,
        preset=runs[-1].tags.get("preset", ""),
        question=str(newest.get("question") or ""),
        paper=newest.get("paper") or None,
        baseline=str(newest.get("baseline") or ""),
        variants=variants,
        seeds=tuple(seeds),
        cells=cells,
        finals=finals,
        histories=points[["variant", "seed", "key", "step", "value"]],
        pictures=tuple(
            picture
            for pair, run in counted.items()
            for picture in _pictures(store, pair, sources.get(run.tags.get("shared_run", ""), run))
        ),
        **_classes(described),
        launched=runs[0].start,
        notes=notes,
        design=design,
        factors=tuple(newest.get("factors") or ()),
        search=_search(next(searches, None)),
        metric=metric,
        contrasts=_contrasts(newest.get("contrasts")),
    )


def _contrasts(stored: Any) -> tuple[tuple[str, str], ...]:
    """() too for what no version of ours has written."""
    pairs = stored if isinstance(stored, list) else []
    named = (pair for pair in pairs if isinstance(pair, list) and len(pair) == 2)
    return tuple((one, other) for one, other in named if isinstance(one, str) and isinstance(other, str))


def _is_plan(plan: dict[str, Any]) -> bool:
    """Whether it has what every version of ours has written."""
    variants, seeds = plan.get("variants"), plan.get("seeds")
    if not isinstance(variants, list) or not isinstance(seeds, list):
        return False
    named = all(isinstance(variant, dict) and isinstance(variant.get("name"), str) for variant in variants)
    return named and all(type(seed) is int for seed in seeds)


def _search(stored: dict[str, Any] | None) -> Search | None:
    """None too for one that no version of ours has written."""
    if stored is None:
        return None
    try:
        trials = tuple(SearchTrial(**trial) for trial in stored["trials"])
        return Search(stored["objective"], stored["fields"], trials, stored["importances"], stored["best"])
    except (KeyError, TypeError):
        return None


def _classes(tags: dict[str, str]) -> dict[str, Any]:
    """`classes` and `groups` of a unit; empty where no tags say them, or the store cut them short."""
    try:
        classes = tuple(map(str, json.loads(tags.get("classes", "[]"))))
        groups = json.loads(tags.get("groups", "{}"))
        known = range(len(classes))
        labels = {name: tuple(label for label in found if label in known) for name, found in groups.items()}
    except (ValueError, TypeError, AttributeError):
        return {"classes": (), "groups": {}}
    return {"classes": classes, "groups": labels}


def _whole(run: Run, tag: str) -> int | None:
    """A tag's whole number from 0; None where there is none."""
    text = run.tags.get(tag, "")
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _variants(plans: list[dict[str, Any]], cell_runs: list[Run]) -> tuple[Variant, ...]:
    """The union over plans, newest first; variants that only runs know of (a launch without a plan) come last.

    What a plan cannot say yet, the config of a search's best, is that of the newest run.
    """
    variants: dict[str, Variant] = {}
    for plan in plans:
        for entry in plan["variants"]:
            keys = ("name", "factors", "changes", "obstacle", "config_digest")
            variants.setdefault(entry["name"], Variant(**{key: entry[key] for key in keys if key in entry}))
    for run in reversed(cell_runs):
        variant = variants.setdefault(run.tags["variant"], Variant(run.tags["variant"]))
        digest = variant.config_digest or run.tags.get("config_digest")
        if not variant.params and run.tags.get("config_digest") == digest:
            variants[variant.name] = replace(variant, config_digest=digest, params=run.params)
    return tuple(variants.values())


def _counted(cell_runs: list[Run], variants: Iterable[Variant]) -> tuple[dict[tuple[str, int], Run], tuple[str, ...]]:
    """One run per cell: of the planned config, one with an outcome before one without, then the newest."""
    digests = {variant.name: variant.config_digest for variant in variants}
    counted: dict[tuple[str, int], Run] = {}
    outdated = 0
    for run in sorted(cell_runs, key=lambda run: ("outcome" in run.tags, run.end or run.start)):
        if digests[run.tags["variant"]] in (None, run.tags.get("config_digest")):
            counted[run.tags["variant"], int(run.tags["seed"])] = run
        else:
            outdated += 1
    if not outdated:
        return counted, ()
    runs = "1 run of an earlier config is" if outdated == 1 else f"{outdated} runs of earlier configs are"
    return counted, (f"{runs} left out: the study file has changed since.",)


_STATES = {"RUNNING": "running", "SCHEDULED": "running", "FAILED": "failed", "KILLED": "interrupted"}


def _cell(variant: Variant, seed: int, run: Run | None, points: pd.DataFrame) -> dict[str, Any]:
    row: dict[str, Any] = {"variant": variant.name, "seed": seed}
    if run is None:
        empty = dict.fromkeys(("step", "steps", "endpoint", "run_id", "seconds", *CELL_TAGS))
        return {**row, "state": variant.obstacle or "missing", **empty}
    reached = points.loc[points["run_id"] == run.id, "step"].max()
    last, steps = _whole(run, "last_step"), run.params.get("optim.steps", "")
    endpoint = run.params.get("eval.endpoint", "1")  # runs of earlier versions were scored by the last alone
    step = last if last is not None else None if pd.isna(reached) else int(reached)
    return {
        **row,
        "state": run.tags.get("outcome") or _STATES.get(run.status, "interrupted"),
        "step": step,
        "steps": int(steps) if steps.isdecimal() else None,
        "endpoint": int(endpoint) if re.fullmatch("[1-9][0-9]{0,8}", endpoint) else 1,
        "run_id": run.id,
        "seconds": None if run.end is None else (run.end - run.start) / 1000,
        **{tag: run.tags.get(tag) for tag in CELL_TAGS},
    }


def _finals(cells: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """The scores of finished cells, the last finite values of the others.

    A finished cell whose last evaluations gave no value, or fewer than its `endpoint`, has no score: those before
    belong to other steps than its fellows'.
    """
    ends = cells[cells["state"] == "finished"].set_index("run_id")["step"]
    known = points[points["value"].notna()]
    trace = known["key"].str.startswith(TRACES)
    end = known["run_id"].map(ends)
    at_end = known["step"] == end.fillna(known["step"])
    last = known[trace | at_end].drop_duplicates(["run_id", "key"], keep="last").set_index(["run_id", "key"])["value"]
    averaged = cells[(cells["state"] == "finished") & (cells["endpoint"] > 1)].set_index("run_id")["endpoint"]
    scored = known[~trace & ~known["key"].str.startswith("best/") & known["run_id"].isin(averaged.index)]
    for run_id, of_run in scored.groupby("run_id", sort=False):
        count = int(averaged.loc[str(run_id)])
        for key, found in of_run.groupby("key", sort=False):
            if (run_id, key) in last.index:
                values = found["value"].to_numpy()[-count:]
                last.loc[pd.IndexSlice[run_id, key]] = (
                    run_score(str(key), values.tolist()) if len(values) == count else np.nan
                )
    wide = last.unstack("key") if len(last) else pd.DataFrame()
    return wide.reindex(cells["run_id"]).reset_index(drop=True).rename_axis(columns=None)


def _pictures(store: Store, pair: tuple[str, int], run: Run) -> list[Picture]:
    tile = _whole(run, "tile_px")
    found = []
    for kind in ("samples", "attention"):
        for path in store.artifacts(run, kind):
            step = path.stem.removeprefix("step_")
            if step.isdecimal():
                found.append(Picture(*pair, kind, printable(path.parent.name), int(step), path, tile))
    return found
