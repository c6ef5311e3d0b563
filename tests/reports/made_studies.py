"""Made-up results of each kind of study, without a store: what tables and figures are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from reports.comparison import mark_unneeded_cells, progress
from reports.results import CELL_TAGS, Adaptive, Picture, Results, Search, SearchTrial, Variant

FINGERPRINT = (
    "embedded-v1@1a2b3c4d; 2000 samples; reference 6000 train; resize none; bn standing; ema; torch-fidelity 0.4.0"
)
CLASSES = ("stripes", "checks", "blobs", "twins", "rings", "frames")
GROUPS = {"texture": (0, 1, 2), "geometry": (3, 4, 5)}
STEPS = tuple(range(250, 2001, 250))
LADDER = ("sn_d", "sn_g_d", "sn_g_d_ttur")
RESIDUAL = ("none", *(f"{kind}{size}" for kind in ("feat", "residual", "residual_flops") for size in (8, 16, 32, 64)))


def results(
    levels: Mapping[str, float],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    ends: Mapping[tuple[str, int], tuple[str, int]] | None = None,
    baseline: str | None = None,
    pictures: Path | None = None,
    changes: Mapping[str, dict[str, Any]] | None = None,
    **fields: Any,
) -> Results:
    """Finished runs that reach `levels` ({variant: FD}) but for `ends` ({(variant, seed): (state, step)})."""
    ends, changes = ends or {}, changes or {}
    cells, final_scores, histories, drawn = [], [], [], []
    for place, (name, level) in enumerate(levels.items()):
        for seed in seeds:
            state, last = ends.get((name, seed), ("finished", STEPS[-1]))
            rng = np.random.default_rng([place, seed])
            steps = [step for step in STEPS if step <= last and state not in ("missing", "needs 128 px")]
            points = [point for step in steps for point in evaluation(level, seed, step, rng, state)]
            cells.append(_cell(name, seed, state, last if steps else None, 2000))
            final_scores.append({key: value for key, value, _ in points})
            histories += [(name, seed, key, step, value) for key, value, step in points]
            if pictures is not None and seed == seeds[0] and steps:
                drawn += _pictures(pictures, name, seed, steps, level)
    errors = {name: state for (name, _), (state, _) in ends.items() if state.startswith("needs")}
    factors = {name: dict(zip(fields.get("factors", ()), name.split("+"), strict=False)) for name in levels}
    variants = tuple(Variant(name, factors[name], changes.get(name, {}), errors.get(name)) for name in levels)
    values: dict[str, Any] = {"study": "made_up", "question": "Which?", "paper": None, "classes": CLASSES,
                              "groups": GROUPS, "pictures": tuple(drawn),
                              "baseline": baseline or next(iter(levels))}  # fmt: skip
    return _results(variants, seeds, cells, pd.DataFrame(final_scores), histories, **(values | fields))


def make_results(
    fid: Mapping[str, Mapping[int, float]],
    *,
    build_errors: Mapping[str, str] | None = None,
    states: Mapping[tuple[str, int], str] | None = None,
    seeds: tuple[int, ...] = (),
    **fields: Any,
) -> Results:
    """Results of the final score of each variant and seed; cells that have none are missing."""
    build_errors, states = build_errors or {}, states or {}
    variants = tuple(Variant(name, build_error=build_errors.get(name)) for name in fid)
    seeds = tuple(sorted({*seeds, *(seed for values in fid.values() for seed in values)}))
    cells, scores = [], []
    for name, values in fid.items():
        for seed in seeds:
            state = build_errors.get(name) or states.get((name, seed)) or ("finished" if seed in values else "missing")
            cells.append(_cell(name, seed, state, 1000 if seed in values else None, 1000))
            scores.append(values.get(seed, float("nan")))
    return _results(variants, seeds, cells, pd.DataFrame({"fid": scores}), [], **fields)


def _cell(variant: str, seed: int, state: str, step: int | None, steps: int) -> dict[str, Any]:
    """A row of `Results.cells`; one without a step has not run."""
    row = {"variant": variant, "seed": seed, "state": state, "step": step, "steps": steps, "run_id": None,
           "seconds": 60.0, "endpoint": 1, **dict.fromkeys(CELL_TAGS)}  # fmt: skip
    ran = {"run_id": f"{variant}/{seed}", "data_fingerprint": "data", "metric_fingerprint": FINGERPRINT}
    return row if step is None else row | ran


def _results(
    variants: tuple[Variant, ...], seeds: Sequence[int], cells: list[dict[str, Any]], final_scores: pd.DataFrame,
    histories: list[tuple[Any, ...]], **fields: Any,
) -> Results:  # fmt: skip
    values: dict[str, Any] = {
        "study": "attention_position", "protocol": "embedded", "preset": "embedded", "question": "Where?",
        "paper": "table1", "baseline": "none", "variants": variants, "seeds": tuple(seeds), "launched": 0,
        "cells": pd.DataFrame(cells), "final_scores": final_scores, "pictures": (), "classes": (), "groups": {},
        "histories": pd.DataFrame(histories, columns=["variant", "seed", "key", "step", "value"]),
    }  # fmt: skip
    return Results(**(values | fields))


def ladder(pictures: Path | None = None, **fields: Any) -> Results:
    """The stabilisation study: the first rung collapses on every seed, the second on one."""
    ends = {("sn_d", seed): ("collapsed", 500 + 250 * seed) for seed in (0, 1, 2)}
    ends["sn_g_d", 2] = ("collapsed", 1500)
    levels = dict(zip(LADDER, (160.0, 34.0, 22.0), strict=True))
    made = results(levels, ends=ends, pictures=pictures, design="ladder", paper="figure3", **fields)
    rates = {"sn_d": (2e-4, 2e-4), "sn_g_d": (2e-4, 2e-4), "sn_g_d_ttur": (1e-4, 4e-4)}
    params = {name: {"optim.lr_g": str(lr_g), "optim.lr_d": str(lr_d)} for name, (lr_g, lr_d) in rates.items()}
    return described(made, params=params)


def recipe(**fields: Any) -> Results:
    levels = {"public": 34.0, "sn_cbn": 33.0, "sn_eps": 33.4, "bn_statistics": 24.0, "ema": 15.0, "init": 14.8,
              "h_flip": 12.6}  # fmt: skip
    added: dict[str, dict[str, Any]] = {"sn_cbn": {"model.sn.cbn": False}, "sn_eps": {"model.sn.eps": 1e-8}}
    changes: dict[str, dict[str, Any]] = {}
    for name in levels:
        changes[name] = {**(changes[next(reversed(changes))] if changes else {}), **added.get(name, {})}
    return results(levels, changes=changes, design="ladder", paper="recipe_gap", **fields)


def rate_grid(**fields: Any) -> Results:
    """Four rates by four; two cells collapsed on every seed, one on one, one is missing."""
    rates = (1e-4, 2e-4, 4e-4, 8e-4)
    pairs = {f"g{lr_g:.0e}+d{lr_d:.0e}".replace("e-0", "e-"): (lr_g, lr_d) for lr_g in rates for lr_d in rates}
    levels = {name: 12 + 9 * math.log2(lr_d / lr_g / 4) ** 2 for name, (lr_g, lr_d) in pairs.items()}
    ends = {(name, seed): ("collapsed", 500) for name in ("g8e-4+d1e-4", "g4e-4+d1e-4") for seed in (0, 1, 2)}
    ends["g8e-4+d2e-4", 1] = ("diverged", 750)
    ends.update({("g8e-4+d8e-4", seed): ("missing", 0) for seed in (0, 1, 2)})
    changes = {name: {"optim.lr_g": lr_g, "optim.lr_d": lr_d} for name, (lr_g, lr_d) in pairs.items()}
    return results(levels, ends=ends, changes=changes, baseline="g1e-4+d4e-4", design="grid", factors=("lr_g", "lr_d"),
                **fields)  # fmt: skip


def residual(**fields: Any) -> Results:
    """The complete Table 1 of the paper, with two controls: thirteen variants, those at 64 impossible."""
    parts = {name: name.rstrip("0123456789") for name in RESIDUAL}
    start = {"none": 13, "feat": 9, "residual": 12.5, "residual_flops": 12}
    levels = {name: start[kind] - 0.01 * int("0" + name.removeprefix(kind)) for name, kind in parts.items()}
    ends = {(name, seed): ("needs 128 px", 0) for name in RESIDUAL if name.endswith("64") for seed in (0, 1, 2)}
    changes = {name: {"model.attention.at": [int(name.removeprefix(kind))],
                      **({} if kind == "feat" else {"model.attention.kind": kind})}
               for name, kind in parts.items() if kind != "none"}  # fmt: skip
    return results(levels, ends=ends, changes=changes, paper="table1", **fields)


def comparison(**fields: Any) -> Results:
    levels = {"acgan": 41.0, "sngan_projection": 27.0, "sagan": 18.0}
    return results(levels, baseline="sngan_projection", paper="table2", **fields)


def search(confirmed: bool = True, **fields: Any) -> Results:
    """Twelve trials, of which one failed, one collapsed and one still runs; the best is confirmed, or is not yet."""
    rng = np.random.default_rng(0)
    states = {3: "failed", 5: "collapsed", 11: "running"}
    trials = tuple(
        SearchTrial(number, f"trial{number:02}",
                    {"optim.lr_g": 10 ** rng.uniform(-4, -3), "optim.d_steps": 1 + number % 2},
                    None if number in states else float(60 * 0.85**number + rng.uniform(0, 25)),
                    states.get(number, "complete"))
        for number in range(12)
    )  # fmt: skip
    space = {"optim.lr_g": {"low": 1e-4, "high": 1e-3, "log": True}, "optim.d_steps": {"choices": [1, 2]}}
    shares = {"optim.lr_g": 0.71, "optim.lr_d": 0.24, "optim.d_steps": 0.05}
    found = Search("fid", space, trials, shares, "trial10")
    ends = {(name, seed): ("missing", 0) for name in ("preset", "best") for seed in (0, 1, 2) if not confirmed}
    return results({"preset": 22.0, "best": 17.0}, ends=ends, design="search", search=found, **fields)


def switches(**fields: Any) -> Results:
    """Spectral norm of G and of D, each on and off."""
    levels = {"g_off+d_off": 40.0, "g_off+d_on": 30.0, "g_on+d_off": 38.0, "g_on+d_on": 24.0}
    made = results(levels, design="grid", factors=("sn_g", "sn_d"), **fields)
    return described(made, params=dict.fromkeys(levels, {"optim.lr_g": "0.0002", "optim.lr_d": "0.0002"}))


def adaptive(most: int = 12, until: int = 100) -> Results:
    """Seeds as the looks of a study ask for them: a clear effect, a small one, none, and a run that collapsed.

    `until` is the number of looks after which the launch was stopped.
    """
    seeds = tuple(range(20, 20 + most))
    levels = {"none": 1.0, "feat8": 1.0, "feat16": 0.6, "feat32": 0.93}
    rng = np.random.default_rng(3)
    drawn = {name: dict(zip(seeds, level * np.exp(rng.normal(0, 0.07, most)), strict=True))
             for name, level in levels.items()}  # fmt: skip
    shown: dict[str, dict[int, float]] = {name: {} for name in drawn}
    for look in range(100):
        made = make_results(
            shown, seeds=seeds, states={("feat32", 21): "collapsed"} if look else None, question="Where?"
        )
        made = mark_unneeded_cells(replace(made, paper=None, study="adaptive", adaptive=Adaptive(3, seeds, 0.2)))
        looked = progress(made)
        assert looked is not None
        if not looked.wanted or look == until:
            break
        for name, place in looked.wanted:
            shown[name][seeds[place]] = float(drawn[name][seeds[place]])
    return made


def geometric(values: Mapping[int, float]) -> float:
    return float(np.exp(np.mean(np.log(list(values.values())))))


def described(results: Results, **of: dict[str, dict[str, Any]]) -> Results:
    """`changes`, `factors` and `params` of the variants, by name."""
    variants = tuple(
        replace(item, **{field: values[item.name] for field, values in of.items() if item.name in values})
        for item in results.variants
    )
    return replace(results, variants=variants)


ALL = (ladder, recipe, rate_grid, residual, comparison, search, switches, adaptive)


def evaluation(
    level: float, seed: int, step: int, rng: np.random.Generator, state: str
) -> list[tuple[str, float, int]]:
    """(key, value, step): falls to `level` and the seed's luck; a run that will collapse turns up again."""
    fid = level * (1 + 5 * math.exp(-step / 300)) + 1.5 * math.sin(seed * 9) + rng.normal(0, 0.05 * level**0.5)
    if state in ("collapsed", "diverged"):
        fid *= 1.6 + rng.uniform(0, 0.5)
    scores = {
        "fid": fid, "is": 6 - 0.4 * math.log2(1 + fid), "class_consistency": 1 / (1 + fid / 300),
        "intra_fid": 1.8 * fid, "gamma/g32": 0.3 * step / 2000, "gamma/d32": -0.1 * step / 2000,
        "logit_real": 1 + step / 1000, "logit_fake": -1.0,
        **{f"fid_group/{group}": fid * (0.7 if group == "texture" else 1.2) for group in GROUPS},
        **{f"fid_class/{name}": fid * (0.5 + 0.3 * place) + rng.normal() for place, name in enumerate(CLASSES)},
    }  # fmt: skip
    return [(key, value, step) for key, value in scores.items()]


