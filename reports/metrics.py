"""Every metric as a report shows it: its heading, its direction, how it is compared and where it stands.

To add one, log it in `sagan/metrics/evaluation.py` and name its key here. A key that is not here is shown too: under
its own name, without a better direction, compared by differences. Nothing but definitions, so that
`reports.statistics`, and through it `ablations`, can read them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

# What is logged while training; everything else is measured on samples, at evaluations.
LOGGED_IN_TRAINING = ("loss_", "logit_", "gamma/", "attention_", "sigma_max/", "num_params_", "flops_",
                      "images_per_sec", "peak_memory")  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """How a metric is shown. `heading` has {fd}, {kd} and {is} where the name depends on the feature extractor.

    `lower` is True where lower is better, None where neither is. A `ratio` is positive and has no upper bound, so it is
    compared by its logarithm. A metric may stand in the table of scores (the first
    three of METRICS that the runs have, beside the primary one) and as a curve over training.
    """

    heading: str
    lower: bool | None = None
    ratio: bool = False
    in_scores: bool = False
    as_curve: bool = False


METRICS = {
    "relation_error": Metric("relation error", lower=True, ratio=True, in_scores=True, as_curve=True),
    "fid": Metric("{fd}", lower=True, ratio=True, in_scores=True, as_curve=True),
    "is": Metric("{is}", lower=False, in_scores=True, as_curve=True),
    "relation_correlation": Metric("relation correlation", lower=False, in_scores=True),
    "class_consistency": Metric("class consistency", lower=False, in_scores=True, as_curve=True),
    "intra_fid": Metric("intra-{fd}", lower=True, ratio=True, in_scores=True),
    "intra_fid_n": Metric("fewest images per class in intra-{fd}"),
    "fid_class": Metric("{fd}", lower=True, ratio=True),
    "fid_group": Metric("{fd}", lower=True, ratio=True),
    "fid_extrapolated": Metric("{fd}, extrapolated to infinite samples", lower=True, ratio=True),
    "fid_local": Metric("local {fd}", lower=True, ratio=True),
    "fid_se": Metric("sampling error of {fd}"),
    "real_floor": Metric("{fd} of real against real"),
    "relation_spread": Metric("relation spread (real: 1)"),
    "relation_error_se": Metric("sampling error of the relation error"),
    "relation_floor": Metric("relation error of real against real"),
    "kid": Metric("{kd}", lower=True),
    "is_mean": Metric("{is}, mean over ten splits", lower=False),
    "is_std": Metric("{is}, spread over ten splits"),
    "precision": Metric("precision", lower=False),
    "recall": Metric("recall", lower=False),
    "density": Metric("density", lower=False),
    "coverage": Metric("coverage", lower=False),
    "class_diversity": Metric("diversity within classes (real: 1)"),
    "sample_diversity": Metric("diversity against real"),
    "collapsed_classes": Metric("share of classes that collapsed", lower=True),
    "num_params_g": Metric("parameters of G"),
    "num_params_d": Metric("parameters of D"),
    "flops_per_image": Metric("operations per image, G + D"),
    "images_per_sec": Metric("images/s", lower=False),
    "peak_memory_mib": Metric("peak memory, MiB", lower=True),
    "best/step": Metric("step of the best of run"),
}


def metric(key: str) -> Metric:
    """The metric of a key as it is logged, also of one class ("relation_error/twins") and of best weights ("best/fid").

    A key that METRICS does not know has itself as its heading, and no direction.
    """
    if key in METRICS:
        return METRICS[key]
    plain = key.removeprefix("best/")
    of_best = ", best of run" if plain != key else ""
    family, _, member = plain.partition("/")
    if plain in METRICS:
        return replace(METRICS[plain], heading=METRICS[plain].heading + of_best)
    if member and family in METRICS:
        return replace(METRICS[family], heading=f"{METRICS[family].heading}, {_literal(member)}{of_best}")
    return Metric(_literal(key.replace("_", " ")))


def _literal(text: str) -> str:
    """A text from a store as a part of a heading, in which its braces stand for nothing."""
    return text.replace("{", "{{").replace("}", "}}")


def heading(key: str, fingerprint: str, arrow: bool = False) -> str:
    """What a metric is called, for the extractor of a metric fingerprint; the arrow points to better.

    Only real Inception features earn the names FID, KID and IS.
    """
    found, extractor = metric(key), extractor_of(fingerprint)
    names = {"fd": "FID", "kd": "KID", "is": "IS"}
    if not extractor.startswith("inception"):
        names = {name: f"{name.upper()} {extractor}".strip() for name in names}
    text = found.heading.format(**names)
    return text + {True: " ↓", False: " ↑", None: ""}[found.lower] if arrow else text


def extractor_of(fingerprint: str) -> str:
    """The first word of "embedded-v2@1a2b3c4d; 2000 samples; ..."."""
    return fingerprint.partition(";")[0].partition("@")[0].strip()
