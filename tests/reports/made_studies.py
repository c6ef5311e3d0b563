"""The studies of the paper as loaded, with made-up scores: what each kind of study looks like to a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from reports.comparison import progress, settled
from reports.results import Adaptive, Results, Search, SearchTrial

Make = Callable[..., Results]
LUCK = {0: -0.5, 1: 0.9, 2: -0.2}  # of a seed, in every arm


def scores(mean: float) -> dict[int, float]:
    noise = np.random.default_rng(int(100 * mean)).normal(0, 0.3, len(LUCK))
    return {seed: mean + luck + float(own) for (seed, luck), own in zip(LUCK.items(), noise, strict=True)}


def with_metrics(results: Results, **columns: Callable[[float], float]) -> Results:
    """More final metrics, each a function of the FID; `best__fid` stands for "best/fid"."""
    more = {name.replace("__", "/"): results.finals["fid"].map(make) for name, make in columns.items()}
    return replace(results, finals=results.finals.assign(**more))


def described(results: Results, **of: dict[str, dict[str, Any]]) -> Results:
    """`changes`, `factors` and `params` of the variants, by name."""
    variants = tuple(
        replace(item, **{field: values[item.name] for field, values in of.items() if item.name in values})
        for item in results.variants
    )
    return replace(results, variants=variants)


def attention_vs_residual(make: Make) -> Results:
    kinds = {"feat": "self_attention", "residual": "residual", "residual_flops": "residual_flops"}
    gain = {"feat": 3.0, "residual": 0.5, "residual_flops": 1.0}
    names = {f"{prefix}{side}": (prefix, side) for prefix in kinds for side in (8, 16, 32, 64)}
    fid = {name: scores(20 - gain[prefix] - side / 40) if side < 64 else {}
           for name, (prefix, side) in names.items()}  # fmt: skip
    results = make({"none": scores(20), **fid}, unsupported={f"{prefix}64": "needs 128 px" for prefix in kinds})
    changes = {
        name: {
            "model.attention.at": [side],
            **({} if prefix == "feat" else {"model.attention.kind": kinds[prefix]}),
        }
        for name, (prefix, side) in names.items()
    }
    results = with_metrics(results, **{"is": lambda fid: 6 - fid / 20}, num_params_g=lambda fid: 884_000.0,
                        best__fid=lambda fid: fid - 1, best__step=lambda fid: 800.0)  # fmt: skip
    return replace(described(results, changes=changes), study="attention_vs_residual")


def comparison(make: Make) -> Results:
    results = make({"acgan": scores(30), "sngan_projection": scores(22), "sagan": scores(20)},
                paper="table2", study="comparison", baseline="sngan_projection")  # fmt: skip
    return with_metrics(results, **{"is": lambda fid: 6 - fid / 20}, intra_fid=lambda fid: 2 * fid)


def spectral_norm(make: Make) -> Results:
    """The paper's outcome: SN on D alone collapses on every seed."""
    names = ("sn_d", "sn_g_d", "sn_g_d_ttur")
    results = make({"sn_d": scores(200), "sn_g_d": scores(30), "sn_g_d_ttur": scores(24)}, paper="figure3",
                design="ladder", study="spectral_norm", baseline="sn_d",
                states={("sn_d", seed): "collapsed" for seed in LUCK})  # fmt: skip
    changes: list[dict[str, Any]] = [
        {},
        {"model.sn.g": True},
        {"model.sn.g": True, "optim.lr_g": 1e-4, "optim.lr_d": 4e-4},
    ]
    params = [("0.0002", "0.0002"), ("0.0002", "0.0002"), ("0.0001", "0.0004")]
    return described(
        results,
        changes=dict(zip(names, changes, strict=True)),
        params={name: {"optim.lr_g": g, "optim.lr_d": d} for name, (g, d) in zip(names, params, strict=True)},
    )


def spectral_norm_grid(make: Make) -> Results:
    fid = {"g_off+d_off": scores(40), "g_off+d_on": scores(30), "g_on+d_off": scores(38), "g_on+d_on": scores(24)}
    results = make(fid, paper=None, design="grid", factors=("sn_g", "sn_d"), study="spectral_norm_grid",
                baseline="g_off+d_off")  # fmt: skip
    levels = {name: dict(zip(("sn_g", "sn_d"), name.split("+"), strict=True)) for name in fid}
    return described(
        results, factors=levels, params=dict.fromkeys(fid, {"optim.lr_g": "0.0002", "optim.lr_d": "0.0002"})
    )