def _pictures(folder: Path, variant: str, seed: int, steps: Sequence[int], level: float) -> list[Picture]:
    """A sample grid at each evaluation and, at the last, attention maps of two layers."""
    found = []
    for step in steps:
        path = folder / f"{variant}-{step}.png"
        Image.fromarray(sample_grid(level * 3 * (1 + 4 * math.exp(-step / 300)))).save(path)
        found.append(Picture(variant, seed, "samples", "samples", step, path, 32))
    for side in (16, 32):
        path = folder / f"{variant}-g{side}.npz"
        np.savez(path, **attention_map(side))
        found.append(Picture(variant, seed, "attention", f"g{side}", steps[-1], path, None))
    return found


def sample_grid(noise: float) -> np.ndarray:
    """Six rows of eight pictures of 32 px."""
    rows = [np.concatenate([_tile(label, column, noise) for column in range(8)], axis=1) for label in range(6)]
    return np.concatenate(rows)


def attention_map(side: int) -> dict[str, np.ndarray]:
    """What a run stores of a layer: six images, and where three queries of each look."""
    queries = np.array([[side // 4, side // 4], [side // 2, side // 3], [3 * side // 4, 3 * side // 4]])
    rows, columns = np.mgrid[: side // 2, : side // 2]
    near = np.exp(
        -((rows - queries[:, 0, None, None] / 2) ** 2 + (columns - queries[:, 1, None, None] / 2) ** 2) / side
    )
    maps = np.repeat((near / near.sum((1, 2), keepdims=True))[None], 6, axis=0)
    return {"images": np.stack([_tile(label, 0, 20) for label in range(6)]), "queries": queries, "maps": maps}


def _tile(label: int, column: int, noise: float) -> np.ndarray:
    rng = np.random.default_rng([label, column])
    y, x = np.mgrid[:32, :32] / 32
    shapes = (
        np.sin(24 * x) > 0, np.sin(20 * x) * np.sin(20 * y) > 0, np.sin(9 * x + 3 * np.sin(9 * y)) > 0.2,
        np.minimum(np.hypot(x - 0.25, y - 0.5), np.hypot(x - 0.75, y - 0.5)) < 0.15,
        abs(np.hypot(x - 0.5, y - 0.5) - 0.25) < 0.07, abs(np.maximum(abs(x - 0.5), abs(y - 0.5)) - 0.25) < 0.06,
    )  # fmt: skip
    colour = np.array([(230, 160, 60), (80, 180, 220), (220, 90, 110)][rng.integers(3)])
    return np.clip(20 + shapes[label][..., None] * colour + rng.normal(0, noise, (32, 32, 3)), 0, 255).astype(np.uint8)
