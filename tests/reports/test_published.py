"""The published results: verdicts and shipped noise follow from their scores, by the plan of the study file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import reports
from ablations.plan import Study
from ablations.study import read_study
from ablations.verdicts import rule
from reports import sequential, statistics
from sagan.metrics.relations import VERSION as RELATIONS_VERSION
from sagan.presets import PRESETS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "reports" / "published" / "embedded"
STUDIES = sorted(path.name.removesuffix("_results.csv") for path in FOLDER.glob("*_results.csv"))


def scores(study: Study) -> dict[str, list[float | None]]:
    """Of each variant in the order of its seeds, up to the first cell that has not ended; None: it has no score."""
    cells = reports.load(study.name, FOLDER).cells
    found: dict[str, list[float | None]] = {}
    for variant in study.variants():  # in this order critical values are simulated
        own = found.setdefault(variant.name, [])
        for cell in cells[cells["variant"] == variant.name].sort_values("seed").to_dict("records"):
            if cell["state"] not in ("finished", "collapsed", "diverged", "failed"):
                break
            own.append(cell[study.metric] if cell["state"] == "finished" else None)
    return found


@pytest.mark.parametrize("name", STUDIES)
def test_published_verdicts_follow_from_the_published_scores(name: str) -> None:
    study = read_study(ROOT / "studies" / f"{name}.yaml").with_all_trials()  # with the best of a search, whatever it is
    recorded, log = scores(study), statistics.on_log_scale(study.metric)
    comparisons = reports.load(name, FOLDER).comparisons
    primary = comparisons[(comparisons["role"] == "primary") & comparisons["verdict"].notna()]
    published = {(row["variant"], row["reference"]): row for row in primary.to_dict("records")}
    assert published.keys() == set(study.pairs)
    if study.adaptive:
        found = sequential.replay(
            recorded, rule(study, log), lower_is_better=bool(statistics.lower_is_better(study.metric))
        )
        expected = {pair: (verdict.gap, verdict.label, verdict.n) for pair, verdict in found.verdicts.items()}
        assert found.wanted == [], "the study is not finished"
    else:
        values = {variant: [score for score in own if score is not None] for variant, own in recorded.items()}
        gaps = statistics.compare(values, [statistics.pair(*pair) for pair in study.pairs], log)
        expected = {}
        for pair, gap in zip(study.pairs, gaps, strict=True):
            assert gap is not None
            better = gap.value < 0 if statistics.lower_is_better(study.metric) else gap.value > 0
            expected[pair] = gap, ("better" if better else "worse") if gap.shown else "undecided", gap.n
    for pair, (gap, label, n) in expected.items():
        row = published[pair]
        assert gap is not None and gap.low is not None and gap.high is not None
        back = math.expm1 if log else float
        ends = row["difference"], row["difference_low95"], row["difference_high95"]
        assert ends == pytest.approx(tuple(back(value) for value in (gap.value, gap.low, gap.high)), rel=1e-6)
        assert row["verdict"] == label
        if study.adaptive:
            assert row["decided_after"] == n or label == "undecided"


@pytest.mark.parametrize("metric", ["relation_error", "fid"])
def test_the_shipped_noise_is_that_of_the_published_runs(metric: str) -> None:
    cells = pd.concat([reports.load(name, FOLDER).cells for name in STUDIES])
    is_current = cells["metric_fingerprint"].str.contains(f"; relations v{RELATIONS_VERSION};", na=False)
    is_complete = (cells["state"] == "finished") & (cells["steps"] == PRESETS["embedded"].optim.steps)
    finished = cells[is_current & is_complete].drop_duplicates(["config_digest", "seed"])  # studies share cells
    variants = [list(np.log(scores)) for _, scores in finished.groupby("config_digest")[metric]]
    assert statistics.pooled_sd(variants) == pytest.approx(statistics.shipped_noise("embedded", metric), abs=0.0051)
