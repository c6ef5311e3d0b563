"""Made-up loaded of each kind of study, without a store: what the figures are drawn from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from reports.results import CELL_TAGS, Picture, Results, Search, SearchTrial, Variant

FINGERPRINT = "embedded-v1@1a2b3c4d; 1200 samples; reference 6000 train; ema"
CLASSES = ("stripes", "checks", "blobs", "twins", "rings", "frames")
GROUPS = {"texture": (0, 1, 2), "geometry": (3, 4, 5)}
STEPS = tuple(range(250, 2001, 250))
LADDER = ("sn_d", "sn_g_d", "sn_g_d_ttur")
RESIDUAL = ("none", *(f"{kind}{size}" for kind in ("feat", "residual", "residual_flops") for size in (8, 16, 32, 64)))
SIZES = (8, 16, 32, 64)


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
    cells, finals, histories, drawn = [], [], [], []
    for place, (name, level) in enumerate(levels.items()):
        for seed in seeds:
            state, last = ends.get((name, seed), ("finished", STEPS[-1]))
            rng = np.random.default_rng([place, seed])
            runs = state not in ("missing", "needs 128 px")
            points = [
                point for step in STEPS if step <= last and runs for point in _scores(level, seed, step, rng, state)
            ]
            tags = {"data_fingerprint": "data", "metric_fingerprint": FINGERPRINT} if runs else {}
            cells.append({"variant": name, "seed": seed, "state": state, "step": last if runs else None, "steps": 2000,
                          "run_id": f"{name}/{seed}" if runs else None, "seconds": 60.0, "endpoint": 1,
                          **dict.fromkeys(CELL_TAGS),
                          **tags})  # fmt: skip
            finals.append({key: value for key, value, _ in points})
            histories += [{"variant": name, "seed": seed, "key": key, "step": step, "value": value}
                          for key, value, step in points]  # fmt: skip
            if pictures is not None and seed == seeds[0] and runs:
                drawn += _pictures(pictures, name, seed, last, level)
    values: dict[str, Any] = {
        "study": "made_up", "protocol": "embedded", "preset": "embedded", "question": "Which?", "paper": None,
        "baseline": baseline or next(iter(levels)), "seeds": tuple(seeds), "cells": pd.DataFrame(cells),
        "variants": tuple(Variant(name, {}, changes.get(name, {}), _unsupported(ends, name)) for name in levels),
        "finals": pd.DataFrame(finals), "pictures": tuple(drawn), "classes": CLASSES, "groups": GROUPS, "launched": 0,
        "histories": pd.DataFrame(histories, columns=["variant", "seed", "key", "step", "value"]),
    }  # fmt: skip
    return Results(**{**values, **fields})


def _unsupported(ends: Mapping[tuple[str, int], tuple[str, int]], variant: str) -> str | None:
    states = [state for (name, _), (state, _) in ends.items() if name == variant]
    return next((state for state in states if state.startswith("needs")), None)


def ladder(pictures: Path | None = None, **fields: Any) -> Results:
    """The stabilisation study: the first rung collapses on every seed, the second on one."""
    ends = {("sn_d", seed): ("collapsed", 500 + 250 * seed) for seed in (0, 1, 2)}
    ends["sn_g_d", 2] = ("collapsed", 1500)
    levels = dict(zip(LADDER, (160.0, 34.0, 22.0), strict=True))
    return results(levels, ends=ends, pictures=pictures, design="ladder", paper="figure3", **fields)


def recipe(**fields: Any) -> Results:
    levels = {"public": 34.0, "sn_cbn": 33.0, "sn_eps": 33.4, "bn_statistics": 24.0, "ema": 15.0, "init": 14.8,
              "h_flip": 12.6}  # fmt: skip
    return results(levels, design="ladder", paper="recipe_gap", **fields)


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
    """The paper's Table 1 whole, with two controls: thirteen variants, those at 64 impossible."""
    levels = {name: 11 - 0.02 * int("0" + name.lstrip("abcdefghijklmnopqrstuvwxyz_")) for name in RESIDUAL}
    ends = {(name, seed): ("needs 128 px", 0) for name in RESIDUAL if name.endswith("64") for seed in (0, 1, 2)}
    return results(levels, ends=ends, paper="table1", **fields)


def comparison(**fields: Any) -> Results:
    levels = {"acgan": 41.0, "sngan_projection": 27.0, "sagan": 18.0}
    return results(levels, baseline="sngan_projection", paper="table2", **fields)


def search(**fields: Any) -> Results:
    """Twelve trials, of which one failed, one collapsed and one still runs; the best is confirmed."""
    rng = np.random.default_rng(0)
    states = {3: "failed", 5: "collapsed", 11: "running"}
    trials = tuple(
        SearchTrial(number, f"trial{number:02}", {"optim.lr_g": 10 ** rng.uniform(-4, -3)},
                    None if number in states else float(60 * 0.85**number + rng.uniform(0, 25)),
                    states.get(number, "complete"))
        for number in range(12)
    )  # fmt: skip
    space = {"optim.lr_g": {"low": 1e-4, "high": 1e-3, "log": True}}
    shares = {"optim.lr_g": 0.71, "optim.lr_d": 0.24, "optim.d_steps": 0.05}
    found = Search("fid", space, trials, shares, "trial10")
    return results({"preset": 22.0, "best": 17.0}, design="search", search=found, **fields)


def _scores(level: float, seed: int, step: int, rng: np.random.Generator, state: str) -> list[tuple[str, float, int]]:
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


def _pictures(folder: Path, variant: str, seed: int, last: int, level: float) -> list[Picture]:
    """A sample grid at each evaluation and, at the last, attention maps of two layers."""
    found = []
    for step in STEPS:
        if step > last:
            break
        noise = level * 3 * (1 + 4 * math.exp(-step / 300))
        rows = [np.concatenate([_tile(label, column, noise) for column in range(8)], axis=1) for label in range(6)]
        path = folder / f"{variant}-{step}.png"
        Image.fromarray(np.concatenate(rows)).save(path)
        found.append(Picture(variant, seed, "samples", "samples", step, path, 32))
    for side in (16, 32):
        queries = np.array([[side // 4, side // 4], [side // 2, side // 3], [3 * side // 4, 3 * side // 4]])
        rows_, columns = np.mgrid[: side // 2, : side // 2]
        near = np.exp(
            -((rows_ - queries[:, 0, None, None] / 2) ** 2 + (columns - queries[:, 1, None, None] / 2) ** 2) / side
        )
        maps = np.repeat((near / near.sum((1, 2), keepdims=True))[None], 6, axis=0)
        path = folder / f"{variant}-g{side}.npz"
        np.savez(path, images=np.stack([_tile(label, 0, 20) for label in range(6)]), queries=queries, maps=maps)
        found.append(Picture(variant, seed, "attention", f"g{side}", last, path, None))
    return found


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
