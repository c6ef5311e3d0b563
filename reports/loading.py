"""From stored runs to results: which runs count, the state of every planned cell, and the score of each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from reports.comparison import mark_unneeded_cells
from reports.metrics import LOGGED_IN_TRAINING
from reports.results import CELL_TAGS, Adaptive, Picture, Results, Search, SearchTrial, Variant
from reports.sequential import looks
from reports.statistics import on_log_scale, pooled_sd, run_score
from reports.store import Run, Store, printable

TRIAL = re.compile(r"trial\d+")  # how the variants of a search's trials are called
_STATES = {"RUNNING": "running", "SCHEDULED": "running", "FAILED": "failed", "KILLED": "interrupted"}


def load_results(store: Store) -> list[Results]:
    """Every (study, protocol) in the store, in the order of their first launch.

    One whose only launch died before it wrote its plan has nothing to show, and is left out.
    """
    stored = store.runs()
    by_id = {run.id: run for run in stored}
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in stored:
        key = run.tags.get("study", run.experiment), run.tags.get("protocol", run.tags.get("preset", ""))
        groups.setdefault(key, []).append(run)
    histories = store.histories([run for run in stored if run.tags["kind"] == "cell"])
    found = (_one_study(store, *key, group, histories, by_id) for key, group in groups.items())
    loaded = [results for results in found if results is not None]
    return [mark_unneeded_cells(replace(results, noise=_noise(results, loaded))) for results in loaded]


def _noise(results: Results, loaded: list[Results]) -> float | None:
    """`Results.noise`: over variants that were measured as this study's and trained for as many steps, as others have
    another noise."""
    if not on_log_scale(results.metric):
        return None
    steps = set(results.cells["steps"].dropna())
    groups = [
        list(own.values())
        for other in loaded
        if other is not results and other.preset == results.preset and results.fingerprint in ("", other.fingerprint)
        for variant, own in other.finished(results.metric).items()
        if own and min(own.values()) > 0 and (not steps or set(other.of(variant)["steps"].dropna()) <= steps)
    ]
    return pooled_sd(groups, log=True)


def _one_study(
    store: Store, study: str, protocol: str, runs: list[Run], histories: pd.DataFrame, by_id: dict[str, Run]
) -> Results | None:
    """`runs` are the launches and cells of one study at one protocol; `by_id` has every run of the store."""
    # The row of a study's baseline keeps its plan; in stores of the first version the runs of its launches do.
    launches = [
        run
        for run in reversed(runs)
        if run.tags["kind"] == "launch"
        or (run.tags["kind"] == "variant" and run.tags.get("variant") == run.tags.get("baseline"))
    ]
    plans = [plan for launch in launches if (plan := store.document(launch, "plan.json")) and _is_plan(plan)]
    searches = (found for launch in launches if (found := store.document(launch, "search.json")))
    design = str(plans[0].get("design") or "one_at_a_time") if plans else "one_at_a_time"
    all_cell_runs = [run for run in runs if run.tags["kind"] == "cell"]
    cell_runs = [run for run in all_cell_runs if "variant" in run.tags and _natural(run.tags.get("seed")) is not None]
    unnamed = len(all_cell_runs) - len(cell_runs)
    variants = _variants(plans, cell_runs)
    if design == "search":  # its trials choose what is compared; they are not compared themselves
        variants = tuple(variant for variant in variants if not TRIAL.fullmatch(variant.name))
        cell_runs = [run for run in cell_runs if not TRIAL.fullmatch(run.tags["variant"])]
    seeds = sorted({seed for plan in plans for seed in plan["seeds"]} | {int(run.tags["seed"]) for run in cell_runs})
    if not variants or not seeds:
        return None
    newest: dict[str, Any] = plans[0] if plans else {**runs[-1].tags, "question": ""}
    counted, outdated = _counted(cell_runs, variants)
    notes = []
    if outdated:
        left_out = "1 run of an earlier config is" if outdated == 1 else f"{outdated} runs of earlier configs are"
        notes.append(f"{left_out} left out: the study file has changed since.")
    if unnamed:
        notes.append(f"Left out, because their tags name no variant or no seed: {unnamed} of the runs.")

    points = histories[histories["run_id"].isin([run.id for run in counted.values()])].copy()
    for place, name in enumerate(("variant", "seed")):
        points[name] = points["run_id"].map({run.id: cell[place] for cell, run in counted.items()})
    cells = pd.DataFrame(
        [_cell(variant, seed, counted.get((variant.name, seed)), points) for variant in variants for seed in seeds]
    )
    final_scores = score_cells(cells, points)
    metric = str(newest.get("metric") or "fid")
    if metric not in final_scores and "fid" in final_scores:
        notes.append(f"No run has the primary metric {metric}; fid stands in its place.")
        metric = "fid"
    classes, groups = _classes(next((run.tags for run in counted.values() if "classes" in run.tags), {}))
    pictures = []
    for cell, run in counted.items():
        owner = by_id.get(run.tags.get("shared_run", ""), run)  # the run that trained it
        tile_px = _natural(owner.tags.get("tile_px"))
        for kind in ("samples", "attention"):
            for path in store.artifacts(owner, kind):
                step = path.stem.removeprefix("step_")
                if step.isdecimal():
                    pictures.append(Picture(*cell, kind, printable(path.parent.name), int(step), path, tile_px))
    return Results(
        study=study,
        protocol=protocol,
        preset=runs[-1].tags.get("preset", ""),
        question=str(newest.get("question") or ""),
        paper=newest.get("paper") or None,
        baseline=str(newest.get("baseline") or ""),
        variants=variants,
        seeds=tuple(seeds),
        cells=cells,
        final_scores=final_scores,
        histories=points[["variant", "seed", "key", "step", "value"]],
        pictures=tuple(pictures),
        classes=classes,
        groups=groups,
        launched=runs[0].start,
        notes=tuple(notes),
        design=design,
        factors=tuple(newest.get("factors") or ()),
        search=_search(next(searches, None)),
        metric=metric,
        contrasts=tuple((variant, reference) for variant, reference in newest.get("contrasts") or ()),
        adaptive=_adaptive(newest),
    )


def _is_plan(plan: dict[str, Any]) -> bool:
    """Whether it has what every version of this project has written."""
    try:
        named = all(isinstance(variant["name"], str) for variant in plan["variants"])
        return named and all(type(seed) is int for seed in plan["seeds"])
    except (KeyError, TypeError):
        return False


def _adaptive(plan: dict[str, Any]) -> Adaptive | None:
    """The adaptive seeds of a plan; None where its seeds are a list, or no version of this project has written it."""
    try:
        first, most, margin = (plan["adaptive"][name] for name in ("first", "most", "margin"))
        looks(first, most)
        valid = len(plan["seeds"]) == most and (margin is None or margin >= 0)
    except (KeyError, TypeError, ValueError):
        return None
    return Adaptive(first, tuple(plan["seeds"]), margin) if valid else None


def _search(stored: Any) -> Search | None:
    """What search.json says; None where there is none, or none that a version of this project has written."""
    try:
        trials = tuple(SearchTrial(**trial) for trial in stored["trials"])
        return Search(stored["objective"], stored["fields"], trials, stored["importances"], stored["best"])
    except (KeyError, TypeError):
        return None


def _classes(tags: dict[str, str]) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    """Class names, and {group: labels}; empty where no tags say them, or the store cut them short."""
    try:
        classes = tuple(map(str, json.loads(tags.get("classes", "[]"))))
        groups = json.loads(tags.get("groups", "{}"))
        known = range(len(classes))
        return classes, {name: tuple(label for label in found if label in known) for name, found in groups.items()}
    except (ValueError, TypeError, AttributeError):
        return (), {}


def _natural(text: str | None) -> int | None:
    """The integer, 0 or more, of a tag or a param; None where there is none."""
    return int(text) if text and re.fullmatch("[0-9]{1,18}", text) else None


def _variants(plans: list[dict[str, Any]], cell_runs: list[Run]) -> tuple[Variant, ...]:
    """The variants of all plans, newest first, then those that only runs name (a launch died before its plan).

    A plan made before a search has ended has no config of its best: it is taken from the newest run.
    """
    variants: dict[str, Variant] = {}
    for plan in plans:
        for entry in plan["variants"]:
            stored = {key: entry[key] for key in ("factors", "changes", "config_digest") if key in entry}
            # "obstacle" is the name of build_error in every plan.json that has been written.
            variant = Variant(entry["name"], build_error=entry.get("obstacle"), **stored)
            variants.setdefault(variant.name, variant)
    for run in reversed(cell_runs):
        variant = variants.setdefault(run.tags["variant"], Variant(run.tags["variant"]))
        digest = variant.config_digest or run.tags.get("config_digest")
        if not variant.params and run.tags.get("config_digest") == digest:
            variants[variant.name] = replace(variant, config_digest=digest, params=run.params)
    return tuple(variants.values())


def _counted(cell_runs: list[Run], variants: Iterable[Variant]) -> tuple[dict[tuple[str, int], Run], int]:
    """The run that counts for each cell: of the planned config, with an outcome if one has it, and the newest of these.

    Also how many runs of other configs are left out.
    """
    digests = {variant.name: variant.config_digest for variant in variants}
    planned = [run for run in cell_runs if digests[run.tags["variant"]] in (None, run.tags.get("config_digest"))]
    planned.sort(key=lambda run: ("outcome" in run.tags, run.end or run.start))
    counted = {(run.tags["variant"], int(run.tags["seed"])): run for run in planned}
    return counted, len(cell_runs) - len(planned)


def _cell(variant: Variant, seed: int, run: Run | None, points: pd.DataFrame) -> dict[str, Any]:
    """One row of `Results.cells`; `run` is None where the cell has not started."""
    row: dict[str, Any] = {"variant": variant.name, "seed": seed, "state": variant.build_error or "missing"}
    if run is None:
        return row | dict.fromkeys(("step", "steps", "endpoint", "run_id", "seconds", *CELL_TAGS))
    reached = points.loc[points["run_id"] == run.id, "step"].max()
    last = _natural(run.tags.get("last_step"))
    return row | {
        "state": run.tags.get("outcome") or _STATES.get(run.status, "interrupted"),
        "step": last if last is not None else None if pd.isna(reached) else int(reached),
        "steps": _natural(run.params.get("optim.steps")),
        "endpoint": _natural(run.params.get("eval.endpoint")) or 1,  # earlier versions scored by the last alone
        "run_id": run.id,
        "seconds": None if run.end is None else (run.end - run.start) / 1000,
        **{tag: run.tags.get(tag) for tag in CELL_TAGS},
    }


def score_cells(cells: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """`Results.final_scores`: the scores of finished cells, the last finite values of the others.

    A finished cell whose last evaluations gave no value, or fewer than its `endpoint`, has no score: those before
    belong to other steps than those of the cells that it is compared with.
    """
    ends = cells[cells["state"] == "finished"].set_index("run_id")["step"]
    known = points[points["value"].notna()]
    logged = known["key"].str.startswith(LOGGED_IN_TRAINING)
    end = known["run_id"].map(ends)
    at_end = known["step"] == end.fillna(known["step"])
    last = known[logged | at_end].drop_duplicates(["run_id", "key"], keep="last").set_index(["run_id", "key"])["value"]
    averaged = cells[(cells["state"] == "finished") & (cells["endpoint"] > 1)].set_index("run_id")["endpoint"]
    scored = known[~logged & ~known["key"].str.startswith("best/") & known["run_id"].isin(averaged.index)]
    for pair, found in scored.groupby(["run_id", "key"], sort=False):
        if pair in last.index:
            run_id, key = map(str, pair)
            count = int(averaged.loc[run_id])
            values = found["value"].to_list()[-count:]
            last.loc[pd.IndexSlice[run_id, key]] = run_score(key, values) if len(values) == count else np.nan
    wide = last.unstack("key") if len(last) else pd.DataFrame()
    return wide.reindex(cells["run_id"]).reset_index(drop=True).rename_axis(columns=None)
