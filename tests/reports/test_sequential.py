"""The sequential rule: what it does to a study of a few scores, and how often it errs in simulated ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from benchmarks.sequential_adastop import decide

from reports import sequential, statistics
from reports.sequential import Progress, Rule, looks, replay, replay_many

STUDIES = 20_000  # they know a rate of 5 % to 0.15 %


def rule_of(variants: int, most: int = 12, margin: float | None = None, log: bool = False) -> Rule:
    return Rule(looks(3, most), tuple((f"v{k}", "v0") for k in range(1, variants)), margin, log)


def names_of(rule: Rule) -> list[str]:
    return ["v0", *(variant for variant, _ in rule.pairs)]


def claims(rule: Rule, scores: np.ndarray) -> np.ndarray:
    """[studies, pairs]: whether better or worse was found."""
    labels, _ = replay_many(scores, names_of(rule), rule, lower_is_better=True)
    return np.isin(labels, [sequential.LABELS.index("better"), sequential.LABELS.index("worse")])


def study(means: list[float], sd: float = 0.1, most: int = 12, seed: int = 0) -> dict[str, list[float | None]]:
    """Scores as ratios to 20, with these mean logs."""
    rng = np.random.default_rng(seed)
    return {f"v{k}": np.exp(math.log(20) + mean + rng.normal(0, sd, most)).tolist() for k, mean in enumerate(means)}


def launched(scores: dict[str, list[float | None]], rule: Rule, rng: np.random.Generator | None = None) -> Progress:
    """Asks for cells until none is wanted; with `rng`, random ones of those end before it is asked again."""
    ended: dict[str, int] = dict.fromkeys(scores, 0)
    while True:
        known = {name: own[: ended[name]] for name, own in scores.items()}
        progress = replay(known, rule, lower_is_better=True)
        if not progress.wanted:
            return progress
        some = progress.wanted if rng is None else [cell for cell in progress.wanted if rng.random() < 0.4]
        for name, seed in some:
            ended[name] += seed == ended[name]  # a cell that ends before an earlier one of its variant waits for it


def test_looks_are_at_the_first_seed_number_the_last_and_some_between() -> None:
    assert looks(3, 12) == sequential.LOOKS
    assert looks(4, 9) == (4, 5, 6, 8, 9)
    assert looks(7, 7) == (7,)
    assert looks(10, 17) == (10, 12, 14, 16, 17)
    with pytest.raises(ValueError, match="first: must be 3 or more, got 2"):
        looks(2, 12)
    with pytest.raises(ValueError, match=r"most: must be first \(5\) or more, got 4"):
        looks(5, 4)


def test_the_first_look_is_wanted_of_every_variant_seed_by_seed() -> None:
    progress = replay({"v0": [20.0], "v1": []}, rule_of(2, log=True), lower_is_better=True)
    assert progress.wanted == [("v1", 0), ("v0", 1), ("v1", 1), ("v0", 2), ("v1", 2)]
    assert progress.looks == {} and progress.verdicts[("v1", "v0")] == sequential.Verdict("undecided", 0, None)


def test_a_decided_variant_gets_no_more_seeds_and_the_reference_gets_as_many_as_an_undecided_one() -> None:
    scores = study([0.0, -1.5, 0.13])
    rule = rule_of(3, log=True)
    progress = replay({name: own[:4] for name, own in scores.items()}, rule, lower_is_better=True)
    assert progress.verdicts[("v1", "v0")].label == "better" and progress.verdicts[("v1", "v0")].n == 3
    assert progress.wanted == [("v0", 4), ("v2", 4)]
    assert [set(gaps) for gaps in progress.looks.values()] == [set(rule.pairs), {("v2", "v0")}]


@pytest.mark.parametrize("lower_is_better, label", [(True, "better"), (False, "worse")])
def test_lower_scores_are_better_where_the_metric_says_so(lower_is_better: bool, label: str) -> None:
    assert replay(study([0.0, -1.5]), rule_of(2, log=True), lower_is_better).verdicts[("v1", "v0")].label == label


def test_a_difference_that_is_there_but_within_the_margin_is_equivalent() -> None:
    scores: dict[str, list[float | None]] = {"v0": [100.0, 100.1, 99.9], "v1": [103.0, 103.1, 102.9]}
    (verdict,) = replay(scores, rule_of(2, margin=0.05, log=True), True).verdicts.values()
    assert verdict.label == "equivalent" and verdict.gap is not None and verdict.gap.shown
    for margin, expected in ((None, "worse"), (0.02, "worse")):
        (verdict,) = replay(scores, rule_of(2, margin=margin, log=True), True).verdicts.values()
        assert verdict.label == expected


@pytest.mark.parametrize("log", [True, False])
def test_the_margin_of_a_ratio_is_the_same_from_both_sides_and_that_of_a_difference_is_of_the_reference(
    log: bool,
) -> None:
    near, far = [100.0 + d for d in (-0.01, 0, 0.01)], [110.5 + d for d in (-0.01, 0, 0.01)]
    labels = [
        replay({"v0": reference, "v1": variant}, rule_of(2, margin=0.1, log=log), True).verdicts[("v1", "v0")].label
        for reference, variant in ((near, far), (far, near))
    ]
    assert labels == (["worse", "better"] if log else ["worse", "equivalent"])  # 10.5 of 100, and 10.5 of 110.5


def test_a_variant_with_fewer_scores_than_the_first_look_stays_undecided_and_holds_up_no_other() -> None:
    scores = study([0.0, -1.5, -1.5])
    scores["v2"] = [None, *scores["v2"][1:4], *[None] * 8]
    rule = rule_of(3, log=True)
    progress = replay({name: own[:3] for name, own in scores.items()}, rule, lower_is_better=True)
    assert progress.verdicts[("v1", "v0")].label == "better"
    assert progress.verdicts[("v2", "v0")] == sequential.Verdict("undecided", 0, None)
    assert progress.wanted == [("v0", 3), ("v2", 3)]
    progress = launched(scores, rule)
    verdict = progress.verdicts[("v2", "v0")]
    assert (verdict.label, verdict.n, verdict.gap is not None and verdict.gap.n) == ("better", 4, 3)
    nothing = dict(scores, v2=[None] * 12)
    assert launched(nothing, rule).verdicts[("v2", "v0")].label == "undecided"


def test_scores_beyond_the_look_at_which_a_variant_stopped_change_nothing() -> None:
    scores = study([0.0, -1.5, 0.1])
    rule = rule_of(3, log=True)
    progress = replay(scores, rule, lower_is_better=True)
    assert progress.verdicts[("v1", "v0")].n == 3
    assert replay(dict(scores, v1=scores["v1"][:3] + [1e6] * 9), rule, lower_is_better=True) == progress


def test_a_launch_that_is_stopped_and_resumed_at_random_comes_to_the_same_verdicts() -> None:
    rng = np.random.default_rng(4)
    for seed in range(20):
        scores = study([0.0, -0.1, 0.2, 0.0], seed=seed)
        scores["v3"] = [None if rng.random() < 0.1 else score for score in scores["v3"]]
        rule = rule_of(4, margin=0.1, log=True)
        whole = launched(scores, rule)
        assert launched(scores, rule, rng) == whole == replay(scores, rule, lower_is_better=True)


def test_where_more_seeds_would_hardly_decide_none_is_asked_for() -> None:
    alike = {"v0": [20.0, 22.0, 24.0, 26.0, 28.0, 30.0], "v1": [20.1, 22.1, 23.9, 25.8, 28.2, 30.0]}
    progress = launched(alike, rule_of(2, log=True))
    (verdict,) = progress.verdicts.values()
    assert verdict.label == "undecided" and verdict.stopped_for_futility and verdict.n < 6
    assert verdict.chance is not None and verdict.chance < 0.1
    (verdict,) = replay(alike, rule_of(2, most=6, margin=0.9, log=True), True).verdicts.values()
    assert verdict.label == "equivalent"


@pytest.mark.parametrize("effect, margin", [(0.0, 1.5), (1.0, None), (0.5, 2.0)])
def test_the_predictive_power_is_the_share_of_continued_studies_that_the_last_look_decides(
    effect: float, margin: float | None
) -> None:
    # Of studies that show the same after 5 seeds, with nothing else known of the effect; the sd is known, and is 1.
    n, most, critical = 5, 12, 2.9
    rng = np.random.default_rng(1)
    truth = effect + rng.normal(0, math.sqrt(2 / n), 200_000)
    later = (n * effect + (most - n) * (truth + rng.normal(0, math.sqrt(2 / (most - n)), truth.size))) / most
    half = critical * math.sqrt(2 / most)
    expected = (np.abs(later) > half) | (np.abs(later) + half <= (-1 if margin is None else margin))
    found = sequential._predictive_power(
        n, most, np.array(effect), np.array(math.sqrt(2 / n)), critical, np.array(-1.0 if margin is None else margin)
    )
    assert float(found) == pytest.approx(expected.mean(), abs=0.005)


def test_an_interval_excludes_0_where_its_p_value_is_below_5_percent() -> None:
    boundary = sequential._boundary(looks(3, 12), ((-1.0, 1.0, 0.0), (-1.0, 0.0, 1.0)))
    for row, critical in enumerate(boundary.critical):
        assert boundary.p(critical * 1.000001, 1.0, row) < statistics.SIGNIFICANT < boundary.p(critical, 1.0, row)
    assert boundary.p(1.0, 0.0, 0) < 0.001 and boundary.p(0.0, 0.0, 0) == 1.0


def test_with_a_single_look_it_is_the_test_of_the_statistics_at_its_level() -> None:
    sizes, weights = (6,) * 4, np.eye(4)[1:] - np.eye(4)[0]
    key = statistics._key(weights)
    null = statistics._null(sizes, key)
    critical = null[-round(sequential._LEVEL * null.size)]
    assert sequential._boundary((6,), key).critical == pytest.approx([critical], rel=0.01)


def test_many_studies_are_decided_as_each_of_them_is() -> None:
    rng = np.random.default_rng(3)
    rule = Rule(looks(3, 10), (("b", "a"), ("c", "b")), 0.1, True)  # a ladder
    logs = rng.normal(0, 0.08, (60, 3, 10)) + np.array([0.0, -0.15, -0.15])[:, None]
    labels, _ = replay_many(logs, "abc", rule, lower_is_better=True)
    for place in range(60):
        scores = {name: np.exp(own).tolist() for name, own in zip("abc", logs[place], strict=True)}
        verdicts = replay(scores, rule, lower_is_better=True).verdicts
        assert [verdicts[pair].label for pair in rule.pairs] == [sequential.LABELS[label] for label in labels[place]]
    assert len(np.unique(labels)) > 2


@pytest.mark.parametrize("score", [math.nan, math.inf, 0.0])
def test_a_score_that_cannot_be_compared_is_refused(score: float) -> None:
    with pytest.raises(ValueError, match="v1: a score must be finite and above 0.*got.*None for a cell"):
        replay({"v0": [1.0], "v1": [score]}, rule_of(2, log=True), lower_is_better=True)


# How often it errs. Sds are in units of the others', effects too.


@pytest.mark.parametrize("variants", [2, 4, 8])
def test_a_false_claim_is_made_in_5_percent_of_studies_and_in_at_most_7_where_sds_differ(variants: int) -> None:
    rng, rule = np.random.default_rng(11), rule_of(variants)
    scores = rng.standard_normal((STUDIES, variants, 12))
    assert claims(rule, scores).any(1).mean() == pytest.approx(0.045, abs=0.005)
    one = [1.0] * (variants - 1)
    for sds in ([2.0, *one], [3.0, *one], [1.0, 3.0, *one[1:]], [1.0, 3.0, 2.0, 1.0, *one[3:]][:variants]):
        assert claims(rule, scores * np.array(sds)[:, None]).any(1).mean() <= 0.07, sds


@pytest.mark.parametrize("distance", [3.0, 5.0])
def test_with_one_collapsed_seed_in_ten_at_most_7_percent_make_a_false_claim(distance: float) -> None:
    rng, rule = np.random.default_rng(12), rule_of(4)
    scores = rng.standard_normal((STUDIES, 4, 12))
    assert claims(rule, scores + distance * (rng.random(scores.shape) < 0.1)).any(1).mean() <= 0.07


@pytest.mark.parametrize("margin", [None, 1.5])
def test_the_repeated_intervals_of_all_looks_jointly_cover_the_true_values_in_95_percent_of_studies(
    margin: float | None,
) -> None:
    rng, rule = np.random.default_rng(13), rule_of(4, margin=margin)
    truth = np.array([0.0, -2.0, -0.8, 0.0])
    scores = rng.standard_normal((STUDIES, 4, 12)) + truth[:, None]
    if margin is not None:
        scores, rule = scores + 1, Rule(rule.looks, rule.pairs, 1.5, False)  # the reference's mean is its unit
    missed: Any = np.zeros(STUDIES, dtype=bool)
    ended = np.full(scores.shape[:2], 12)
    for look in sequential._hold_looks(scores, ended, rule, names_of(rule), lower_is_better=True):
        missed |= (look.tested & (np.abs(look.value - truth[1:]) > look.half_width)).any(1)
    assert missed.mean() <= 0.05


def test_a_difference_as_large_as_the_margin_is_called_equivalent_in_at_most_5_percent_of_studies() -> None:
    rng, rule = np.random.default_rng(14), rule_of(2, most=20, margin=math.expm1(1.5), log=True)
    logs = rng.standard_normal((STUDIES, 2, 20)) + np.array([0.0, 1.5])[:, None]
    labels, _ = replay_many(logs, names_of(rule), rule, lower_is_better=True)
    assert (labels == sequential.LABELS.index("equivalent")).mean() <= 0.05


def test_adastop_as_written_out_decides_as_its_package_does() -> None:
    package = pytest.importorskip("adastop", reason="adastop is not installed")
    pairs, found = [(0, 1), (0, 2)], set()
    for seed in range(12):
        scores = np.random.default_rng(seed).standard_normal((3, 6)) + np.array([0.0, 1.5 * (seed % 3), 0.0])[:, None]
        theirs = package.MultipleAgentsComparator(n=3, K=2, comparisons=np.array(pairs), alpha=0.2, seed=0)
        for seeds in (3, 6):  # 400 permutations, so none is left to chance
            if not theirs.is_finished:
                theirs.partial_compare({str(arm): own[:seeds] for arm, own in enumerate(scores)}, verbose=False)
        claims, _ = decide(scores, pairs, 3, 0.2, 0)
        assert claims.tolist() == [label != "equal" for label in theirs.decisions.values()]
        found.add(tuple(claims))
    assert len(found) > 2


@pytest.mark.parametrize("effect, most", [(1.5, 14), (2.0, 14), (3.0, 12)])
def test_one_variant_of_three_is_found_as_often_as_by_adastop_in_three_quarters_of_its_runs(
    effect: float, most: int
) -> None:
    # AdaStop at the level at which its error is 5 %, tests/benchmarks/sequential_table.py has more of it.
    studies, pairs, rule = 400, [(0, 1), (0, 2), (0, 3)], rule_of(4, most)
    scores = np.random.default_rng(15).standard_normal((studies, 4, most))
    scores[:, 1] -= effect
    theirs = [decide(own[:, :12], pairs, 3, 0.02, seed, most=1000) for seed, own in enumerate(scores)]
    labels, seeds = replay_many(scores, names_of(rule), rule, lower_is_better=True)
    assert (labels[:, 0] > 0).mean() >= np.mean([claims[0] for claims, _ in theirs]) - 0.01
    assert seeds.sum(1).mean() <= 0.75 * np.mean([runs.sum() for _, runs in theirs])