def ttur(make: Make) -> Results:
    rates = ("1e-4", "2e-4", "4e-4")
    fid = {f"g{g}+d{d}": scores(20 + 2 * i - j) for i, g in enumerate(rates) for j, d in enumerate(rates)}
    results = make(fid, paper=None, design="grid", factors=("lr_g", "lr_d"), study="ttur", baseline="g1e-4+d4e-4")
    levels = {name: dict(zip(("lr_g", "lr_d"), name.split("+"), strict=True)) for name in fid}
    params = {name: {"optim.lr_g": found["lr_g"][1:], "optim.lr_d": found["lr_d"][1:]} for name, found in
              levels.items()}  # fmt: skip
    return described(results, factors=levels, params=params)


def recipe_gap(make: Make) -> Results:
    fid = {"start": scores(34), "cbn": scores(30), "eps": scores(29.9), "ema": scores(22)}
    results = make(fid, paper="recipe_gap", design="ladder", study="recipe_gap", baseline="start")
    changes: dict[str, dict[str, Any]] = {"start": {}, "cbn": {"model.sn.cbn": False}}
    changes["eps"] = {**changes["cbn"], "model.sn.eps": 1e-8}
    changes["ema"] = {**changes["eps"], "optim.ema_decay": 0.9999, "optim.ema_start": 2000}
    return described(results, changes=changes)


def search(make: Make, confirmed: bool = True) -> Results:
    trials = tuple(
        SearchTrial(number, f"trial{number:02d}", {"optim.lr_g": 1e-4 * (number + 1), "optim.d_steps": 1 + number % 2},
                    value, state)
        for number, (value, state) in enumerate(
            [(25.0, "complete"), (14.0, "complete"), (None, "failed"), (19.0, "complete"), (None, "collapsed")]
        )
    )  # fmt: skip
    fields = {"optim.lr_g": {"low": 1e-4, "high": 2e-3, "log": True}, "optim.d_steps": {"choices": [1, 2]}}
    found = Search("fid", fields, trials, {"optim.lr_g": 0.7, "optim.d_steps": 0.3}, "trial01")
    done = {"best": scores(17), "official": scores(20)}
    results = make(done, paper=None, design="search", study="ttur_search", baseline="official", search=found)
    if confirmed:
        return results
    waiting = results.cells.assign(
        state="missing", step=None, run_id=None, metric_fingerprint=None, data_fingerprint=None
    )
    return replace(results, cells=waiting, finals=results.finals * float("nan"))


def adaptive(make: Make, most: int = 12, until: int = 100) -> Results:
    """Seeds as the looks of a study ask for them: a clear effect, a small one, none, and a run that collapsed.

    `until` is the number of looks after which the launch was stopped.
    """
    seeds = tuple(range(20, 20 + most))
    levels = {"none": 1.0, "feat8": 1.0, "feat16": 0.6, "feat32": 0.93}
    rng = np.random.default_rng(3)
    drawn = {name: dict(zip(seeds, level * np.exp(rng.normal(0, 0.1, most)), strict=True))
             for name, level in levels.items()}  # fmt: skip
    shown: dict[str, dict[int, float]] = {name: {} for name in drawn}
    for look in range(100):
        results = make(shown, seeds=seeds, states={("feat32", 21): "collapsed"} if look else None, question="Where?")
        results = settled(replace(results, paper=None, study="adaptive", adaptive=Adaptive(3, seeds, 0.2)))
        looked = progress(results)
        assert looked is not None
        if not looked.wanted or look == until:
            break
        for name, place in looked.wanted:
            shown[name][seeds[place]] = float(drawn[name][seeds[place]])
    return results


def shared(results: Results, study: str, variant: str) -> Results:
    column = pd.Series([study if name == variant else None for name in results.cells["variant"]])
    return replace(results, cells=results.cells.assign(shared_study=column))


ALL = (attention_vs_residual, comparison, spectral_norm, spectral_norm_grid, ttur, recipe_gap, search, adaptive)
