"""What a report knows of a metric by its key."""

from __future__ import annotations

import pytest

from ablations.plan import PRIMARY_METRICS
from reports.metrics import METRICS, heading, metric

EMBEDDED, INCEPTION = "embedded-v2@1a2b; 2000 samples", "inception-v3@ff; 50000 samples"


def test_every_metric_that_a_study_may_answer_by_is_defined() -> None:
    assert set(PRIMARY_METRICS) <= METRICS.keys()


@pytest.mark.parametrize(
    "key, name",
    [
        ("fid", "FD embedded-v2 ↓"),
        ("fid_class/oak", "FD embedded-v2, oak ↓"),
        ("fid_group/far", "FD embedded-v2, far ↓"),
        ("relation_error/twins", "relation error, twins ↓"),
        ("best/is", "IS embedded-v2, best of run ↑"),
        ("best/step", "step of the best of run"),
        ("fid_class/{fd} {}", "FD embedded-v2, {fd} {} ↓"),
        ("{is}_of/late", "{is} of/late"),
        ("fid_class/", "fid class/"),
    ],
)
def test_a_heading_follows_from_the_key_also_of_a_class_a_group_and_the_best_weights(key: str, name: str) -> None:
    assert heading(key, EMBEDDED, arrow=True) == name


def test_only_inception_features_earn_the_names_fid_kid_and_is() -> None:
    assert [heading(key, INCEPTION) for key in ("fid", "kid", "is")] == ["FID", "KID", "IS"]
    assert [heading(key, "") for key in ("fid", "kid", "is")] == ["FD", "KD", "IS"]


def test_what_is_positive_and_unbounded_is_compared_as_a_ratio_and_kid_which_may_be_negative_is_not() -> None:
    ratios = {"fid", "fid_extrapolated", "fid_local", "intra_fid", "fid_class/oak", "fid_group/far", "relation_error",
              "relation_error/twins", "best/fid"}  # fmt: skip
    others = {"kid", "is", "recall", "relation_spread", "fid_se", "best/step", "loss_d", "fid_class/"}
    assert {key for key in ratios | others if metric(key).ratio} == ratios
